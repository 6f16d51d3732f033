"""Where learned coefficients leave one half: histograms of NP Merge's shares, layer by layer.

    python -m benchmarks coefficients [--preset smoke|cpu|paper]

The models are the first network's of `np_merge_table`, on the same data and on disjoint classes;
coefficients start at 1/2 and learn with the table's budget.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from matplotlib.figure import Figure

from benchmarks.merging.bench import Bench, MergingArgs, MergingExperiment, Preset, seeds_of
from benchmarks.merging.merge_rows import samples_of
from benchmarks.merging.merge_settings import NAMES, NETWORKS, SAMPLES, SEEDS, STEPS
from benchmarks.merging.model_cell import ModelCell, Split, Trained, cell_task
from benchmarks.merging.pairs import model_spec, pair_cells
from benchmarks.record.figures import INK, caption, figure_legend, plain_axes
from benchmarks.record.ledger import cell_id
from benchmarks.record.statistics import Row, markdown_table
from benchmarks.script import Findings, Summary, figure_name
from wsa_jax.merging import Budget, Evidence, Model, align_models
from wsa_jax.merging.methods import learned
from wsa_jax.plots import PALETTE

BINS = 41
SPLITS: tuple[Split, ...] = ("all", "classes")
Found = dict[str, list[Row]]
"""Rows by the kind of data, one a seed."""


@dataclass(frozen=True, kw_only=True)
class CoefficientCell:
    """Coefficients learned between two models."""

    model: str
    first: str
    second: str
    samples: int
    steps: int
    np_learning_rate: float = 0.1
    seed: int = 0


def coefficient_row(bench: Bench, preset: Preset, cell: ModelCell, seed: int) -> Row | None:
    """Learn, and record a histogram and moments of each layer's shares of the first model."""
    parts = pair_cells(cell, seed)
    config = CoefficientCell(
        model=cell.label,
        first=cell_id(parts[0]),
        second=cell_id(parts[1]),
        samples=SAMPLES[preset],
        steps=STEPS[preset],
        seed=seed,
    )

    def make(*trained: Trained) -> Row:
        models = [Model(one.params, one.model_state) for one in trained]
        evidence = Evidence(
            cell_task(cell), *samples_of(parts[0], SAMPLES[preset], seed, bench.data_dir)
        )
        spec = model_spec(cell, models[0].variables)
        key = jax.random.key(seed)
        # One start, the published one, as on record.
        models = align_models(key, spec, models, evidence, "weight", restarts=1)
        budget = Budget(steps=STEPS[preset], np_learning_rate=config.np_learning_rate)
        info = learned(jax.random.key(seed), models, evidence, budget).info
        layers = {}
        for name, shares in info["coefficients"].items():
            values = np.asarray(shares, np.float64).ravel()
            counts, _ = np.histogram(values, BINS, (0.0, 1.0))
            layers[name] = {
                "counts": counts.tolist(),
                "mean": float(values.mean()),
                "std": float(values.std()),
                "left": float((abs(values - 0.5) > 0.1).mean()),
            }
        return {"layers": layers, "best_step": int(info["best_step"])}

    return bench.row(config, make, parts)


def mean_over(rows: list[Row], layer: str, what: str) -> float:
    """A moment of a layer's shares, mean over seeds."""
    return float(np.mean([row["layers"][layer][what] for row in rows]))


def quantiles(rows: list[Row], layer: str, shares: Sequence[float]) -> list[float]:
    """Quantiles of a layer's shares over all seeds, from their histogram."""
    counts = np.sum([row["layers"][layer]["counts"] for row in rows], axis=0)
    reached = np.concatenate([[0.0], np.cumsum(counts) / counts.sum()])
    return np.interp(shares, reached, np.linspace(0, 1, BINS + 1)).tolist()


def draw(found: Found, network: str) -> Figure:
    """For each kernel, where the middle half and nine tenths of its shares lie."""
    names = [name for name in next(iter(found.values()))[0]["layers"] if name.endswith("kernel")]
    figure = Figure(figsize=(7.6, 0.42 * len(names) + 1.7), layout="constrained")
    axes = figure.subplots()
    for kind, (title, rows) in enumerate(found.items()):
        color, shift = PALETTE[kind + 2], 0.16 * (2 * kind - 1)
        for place, name in enumerate(names):
            low, first, middle, third, high = quantiles(rows, name, (0.05, 0.25, 0.5, 0.75, 0.95))
            at = place + shift
            label = title if place == 0 else "_"
            axes.plot((low, high), (at, at), color=color, linewidth=1.2)
            axes.plot((first, third), (at, at), color=color, linewidth=5, label=label)
            axes.plot(middle, at, "o", markersize=4, color="white", markeredgecolor=color)
    axes.set_yticks(range(len(names)), [name.removesuffix("/kernel") for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.axvline(0.5, color=INK, linewidth=0.8)
    axes.set_xlabel("share of the first model (thick: middle half, thin: nine tenths, dot: median)")
    plain_axes(axes, grid="x")
    figure_legend(figure)
    return caption(figure, f"learned coefficients of NP Merge, {network}")


def collect(bench: Bench, args: MergingArgs) -> Found:
    """The rows of both kinds of data; one of models that diverged has no layers."""
    base = next(iter(NETWORKS[args.preset].values()))
    made = {
        NAMES[split]: [
            coefficient_row(bench, args.preset, dataclasses.replace(base, split=split), seed)
            for seed in seeds_of(args, SEEDS)
        ]
        for split in SPLITS
    }
    kept = {name: [row for row in rows if row and "layers" in row] for name, rows in made.items()}
    return {name: rows for name, rows in kept.items() if rows}


def report(bench: Bench, args: MergingArgs, found: Found) -> Findings:
    """How far each layer's shares are from one half, and their histograms."""
    head = ["layer"]
    head += [f"{name}: {what}" for name in found for what in ("std", "beyond 0.5 ± 0.1")]
    lines = []
    for layer in next(iter(found.values()))[0]["layers"]:
        line = [layer]
        for rows in found.values():
            line.append(f"{mean_over(rows, layer, 'std'):.3f}")
            line.append(f"{mean_over(rows, layer, 'left'):.0%}")
        lines.append(line)
    last: Summary = {
        name: {layer: mean_over(rows, layer, "left") for layer in rows[0]["layers"]}
        for name, rows in found.items()
    }
    network = next(iter(NETWORKS[args.preset]))
    return Findings(
        title="Where coefficients leave one half",
        text=markdown_table(head, lines),
        figures={figure_name("coefficients", args.preset): lambda: draw(found, network)},
        summary=last,
    )


SCRIPT = MergingExperiment(name="coefficients", description=__doc__, collect=collect, report=report)
