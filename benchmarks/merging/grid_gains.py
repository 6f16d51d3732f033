"""What the rows of a merging grid say: its table; gains of repair, learning, aligns and WSA."""

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.merging.grid_methods import (
    ALIGNS,
    AVERAGE,
    Rows,
    combines_of,
    learnt_of,
    method_name,
    repair_of,
    values_of,
)
from benchmarks.merging.merge_rows import endpoints
from benchmarks.merging.model_cell import ModelCell
from benchmarks.record.statistics import markdown_table, spread
from wsa_jax.merging.aligns import AlignName

MATCHED: AlignName = "weight"
"""The align after which repairs are compared."""
Line = tuple[AlignName, str, str]
"""Align, combine, repair."""


def differences(ours: Sequence[float | None], theirs: Sequence[float | None]) -> list[float]:
    """Of each seed that has both."""
    both = zip(ours, theirs, strict=True)
    return [mine - other for mine, other in both if mine is not None and other is not None]


def grid_table(cell: ModelCell, rows: Rows) -> str:
    """A line an align, a column a combine and its repair."""
    columns = list(combines_of(cell))
    head = ["align", *(method_name(*column) for column in columns), "seeds"]
    lines = []
    for align, line in rows.items():
        there = [row for row in line if row is not None]
        if not there:
            continue
        cells = [
            spread([value for value in values_of(rows, align, *column) if value is not None])
            or "not admitted"
            for column in columns
        ]
        lines.append([ALIGNS[align], *cells, str(len(there))])
    return markdown_table(head, lines)


def repair_gains(cell: ModelCell, rows: Rows, align: AlignName = MATCHED) -> list[float]:
    """The repaired average less the average as it is, in points, one a seed."""
    repair = repair_of(cell)
    return differences(
        values_of(rows, align, AVERAGE, repair), values_of(rows, align, AVERAGE, "none")
    )


def learning_gains(cell: ModelCell, rows: Rows) -> list[float]:
    """NP Merge less the repaired average: means over aligns, one a seed."""
    columns = learnt_of(cell), (AVERAGE, repair_of(cell))
    return over_lines(
        [differences(*(values_of(rows, align, *column) for column in columns)) for align in rows],
        seeds_in(rows),
    )


def seeds_in(rows: Rows) -> int:
    """How many pairs a grid was asked for."""
    return len(next(iter(rows.values())))


def over_lines(lines: Sequence[Sequence[float]], seeds: int) -> list[float]:
    """Means over the lines that all seeds have, one a seed."""
    full = [line for line in lines if len(line) == seeds]
    return [float(np.mean(seed)) for seed in zip(*full, strict=True)]


def align_gains(cell: ModelCell, rows: Rows, ours: AlignName, theirs: AlignName) -> list[float]:
    """The repaired average after one align less that after another, one a seed."""
    repair = repair_of(cell)
    return differences(
        values_of(rows, ours, AVERAGE, repair), values_of(rows, theirs, AVERAGE, repair)
    )


def losses(cell: ModelCell, rows: Rows) -> dict[Line, list[float | None]]:
    """What each method loses of the mean accuracy of its ends, one a seed."""
    found = {}
    for align, line in rows.items():
        # A pair that diverged has no ends.
        ends = [[] if row is None else endpoints([row]) for row in line]
        means = [float(np.mean(pair)) if pair else None for pair in ends]
        for column in combines_of(cell):
            both = zip(means, values_of(rows, align, *column), strict=True)
            found[align, *column] = [
                None if mean is None or value is None else mean - value for mean, value in both
            ]
    return found


def scope_gains(cell: ModelCell, trainings: Mapping[str, Rows]) -> list[float]:
    """What is lost of the ends without WSA less with it: means over all methods, one a seed."""
    if len(trainings) < 2:
        return []
    without, with_wsa = (losses(cell, trainings[name]) for name in ("without WSA", "with WSA"))
    lines = [differences(without[key], with_wsa[key]) for key in without if key in with_wsa]
    return over_lines(lines, seeds_in(trainings["without WSA"]))
