"""One valid call of each public function, on the smallest models: what bad inputs start from."""

import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import wsa_jax
from tests.tiny import INFO
from wsa_jax import data, federated, files, merging, models, tree
from wsa_jax.training import (
    FitSettings,
    classification,
    classification_task,
    evaluate,
    fit,
)

KEY = jax.random.key(0)
TASK = classification(models.MLP(features=(4, 3)), INFO)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 16, (24, 3, 3, 1)).astype(np.uint8)
LABELS = RNG.integers(0, 3, 24).astype(np.int32)
FIRST, SECOND, THIRD = (jax.jit(TASK.init)(jax.random.key(seed))[0] for seed in range(3))
SCOPE = jax.jit(wsa_jax.weight_scope)(FIRST)
APPLY = models.MLP(features=(4, 3)).apply
INPUTS = jnp.ones((2, 3, 3, 1))
SPEC = merging.trace_spec(APPLY, {"params": FIRST}, INPUTS)
PARTITION = federated.iid(LABELS, clients=3, seed=0)
EXAMPLES = merging.labelled_examples(IMAGES, LABELS)
LEARNING = merging.LearningSettings(steps=2, batch_size=4)
LOCAL = federated.LocalSettings(steps=1, batch_size=4)
PATH = merging.Path(t=jnp.array([0.0, 0.5, 1.0]), loss=jnp.ones(3), accuracy=jnp.ones(3))
EVIDENCE = merging.Evidence(TASK, IMAGES, LABELS)
MODELS = [merging.Model(params, {}) for params in (FIRST, SECOND)]
VARIABLES = [{"params": params} for params in (FIRST, SECOND)]
MATCHING = merging.weight_matching(KEY, SPEC, *VARIABLES)
GRAMS = [merging.gram_matrices(APPLY, variables, INPUTS) for variables in VARIABLES]
GROUP = next(iter(SPEC.groups)) if isinstance(SPEC.groups, dict) else SPEC.groups[0].name


class _Normed(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.BatchNorm(use_running_average=True)(nn.Dense(4)(x))
        return nn.Dense(2)(nn.relu(x))


NORMED, NORMED_INPUTS = _Normed(), np.ones((2, 3), np.float32)


def _apply(params: Any, model_state: Any, inputs: Any, train: bool, key: Any) -> Any:
    return inputs @ params["w"], model_state


def _init(key: Any) -> Any:
    return {"w": jnp.zeros((4, 3))}, {}


class Call(NamedTuple):
    """A public function with arguments that it takes, by name.

    ``free`` are arguments that may be any object, such as names that a user makes up.
    """

    function: Callable[..., Any]
    arguments: dict[str, Any]
    free: tuple[str, ...] = ()


def _learned(**more: Any) -> dict[str, Any]:
    return {
        "key": KEY,
        "loss_fn": TASK.loss,
        "models": [FIRST, SECOND],
        "examples": EXAMPLES,
        "settings": LEARNING,
    } | more


def valid_calls() -> dict[str, Call]:
    """All calls by the function's public name."""
    two = {"key": KEY, "spec": SPEC, "first": VARIABLES[0], "second": VARIABLES[1]}
    several = {"spec": SPEC, "models": VARIABLES}
    read = {"activations": merging.taps(APPLY, SPEC), "inputs": IMAGES, "batch_size": 8}
    measured = {"task": TASK, "inputs": IMAGES, "labels": LABELS}
    calls = {
        "weight_scope": Call(wsa_jax.weight_scope, {"params": FIRST, "select": wsa_jax.kernels}),
        "fuse_scopes": Call(wsa_jax.fuse_scopes, {"scopes": tree.stack([SCOPE, SCOPE])}),
        "scope_divergence": Call(wsa_jax.scope_divergence, {"scope": SCOPE, "target": SCOPE}),
        "constant_target": Call(wsa_jax.constant_target, {"scope": SCOPE, "mean": 0.0, "std": 0.1}),
        "scope_penalty": Call(
            wsa_jax.scope_penalty, {"params": FIRST, "target": SCOPE, "scale": "sum"}
        ),
        "scope_gradient": Call(
            wsa_jax.scope_gradient, {"params": FIRST, "target": SCOPE, "scale": "sum"}
        ),
        "regularize_scope": Call(
            wsa_jax.regularize_scope, {"strength": 1.0, "target": SCOPE, "scale": "sum"}
        ),
        "proximal_scope": Call(
            wsa_jax.proximal_scope, {"learning_rate": 0.1, "strength": 1.0, "target": SCOPE}
        ),
        "proximal_scope_step": Call(
            wsa_jax.proximal_scope_step,
            {"params": FIRST, "target": SCOPE, "step_size": 0.1, "strength": 1.0},
        ),
        "scope_window": Call(wsa_jax.scope_window, {"strength": 1.0, "start": 0, "stop": 5}),
        "check_stability": Call(
            wsa_jax.check_stability,
            {"scope": SCOPE, "target": SCOPE, "learning_rate": 1e-4, "strength": 0.1},
        ),
        "constant_layers": Call(wsa_jax.constant_layers, {"params": FIRST}),
        "matching": Call(wsa_jax.matching, {"pattern": "Dense_0/.*"}),
        "stacked": Call(wsa_jax.stacked, {"rule": wsa_jax.kernels, "pattern": "a", "axis": 0}),
        "without": Call(wsa_jax.without, {"rule": wsa_jax.kernels, "names": ("a",)}),
        "stack": Call(tree.stack, {"models": [FIRST, SECOND]}),
        "unstack": Call(tree.unstack, {"models": tree.stack([FIRST, SECOND])}),
        "lerp": Call(tree.lerp, {"first": FIRST, "second": SECOND, "t": 0.5}),
        "weighted_mean": Call(
            tree.weighted_mean,
            {"models": tree.stack([FIRST, SECOND]), "weights": jnp.array([0.5, 0.5])},
        ),
        "dataset_info": Call(data.dataset_info, {"name": "digits"}),
        "load_dataset": Call(data.load_dataset, {"name": "digits", "split": "train"}),
        "normalize": Call(data.normalize, {"images": IMAGES, "info": INFO}),
        "augment": Call(
            data.augment, {"key": KEY, "images": jnp.ones((2, 8, 8, 1)), "mode": "batch"}
        ),
        "train_validation_split": Call(
            data.train_validation_split, {"labels": LABELS, "fraction": 0.5, "seed": 0}
        ),
        "MLP": Call(lambda **given: _initialised(models.MLP, **given), {"features": (4, 3)}),
        "CNN": Call(lambda **given: _initialised(models.CNN, **given), {"num_classes": 3}),
        "classification": Call(
            classification,
            {"module": models.MLP(features=(4, 3)), "info": INFO, "augmentation": "none"},
        ),
        "classification_task": Call(
            classification_task, {"init": _init, "apply": _apply, "settings": (("a", "b"),)}
        ),
        "FitSettings": Call(
            FitSettings, {"steps": 2, "batch_size": 4, "momentum": 0.9, "weight_decay": 0.0}
        ),
        "fit": Call(
            fit,
            {
                "key": KEY,
                "task": TASK,
                "inputs": IMAGES,
                "labels": LABELS,
                "settings": FitSettings(steps=2, batch_size=4),
                "learning_rate": 0.1,
                "target": SCOPE,
                "strength": 0.001,
                "params": FIRST,
                "model_state": {},
                "checkpoint_every": 1,
            },
        ),
        "evaluate": Call(
            evaluate, measured | {"params": FIRST, "model_state": {}, "batch_size": 8}
        ),
    }
    calls |= _federated_calls()
    calls |= {
        "average": Call(merging.average, {"models": [FIRST, SECOND], "weights": [0.5, 0.5]}),
        "slerp": Call(merging.slerp, {"first": FIRST, "second": SECOND, "t": 0.5, "per": "leaf"}),
        "ada_merge": Call(
            merging.ada_merge,
            {"key": KEY, "logits_fn": TASK.logits, "models": [FIRST, SECOND], "base": THIRD}
            | {"inputs": IMAGES, "settings": LEARNING, "learning_rate": 0.1, "init": 0.5},
        ),
        "gram_matrices": Call(
            merging.gram_matrices,
            {"apply_fn": APPLY, "variables": VARIABLES[0], "inputs": IMAGES, "batch_size": 8},
        ),
        "reg_mean": Call(
            merging.reg_mean,
            {"models": VARIABLES, "grams": GRAMS, "shrink": 0.5},
        ),
        "task_arithmetic": Call(
            merging.task_arithmetic, {"models": [FIRST, SECOND], "base": THIRD, "scale": 0.5}
        ),
        "ties": Call(
            merging.ties,
            {"models": [FIRST, SECOND], "base": THIRD, "keep": 0.5, "scale": 1.0, "per": "leaf"},
        ),
        "dare": Call(
            merging.dare, {"key": KEY, "models": [FIRST, SECOND], "base": THIRD, "drop": 0.5}
        ),
        "drop_and_rescale": Call(
            merging.drop_and_rescale, {"key": KEY, "model": FIRST, "base": THIRD, "drop": 0.5}
        ),
        "model_stock": Call(
            merging.model_stock, {"models": [FIRST, SECOND], "base": THIRD, "per": "leaf"}
        ),
        "greedy_soup": Call(
            merging.greedy_soup, measured | {"models": [FIRST, SECOND], "batch_size": 8}
        ),
        "labelled_examples": Call(
            merging.labelled_examples, {"inputs": IMAGES, "labels": LABELS, "num_classes": 3}
        ),
        "np_merge": Call(merging.np_merge, _learned(learning_rate=0.1, init=0.5)),
        "np_merge_joint": Call(merging.np_merge_joint, _learned(learning_rate=0.1)),
        "np_merge_many": Call(
            merging.np_merge_many,
            _learned(learning_rate=0.1, order="given", models=[FIRST, SECOND, THIRD]),
        ),
        "fine_tune": Call(
            merging.fine_tune,
            {
                "key": KEY,
                "loss_fn": TASK.loss,
                "params": FIRST,
                "examples": EXAMPLES,
                "settings": LEARNING,
                "learning_rate": 0.1,
            },
        ),
        "LearningSettings": Call(
            merging.LearningSettings,
            {"steps": 2, "batch_size": 4, "eval_every": 1, "granularity": "layer"},
        ),
        "Budget": Call(merging.Budget, {"steps": 2, "batch_size": 4, "held_out": 0.2}),
        "diagonal_fisher": Call(
            merging.diagonal_fisher,
            {
                "log_likelihood": merging.task_log_likelihood(TASK),
                "params": FIRST,
                "examples": EXAMPLES,
                "batch_size": 4,
            },
        ),
        "fisher_merge": Call(
            merging.fisher_merge,
            {
                "models": [FIRST, SECOND],
                "fishers": [jax.tree.map(jnp.ones_like, FIRST)] * 2,
                "weights": [0.5, 0.5],
            },
        ),
        "interpolate_path": Call(
            merging.interpolate_path,
            measured | {"first": FIRST, "second": SECOND, "num_points": 3, "batch_size": 8},
        ),
        "loss_plane": Call(
            merging.loss_plane,
            measured
            | {"first": FIRST, "second": SECOND, "third": THIRD, "resolution": 2, "margin": 0.1},
        ),
        "ensemble": Call(
            merging.ensemble,
            {
                "logits_fn": TASK.logits,
                "models": [FIRST, SECOND],
                "inputs": IMAGES,
                "labels": LABELS,
                "batch_size": 8,
            },
        ),
        "loss_barrier": Call(merging.loss_barrier, {"path": PATH, "definition": "paper"}),
        "accuracy_barrier": Call(merging.accuracy_barrier, {"path": PATH, "definition": "paper"}),
        "trace_spec": Call(
            lambda apply_fn, params, inputs: merging.trace_spec(apply_fn, params, inputs),
            {"apply_fn": APPLY, "params": VARIABLES[0], "inputs": INPUTS},
        ),
        "check_spec": Call(merging.check_spec, {"spec": SPEC, "params": VARIABLES[0]}),
        "permute_units": Call(
            merging.permute_units,
            {"spec": SPEC, "params": VARIABLES[0], "permutations": MATCHING.permutations},
        ),
        "scale_units": Call(
            merging.scale_units,
            {"spec": SPEC, "params": VARIABLES[0], "scales": {GROUP: jnp.full(4, 2.0)}},
        ),
        "scale_layer": Call(
            merging.scale_layer,
            {"spec": SPEC, "params": VARIABLES[0], "group": GROUP, "factor": 2.0},
        ),
        "check_equivalence": Call(
            lambda apply_fn, params, moved, inputs: merging.check_equivalence(
                apply_fn, params, moved, inputs
            ),
            {"apply_fn": APPLY, "params": VARIABLES[0], "moved": VARIABLES[0], "inputs": INPUTS},
        ),
        "taps": Call(merging.taps, {"apply_fn": APPLY, "spec": SPEC, "where": "consumed"}),
        "weight_matching": Call(merging.weight_matching, two | {"restarts": 1, "max_sweeps": 5}),
        "activation_matching": Call(
            merging.activation_matching,
            two | {"activations": merging.taps(APPLY, SPEC), "inputs": INPUTS},
        ),
        "weight_matching_many": Call(
            merging.weight_matching_many, {"key": KEY, "spec": SPEC, "models": VARIABLES}
        ),
        "weight_transport": Call(
            merging.weight_transport,
            several | {"solver": "exact", "epsilon": 0.1, "masses": [{}, {}], "passes": 1},
        ),
        "activation_transport": Call(
            merging.activation_transport,
            several | {**read, "solver": "exact", "epsilon": 0.1, "masses": [{}, {}]},
        ),
        "canonical_correlation": Call(
            merging.canonical_correlation, several | {**read, "regularization": 0.1}
        ),
        "zip_units": Call(
            merging.zip_units,
            several | {**read, "groups": [GROUP], "repeat": 0.5, "within": 0.5},
        ),
        "zip_merge": Call(
            merging.zip_merge,
            several | {"maps": merging.weight_transport(SPEC, VARIABLES)},
        ),
        "align": Call(merging.align, {"spec": SPEC, "second": VARIABLES[1], "found": MATCHING}),
        "rescale": Call(
            merging.rescale,
            {"spec": SPEC, "first": VARIABLES[0], "second": VARIABLES[1], "max_steps": 5},
        ),
        "normalize_scales": Call(
            merging.normalize_scales, {"spec": SPEC, "params": VARIABLES[0], "max_steps": 5}
        ),
        "repair_forward": Call(
            merging.repair_forward,
            {"apply_fn": APPLY, "merged": VARIABLES[0], "models": VARIABLES, "inputs": IMAGES[:4]}
            | {"weights": [1.0, 2.0], "batch_size": 2},
        ),
        "repair_closed_form": Call(
            merging.repair_closed_form,
            {"apply_fn": APPLY, "merged": VARIABLES[0], "models": VARIABLES, "inputs": IMAGES[:4]},
        ),
        "fold_batch_norm": Call(
            lambda apply_fn, variables, inputs: merging.fold_batch_norm(
                apply_fn, variables, inputs
            ),
            {
                "apply_fn": NORMED.apply,
                "variables": NORMED.init(KEY, NORMED_INPUTS),
                "inputs": NORMED_INPUTS,
            },
        ),
        "reset_batch_norm": Call(
            merging.reset_batch_norm,
            {"task": TASK, "params": FIRST, "model_state": {}, "inputs": IMAGES, "batch_size": 8},
        ),
        "merge_report": Call(
            merging.merge_report,
            {"task": TASK, "models": MODELS, "data": (IMAGES, LABELS), "aligns": ("none",)}
            | {"num_points": 3, "resamples": 5, "batch_size": 8, "calibration": IMAGES},
        ),
        "merge_bodies": Call(
            merging.merge_bodies,
            {"merge": merging.task_arithmetic, "models": [FIRST, SECOND], "base": THIRD}
            | {"heads": wsa_jax.matching("Dense_1/.*")},
        ),
        "head_of": Call(merging.head_of, {"spec": SPEC}),
        "merge_table, own heads": Call(
            merging.merge_table,
            {"key": KEY, "models": MODELS, "spec": SPEC, "evidence": [EVIDENCE] * 2}
            | {"test": [(IMAGES, LABELS)] * 2, "methods": ("average",), "heads": "own"},
        ),
        "merge_table": Call(
            merging.merge_table,
            {
                "key": KEY,
                "models": MODELS,
                "spec": SPEC,
                "evidence": EVIDENCE,
                "test": (IMAGES, LABELS),
                "methods": ("average",),
                "budget": merging.Budget(steps=2, batch_size=4),
            },
        ),
        **_file_calls(),
    }
    return calls


def _file_calls() -> dict[str, Call]:
    """A dense layer in a file of its own, under names of PyTorch's."""
    path = tempfile.mkdtemp() + "/model.npz"
    names = files.NameMap("dense", (files.Entry("w", "kernel", files.DENSE),))
    ours = {"kernel": np.ones((3, 2), np.float32)}
    files.save_model(path, ours, names=names)
    return {
        "open_model": Call(files.open_model, {"path": path}),
        "load_model": Call(files.load_model, {"path": path, "like": ours, "names": names}),
        "save_model": Call(
            files.save_model,
            {"path": path, "params": ours, "names": names, "shard_bytes": None},
        ),
        "flatten": Call(files.flatten, {"params": FIRST}),
        "unflatten": Call(files.unflatten, {"leaves": {"a.b": np.ones(1)}, "like": None}),
        "Entry": Call(files.Entry, {"theirs": "a.{i}", "ours": "b.{i}", "layout": files.SAME}),
        "heads_out": Call(files.heads_out, {"heads": 2}),
        "flattened": Call(files.flattened, {"channels": 1, "height": 2, "width": 3}),
    }


def _initialised(kind: Any, **given: Any) -> Any:
    return kind(**given).init(KEY, jnp.ones((1, 32, 32, 3)))


def _federated_calls() -> dict[str, Call]:
    everyone = {"labels": LABELS, "clients": 3, "seed": 0}
    calls = {
        "iid": Call(federated.iid, dict(everyone)),
        "dirichlet_equal": Call(federated.dirichlet_equal, everyone | {"alpha": 0.5}),
        "dirichlet_unequal": Call(
            federated.dirichlet_unequal, everyone | {"alpha": 0.5, "min_size": 1}
        ),
        "shards": Call(federated.shards, everyone | {"shards_per_client": 1}),
        "Partition": Call(
            federated.Partition,
            {"indices": np.array([[0, 1], [2, 3]]), "sizes": np.array([2, 2])},
        ),
        "partition_table": Call(
            federated.partition_table, {"partition": PARTITION, "labels": LABELS}
        ),
        "LocalSettings": Call(
            federated.LocalSettings,
            {
                "steps": 1,
                "batch_size": 4,
                "clip_norm": 10.0,
                "weight_decay": 0.0,
                "momentum": 0.0,
                "epochs": 1,
            },
        ),
        "Aggregation": Call(
            federated.Aggregation, {"rule": "mean", "trim": 0.1, "clip_norm": 1.0, "faulty": 1}
        ),
        "Execution": Call(
            federated.Execution, {"clients": "map", "donate": False, "evaluation_batch": 8}
        ),
        "WeightScopeAlignment": Call(
            federated.WeightScopeAlignment,
            {"strength": 0.1, "form": "gradient", "scale": "sum", "target": "fused"},
        ),
        "fed_prox": Call(federated.fed_prox, {"mu": 0.1}),
        "fed_dyn": Call(federated.fed_dyn, {"alpha": 0.1}),
        "sharpness_aware": Call(federated.sharpness_aware, {"radius": 0.1, "momentum": 0.5}),
        "dirichlet_lognormal": Call(
            federated.dirichlet_lognormal,
            {"labels": LABELS, "clients": 3, "alpha": 0.5, "sigma": 0.5, "seed": 0},
        ),
        "split_clients": Call(
            federated.split_clients, {"partition": PARTITION, "test_share": 0.25, "seed": 0}
        ),
        "as_partition": Call(federated.as_partition, {"partition": [[0, 1], [2]]}),
        "fed_avg_m": Call(federated.fed_avg_m, {"learning_rate": 1.0, "momentum": 0.9}),
        "fed_adam": Call(federated.fed_adam, {"learning_rate": 0.1, "b1": 0.9, "b2": 0.9}),
        "fed_exp": Call(federated.fed_exp, {"epsilon": 0.001, "epsilon_form": "code"}),
        "server_optimizer": Call(
            federated.server_optimizer,
            {"name": "mine", "optimizer": optax.sgd(1.0), "settings": (("rate", 1.0),)},
        ),
        "epochs_needed": Call(
            federated.epochs_needed, {"smallest": 10, "steps": 2, "batch_size": 4}
        ),
        "bytes_per_round": Call(
            federated.bytes_per_round, {"algorithm": federated.fed_avg(), "params": FIRST}
        ),
        "initial_state": Call(
            federated.initial_state,
            {
                "algorithm": federated.fed_avg(),
                "params": FIRST,
                "clients": 3,
                "target": SCOPE,
            },
        ),
        "simulate": Call(
            federated.simulate,
            {
                "key": KEY,
                "task": TASK,
                "train": (IMAGES, LABELS),
                "partition": PARTITION,
                "rounds": 1,
                "algorithm": federated.fed_avg(),
                "wsa": federated.WeightScopeAlignment(strength=0.001),
                "participants": 3,
                "learning_rate": 0.1,
                "local": LOCAL,
                "aggregation": federated.Aggregation(),
                "execution": federated.Execution(),
                "params": FIRST,
                "model_state": {},
                "test": (IMAGES, LABELS),
                "keep_local": wsa_jax.matching(".*bias"),
                "test_partition": PARTITION,
                "evaluate_every": 1,
                "directory": tempfile.mkdtemp(),
                "checkpoint_every": 1,
                "client_scopes": False,
                "progress": False,
            },
        ),
    }
    return calls
