"""Merging methods by name: each aligns, combines and repairs models on the same budget of data."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree, Shaped

from wsa_jax.merging.align import activation_matching, align, rescale, weight_matching
from wsa_jax.merging.combine.average import average
from wsa_jax.merging.combine.examples import labelled_examples
from wsa_jax.merging.combine.fine_tuning import fine_tune
from wsa_jax.merging.combine.fisher import diagonal_fisher, fisher_merge, task_log_likelihood
from wsa_jax.merging.combine.learning import LearningSettings
from wsa_jax.merging.combine.np_merge import np_merge
from wsa_jax.merging.combine.np_merge_many import np_merge_joint, np_merge_many
from wsa_jax.merging.repair.batch_norm import reset_batch_norm
from wsa_jax.merging.result import MergeResult
from wsa_jax.merging.symmetry.spec import AxisSpec
from wsa_jax.merging.symmetry.taps import taps
from wsa_jax.schedules import check_non_negative
from wsa_jax.training.evaluation import evaluate
from wsa_jax.training.task import Task
from wsa_jax.tree import stack

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
      images: examples, ``[examples, ...]``.
      labels: their labels, ``[examples]``.
    """

    task: Task
    images: Array | np.ndarray
    labels: Shaped[Array | np.ndarray, " examples"]


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
        align_key, combine_key = jax.random.split(key)
        models = align_models(
            align_key, spec, models, evidence, self.align, restarts=budget.restarts
        )
        return self.combine(combine_key, models, evidence, budget)


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
                key, spec, first, variables, _activations(spec, evidence.task), evidence.images
            )
            variables = align(spec, variables, matching)
        moved.append(Model.of(variables))
    return moved


def applicable(spec: AxisSpec, method: Any) -> bool:
    """Whether a method can be used on a model: rescaling needs groups that admit it."""
    if "rescaling" not in getattr(method, "align", ""):
        return True
    return any(group.admits != "permutation" for group in spec.groups)


def repaired(evidence: Evidence) -> Callable[[PyTree, PyTree], PyTree]:
    """``(params, model_state) -> model_state`` with BatchNorm statistics from the evidence."""

    def repair(params: PyTree, model_state: PyTree) -> PyTree:
        return reset_batch_norm(
            evidence.task, params, model_state, evidence.images, labels=evidence.labels
        )

    return repair


def uniform(key: Array, models: Sequence[Model], evidence: Evidence, budget: Budget) -> MergeResult:
    """Average parameters, and re-estimate statistics."""
    del key, budget
    params = average(stack([model.params for model in models]))
    return MergeResult(params, repaired(evidence)(params, models[0].model_state), {})


def fisher(key: Array, models: Sequence[Model], evidence: Evidence, budget: Budget) -> MergeResult:
    """Average parameters weighted by each model's diagonal Fisher information."""
    del key, budget
    examples = labelled_examples(evidence.images, evidence.labels)
    likelihood = task_log_likelihood(evidence.task)
    fishers = [
        diagonal_fisher(likelihood, model.params, examples, model_state=model.model_state)
        for model in models
    ]
    params = fisher_merge([model.params for model in models], fishers).params
    return MergeResult(params, repaired(evidence)(params, models[0].model_state), {})


def fine_tuning(
    key: Array, models: Sequence[Model], evidence: Evidence, budget: Budget
) -> MergeResult:
    """Train the average further on the evidence, with NP Merge's steps and batches."""
    start = uniform(key, models, evidence, budget)
    return fine_tune(
        key,
        evidence.task.loss,
        start.params,
        learning_rate=budget.fine_tuning_rate,
        model_state=start.model_state,
        **_learning(key, evidence, budget),
    )


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
    rest = _learning(key, evidence, budget) | {"learning_rate": budget.np_learning_rate}
    if len(models) == 2:
        return np_merge(key, evidence.task.loss, params, model_state=state, **rest)
    scores = None
    if order == "accuracy":
        images, labels = np.asarray(evidence.images), np.asarray(evidence.labels)
        means = [evaluate(evidence.task, *model, images, labels).means() for model in models]
        if "accuracy" not in means[0]:
            raise ValueError(
                "order 'accuracy' needs a task that counts correct answers; give 'given' or 'tree'"
            )
        scores = [float(found["accuracy"]) for found in means]
    return np_merge_many(
        key, evidence.task.loss, params, order=order, scores=scores, model_state=state, **rest
    )


def learned_jointly(
    key: Array, models: Sequence[Model], evidence: Evidence, budget: Budget
) -> MergeResult:
    """NP Merge of all models at once, by a softmax over models at each parameter."""
    return np_merge_joint(
        key,
        evidence.task.loss,
        [model.params for model in models],
        learning_rate=budget.np_learning_rate,
        model_state=uniform(key, models, evidence, budget).model_state,
        **_learning(key, evidence, budget),
    )


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


def _learning(key: Array, evidence: Evidence, budget: Budget) -> dict[str, Any]:
    """Examples to learn from and to select on, drawn once per key, and the repair at the end."""
    count = len(evidence.labels)
    order = np.asarray(jax.random.permutation(jax.random.fold_in(key, 1), count))
    chosen = round(budget.held_out * count)
    images, labels = np.asarray(evidence.images), np.asarray(evidence.labels)
    learn, held_out = order[chosen:], order[:chosen]
    return {
        "examples": labelled_examples(images[learn], labels[learn]),
        "held_out": labelled_examples(images[held_out], labels[held_out]) if chosen else None,
        "settings": LearningSettings(
            steps=budget.steps, batch_size=min(budget.batch_size, len(learn))
        ),
        "repair": repaired(evidence),
    }


@functools.lru_cache(maxsize=16)
def _activations(spec: AxisSpec, task: Task) -> Callable[[PyTree, Array], dict[str, Array]]:
    """The activations of every group, as a function of variables and stored images."""
    if task.logits is None:
        raise ValueError("the task has no logits, which activation matching needs; set them")
    logits = task.logits

    def apply(variables: PyTree, images: Array) -> Array:
        return logits(*Model.of(variables), images)

    return taps(apply, spec)
