"""WSA's Figure 3: the weights of each layer before and after training, and how near a Gaussian.

    python -m benchmarks fig3 [--preset smoke|cpu|paper]

Models start from He's normal or uniform weights. A layer's distance from a law is the largest
difference between its distribution function and that of the law with its own mean and std
(Kolmogorov and Smirnov's). It is held against the same distance from a Laplace and from a uniform
law; a test for exact normality would refuse any layer of so many weights.

cpu: the MLP of Figure 5 on images of 16x16; paper: VGG16 with BatchNorm on CIFAR-100, 200 epochs.
smoke: MLPs on digits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import PyTree
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from benchmarks.merging.bench import (
    Bench,
    MergingArgs,
    MergingExperiment,
    Preset,
    on_record,
    seeds_of,
)
from benchmarks.merging.fig5_otfusion import BASES, SMOKE
from benchmarks.merging.fig6_rebasin import setting
from benchmarks.merging.model_cell import ModelCell, Trained, initial_params
from benchmarks.merging.pairs import plain
from benchmarks.record.claims import Claim, verdict_of, with_interval
from benchmarks.record.figures import caption, figure_legend, panels, plain_axes
from benchmarks.record.ledger import cell_id
from benchmarks.record.statistics import Row, markdown_table, spread
from benchmarks.script import Findings, Summary, figure_name
from wsa_jax.files import flatten
from wsa_jax.plots import PALETTE
from wsa_jax.scope.scope import weight_scope

Rows = dict[str, list[Row | None]]
"""By initialisation, one a model."""
VGG16 = ModelCell(dataset="cifar100", model="vgg16", norm="batch", epochs=200, learning_rate=0.05)
NETWORKS: dict[Preset, ModelCell] = {"smoke": SMOKE, "cpu": BASES["mlp"], "paper": VGG16}
SEEDS: dict[Preset, Sequence[int]] = {"smoke": (0,), "cpu": (0, 1, 2, 3), "paper": (0, 1, 2, 3)}
BINS = 61
REACH = 4.0
"""Histograms reach so many stds on both sides of the mean."""
LAWS = ("gaussian", "laplace", "uniform")
CLAIM = (
    "both uniform and normal initialisation lead to Gaussian parameter distributions (a picture "
    "of four layers of VGG16 with BatchNorm on CIFAR-100; no statistic is given)."
)


@dataclass(frozen=True, kw_only=True)
class LayerShapes:
    """How the weights of one model are distributed, a layer at a time."""

    model: str
    """Label of its setting."""
    models: tuple[str, ...]
    """Its id in the ledger of models."""
    bins: int
    """Of the histograms."""
    seed: int = 0


def distances(weights: np.ndarray) -> dict[str, float]:
    """Kolmogorov and Smirnov's distance from each law with the weights' mean and std."""
    mean, std = float(weights.mean()), float(weights.std())
    half = math.sqrt(3) * std
    laws = (
        stats.norm(mean, std),
        stats.laplace(mean, std / math.sqrt(2)),
        stats.uniform(mean - half, 2 * half),
    )
    return {
        name: float(stats.kstest(weights, law.cdf).statistic)
        for name, law in zip(LAWS, laws, strict=True)
    }


def shapes_of(params: PyTree, bins: int) -> list[dict[str, Any]]:
    """Moments, distances and the histogram of every layer that has a scope."""
    leaves = {name.replace(".", "/"): leaf for name, leaf in flatten(params).items()}
    found = []
    for name in weight_scope(params).names:
        weights = np.asarray(leaves[name], np.float64).ravel()
        mean, std = weights.mean(), weights.std()
        counts = np.histogram((weights - mean) / std, bins, (-REACH, REACH))[0]
        found.append(
            {
                "layer": name,
                "mean": mean,
                "std": std,
                "excess_kurtosis": float(stats.kurtosis(weights)),
                "distances": distances(weights),
                "density": counts * bins / (2 * REACH * weights.size),
            }
        )
    return plain(found)


def shapes_row(bench: Bench, cell: ModelCell) -> Row | None:
    """Train or read the model; one ledger row."""
    config = LayerShapes(model=cell.label, models=(cell_id(cell),), bins=BINS, seed=cell.seed)

    def make(trained: Trained) -> Row:
        return {
            "initialization": cell.initialization,
            "before": shapes_of(initial_params(cell), BINS),
            "after": shapes_of(trained.params, BINS),
        }

    return bench.row(config, make, (cell,))


def collect(bench: Bench, args: MergingArgs) -> Rows:
    """All models; those of even and odd seeds are the halves of Figure 5's pairs."""
    base, seeds = NETWORKS[args.preset], seeds_of(args, SEEDS)

    def row(kind: str, seed: int) -> Row | None:
        extra = {"initialization": kind, "seed": seed, "part": seed % base.parts}
        return shapes_row(bench, setting(base, extra))

    rows: Rows = {kind: [row(kind, seed) for seed in seeds] for kind in ("normal", "uniform")}
    there = any(row is not None and "after" in row for found in rows.values() for row in found)
    return rows if there else {}


def measured(rows: Sequence[Row | None]) -> list[Row]:
    """Rows of models that did not diverge."""
    return [row for row in rows if row is not None and "after" in row]


def lead(layer: dict[str, Any]) -> float:
    """How much nearer a Gaussian is than the nearer of the other laws, in points."""
    found = layer["distances"]
    return 100 * (min(found["laplace"], found["uniform"]) - found["gaussian"])


def least_leads(rows: Sequence[Row | None]) -> list[float]:
    """The lead in the trained layer where it is least, one a model."""
    return [min(lead(layer) for layer in row["after"]) for row in measured(rows)]


def layer_lines(name: str, rows: Sequence[Row], index: int) -> list[list[str]]:
    """The lines of one layer, before and after training."""
    lines = []
    for when in ("before", "after"):
        layers = [row[when][index] for row in rows]
        lines.append(
            [name, layers[0]["layer"], when]
            + [f"{np.mean([layer['std'] for layer in layers]):.4f}"]
            + [spread([100 * layer["distances"][law] for layer in layers]) for law in LAWS]
            + [spread([layer["excess_kurtosis"] for layer in layers]), str(len(layers))]
        )
    return lines


def report(bench: Bench, args: MergingArgs, rows: Rows) -> Findings:
    """Distances by initialisation, layer and time; histograms of the first model."""
    head = ["initial weights", "layer", "training", "std"]
    head += [f"distance, {law}, %" for law in LAWS] + ["excess kurtosis", "models"]
    lines, last = [], Summary()
    for name, found in rows.items():
        there = measured(found)
        for index in range(len(there[0]["after"]) if there else 0):
            lines += layer_lines(name, there, index)
        last[f"{name}, least lead of the Gaussian"] = least_leads(found)
    label = NETWORKS[args.preset].label
    return Findings(
        title=f"Figure 3: how Gaussian weights are, {label}",
        text=f"{markdown_table(head, lines)}\n\nThe paper: {CLAIM}",
        figures={figure_name("fig3_gaussianity", args.preset): lambda: draw(rows, label)},
        summary=last,
    )


def shown_layers(count: int) -> list[int]:
    """Where there are more than three layers: the first, the middle and the last one.

    >>> shown_layers(3), shown_layers(8), shown_layers(2)
    ([0, 1, 2], [0, 4, 7], [0, 1])
    """
    return sorted({0, count // 2, count - 1})


def draw_layer(axes: Axes, layer: dict[str, Any], color: str, label: str) -> None:
    """The histogram of a layer, and the Gaussian of its mean and std."""
    z = np.linspace(-REACH, REACH, len(layer["density"]) + 1)
    x = layer["mean"] + layer["std"] * z
    density = np.asarray(layer["density"]) / layer["std"]
    axes.stairs(density, x, fill=True, color=color, alpha=0.35)
    gaussian = stats.norm.pdf(x, layer["mean"], layer["std"])
    axes.plot(x, gaussian, color=color, linewidth=1.5, label=label)
    axes.set_xlabel("weight")
    plain_axes(axes)


def draw(rows: Rows, label: str) -> Figure:
    """The first model of each initialisation: a panel a layer, at most three of them."""
    shown = {name: there[0] for name, found in rows.items() if (there := measured(found))}
    layers = shown_layers(min(len(row["after"]) for row in shown.values()))
    places = [(name, row, index) for name, row in shown.items() for index in layers]
    figure, axes = panels(len(places), width=4.2, height=3.4)
    for panel, (name, row, index) in zip(axes, places, strict=True):
        for when, color in zip(("before", "after"), PALETTE, strict=False):
            draw_layer(panel, row[when][index], color, f"Gaussian, {when} training")
        panel.set_title(f"{name} initial weights, {row['after'][index]['layer']}", fontsize=9)
        panel.set_ylabel("density")
    figure_legend(figure, columns=2)
    return caption(figure, label)


def claims() -> list[Claim]:
    """Whether a Gaussian is the nearest of three laws in every trained layer."""
    lines = []
    for size, rows in on_record(collect).items():
        network = NETWORKS["paper" if size == "full size" else "cpu"]
        for name, found in rows.items():
            leads = least_leads(found)
            ours = f"worst layer nearer than to Laplace or uniform by {with_interval(leads)} points"
            lines.append(
                Claim(
                    "WSA, Figure 3",
                    f"{name} initial weights become nearly Gaussian in each layer",
                    f"{network.label}, distances of distribution functions",
                    ours if leads else "",
                    "",
                    verdict_of(leads),
                    "scopes.md#figure-3-how-gaussian-weights-are",
                )
            )
    return lines


SCRIPT = MergingExperiment(
    name="fig3_gaussianity",
    description=__doc__,
    collect=collect,
    report=report,
    claims=claims,
    data={"cpu": "CIFAR-10 at 16x16", "paper": "CIFAR-100"},
)
