"""WSA's Figure 1: weight scopes and the lines between models trained by one and by two optimisers.

    python -m benchmarks fig1_optimizers [--preset smoke|cpu|paper]

Three models a seed: SGD, SGD again, and Adam with the second one's initial weights and order of the
data. Their layers' weights beside the Gaussians fitted to them, the divergence between the scopes,
and the test accuracy on the lines from the first to the second and to the third.

Beside the paper's pairs a fourth model makes one of two Adams, and all lines are drawn once more
after weight matching: between models whose units do not correspond the average is poor whatever the
scopes are.

Models and lines are those of `table1_conditions`, where Adam is one of eight conditions. cpu: the
MLP of Figure 5 on images of 16x16. paper: VGG11. smoke: MLPs on digits.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from benchmarks.merging.bench import (
    Bench,
    MergingArgs,
    MergingExperiment,
    Preset,
    on_record,
    seeds_of,
)
from benchmarks.merging.fig3_gaussianity import draw_layer, measured, shapes_row, shown_layers
from benchmarks.merging.fig6_rebasin import setting
from benchmarks.merging.pairs import Align, pair_cells, path_row
from benchmarks.merging.table1_conditions import (
    CONDITIONS,
    NETWORKS,
    POINTS,
    Kind,
    Pairs,
    barrier_of,
    divergence_of,
    known,
)
from benchmarks.record.claims import Claim, verdict_of, with_interval
from benchmarks.record.figures import caption, draw_recorded, figure_legend
from benchmarks.record.statistics import Row, markdown_table, spread
from benchmarks.script import Findings, Summary, figure_name
from wsa_jax.plots import PALETTE

SEEDS: dict[Preset, Sequence[int]] = {"smoke": (0,), "cpu": (0, 1, 2), "paper": (0, 1, 2, 3)}
SAME, DIFFERENT, ADAMS = "SGD and SGD", "SGD and Adam", "Adam and Adam"
OPTIMIZERS = {SAME: ("SGD", "SGD"), DIFFERENT: ("SGD", "Adam"), ADAMS: ("Adam", "Adam")}
ALIGNS: dict[Align, str] = {"none": "as they are", "weight": "after weight matching"}
COLORS = {"SGD": PALETTE[0], "SGD again": PALETTE[7], "Adam": PALETTE[1]}
"""Of the histograms of the three models."""
NEAR = 0.1
"""What counts as next to no divergence, as a share of that between different optimisers."""
PAPER_KL, PAPER_EXCESS = 8.95e-4, 17.84 - 1.13
"""Table 1's line of optimisers: the divergence, and the excess of the barrier in points."""
PAGE = "barriers.md#figure-1-one-optimiser-and-two"
CLAIM = (
    'scopes are "near the same" under one optimiser and not under two (KL 0.000895), whose line '
    '"meets an obvious barrier" (17.84 against 1.13 %; one pair each).'
)
Measure = Literal["divergence"] | Kind


class Found(NamedTuple):
    """What there is on record."""

    pairs: dict[str, Pairs]
    """By the optimisers of the pair."""
    shapes: dict[str, Row | None]
    """Of the three models of the first seed."""


def collect(bench: Bench, args: MergingArgs) -> Found | None:
    """All lines of all seeds, and how the weights of the first seed's models are distributed."""
    base, seeds = NETWORKS[args.preset], seeds_of(args, SEEDS)
    cells = {"SGD": base, "Adam": setting(base, CONDITIONS["optimiser"])}

    def line(pair: str, align: Align, seed: int) -> Row | None:
        first, other = (cells[name] for name in OPTIMIZERS[pair])
        return path_row(bench, first, seed, align, points=POINTS, examples=0, other=other)

    pairs: dict[str, Pairs] = {
        pair: {align: [line(pair, align, seed) for seed in seeds] for align in ALIGNS}
        for pair in OPTIMIZERS
    }
    ends = [*pair_cells(base, seeds[0]), pair_cells(cells["Adam"], seeds[0])[1]]
    shapes = {name: shapes_row(bench, cell) for name, cell in zip(COLORS, ends, strict=True)}
    there = any(barrier_of(row) is not None for rows in pairs.values() for row in rows["none"])
    return Found(pairs, shapes) if there else None


def values(found: Found, pair: str, measure: Measure, align: Align = "none") -> list[float | None]:
    """A measure of a pair, one a seed: barriers in accuracy in points."""
    rows = found.pairs[pair][align]
    if measure == "divergence":
        return [divergence_of(row) for row in rows]
    scale = 100 if measure == "accuracy_barrier" else 1
    heights = [barrier_of(row, measure) for row in rows]
    return [None if height is None else scale * height for height in heights]


def excess(
    found: Found, over: str, measure: Measure, align: Align = "none", *, share: float = 1.0
) -> list[float]:
    """Of different optimisers, or a share of theirs, less that of another pair on the same seed."""
    both = zip(*(values(found, pair, measure, align) for pair in (DIFFERENT, over)), strict=True)
    return [share * a - b for a, b in both if a is not None and b is not None]


def by_align(found: Found, align: Align) -> dict[str, list[Row | None]]:
    """The lines of each pair."""
    return {pair: rows[align] for pair, rows in found.pairs.items()}


def accuracies(rows: Sequence[Row | None]) -> list[list[float]]:
    """Along the lines that are finite, on the test set, in percent."""
    lines = [row["test"]["accuracy"] for row in rows if row and barrier_of(row) is not None]
    return [[100 * value for value in line] for line in lines]


def scientific(numbers: Sequence[float]) -> str:
    """The mean of numbers of any magnitude.

    >>> scientific([1e-5, 3e-5]), scientific([])
    ('2.0e-05', '')
    """
    return f"{np.mean(numbers):.1e}" if numbers else ""


def pair_table(found: Found) -> str:
    """A line a pair: its divergence and ends, and half-way before and after matching."""
    head, lines = ["optimisers", "KL of the scopes", "ends, %"], []
    for kind in ALIGNS.values():
        head += [f"half-way, {kind}, %", f"barrier in accuracy, {kind}, %", f"in loss, {kind}"]
    for pair, rows in found.pairs.items():
        paths = accuracies(rows["none"])
        cells = [pair, scientific(known(values(found, pair, "divergence")))]
        cells.append(spread([(path[0] + path[-1]) / 2 for path in paths]))
        for align in ALIGNS:
            cells.append(spread([path[POINTS // 2] for path in accuracies(rows[align])]))
            cells.append(spread(known(values(found, pair, "accuracy_barrier", align))))
            cells.append(spread(known(values(found, pair, "barrier", align))))
        lines.append([*cells, str(len(paths))])
    return markdown_table([*head, "seeds"], lines)


def layers_of(found: Found) -> dict[str, list[Row]]:
    """The trained layers of the three models; nothing while one of them is missing."""
    there = {name: measured([row]) for name, row in found.shapes.items()}
    return {name: rows[0]["after"] for name, rows in there.items()} if all(there.values()) else {}


def layer_table(found: Found) -> str:
    """A line a layer: the stds of the three models, and each pair's divergence."""
    models = layers_of(found)
    by_pair = [
        [row for row in rows["none"] if row and "test" in row] for rows in found.pairs.values()
    ]
    lines = [
        [layers[0]["layer"]]
        + [f"{layer['std']:.4f}" for layer in layers]
        + [scientific([row["divergence"][index] for row in rows]) for rows in by_pair]
        for index, layers in enumerate(zip(*models.values(), strict=True))
    ]
    head = [*(f"std, {name}" for name in models), *(f"KL, {pair}" for pair in found.pairs)]
    return markdown_table(["layer", *head], lines)


def report(bench: Bench, args: MergingArgs, found: Found) -> Findings:
    """Divergences and barriers by pair, and by layer; the paper's figure."""
    label, seeds = NETWORKS[args.preset].label, seeds_of(args, SEEDS)
    remarks, last = [], Summary()
    for pair in found.pairs:
        last[f"KL, {pair}"] = known(values(found, pair, "divergence"))
    for align, kind in ALIGNS.items():
        worse = excess(found, SAME, "accuracy_barrier", align)
        last[f"excess of two optimisers, {kind}"] = worse
        if worse:
            in_loss = with_interval(excess(found, SAME, "barrier", align))
            remarks.append(
                f"* Barrier of different optimisers less that of SGD alone, {kind}: "
                f"{with_interval(worse)} points of accuracy, {in_loss} in loss."
            )
    tables = [pair_table(found), "\n".join(remarks)]
    if layers_of(found):
        tables += [f"By layer, stds of seed {seeds[0]} and mean KL over seeds:", layer_table(found)]
    return Findings(
        title=f"Figure 1: one optimiser and two, {label}",
        text="\n\n".join([*tables, f"The paper: {CLAIM}"]),
        figures={figure_name("fig1_optimizers", args.preset): lambda: draw(found, label, seeds)},
        summary=last,
    )


def draw(found: Found, label: str, seeds: Sequence[int]) -> Figure:
    """Left the layers of two SGDs, below them those of SGD and Adam; right the lines."""
    models = layers_of(found)
    shown = shown_layers(len(models["SGD"])) if models else []
    widths = [*([2.9 * len(shown)] if shown else []), 4.3]
    figure = Figure(figsize=(sum(widths), 6.4), layout="constrained")
    # Parts of their own, so that each has its legend.
    parts = figure.subfigures(1, 1 + bool(shown), squeeze=False, width_ratios=widths)[0]
    if shown:
        draw_weights(parts[0], models, shown)
    drawn = [align for align in ALIGNS if any(map(accuracies, by_align(found, align).values()))]
    panels = parts[-1].subplots(len(drawn), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, align in zip(panels, drawn, strict=True):
        draw_lines(axes, by_align(found, align))
        axes.set_title(f"line between both, {ALIGNS[align]}", fontsize=9)
    for axes in panels[:-1]:
        axes.set_xlabel("")
    figure_legend(parts[-1])
    named = f"lines of seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    return caption(figure, f"{label}, weights of seed {seeds[0]}, {named}" if shown else label)


def draw_weights(part: SubFigure, models: dict[str, list[Row]], shown: Sequence[int]) -> None:
    """A panel a layer, of both pairs."""
    grid = part.subplots(2, len(shown), sharex="col", sharey="col", squeeze=False)
    pairs = {SAME: ("SGD", "SGD again"), DIFFERENT: ("SGD", "Adam")}
    for row, (pair, names) in zip(grid, pairs.items(), strict=True):
        for axes, index in zip(row, shown, strict=True):
            for name in names:
                draw_layer(axes, models[name][index], COLORS[name], name)
            axes.set_title(f"{pair}, {models['SGD'][index]['layer']}", fontsize=9)
        row[0].set_ylabel("density")
    for axes in grid[0]:
        axes.set_xlabel("")
    figure_legend(part)


def draw_lines(axes: Axes, rows: dict[str, list[Row | None]]) -> None:
    """Test accuracy along the line of each pair, over all seeds."""
    t = np.linspace(0, 1, POINTS).tolist()
    series = {pair: [(t, path) for path in accuracies(lines)] for pair, lines in rows.items()}
    names = {"xlabel": "share of the second model", "ylabel": "test accuracy, %"}
    draw_recorded(axes, series, **names, legend=False)


def claims() -> list[Claim]:
    """The scopes of one optimiser, those of two, and what two cost half-way."""
    lines = []
    for size, found in on_record(collect).items():
        label = NETWORKS["paper" if size == "full size" else "cpu"].label
        stated = []
        for pair in (SAME, ADAMS):
            there = known(values(found, pair, "divergence"))
            ours = f"{scientific(there)}, at most {max(there):.1e}" if there else ""
            claim = "one optimiser, the same scopes: KL near zero, under a tenth of that of two"
            said = verdict_of(excess(found, pair, "divergence", share=NEAR))
            stated.append((claim, pair, ours, "near zero", said))
        apart = excess(found, SAME, "divergence")
        ours = f"larger by {with_interval(apart, digits=4)} nats" if apart else ""
        claim = "different optimisers, different scopes: a larger KL"
        stated.append(
            (claim, "less that of SGD alone", ours, f"{PAPER_KL:+.6f}", verdict_of(apart))
        )
        for align, kind in ALIGNS.items():
            # The paper's own are not matched.
            paper = PAPER_EXCESS if align == "none" else None
            worse = excess(found, SAME, "accuracy_barrier", align)
            ours = f"larger by {with_interval(worse)} points of accuracy" if worse else ""
            claim = "the barrier is larger between different optimisers"
            told = "" if paper is None else f"{paper:+.2f}"
            stated.append((claim, kind, ours, told, verdict_of(worse, paper)))
        lines += [
            Claim("WSA, Figure 1", claim, f"{label}, {kind}", ours, paper, said, PAGE)
            for claim, kind, ours, paper, said in stated
        ]
    return lines


SCRIPT = MergingExperiment(
    name="fig1_optimizers",
    description=__doc__,
    collect=collect,
    report=report,
    claims=claims,
    data={"cpu": "CIFAR-10 at 16x16", "paper": "CIFAR-10"},
)
