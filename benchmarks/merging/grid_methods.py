"""What a merging grid is made of: aligns, combines and repairs, as a network admits them."""

import functools
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array

from benchmarks.merging.merge_rows import accuracy_of
from benchmarks.merging.model_cell import ModelCell
from benchmarks.record.statistics import Row
from wsa_jax.merging import Evidence, MergeResult, Model, slerp
from wsa_jax.merging.aligns import AlignName
from wsa_jax.merging.combines import Combine, learned, repaired, uniform
from wsa_jax.merging.evidence import Budget
from wsa_jax.merging.methods import Pipeline, RepairName
from wsa_jax.tree import stack, weighted_mean

Column = tuple[str, str]
"""Combine and repair."""
Rows = dict[AlignName, list[Row | None]]
"""By align, one a seed."""
ALIGNS: dict[AlignName, str] = {
    "none": "none",
    "weight": "weight matching",
    "rescaling, weight": "rescaling, weight matching",
    "activation": "activation matching",
    "weight transport": "OT Fusion, weights",
    "activation transport": "OT Fusion, activations",
    "canonical correlation": "CCA",
    "zip": "ZipIt!",
}
AVERAGE, NP = "average", "NP Merge"
RESET = "BatchNorm reset"
REPAIRS: dict[RepairName, str] = {
    "none": "none",
    "forward": "REPAIR",
    "closed form": "REPAIR, closed form",
}


def averaged(
    key: Array, models: Sequence[Model], evidence: Evidence, budget: Budget
) -> MergeResult:
    """Average parameters and statistics alike: nothing is repaired."""
    del key, evidence, budget
    merged = weighted_mean(stack([model.variables for model in models]), np.ones(len(models)))
    return MergeResult(*Model.of(merged), {})


# One program for all leaves.
_half_way = jax.jit(functools.partial(slerp, t=0.5))


def spherical(reset: bool) -> Combine:
    """Half-way on the great circle of each leaf; statistics averaged, or estimated anew."""

    def combine(
        key: Array, models: Sequence[Model], evidence: Evidence, budget: Budget
    ) -> MergeResult:
        first, second = models
        params = _half_way(first.params, second.params)
        state = averaged(key, models, evidence, budget).model_state
        return MergeResult(params, repaired(evidence)(params, state) if reset else state, {})

    return combine


def combines_of(cell: ModelCell) -> dict[Column, tuple[Combine, RepairName]]:
    """What a network's units may be combined and repaired by, by the names of both."""
    if cell.norm == "batch":
        return {
            (AVERAGE, "none"): (averaged, "none"),
            (AVERAGE, RESET): (uniform, "none"),
            ("slerp", "none"): (spherical(False), "none"),
            ("slerp", RESET): (spherical(True), "none"),
            # It learns with statistics that are estimated anew.
            (NP, RESET): (learned, "none"),
        }
    found: dict[Column, tuple[Combine, RepairName]] = {
        (name, label): (combine, repair)
        for name, combine in ((AVERAGE, averaged), ("slerp", spherical(False)), (NP, learned))
        for repair, label in REPAIRS.items()
    }
    # The closed form is of an average of units.
    for name in ("slerp", NP):
        del found[name, REPAIRS["closed form"]]
    return found


def methods_of(cell: ModelCell, align: AlignName) -> dict[str, Pipeline]:
    """All methods of an align, by name."""
    return {
        method_name(combine, repair): Pipeline(
            align, make, ("labels",) if combine == NP else (), repair=how
        )
        for (combine, repair), (make, how) in combines_of(cell).items()
    }


def method_name(combine: str, repair: str) -> str:
    """How rows and tables call a combine and its repair.

    >>> method_name("average", "none"), method_name("slerp", "REPAIR")
    ('average', 'slerp, REPAIR')
    """
    return combine if repair == "none" else f"{combine}, {repair}"


def values_of(rows: Rows, align: AlignName, combine: str, repair: str) -> list[float | None]:
    """Test accuracies of a method in percent, one a seed."""
    name = f"{ALIGNS[align]}: {method_name(combine, repair)}"
    return [accuracy_of(row, name) for row in rows.get(align, [])]


def repair_of(cell: ModelCell) -> str:
    """What mends an average of a network's units."""
    return RESET if cell.norm == "batch" else REPAIRS["forward"]


def learnt_of(cell: ModelCell) -> Column:
    """NP Merge as it is published: with statistics that are reset, and otherwise not repaired."""
    return NP, RESET if cell.norm == "batch" else "none"


def not_admitted(cell: ModelCell) -> str:
    """What a network does not admit, and why."""
    if cell.norm == "batch":
        return (
            "Not admitted: rescaling, since a BatchNorm follows the units. REPAIR is the reset of "
            "the statistics here, and NP Merge learns with statistics that are estimated anew."
        )
    return (
        "Without a norm there are no statistics to reset. The closed form of REPAIR is of an "
        "average of units, so neither of slerp's nor of NP Merge's."
    )
