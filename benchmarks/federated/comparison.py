"""Comparing recorded runs on the same seeds: paired differences, and tables beside the paper's."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.federated.cell import Cell
from benchmarks.federated.paper_numbers import PAPER_ROUNDS
from benchmarks.record.claims import with_interval
from benchmarks.record.statistics import Row, check_same_data, markdown_table, spread
from benchmarks.script import Summary

RowsOf = Callable[[Cell], list[Row]]
"""The recorded rows of a cell, one a seed."""


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


def late_gains(ours: Iterable[Row], theirs: Iterable[Row]) -> list[float]:
    """Mean gain of each shared seed over the last three rounds that both evaluated, in points."""
    curves = paired_curves(ours, theirs).values()
    return [sum(gains[-3:]) / len(gains[-3:]) for _, gains in curves]


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


def sides(comparison: Comparison, rows_of: RowsOf) -> tuple[list[Row], list[Row]]:
    """Rows of the baseline and of the setting, of the seeds and rounds that both have.

    Means over other seeds or rounds would not be the gain's own. A side that stands alone is whole.
    """
    theirs, ours = rows_of(comparison.baseline), rows_of(comparison.treated)
    if pairs := paired_rows(ours, theirs):
        return [pair[1] for pair in pairs], [pair[0] for pair in pairs]
    return theirs, ours


def comparison_table(comparisons: Sequence[Comparison], rows_of: RowsOf) -> str:
    """Our numbers beside the paper's, our paired gain beside its gain; Markdown."""
    compared = any(comparison.paper for comparison in comparisons)
    # Accuracies and gains spread differently, and say so where a line has several seeds.
    both = [sides(comparison, rows_of) for comparison in comparisons]
    several = any(len(side) > 1 for pair in both for side in pair)
    std, error = (" ± std", " ± 95 % interval") if several else ("", "")
    head = ["data", "setting", "seeds", "rounds"]
    head += [f"baseline, %{std}", f"setting, %{std}", f"gain, paired{error}"]
    names = ("baseline", "setting", "gain") if compared else ()
    head += [f"paper, {PAPER_ROUNDS:,} rounds: {name}" for name in names]
    lines = []
    for comparison, (theirs, ours) in zip(comparisons, both, strict=True):
        line = [
            comparison.section,
            comparison.label,
            ", ".join(str(row["config"]["seed"]) for row in ours),
            rounds_done([*theirs, *ours] if ours else [], comparison.treated.rounds),
            spread(accuracies(theirs)) + _alone(theirs, ours, comparison.baseline.rounds),
            spread(accuracies(ours)) + _alone(ours, theirs, comparison.treated.rounds),
            with_interval(paired_gains(ours, theirs)),
        ]
        if comparison.paper is not None:
            before, after = comparison.paper
            line += [f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}"]
        elif compared:
            line += ["", "", ""]
        lines.append(line)
    return markdown_table(head, lines)


def _alone(rows: Sequence[Row], others: Sequence[Row], wanted: int) -> str:
    """How far an unfinished side without a partner is: the line's rounds are those of a pair."""
    if others or all(row["rounds_done"] == wanted for row in rows):
        return ""
    return f" (round {rounds_done(rows, wanted)})"


def summary(comparisons: Sequence[Comparison], rows_of: RowsOf) -> list[Summary]:
    """The table's lines for the last line of JSON."""
    lines = []
    for comparison in comparisons:
        theirs, ours = sides(comparison, rows_of)
        gains = paired_gains(ours, theirs)
        lines.append(
            {
                "section": comparison.section,
                "setting": comparison.label,
                "baseline": accuracies(theirs),
                "accuracy": accuracies(ours),
                "gain": sum(gains) / len(gains) if gains else None,
                "seeds": [row["config"]["seed"] for row in ours],
                "rounds": [row["rounds_done"] for row in ours],
                "rounds_asked": comparison.treated.rounds,
                "paper": comparison.paper,
                "paper_rounds": PAPER_ROUNDS if comparison.paper else None,
            }
        )
    return lines
