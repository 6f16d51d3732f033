"""Merging methods by name: each aligns, combines and repairs models on the same budget of data."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
from jaxtyping import Array, Key, PyTree

from wsa_jax import checks
from wsa_jax.door import door
from wsa_jax.merging.align import activation_matching, align, rescale, weight_matching
from wsa_jax.merging.combine.task_vectors import check_base
from wsa_jax.merging.combines import (
    Combine,
    changes,
    fine_tuning,
    fisher,
    learned,
    learned_jointly,
    soup,
    sparse_changes,
    stock,
    trimmed_changes,
    uniform,
)
from wsa_jax.merging.evidence import Budget, Evidence, Model
from wsa_jax.merging.result import MergeResult
from wsa_jax.merging.symmetry.spec import AxisSpec
from wsa_jax.merging.symmetry.taps import taps
from wsa_jax.training.task import Task
from wsa_jax.types import Inputs

AlignName = Literal["none", "weight", "activation", "rescaling", "rescaling, weight"]
Need = Literal["labels", "base", "logits"]


@dataclass(frozen=True)
class Pipeline:
    """A method: bring all models into the first one's order, combine, repair.

    Attributes:
      align: name of an align, as in `align_models`.
      combine: ``(key, models, evidence, budget) -> MergeResult``, with BatchNorm repaired.
      needs: what the combination looks at besides weights and inputs: ``"labels"``, ``"base"``,
        ``"logits"``.
    """

    align: AlignName
    combine: Combine
    needs: tuple[Need, ...] = ()

    def __call__(
        self,
        key: Key[Array, ""],
        spec: AxisSpec,
        models: Sequence[Model],
        evidence: Evidence,
        *,
        budget: Budget,
    ) -> MergeResult:
        """Merge the models.

        Raises:
          ValueError: models that differ in a leaf or hold NaN, evidence without what is needed, or
            as for the align.
        """
        checks.models([model.variables for model in models])
        check_needs(self, "this method", models[0], evidence)
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


def lacking(method: Any, name: str, evidence: Evidence) -> str | None:
    """What a method needs and the evidence is without, with the way out; None if nothing is.

    >>> lacking(METHODS["TIES"], "TIES", Evidence(Task(len, len, len), jax.numpy.ones(2)))
    'TIES needs the model that all were fine-tuned from; give Evidence(..., base=Model(params, ...
    """
    needs = {*getattr(method, "needs", ())}
    if "activation" in getattr(method, "align", ""):
        needs.add("logits")
    if "logits" in needs and evidence.task.logits is None:
        return f"the task has no logits, which {name} needs; set them"
    if "labels" in needs and evidence.labels is None:
        return f"{name} needs labels and the evidence has none; give Evidence(task, inputs, labels)"
    if "base" in needs and evidence.base is None:
        return (
            f"{name} needs the model that all were fine-tuned from; give "
            "Evidence(..., base=Model(params, model_state))"
        )
    return None


def check_needs(method: Any, name: str, model: Model, evidence: Evidence) -> None:
    """Raise a ValueError where the evidence is without what a method needs, or its base no base."""
    lack = lacking(method, name, evidence)
    if lack:
        raise ValueError(lack)
    if "base" in getattr(method, "needs", ()) and evidence.base is not None:
        check_base(evidence.base.params, model.params)


METHODS: dict[str, Pipeline] = {
    "average": Pipeline("none", uniform),
    "activation matching": Pipeline("activation", uniform),
    "weight matching": Pipeline("weight", uniform),
    "rescaling": Pipeline("rescaling", uniform),
    "rescaling, weight matching": Pipeline("rescaling, weight", uniform),
    "Fisher": Pipeline("weight", fisher, ("labels",)),
    "fine-tuning": Pipeline("weight", fine_tuning, ("labels",)),
    "NP Merge": Pipeline("weight", learned, ("labels",)),
    "NP Merge, joint": Pipeline("weight", learned_jointly, ("labels",)),
    "greedy soup": Pipeline("weight", soup, ("labels",)),
    "task arithmetic": Pipeline("none", changes, ("base",)),
    "TIES": Pipeline("none", trimmed_changes, ("base",)),
    "DARE": Pipeline("none", sparse_changes, ("base",)),
    "Model Stock": Pipeline("none", stock, ("base",)),
}
"""Methods of `merge_table` by name; a new one is a new line here."""


@functools.lru_cache(maxsize=16)
def _activations(spec: AxisSpec, task: Task) -> Callable[[PyTree, Any], dict[str, Array]]:
    """The activations of every group, as a function of variables and stored inputs."""
    if task.logits is None:
        raise ValueError("the task has no logits, which activation matching needs; set them")
    logits = task.logits

    def apply(variables: PyTree, inputs: Inputs) -> Array:
        return logits(*Model.of(variables), inputs)

    return taps(apply, spec)
