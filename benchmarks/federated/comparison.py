"""Comparing recorded runs on the same seeds: paired differences, and tables beside the paper's."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.federated.cell import Cell
from benchmarks.record.statistics import Row, check_same_data


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
