"""Figures of federated runs, drawn from the rows of the ledger."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.federated.cell import ALGORITHM_NAMES
from benchmarks.federated.comparison import (
    Comparison,
    Row,
    mean_and_error,
    paired_curves,
    paired_gains,
    paired_rows,
)
from benchmarks.federated.paper_numbers import PAPER_ROUNDS
from wsa_jax.plots import PALETTE, draw_curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = tuple[list, list]
RowsOf = Callable[[Any], list[Row]]
"""The recorded rows of a cell, one a seed."""


def shared_length(runs: Sequence[Curve]) -> list[Curve]:
    """Runs cut to the points that all of them have: an unfinished seed ends a line early.

    A run of less than half of the longest one's points is left out, so that a seed just begun
    does not take away what the others show.
    """
    longest = max((len(x) for x, _ in runs), default=0)
    kept = [(x, y) for x, y in runs if x and 2 * len(x) >= longest]
    length = min((len(x) for x, _ in kept), default=0)
    return [(x[:length], y[:length]) for x, y in kept]


def accuracy_curves(rows: Sequence[Row]) -> list[Curve]:
    """Accuracy in percent against rounds, one run a seed."""
    return shared_length(
        [([p[0] for p in row["curve"]], [100 * p[1] for p in row["curve"]]) for row in rows]
    )


def legend_below(axes: "Axes", *, columns: int = 2, **shown: Any) -> None:
    """Names under the axes, where they hide no line."""
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=columns, frameon=False, fontsize=8,
        **shown,
    )  # fmt: skip


def figure_legend(figure: "Figure", *, columns: int = 3) -> None:
    """One legend under all panels, of the settings that any of them shows."""
    shown: dict[str, Any] = {}
    for axes in figure.axes:
        for handle in _drawn(axes)["handles"]:
            # A name that begins with an underscore is matplotlib's own, of a line that has none.
            if not (label := str(handle.get_label())).startswith("_"):
                shown.setdefault(label, handle)
    figure.legend(
        list(shown.values()), list(shown), loc="outside lower center", ncols=columns,
        frameon=False, fontsize=8,
    )  # fmt: skip


def sections(comparisons: Sequence[Comparison]) -> dict[str, list[Comparison]]:
    """Comparisons by section, in order."""
    found: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        found.setdefault(comparison.section, []).append(comparison)
    return found


def panels(count: int, *, width: float = 5.0, height: float = 4.6) -> tuple["Figure", list["Axes"]]:
    """A figure of at most three panels a row."""
    from matplotlib.figure import Figure

    columns = min(count, 3)
    lines = -(-count // columns)
    figure = Figure(figsize=(max(width * columns, 6.4), height * lines), layout="constrained")
    axes = list(np.ravel(figure.subplots(lines, columns, squeeze=False)))
    for unused in axes[count:]:
        unused.set_visible(False)
    return figure, axes


def curve_panels(comparisons: Sequence[Comparison], rows_of: RowsOf) -> "Figure":
    """Accuracy against rounds, and below it the paired gain, a column a section."""
    from matplotlib.figure import Figure

    groups = sections(comparisons)
    figure = Figure(figsize=(max(4.4 * len(groups), 6.4), 7.2), layout="constrained")
    grid = figure.subplots(2, len(groups), squeeze=False, sharex="col")
    for (upper, lower), (section, group) in zip(grid.T, groups.items(), strict=True):
        shared = on_shared_seeds(group, rows_of)
        baselines = {
            _baseline_name(comparison, group): accuracy_curves(shared(comparison.baseline))
            for comparison in group
        }
        treated = {
            comparison.label: accuracy_curves(shared(comparison.treated)) for comparison in group
        }
        # A baseline has no gain, but holds its place, so that both panels share their colours.
        gains = {name: [] for name in baselines} | {
            comparison.label: shared_length(
                list(
                    paired_curves(
                        rows_of(comparison.treated), rows_of(comparison.baseline)
                    ).values()
                )
            )
            for comparison in group
        }
        draw_recorded(upper, baselines | treated, ylabel="accuracy, %", legend=False)
        draw_recorded(lower, gains, ylabel="gain on the same seed, points", legend=False)
        lower.axhline(0, color=PALETTE[0], linewidth=1.2)
        if drawn := _drawn(upper)["handles"]:
            legend_below(lower, handles=drawn)
            lower.set_xlabel("round")
            lower.xaxis.get_major_locator().set_params(integer=True)
        else:
            lower.set_xticks([])
        upper.set_title(section, fontsize=10)
    return figure


def on_shared_seeds(group: Sequence[Comparison], rows_of: RowsOf) -> RowsOf:
    """Rows of the seeds that all settings of a panel have, as far as they were run at all.

    Seeds differ by more than settings do: means over different seeds are not to be compared.
    """
    runs = [rows_of(cell) for line in group for cell in (line.baseline, line.treated)]
    seeds = [{row["config"]["seed"] for row in rows} for rows in runs if rows]
    shared = set.intersection(*seeds) if seeds else set()
    return lambda cell: [row for row in rows_of(cell) if row["config"]["seed"] in shared]


def draw_recorded(
    axes: "Axes",
    series: Mapping[str, Sequence[Curve]],
    *,
    xlabel: str = "",
    ylabel: str,
    legend: bool = True,
) -> None:
    """`draw_curves` of the settings that have a run, each in the colour of its place in `series`.

    A remark stands in their place if none has.
    """
    if not any(series.values()):
        remark_absent(axes)
        return
    nothing: Curve = ([], [])
    draw_curves(
        axes,
        {label: runs or [nothing] for label, runs in series.items()},
        xlabel=xlabel,
        ylabel=ylabel,
    )
    if legend:
        legend_below(axes, **_drawn(axes))
    elif (drawn := axes.get_legend()) is not None:
        drawn.remove()


def _drawn(axes: "Axes") -> dict[str, Any]:
    """The lines that have a point, as a legend takes them."""
    lines = [line for line in axes.get_lines() if np.size(line.get_xdata())]
    return {"handles": lines, "labels": [str(line.get_label()) for line in lines]}


def remark_absent(axes: "Axes") -> None:
    """Say in an empty panel that nothing was recorded."""
    axes.text(0.5, 0.5, "not run yet", ha="center", va="center", transform=axes.transAxes)
    # The ticks of an axis that panels share are those of the others, too.
    if len(axes.get_shared_x_axes().get_siblings(axes)) == 1:
        axes.set_xticks([])
    if len(axes.get_shared_y_axes().get_siblings(axes)) == 1:
        axes.set_yticks([])


def _baseline_name(comparison: Comparison, group: Sequence[Comparison]) -> str:
    """The algorithm, and its whole label where two baselines of a panel share the algorithm."""
    same = {c.baseline for c in group if c.baseline.algorithm == comparison.baseline.algorithm}
    if len(same) > 1:
        return comparison.baseline.label
    return ALGORITHM_NAMES[comparison.baseline.algorithm]


def gain_panels(comparisons: Sequence[Comparison], rows_of: RowsOf) -> "Figure":
    """Our paired gain beside the paper's, a panel a section, a line a setting."""
    groups = sections(comparisons)
    tallest = max(len(group) for group in groups.values())
    figure, all_axes = panels(len(groups), width=4.2, height=1.5 + 0.42 * tallest)
    for axes, (section, group) in zip(all_axes, groups.items(), strict=False):
        for place, comparison in enumerate(group):
            gains = paired_gains(rows_of(comparison.treated), rows_of(comparison.baseline))
            if comparison.paper is not None:
                before, after = comparison.paper
                axes.plot(
                    after - before, place, "D", markersize=7, markerfacecolor="white",
                    color=PALETTE[1],
                )  # fmt: skip
            if gains:
                mean, error = mean_and_error(gains)
                axes.errorbar(
                    mean, place, xerr=error, fmt="o", markersize=7, capsize=3, color=PALETTE[0]
                )
        axes.set_yticks(range(len(group)), [comparison.label for comparison in group])
        axes.set_ylim(len(group) - 0.5, -0.5)
        axes.axvline(0, color="#3a4a5a", linewidth=0.8)
        axes.grid(axis="x", color="#e3e7eb", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.margins(x=0.12)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("gain of +WSA, points", fontsize=9)
        axes.set_title(section, fontsize=10)
    _gain_legend(figure, comparisons, rows_of)
    return figure


def _gain_legend(figure: "Figure", comparisons: Sequence[Comparison], rows_of: RowsOf) -> None:
    """Says after how many rounds our gains are, of those that were run, and what their bars are."""
    from matplotlib.lines import Line2D

    pairs = [paired_rows(rows_of(line.treated), rows_of(line.baseline)) for line in comparisons]
    done = sorted({pair[0]["rounds_done"] for of_line in pairs for pair in of_line})
    length = " to ".join(f"{count:,}" for count in sorted({done[0], done[-1]})) if done else "no"
    bars = ", ± standard error over seeds" if any(len(of_line) > 1 for of_line in pairs) else ""
    handles = [
        Line2D(
            [], [], marker="o", linestyle="", color=PALETTE[0],
            label=f"ours, {length} rounds{bars}",
        ),
        Line2D(
            [], [], marker="D", linestyle="", color=PALETTE[1], markerfacecolor="white",
            label=f"paper, {PAPER_ROUNDS:,} rounds",
        ),
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
