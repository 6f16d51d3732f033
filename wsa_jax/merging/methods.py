"""Merging methods by name: each aligns, combines and repairs models on the same budget of data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
from jaxtyping import Array, Key

from wsa_jax import checks
from wsa_jax.merging.align.scale_tables import log_scales_of
from wsa_jax.merging.aligns import AlignName, align_models, reads_activations
from wsa_jax.merging.combine.task_vectors import check_base
from wsa_jax.merging.combines import (
    Combine,
    adapted,
    changes,
    fine_tuning,
    fisher,
    learned,
    learned_jointly,
    least_squares,
    soup,
    sparse_changes,
    stock,
    trimmed_changes,
    uniform,
)
from wsa_jax.merging.evidence import Budget, Evidence, Model, apply_of
from wsa_jax.merging.repair.repair_closed_form import repair_closed_form
from wsa_jax.merging.repair.repair_forward import repair_forward
from wsa_jax.merging.repair.statistics import find_statistics
from wsa_jax.merging.result import MergeResult, NotAdmittedError
from wsa_jax.merging.symmetry.spec import AxisSpec

Need = Literal["labels", "base", "logits"]
RepairName = Literal["none", "forward", "closed form"]


@dataclass(frozen=True)
class Pipeline:
    """A method: bring all models into the first one's order, combine, repair.

    Attributes:
      align: name of an align, as in `align_models`.
      combine: ``(key, models, evidence, budget) -> MergeResult``, with BatchNorm repaired.
      needs: what the combination looks at besides weights and inputs: ``"labels"``, ``"base"``,
        ``"logits"``.
      repair: what follows, ``"forward"`` or in ``"closed form"``, see `repair_forward`. A model
        with BatchNorm is repaired by its statistics, as combining leaves it.
    """

    align: AlignName
    combine: Combine
    needs: tuple[Need, ...] = ()
    repair: RepairName = "none"

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
        return self.merge(combine_key, models, evidence, budget)

    def merge(
        self, key: Key[Array, ""], models: Sequence[Model], evidence: Evidence, budget: Budget
    ) -> MergeResult:
        """Combine and repair models whose units correspond."""
        result = self.combine(key, models, evidence, budget)
        if self.repair == "none" or find_statistics(result.model_state).leaves:
            return result
        repair = repair_forward if self.repair == "forward" else repair_closed_form
        merged = Model(result.params, result.model_state).variables
        variables = [model.variables for model in models]
        repaired = repair(apply_of(evidence.task), merged, variables, evidence.inputs)
        return result._replace(params=Model.of(repaired).params)


def not_admitted(spec: AxisSpec, method: Any) -> str | None:
    """Why a model does not admit a method: rescaling needs groups to scale. None if it does."""
    if "rescaling" not in getattr(method, "align", ""):
        return None
    try:
        log_scales_of(spec, "group", None)
    except NotAdmittedError as error:
        return str(error)
    return None


def lacking(method: Any, name: str, evidence: Evidence) -> str | None:
    """What a method needs and the evidence is without, with the way out; None if nothing is.

    >>> from wsa_jax.training.task import Task
    >>> lacking(METHODS["TIES"], "TIES", Evidence(Task(len, len, len), jax.numpy.ones(2)))
    'TIES needs the model that all were fine-tuned from; give Evidence(..., base=Model(params, ...
    """
    needs = {*getattr(method, "needs", ())}
    align, repair = getattr(method, "align", ""), getattr(method, "repair", "none")
    if reads_activations(align) or repair != "none":
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
    "OT Fusion": Pipeline("activation transport", uniform),
    "OT Fusion, weights": Pipeline("weight transport", uniform),
    "OT Fusion, Sinkhorn": Pipeline("activation transport, Sinkhorn", uniform),
    "CCA Merge": Pipeline("canonical correlation", uniform),
    "ZipIt!": Pipeline("zip", uniform),
    "Fisher": Pipeline("weight", fisher, ("labels",)),
    "fine-tuning": Pipeline("weight", fine_tuning, ("labels",)),
    "NP Merge": Pipeline("weight", learned, ("labels",)),
    "NP Merge, joint": Pipeline("weight", learned_jointly, ("labels",)),
    "weight matching, REPAIR": Pipeline("weight", uniform, repair="forward"),
    "weight matching, REPAIR in closed form": Pipeline("weight", uniform, repair="closed form"),
    "RegMean": Pipeline("weight", least_squares, ("logits",)),
    "greedy soup": Pipeline("weight", soup, ("labels",)),
    "task arithmetic": Pipeline("none", changes, ("base",)),
    "TIES": Pipeline("none", trimmed_changes, ("base",)),
    "DARE": Pipeline("none", sparse_changes, ("base",)),
    "Model Stock": Pipeline("none", stock, ("base",)),
    "AdaMerging": Pipeline("none", adapted, ("base", "logits")),
}
"""Methods of `merge_table` by name; a new one is a new line here."""
