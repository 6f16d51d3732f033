"""Merging methods by name: each aligns, combines and repairs models on the same budget of data."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree, Shaped

from wsa_jax import checks
from wsa_jax.door import check_fields, door
from wsa_jax.merging.align import activation_matching, align, rescale, weight_matching
from wsa_jax.merging.combine.examples import labelled_examples
from wsa_jax.merging.combine.fine_tuning import train_weights
from wsa_jax.merging.combine.fisher import diagonal_fisher, merge_by_fisher, task_log_likelihood
from wsa_jax.merging.combine.learning import Learning, LearningSettings, Repair
from wsa_jax.merging.combine.np_merge import merge_pair
from wsa_jax.merging.combine.np_merge_many import merge_jointly, merge_order, merge_pairs
from wsa_jax.merging.combine.penalties import NO_PENALTY
from wsa_jax.merging.repair.batch_norm import reset_batch_norm
from wsa_jax.merging.result import MergeResult
from wsa_jax.merging.symmetry.spec import AxisSpec
from wsa_jax.merging.symmetry.taps import taps
from wsa_jax.schedules import check_non_negative
from wsa_jax.training.evaluation import evaluate
from wsa_jax.training.task import Batch, Task
from wsa_jax.tree import stack, weighted_mean
from wsa_jax.types import Inputs

AlignName = Literal["none", "weight", "activation", "rescaling", "rescaling, weight"]


class Model(NamedTuple):
    """Parameters and the non-parameter collections that belong to them."""

    params: PyTree
    model_state: PyTree

    @property
    def variables(self) -> dict[str, PyTree]:
        """Both as one tree, Linen's variables, which specs name and aligns move."""
        return {"params": self.params, **self.model_state}

    @classmethod
    def of(cls, variables: PyTree) -> "Model":
        """The inverse of `variables`."""
        state = {name: part for name, part in variables.items() if name != "params"}
        return cls(variables["params"], state)


class Evidence(NamedTuple):
    """What methods may use besides weights: the same for all of them.

    Attributes:
      task: what the models were trained for.
      inputs: examples, an array ``[examples, ...]`` or a pytree of such arrays.
      labels: their labels, ``[examples]`` or ``[examples, ...]`` where each has several.
    """

    task: Task
    inputs: Inputs
    labels: Shaped[Array | np.ndarray, "examples ..."]

    @property
    def images(self) -> Inputs:
        """The inputs, by their earlier name."""
        return self.inputs


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What learned methods may spend.

    Attributes:
      steps: number of gradient steps.
      batch_size: examples per step; fewer where there are fewer examples.
      np_learning_rate: Adam's learning rate for NP Merge; coefficients pass through a sigmoid and
        need a far larger rate than weights.
      fine_tuning_rate: Adam's learning rate for fine-tuning.
      held_out: the fraction held out to select the best step, in [0, 1).
      restarts: starts of `weight_matching`, of which the best is kept.
    """

    steps: int = 200
    batch_size: int = 50
    np_learning_rate: float | int = 0.1
    fine_tuning_rate: float | int = 1e-3
    held_out: float | int = 0.2
    restarts: int = 2

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("steps", "batch_size", "restarts"):
            checks.count(name, getattr(self, name))
        for name in ("np_learning_rate", "fine_tuning_rate"):
            check_non_negative(getattr(self, name), name)
        if not 0 <= self.held_out < 1:
            raise ValueError(
                f"held_out {self.held_out} is not a share in [0, 1); 0.2 is the default"
            )


Combine = Callable[[Array, Sequence[Model], Evidence, Budget], MergeResult]


@dataclass(frozen=True)
class Pipeline:
    """A method: bring all models into the first one's order, combine, repair.

    Attributes:
      align: name of an align, as in `align_models`.
      combine: ``(key, models, evidence, budget) -> MergeResult``, with BatchNorm repaired.
    """

    align: AlignName
    combine: Combine

    def __call__(
        self,
        key: Key[Array, ""],
        spec: AxisSpec,
        models: Sequence[Model],
        evidence: Evidence,
        *,
        budget: Budget,
    ) -> MergeResult:
        """Merge the models."""
        checks.models([model.variables for model in models])
        align_key, combine_key = jax.random.split(key)
        models = align_models(
            align_key, spec, models, evidence, self.align, restarts=budget.restarts
        )
        return self.combine(combine_key, models, evidence, budget)


@door
def align_models(
    key: Key[Array, ""],
    spec: AxisSpec,
    models: Sequence[Model],
    evidence: Evidence,
    name: str,
    *,
    restarts: int = 2,
) -> list[Model]:
    """Bring every model's units into correspondence with the first one's.

    Args:
      key: draws orders and restarts.
      spec: spec of ``Model.variables``, as `trace_spec` returns it.
      models: all of one architecture.
      evidence: examples for activation matching.
      name: name of the align; ``"rescaling, weight"`` applies one after the other.
      restarts: as in `weight_matching`.

    Raises:
      ValueError: rescaling where no group admits it, an unknown name, or as for the aligns.
    """
    if name not in get_args(AlignName):
        known = ", ".join(repr(known) for known in get_args(AlignName))
        raise ValueError(f"align {name!r} is unknown; give one of {known}")
    moved = [models[0]]
    for index, model in enumerate(models[1:]):
        variables, first = model.variables, models[0].variables
        if "rescaling" in name:
            variables = align(spec, variables, rescale(spec, first, variables))
        if "weight" in name:
            matching = weight_matching(
                jax.random.fold_in(key, index), spec, first, variables, restarts=restarts
            )
            variables = align(spec, variables, matching)
        if "activation" in name:
            matching = activation_matching(
                key, spec, first, variables, _activations(spec, evidence.task), evidence.inputs
            )
            variables = align(spec, variables, matching)
        moved.append(Model.of(variables))
    return moved


def applicable(spec: AxisSpec, method: Any) -> bool:
    """Whether a method can be used on a model: rescaling needs groups that admit it."""
    if "rescaling" not in getattr(method, "align", ""):
        return True
    return any(group.admits != "permutation" for group in spec.groups)


def needs_logits(method: Any) -> bool:
    """Whether a method looks at what a task's logits are computed from."""
    return "activation" in getattr(method, "align", "")


def repaired(evidence: Evidence) -> Repair:
    """``(params, model_state) -> model_state`` with BatchNorm statistics from the evidence."""

    def repair(params: PyTree, model_state: PyTree) -> PyTree:
        return reset_batch_norm(
            evidence.task, params, model_state, evidence.inputs, labels=evidence.labels
        )

    return repair


# The methods: models correspond and were checked when they came in, so none checks them again.


def uniform(key: Array, models: Sequence[Model], evidence: Evidence, budget: Budget) -> MergeResult:
    """Average parameters, and re-estimate statistics."""
    del key, budget
    params = weighted_mean(stack([model.params for model in models]), np.ones(len(models)))
    return MergeResult(params, repaired(evidence)(params, models[0].model_state), {})


def fisher(key: Array, models: Sequence[Model], evidence: Evidence, budget: Budget) -> MergeResult:
    """Average parameters weighted by each model's diagonal Fisher information."""
    del key, budget
    examples = labelled_examples(evidence.inputs, evidence.labels)
    likelihood = task_log_likelihood(evidence.task)
    fishers = [
        diagonal_fisher(likelihood, model.params, examples, model_state=model.model_state)
        for model in models
    ]
    for index, information in enumerate(fishers):
        checks.weights(information, f"the Fisher information of model {index + 1}")
    params = merge_by_fisher(
        [model.params for model in models], fishers, np.ones(len(models))
    ).params
    return MergeResult(params, repaired(evidence)(params, models[0].model_state), {})


def fine_tuning(
    key: Array, models: Sequence[Model], evidence: Evidence, budget: Budget
) -> MergeResult:
    """Train the average further on the evidence, with NP Merge's steps and batches."""
    start = uniform(key, models, evidence, budget)
    learning = _learning(key, evidence, budget, budget.fine_tuning_rate, start.model_state)
    return train_weights(key, learning, start.params)


def learned(
    key: Array,
    models: Sequence[Model],
    evidence: Evidence,
    budget: Budget,
    *,
    order: str = "given",
) -> MergeResult:
    """NP Merge of two models, or of more by pairs in a given order.

    The order ``"accuracy"`` is by the models' accuracies on the evidence.
    """
    params = [model.params for model in models]
    state = uniform(key, models, evidence, budget).model_state
    learning = _learning(key, evidence, budget, budget.np_learning_rate, state)
    if len(models) == 2:
        return merge_pair(key, learning, params[0], params[1], 0.5, NO_PENALTY)
    scores = _accuracies(models, evidence) if order == "accuracy" else None
    positions = merge_order(order, scores, len(models))
    each = dataclasses.replace(learning, repair=None)
    return merge_pairs(key, each, params, positions, order == "tree", NO_PENALTY, learning.repair)


def learned_jointly(
    key: Array, models: Sequence[Model], evidence: Evidence, budget: Budget
) -> MergeResult:
    """NP Merge of all models at once, by a softmax over models at each parameter."""
    state = uniform(key, models, evidence, budget).model_state
    learning = _learning(key, evidence, budget, budget.np_learning_rate, state)
    params = [model.params for model in models]
    return merge_jointly(key, learning, params, np.ones(len(models)), NO_PENALTY)


METHODS: dict[str, Pipeline] = {
    "average": Pipeline("none", uniform),
    "activation matching": Pipeline("activation", uniform),
    "weight matching": Pipeline("weight", uniform),
    "rescaling": Pipeline("rescaling", uniform),
    "rescaling, weight matching": Pipeline("rescaling, weight", uniform),
    "Fisher": Pipeline("weight", fisher),
    "fine-tuning": Pipeline("weight", fine_tuning),
    "NP Merge": Pipeline("weight", learned),
    "NP Merge, joint": Pipeline("weight", learned_jointly),
}
"""Methods of `merge_table` by name; a new one is a new line here."""


def _learning(
    key: Array, evidence: Evidence, budget: Budget, rate: float | int, model_state: PyTree
) -> Learning:
    """Examples to learn from and to select on, drawn once per key, and the repair at the end."""
    count = len(evidence.labels)
    order = np.asarray(jax.random.permutation(jax.random.fold_in(key, 1), count))
    chosen = round(budget.held_out * count)

    def examples(rows: np.ndarray) -> Batch:
        inputs, labels = jax.tree.map(
            lambda leaf: np.asarray(leaf)[rows], (evidence.inputs, evidence.labels)
        )
        return labelled_examples(inputs, labels)

    return Learning(
        loss_fn=evidence.task.loss,
        examples=examples(order[chosen:]),
        settings=LearningSettings(
            steps=budget.steps, batch_size=min(budget.batch_size, count - chosen)
        ),
        learning_rate=rate,
        model_state=model_state,
        held_out=examples(order[:chosen]) if chosen else None,
        repair=repaired(evidence),
    )


def _accuracies(models: Sequence[Model], evidence: Evidence) -> list[float]:
    inputs, labels = jax.tree.map(np.asarray, (evidence.inputs, evidence.labels))
    means = [evaluate(evidence.task, *model, inputs, labels).means() for model in models]
    if "accuracy" not in means[0]:
        raise ValueError(
            "order 'accuracy' needs a task that counts correct answers; give 'given' or 'tree'"
        )
    return [float(found["accuracy"]) for found in means]


@functools.lru_cache(maxsize=16)
def _activations(spec: AxisSpec, task: Task) -> Callable[[PyTree, Any], dict[str, Array]]:
    """The activations of every group, as a function of variables and stored inputs."""
    if task.logits is None:
        raise ValueError("the task has no logits, which activation matching needs; set them")
    logits = task.logits

    def apply(variables: PyTree, inputs: Inputs) -> Array:
        return logits(*Model.of(variables), inputs)

    return taps(apply, spec)
