"""Comparing recorded runs on the same seeds: paired differences, and tables beside the paper's."""

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.federated.cell import Cell

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One line of a table: a setting and the baseline it is held against, on equal seeds."""

    section: str
    """What lines have in common that stand together, a data set for example."""
    label: str
    baseline: Cell
    treated: Cell
    paper: tuple[float, float] | None = None
    """The paper's accuracies of both, in percent."""


def check_same_data(row: Row, other: Row) -> None:
    """Exit where rows to be compared saw different data; older ones do not say what they saw."""
    mine, theirs = row.get("data"), other.get("data")
    if mine and theirs and mine != theirs:
        said = " and ".join(
            ", ".join(f"{part} {digest}" for part, digest in data.items())
            for data in (mine, theirs)
        )
        sys.exit(
            f"rows {row['id']} and {other['id']} saw different data (digests {said}); run one of "
            "them again with --data-dir at the other's copy"
        )


def paired_curves(ours: Iterable[Row], theirs: Iterable[Row]) -> dict[int, tuple[list, list]]:
    """For each seed that both have, the rounds both evaluated and our gain there in points."""
    baseline = {row["config"]["seed"]: row for row in theirs}
    pairs = {}
    for row in sorted(ours, key=lambda row: row["config"]["seed"]):
        partner = baseline.get(row["config"]["seed"])
        if partner is None:
            continue
        check_same_data(row, partner)
        other = {p[0]: p[1] for p in partner["curve"]}
        shared = [(p[0], 100 * (p[1] - other[p[0]])) for p in row["curve"] if p[0] in other]
        if shared:
            rounds, gains = zip(*shared, strict=True)
            pairs[row["config"]["seed"]] = (list(rounds), list(gains))
    return pairs


def paired_rows(ours: Iterable[Row], theirs: Iterable[Row]) -> list[tuple[Row, Row]]:
    """Both rows of each shared seed, cut to the rounds that both evaluated: as of the last one.

    Accuracies of an unfinished row and a finished one are then of one round, as their gain is.
    """
    mine, others = ({row["config"]["seed"]: row for row in rows} for rows in (ours, theirs))
    return [
        (_as_of(mine[seed], rounds[-1]), _as_of(others[seed], rounds[-1]))
        for seed, (rounds, _) in paired_curves(mine.values(), others.values()).items()
    ]


def _as_of(row: Row, last: int) -> Row:
    curve = [point for point in row["curve"] if point[0] <= last]
    return row | {"curve": curve, "accuracy": curve[-1][1], "rounds_done": last}


def paired_gains(ours: Iterable[Row], theirs: Iterable[Row]) -> list[float]:
    """Gain of each shared seed, in points, at the last round that both evaluated."""
    return [gains[-1] for _, gains in paired_curves(ours, theirs).values()]


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error, None for a single value."""
    error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else None
    return float(np.mean(values)), None if error is None else float(error)


def verdict(gains: Sequence[float], *, level: float = 0.95) -> str:
    """What paired differences say: "gain" or "loss" if the t interval leaves 0 out, or "undecided".

    >>> verdict([1.0, 1.2, 1.1]), verdict([-1.0, -1.2, -1.1]), verdict([1.0, -1.2, 0.1])
    ('gain', 'loss', 'undecided')
    >>> verdict([2.0])
    'undecided'
    """
    from scipy.stats import t

    mean, error = mean_and_error(gains)
    if error is None:
        return "undecided"
    reach = float(t.ppf((1 + level) / 2, len(gains) - 1)) * error
    return "gain" if mean > reach else "loss" if mean < -reach else "undecided"


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation over seeds, the mean alone for one.

    >>> spread([70.0, 72.0]), spread([70.0]), spread([])
    ('71.00 ± 1.41', '70.00', '')
    """
    if not values:
        return ""
    mean = f"{np.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.2f}"


def accuracies(rows: Iterable[Row]) -> list[float]:
    """Last recorded accuracies, in percent."""
    return [100 * row["accuracy"] for row in rows if row["accuracy"] is not None]


def rounds_done(rows: Sequence[Row], wanted: int) -> str:
    """The rounds a line rests on.

    >>> rounds_done([{"rounds_done": 50}, {"rounds_done": 100}], 100)
    '50 to 100 of 100'
    """
    done = sorted({row["rounds_done"] for row in rows})
    if not done:
        return f"0 of {wanted}"
    if done == [wanted]:
        return str(wanted)
    return f"{done[0]} of {wanted}" if len(done) == 1 else f"{done[0]} to {done[-1]} of {wanted}"


def signed(values: Sequence[float]) -> str:
    """Mean gain with its sign, ± its standard error where there is one.

    >>> signed([1.0, 2.0]), signed([])
    ('+1.50 ± 0.50', '')
    """
    if not values:
        return ""
    mean, error = mean_and_error(values)
    return f"{mean:+.2f}" if error is None else f"{mean:+.2f} ± {error:.2f}"


def markdown_table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    body = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in body)
