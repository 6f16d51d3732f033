"""Rounds until an accuracy is reached, without and with WSA, from the curves of Table 2.

    python -m benchmarks.rounds_to_accuracy [--preset smoke|cpu|paper]

Runs the cells of table2_cross_silo that are not recorded yet; with --report-only none. The round is
the first evaluated one at or above the accuracy, so it is exact to the evaluation interval.
"""

import sys
from collections.abc import Sequence

import numpy as np

from benchmarks.comparison import Comparison, Row, markdown_table
from benchmarks.figures import RowsOf, draw_recorded, panels, sections
from benchmarks.paper_table import Experiment, run_experiment
from benchmarks.table2_cross_silo import comparisons

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


def table(lines: Sequence[Comparison], rows_of: RowsOf) -> str:
    """Baseline / +WSA under each accuracy that some run reached."""
    shown = [
        accuracy
        for accuracy in ACCURACIES
        if any(
            reached(rows_of(cell), accuracy)
            for line in lines
            for cell in (line.baseline, line.treated)
        )
    ]
    head = ["data", "setting", *(f"{accuracy} %: baseline / setting" for accuracy in shown)]
    body = []
    for line in lines:
        pairs = [
            " / ".join(reached(rows_of(cell), a) or "–" for cell in (line.baseline, line.treated))
            for a in shown
        ]
        body.append([line.section, line.label, *pairs])
    return markdown_table(head, body)


def figure(lines: Sequence[Comparison], rows_of: RowsOf):
    """Rounds against accuracy, the axes of the learning curves exchanged, a panel an algorithm."""
    groups = {
        f"{line.label}, {section}": line
        for section, group in sections(lines).items()
        for line in group
    }
    picture, all_axes = panels(len(groups), width=4.4, height=3.9)
    for axes, (title, line) in zip(all_axes, groups.items(), strict=False):
        series = {
            "baseline": _levels(rows_of(line.baseline)),
            "with WSA": _levels(rows_of(line.treated)),
        }
        draw_recorded(axes, series, xlabel="accuracy, %", ylabel="rounds until it is reached")
        axes.set_title(title, fontsize=10)
    return picture


def _levels(rows: Sequence[Row]) -> list[tuple[list, list]]:
    """Rounds to every whole percent that all seeds reached."""
    levels = [
        level for level in range(1, 101) if all(rounds_to(row, level) is not None for row in rows)
    ]
    if not rows or not levels:
        return []
    return [(levels, [rounds_to(row, level) for level in levels]) for row in rows]


EXPERIMENT = Experiment(
    name="rounds_to_accuracy",
    title="Rounds until an accuracy is reached",
    description=__doc__,
    comparisons=comparisons,
    seeds={"smoke": (0,), "cpu": (0,), "paper": (0, 1, 2)},
    table=table,
    figure=figure,
)


def main(argv: list[str] | None = None) -> None:
    run_experiment(EXPERIMENT, argv)


if __name__ == "__main__":
    main(sys.argv[1:])
