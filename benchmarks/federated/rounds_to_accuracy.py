"""Rounds until an accuracy is reached, without and with WSA, from the curves of Table 2.

    python -m benchmarks rounds_to_accuracy [--preset smoke|short|cpu|paper]

Runs the cells of table2_cross_silo that are not recorded yet; with --report-only none. The round is
the first evaluated one at or above the accuracy, so it is exact to the evaluation interval.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from benchmarks.federated.cell import ALGORITHM_NAMES
from benchmarks.federated.comparison import Comparison, RowsOf, rounds_done, sides
from benchmarks.federated.experiment import Experiment
from benchmarks.federated.figures import sections
from benchmarks.federated.table2_cross_silo import comparisons
from benchmarks.record.figures import Curve, draw_recorded, panels
from benchmarks.record.statistics import Row, markdown_table

ACCURACIES = (20, 30, 40, 50, 60, 65, 70)
"""In percent."""


def rounds_to(row: Row, accuracy: float) -> int | None:
    """First evaluated round at or above an accuracy in percent, None if the run never got there.

    >>> rounds_to({"curve": [[10, 0.3, 2.0], [20, 0.5, 1.5], [30, 0.45, 1.6]]}, 45)
    20
    """
    return next((point[0] for point in row["curve"] if 100 * point[1] >= accuracy), None)


def reached(rows: Sequence[Row], accuracy: float) -> str:
    """Mean rounds of the seeds that got there, and how many did where not all."""
    found = [value for row in rows if (value := rounds_to(row, accuracy)) is not None]
    if not found:
        return ""
    seeds = "" if len(found) == len(rows) else f" ({len(found)} of {len(rows)} seeds)"
    return f"{np.mean(found):.0f}{seeds}"


def run_lines(lines: Sequence[Comparison], rows_of: RowsOf) -> list[Comparison]:
    """The comparisons of which both sides were run."""
    return [line for line in lines if rows_of(line.baseline) and rows_of(line.treated)]


def table(lines: Sequence[Comparison], rows_of: RowsOf) -> str:
    """Baseline / +WSA under each accuracy that some run reached; a dash is "not in these rounds".

    Both sides are cut to the rounds that both have.
    """
    lines = run_lines(lines, rows_of)
    pairs = [sides(line, rows_of) for line in lines]
    shown = [a for a in ACCURACIES if any(reached(rows, a) for pair in pairs for rows in pair)]
    head = [
        "data",
        "setting",
        "rounds",
        *(f"{accuracy} %: baseline / setting" for accuracy in shown),
    ]
    body = []
    for line, pair in zip(lines, pairs, strict=True):
        rounds = [" / ".join(reached(rows, a) or "–" for rows in pair) for a in shown]
        done = rounds_done([row for rows in pair for row in rows], line.treated.rounds)
        body.append([line.section, line.label, done, *rounds])
    return markdown_table(head, body)


def figure(lines: Sequence[Comparison], rows_of: RowsOf) -> Figure:
    """Rounds against accuracy, the axes of the learning curves exchanged, a panel a section."""
    groups = sections(run_lines(lines, rows_of))
    picture, all_axes = panels(max(len(groups), 1), width=4.4)
    for axes, (section, group) in zip(all_axes, groups.items(), strict=False):
        series: dict[str, list[Curve]] = {}
        for line in group:
            name = ALGORITHM_NAMES[line.baseline.algorithm]
            theirs, ours = sides(line, rows_of)
            levels = reached_levels([*theirs, *ours])
            for label, rows in ((name, theirs), (f"{name} +WSA", ours)):
                series[label] = [
                    (levels, [rounds_to(row, level) or 0 for level in levels]) for row in rows
                ]
        draw_recorded(
            axes, series, xlabel="accuracy, %", ylabel="rounds until it is reached (bands: seeds)"
        )
        axes.set_title(section, fontsize=10)
    return picture


def reached_levels(rows: Sequence[Row]) -> list[int]:
    """Whole percents that every run reached after its first evaluation."""
    found = {level: [rounds_to(row, level) for row in rows] for level in range(1, 101)}
    first = min((row["curve"][0][0] for row in rows), default=0)
    levels = [level for level, rounds in found.items() if None not in rounds]
    later = [level for level in levels if max(filter(None, found[level])) > first]
    return later or levels[-1:]


SCRIPT = Experiment(
    name="rounds_to_accuracy",
    title="Rounds until an accuracy is reached",
    description=__doc__,
    comparisons=comparisons,
    seeds={"smoke": (0,), "short": (0,), "cpu": (0, 1, 2), "paper": (0, 1, 2)},
    table=table,
    figure=figure,
)
