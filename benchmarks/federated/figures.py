"""Figures of federated runs, drawn from the rows of the ledger."""

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.federated.cell import ALGORITHM_NAMES, DATASET_NAMES
from benchmarks.federated.comparison import (
    Comparison,
    RowsOf,
    accuracies,
    paired_curves,
    paired_gains,
    paired_rows,
)
from benchmarks.federated.paper_numbers import PAPER_ROUNDS
from benchmarks.record.figures import (
    INK,
    METHODS,
    Curve,
    colors_of,
    dots,
    draw_recorded,
    drawn,
    legend_below,
    plain_axes,
    shared_length,
)
from benchmarks.record.statistics import Row

# Evaluations that make a curve; of fewer, the last one alone is worth a look.
_CURVE = 8
# Gains further apart than so many points share an axis that is linear up to five.
_WIDE = 40


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


def paired_figure(comparisons: Sequence[Comparison], rows_of: RowsOf) -> Figure:
    """Curves of runs that are long enough to have a course, else their last gains as dots."""
    longest = max(
        (len(row["curve"]) for line in comparisons for row in rows_of(line.baseline)), default=0
    )
    draw = curve_panels if longest >= _CURVE else gain_dots
    return draw(comparisons, rows_of)


def context(comparisons: Sequence[Comparison], rows_of: RowsOf) -> str:
    """Data, network, clients, rounds and seeds of what is drawn.

    Lines that are not all of the same seeds are not named by those that any of them has.
    """
    run = [line for line in comparisons if rows_of(line.baseline)]
    drawn = {
        line: pairs
        for line in run
        if (pairs := paired_rows(rows_of(line.treated), rows_of(line.baseline)))
    }
    cells = [line.baseline for line in drawn or run]
    # Of the baseline, as far as its line is paired; alone it is whole.
    rows = [[pair[1] for pair in pairs] for pairs in drawn.values()]
    rows = rows or [rows_of(cell) for cell in cells]
    done = sorted({row["rounds_done"] for line in rows for row in line})
    data = dict.fromkeys(DATASET_NAMES.get(cell.dataset, cell.dataset) for cell in cells)
    networks = dict.fromkeys(cell.network for cell in cells)
    sides = [f"images of {cell.side}x{cell.side}" for cell in cells[:1] if cell.side]
    clients = dict.fromkeys(f"{cell.clients} clients" for cell in cells)
    rounds = " to ".join(f"{count:,}" for count in dict.fromkeys((done[0], done[-1])))
    named = seeds_named([[row["config"]["seed"] for row in line] for line in rows])
    parts = [" and ".join(data), *sides, " and ".join(networks), " and ".join(clients)]
    return ", ".join([*parts, f"{rounds} rounds", named])


def seeds_named(lines: Sequence[Sequence[int]]) -> str:
    """The seeds that all lines have in common, or how many a line has.

    >>> seeds_named([[0, 1], [1, 0]]), seeds_named([[2]])
    ('seeds 0, 1', 'seed 2')
    >>> seeds_named([[0], [0, 1, 2]]), seeds_named([[0], [1]])
    ('1 to 3 seeds a line', 'one seed a line, of 0, 1')
    """
    there = sorted({seed for line in lines for seed in line})
    counts = sorted({len(set(line)) for line in lines})
    if all(set(line) == set(there) for line in lines):
        return f"seed{'s' if len(there) > 1 else ''} {', '.join(map(str, there))}"
    if len(counts) > 1:
        return f"{counts[0]} to {counts[-1]} seeds a line"
    count = "one seed" if counts == [1] else f"{counts[0]} seeds"
    return f"{count} a line, of {', '.join(map(str, there))}"


def curve_panels(comparisons: Sequence[Comparison], rows_of: RowsOf) -> Figure:
    """Accuracy against rounds, and below it the paired gain, a column a section that was run."""
    groups = {
        section: group
        for section, group in sections(comparisons).items()
        if any(rows_of(cell) for line in group for cell in (line.baseline, line.treated))
    }
    pairs = [
        paired_curves(rows_of(line.treated), rows_of(line.baseline))
        for group in groups.values()
        for line in group
    ]
    lines = 2 if any(pairs) else 1
    figure = Figure(figsize=(max(4.4 * len(groups), 6.4), 3.6 * lines), layout="constrained")
    grid = figure.subplots(lines, len(groups), squeeze=False, sharex="col", sharey="row")
    for column, (section, group) in zip(grid.T, groups.items(), strict=True):
        _curve_column(column, group, rows_of)
        column[0].set_title(section, fontsize=10)
        legend_below(column[-1], **drawn(column[0]))
        column[-1].set_xlabel("round")
        column[-1].xaxis.get_major_locator().set_params(integer=True)
    for axes in grid[:, 1:].flat:
        axes.set_ylabel("")
    return figure


def _curve_column(column: Sequence[Axes], group: Sequence[Comparison], rows_of: RowsOf) -> None:
    shared = on_shared_seeds(group, rows_of)
    baselines = {_baseline_name(line, group): shared(line.baseline) for line in group}
    settings = baselines | {line.label: shared(line.treated) for line in group}
    curves = {label: accuracy_curves(rows) for label, rows in settings.items()}
    draw_recorded(column[0], curves, ylabel="accuracy, %", legend=False)
    # A baseline has no gain, but holds its place, so that both panels share their colours.
    gains: dict[str, list[Curve]] = {name: [] for name in baselines}
    for line in group:
        pairs = paired_curves(rows_of(line.treated), rows_of(line.baseline))
        gains[line.label] = shared_length(list(pairs.values()))
    if any(gains.values()) and len(column) > 1:
        draw_recorded(column[1], gains, ylabel="gain on the same seed, points", legend=False)
        column[1].axhline(0, color=INK, linewidth=0.8)


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


def gain_dots(comparisons: Sequence[Comparison], rows_of: RowsOf) -> Figure:
    """The last gain of every setting that was run, a line each, with both accuracies beside it.

    The paper's gain stands there where as many rounds were run: others are not of one kind.
    """
    groups = {
        section: there
        for section, group in sections(comparisons).items()
        if (there := [x for x in group if paired_gains(rows_of(x.treated), rows_of(x.baseline))])
    }
    if not groups:
        return curve_panels(comparisons, rows_of)
    places = sum(len(group) + 1 for group in groups.values())
    figure = Figure(figsize=(8.0, 1.1 + 0.34 * places), layout="constrained")
    axes = figure.subplots()
    colors = colors_of(line.label for group in groups.values() for line in group)
    names, place, shows_paper = {}, 0, False
    for section, group in groups.items():
        axes.text(
            0.01, place, section, transform=axes.get_yaxis_transform(), va="center", color=INK
        )
        for line in group:
            place += 1
            names[place] = textwrap.fill(line.label, 42)
            # Settings that are no method of their own are WSA's, or FedAvg's without it.
            own = METHODS["FedAvg +WSA" if line.treated.strength else "FedAvg"]
            known = "WSA" in line.label and not line.label.startswith("+")
            color = colors[line.label] if known and line.treated.strength else own
            shows_paper |= _gain_line(axes, place, line, rows_of, color)
        place += 1
    axes.set_yticks(list(names), list(names.values()))
    axes.set_ylim(place - 0.4, -0.6)
    axes.axvline(0, color=INK, linewidth=0.8)
    plain_axes(axes, grid="x")
    axes.margins(x=0.08)
    axes.set_xlabel("gain on the same seed, points")
    low, high = axes.get_xlim()
    if high - low > _WIDE:
        # A few points must show beside twenty.
        ticks = [tick for tick in (-20, -5, 0, 5, 20) if low < tick < high]
        axes.set_xscale("symlog", linthresh=5)
        axes.set_xticks(ticks, list(map(str, ticks)))
        axes.minorticks_off()
    _dots_legend(figure, shows_paper)
    return figure


def _gain_line(axes: Axes, place: int, line: Comparison, rows_of: RowsOf, color: str) -> bool:
    """Draw one setting; returns whether the paper's gain stands beside it."""
    pairs = paired_rows(rows_of(line.treated), rows_of(line.baseline))
    dots(axes, place, paired_gains(rows_of(line.treated), rows_of(line.baseline)), color)
    means = [
        sum(found) / len(found) for side in (1, 0) if (found := accuracies(p[side] for p in pairs))
    ]
    axes.annotate(
        " \u2192 ".join(f"{mean:.2f}" for mean in means) + " %",
        (1.01, place),
        xycoords=axes.get_yaxis_transform(),
        va="center",
        fontsize=8,
        color=INK,
    )
    whole = all(row["rounds_done"] >= PAPER_ROUNDS for pair in pairs for row in pair)
    if line.paper is None or not whole:
        return False
    gain = line.paper[1] - line.paper[0]
    axes.plot(gain, place, "D", markersize=7, markerfacecolor="none", color=INK)
    return True


def _dots_legend(figure: Figure, shows_paper: bool) -> None:
    """What dots, bars and diamonds are."""
    handles = [Line2D([], [], marker="o", linestyle="", color=INK, label="mean over seeds")]
    handles += [Line2D([], [], color=INK, linewidth=1.6, label="95 % interval (two seeds or more)")]
    if shows_paper:
        handles.append(
            Line2D(
                [], [], marker="D", linestyle="", color=INK, markerfacecolor="none", label="paper"
            )
        )
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
