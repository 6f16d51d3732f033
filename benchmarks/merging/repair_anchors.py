"""REPAIR's published accuracies, beside ours: what a merge of real networks can be held to.

    python -m benchmarks repair_anchors [--preset smoke|cpu|paper]

Two networks are trained on CIFAR-10 from different seeds; the second is matched to the first by the
correlation of activations, the average is taken as it is and repaired: by REPAIR, in its closed
form, or by resetting the statistics of BatchNorm. The numbers are those in the figures of the
public code (KellerJordan/REPAIR); its recipe for VGG11 is not stated, so ours is our own: 100
epochs at rate 0.05.

paper: VGG11, ResNet20 with LayerNorm and BatchNorm, all of CIFAR-10. cpu: the small ResNet8 of the
merging grid, for which nothing is published. smoke: MLPs on digits.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from benchmarks.merging.bench import (
    Bench,
    MergingArgs,
    MergingExperiment,
    Preset,
    on_record,
    seeds_of,
)
from benchmarks.merging.fig5_otfusion import BASES, SMOKE
from benchmarks.merging.grid_gains import differences
from benchmarks.merging.grid_methods import (
    ALIGNS,
    AVERAGE,
    REPAIRS,
    RESET,
    method_name,
    methods_of,
    repair_of,
    values_of,
)
from benchmarks.merging.merge_rows import endpoints, table_row
from benchmarks.merging.merge_settings import SAMPLES, STEPS
from benchmarks.merging.merging_grid import NETWORKS as GRID
from benchmarks.merging.model_cell import ModelCell
from benchmarks.merging.pairs import pair_cells
from benchmarks.record.claims import Claim, verdict_of, with_interval
from benchmarks.record.figures import caption, plain_axes
from benchmarks.record.statistics import Row, markdown_table, spread
from benchmarks.script import Findings, Summary, figure_name
from wsa_jax.merging.aligns import AlignName
from wsa_jax.plots import PALETTE

ALIGN: AlignName = "activation"
Values = Mapping[str, Sequence[float]]
"""Accuracies in percent, by what they are of."""


class Anchor(NamedTuple):
    """A network, and what is published of it."""

    cell: ModelCell
    published: Mapping[str, tuple[float, ...]]
    """Of the ends and of each repair, in percent."""


VGG11 = Anchor(BASES["vgg"], {"ends": (89.4, 89.8), "none": (67.3,), "REPAIR": (84.9,)})
NETWORKS: dict[Preset, Sequence[Anchor]] = {
    "smoke": (Anchor(SMOKE, {}),),
    "cpu": (Anchor(GRID["cpu"]["resnet"], {}),),
    "paper": (
        VGG11,
        Anchor(
            ModelCell(norm="layer", epochs=100),
            {"ends": (92.0, 92.7), "none": (50.7,), "REPAIR": (73.5,)},
        ),
        Anchor(
            ModelCell(norm="batch", epochs=100),
            {"ends": (93.5, 93.7), "none": (12.7,), RESET: (67.6,)},
        ),
        Anchor(
            ModelCell(norm="batch", epochs=100, width=4.0),
            {"ends": (95.42, 95.12), "none": (11.69,), RESET: (90.31,)},
        ),
    ),
}
SEEDS: dict[Preset, Sequence[int]] = {"smoke": (0,), "cpu": (0, 1), "paper": (0, 1)}
PAGE = "np_merge.md#repairs-published-accuracies"


def collect(bench: Bench, args: MergingArgs) -> dict[str, list[Row | None]]:
    """The rows there are, by network, one a seed."""
    found = {
        anchor.cell.label: [
            anchor_row(bench, args.preset, anchor.cell, seed) for seed in seeds_of(args, SEEDS)
        ]
        for anchor in NETWORKS[args.preset]
    }
    return found if any(row is not None for rows in found.values() for row in rows) else {}


def anchor_row(bench: Bench, preset: Preset, cell: ModelCell, seed: int) -> Row | None:
    """The average of a pair, repaired in each way that the network admits."""
    methods = {
        f"{ALIGNS[ALIGN]}: {name}": method
        for name, method in methods_of(cell, ALIGN).items()
        if name.startswith(AVERAGE)
    }
    return table_row(
        bench,
        pair_cells(cell, seed),
        seed,
        methods=tuple(methods),
        samples=SAMPLES[preset],
        steps=STEPS[preset],
        extra=methods,
    )


def repairs_of(cell: ModelCell) -> list[str]:
    """By name, "none" first."""
    return ["none", RESET] if cell.norm == "batch" else list(REPAIRS.values())


def ours_of(cell: ModelCell, rows: Sequence[Row | None]) -> dict[str, list[float]]:
    """Accuracies of the ends and of each repair, in percent."""
    found = {"ends": endpoints([row for row in rows if row is not None])}
    for repair in repairs_of(cell):
        values = values_of({ALIGN: list(rows)}, ALIGN, AVERAGE, repair)
        found[repair] = [value for value in values if value is not None]
    return found


def told_of(name: str) -> str:
    """How table and figure call the ends and each repair."""
    return name if name == "ends" else method_name(AVERAGE, name)


def gains(cell: ModelCell, rows: Sequence[Row | None]) -> list[float]:
    """The repaired average less the average, in points, one a seed."""
    named = {ALIGN: list(rows)}
    return differences(
        values_of(named, ALIGN, AVERAGE, repair_of(cell)), values_of(named, ALIGN, AVERAGE, "none")
    )


def published_gain(anchor: Anchor) -> float | None:
    """What the paper's repair adds; None where nothing is published."""
    named = anchor.published
    return named[repair_of(anchor.cell)][0] - named["none"][0] if named else None


def report(bench: Bench, args: MergingArgs, found: dict[str, list[Row | None]]) -> Findings:
    """Ours beside the published ones, a line a network and repair."""
    lines, last = [], Summary()
    for anchor in NETWORKS[args.preset]:
        label, rows = anchor.cell.label, found[anchor.cell.label]
        for name, values in ours_of(anchor.cell, rows).items():
            told = "/".join(f"{value:g}" for value in anchor.published.get(name, ()))
            lines.append([label, told_of(name), spread(values), told or "none"])
        last[label] = gains(anchor.cell, rows)
    head = ["network", "matched by activations", "ours, %", "published, %"]
    return Findings(
        title="REPAIR's published accuracies",
        text=markdown_table(head, lines),
        figures={figure_name("repair_anchors", args.preset): lambda: draw(found, args.preset)},
        summary=last,
    )


def draw(found: Mapping[str, Sequence[Row | None]], preset: Preset) -> Figure:
    """Accuracies of ends and averages, a row each and a dot a model; crosses are published."""
    named = [
        (anchor, name, values)
        for anchor in NETWORKS[preset]
        for name, values in ours_of(anchor.cell, found[anchor.cell.label]).items()
    ]
    figure = Figure(figsize=(7.2, 0.34 * len(named) + 1.6), layout="constrained")
    axes = figure.subplots()
    for place, (anchor, name, values) in enumerate(named):
        axes.plot(values, [place] * len(values), "o", color=PALETTE[0], alpha=0.5)
        told = anchor.published.get(name, ())
        axes.plot(told, [place] * len(told), "x", color=PALETTE[1], markersize=7)
    labels = [f"{anchor.cell.label}: {told_of(name)}" for anchor, name, _ in named]
    axes.set_yticks(np.arange(len(named)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("test accuracy, %")
    plain_axes(axes, grid="x")
    crosses = "; crosses: published" if any(anchor.published for anchor, *_ in named) else ""
    return caption(figure, f"averages matched by activations{crosses}")


def claims() -> list[Claim]:
    """Of the networks of which numbers are published."""
    lines = []
    for size, found in on_record(collect).items():
        for anchor in NETWORKS["paper" if size == "full size" else "cpu"]:
            gain = published_gain(anchor)
            if gain is not None:
                values = gains(anchor.cell, found[anchor.cell.label])
                lines.append(
                    Claim(
                        "REPAIR",
                        f"{repair_of(anchor.cell)} raises the matched average",
                        f"{anchor.cell.label}, matched by activations",
                        f"{with_interval(values)} points" if values else "",
                        f"{gain:+.1f}",
                        verdict_of(values, gain),
                        PAGE,
                    )
                )
    return lines


SCRIPT = MergingExperiment(
    name="repair_anchors",
    description=__doc__,
    collect=collect,
    report=report,
    claims=claims,
    data={"cpu": "CIFAR-10 at 16x16", "paper": "CIFAR-10"},
)
