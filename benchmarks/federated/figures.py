"""Figures of federated runs, drawn from the rows of the ledger."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.federated.cell import ALGORITHM_NAMES
from benchmarks.federated.comparison import (
    Comparison,
    RowsOf,
    paired_curves,
    paired_gains,
    paired_rows,
)
from benchmarks.federated.paper_numbers import PAPER_ROUNDS
from benchmarks.record.figures import (
    Curve,
    draw_recorded,
    drawn,
    legend_below,
    panels,
    shared_length,
)
from benchmarks.record.statistics import Row, mean_and_error
from wsa_jax.plots import PALETTE


def accuracy_curves(rows: Sequence[Row]) -> list[Curve]:
    """Accuracy in percent against rounds, one run a seed."""
    return shared_length(
        [([p[0] for p in row["curve"]], [100 * p[1] for p in row["curve"]]) for row in rows]
    )


def sections(comparisons: Sequence[Comparison]) -> dict[str, list[Comparison]]:
    """Comparisons by section, in order."""
    found: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        found.setdefault(comparison.section, []).append(comparison)
    return found


def curve_panels(comparisons: Sequence[Comparison], rows_of: RowsOf) -> Figure:
    """Accuracy against rounds, and below it the paired gain, a column a section."""
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
        if lines := drawn(upper)["handles"]:
            legend_below(lower, handles=lines)
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


def _baseline_name(comparison: Comparison, group: Sequence[Comparison]) -> str:
    """The algorithm, and its whole label where two baselines of a panel share the algorithm."""
    same = {c.baseline for c in group if c.baseline.algorithm == comparison.baseline.algorithm}
    if len(same) > 1:
        return comparison.baseline.label
    return ALGORITHM_NAMES[comparison.baseline.algorithm]


def gain_panels(comparisons: Sequence[Comparison], rows_of: RowsOf) -> Figure:
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
                    after - before,
                    place,
                    "D",
                    markersize=7,
                    markerfacecolor="white",
                    color=PALETTE[1],
                )
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


def _gain_legend(figure: Figure, comparisons: Sequence[Comparison], rows_of: RowsOf) -> None:
    """Says after how many rounds our gains are, of those that were run, and what their bars are."""
    pairs = [paired_rows(rows_of(line.treated), rows_of(line.baseline)) for line in comparisons]
    done = sorted({pair[0]["rounds_done"] for of_line in pairs for pair in of_line})
    length = " to ".join(f"{count:,}" for count in sorted({done[0], done[-1]})) if done else "no"
    bars = ", ± standard error over seeds" if any(len(of_line) > 1 for of_line in pairs) else ""
    handles = [
        Line2D(
            [],
            [],
            marker="o",
            linestyle="",
            color=PALETTE[0],
            label=f"ours, {length} rounds{bars}",
        ),
        Line2D(
            [],
            [],
            marker="D",
            linestyle="",
            color=PALETTE[1],
            markerfacecolor="white",
            label=f"paper, {PAPER_ROUNDS:,} rounds",
        ),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
