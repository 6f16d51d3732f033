"""WSA's Figure 4: one layer of a model is scaled, the next divided, and the line to another rises.

    python -m benchmarks fig4 [--preset smoke|cpu|paper]

Two networks are trained from different seeds; in the second, one group of units is scaled by
alpha, which leaves its function as it is. The line between them is measured as it is, after
rescaling (scale alignment after training, the cure that the paper does not have), after weight
matching, and after both. That tells how much of a barrier a mismatch of scopes causes.

paper: VGG8 of full width and VGG16 without norms, 100 epochs, all of CIFAR-10. cpu cuts to an MLP
of two layers of 256 and to VGG8 of a quarter of the width, 10,000 examples, 10 epochs. smoke: MLPs
on digits. The paper does not say which layer it scales: here the middle group.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
from benchmarks.merging.model_cell import ModelCell, Trained, model_data
from benchmarks.merging.pairs import (
    Align,
    aligned,
    barriers,
    measured_path,
    model_spec,
    pair_cells,
    plain,
)
from benchmarks.record.claims import Claim, verdict_of, with_interval
from benchmarks.record.figures import caption, draw_recorded, figure_legend
from benchmarks.record.ledger import cell_id
from benchmarks.record.statistics import Row, markdown_table, spread
from benchmarks.script import Findings, Summary, figure_name
from wsa_jax.merging import scale_layer

BASES: dict[Preset, list[ModelCell]] = {
    "smoke": [
        ModelCell(dataset="digits", model="mlp", epochs=4, batch_size=50, augmentation="none")
    ],
    "cpu": [
        ModelCell(model="mlp", width=4.0, epochs=10, examples=10_000, learning_rate=0.05),
        ModelCell(model="vgg8", width=0.25, epochs=10, examples=10_000, learning_rate=0.05),
    ],
    "paper": [
        ModelCell(model="vgg8", epochs=100, learning_rate=0.05),
        ModelCell(model="vgg16", epochs=100, learning_rate=0.05),
    ],
}
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)
CURES: tuple[Align, ...] = ("none", "rescale", "weight", "rescale+weight")
NAMES = {
    "none": "as it is",
    "rescale": "rescaled",
    "weight": "matched",
    "rescale+weight": "rescaled, then matched",
}
Found = dict[Align, dict[float, list[Row]]]
"""Rows by cure and scale, one a seed."""
SEEDS: dict[Preset, Sequence[int]] = {"smoke": (0,), "cpu": (0, 1, 2), "paper": (0, 1, 2)}
EXAMPLES = {"smoke": 0, "cpu": 5_000, "paper": 0}
CLAIM = "scaling makes the barrier more obvious, especially in VGG8 (curves; no numbers)."


@dataclass(frozen=True, kw_only=True)
class ScaledPath:
    """The line from a model to another one of which one group was scaled, and then aligned."""

    model: str
    first: str
    second: str
    scale: float
    group: str
    align: Align
    examples: int = 0
    seed: int = 0


def scaled_row(
    bench: Bench, cell: ModelCell, seed: int, scale: float, align: Align, examples: int
) -> Row | None:
    """One line; the group that is scaled is the middle one of those that admit it."""
    parts = pair_cells(cell, seed)
    config = ScaledPath(
        model=cell.label,
        first=cell_id(parts[0]),
        second=cell_id(parts[1]),
        scale=scale,
        group="middle",
        align=align,
        examples=examples,
        seed=seed,
    )

    def make(*trained: Trained) -> Row:
        first, second = (model.variables for model in trained)
        data, spec = model_data(parts[0], bench.data_dir), model_spec(cell, first)
        names = [group.name for group in spec.groups if group.admits != "permutation"]
        second = scale_layer(spec, second, names[len(names) // 2], scale)
        second, info = aligned(cell, first, second, align, seed)
        path = measured_path(cell, first, second, data.test, 11, examples)
        return {"scaled_group": names[len(names) // 2], "info": plain(info), "test": path}

    return bench.row(config, make, parts)


def rows_of(bench: Bench, preset: Preset, cell: ModelCell, seeds: Sequence[int]) -> Found:
    """The rows there are."""
    return {
        align: {
            scale: [
                row
                for seed in seeds
                if (row := scaled_row(bench, cell, seed, scale, align, EXAMPLES[preset]))
            ]
            for scale in SCALES
        }
        for align in CURES
    }


def any_row(found: Found) -> bool:
    """Whether there is one."""
    return any(rows for scales in found.values() for rows in scales.values())


def table(found: Found) -> str:
    """Barriers: a line a scale, a column a cure."""
    lines = [
        [f"{scale:g}"] + [spread(barriers(found[align][scale])) for align in CURES]
        for scale in SCALES
    ]
    return markdown_table(["scale", *[NAMES[align] for align in CURES]], lines)


def draw(found: Found) -> Figure:
    """The paper's curves (accuracy on the line, a colour a scale), a panel a cure."""
    run = [
        align for align in CURES if any("test" in row for r in found[align].values() for row in r)
    ]
    figure = Figure(figsize=(3.7 * len(run), 3.8), layout="constrained")
    grid = np.ravel(figure.subplots(1, len(run), sharey=True, squeeze=False))
    for axes, align in zip(grid, run, strict=True):
        series = {
            f"scale {scale:g}": [
                (row["test"]["t"], [100 * value for value in row["test"]["accuracy"]])
                for row in found[align][scale]
                if "test" in row
            ]
            for scale in SCALES
        }
        draw_recorded(
            axes, series, xlabel="from w1 (0) to w2 (1)", ylabel="test accuracy, %", legend=False
        )
        axes.set_title(NAMES[align], fontsize=10)
    figure_legend(figure, columns=5)
    for axes in figure.axes[1:]:
        axes.set_ylabel("")
    return figure


def _titled(found: Found, label: str) -> Figure:
    return caption(draw(found), f"the line between two models, {label}")


def collect(bench: Bench, args: MergingArgs) -> dict[ModelCell, Found]:
    """The rows of every network; empty where there is not one."""
    seeds = seeds_of(args, SEEDS)
    found = {cell: rows_of(bench, args.preset, cell, seeds) for cell in BASES[args.preset]}
    return found if any(map(any_row, found.values())) else {}


def report(bench: Bench, args: MergingArgs, found: dict[ModelCell, Found]) -> Findings:
    """A table and a figure of each network."""
    last: Summary = {}
    told, figures = list[str](), dict[str, Callable[[], Figure]]()
    for cell, rows in found.items():
        if not any_row(rows):
            told.append(f"{cell.label}: not run yet")
            continue
        told.append(f"{cell.label}: test loss barrier (Eq. 7; ± std)\n\n{table(rows)}")
        suffix = "" if cell is BASES[args.preset][0] else f"_{cell.model}"
        name = figure_name(f"fig4_scaling{suffix}", args.preset)
        figures[name] = functools.partial(_titled, rows, cell.label)
        last[cell.model] = {
            align: {
                f"{scale:g}": float(np.mean(known))
                for scale, line in scales.items()
                if (known := barriers(line))
            }
            for align, scales in rows.items()
        }
    told.append(f"The paper: {CLAIM}")
    return Findings(
        title="Figure 4: barriers under manual scaling, and rescaling as the cure",
        text="\n\n".join(told),
        figures=figures,
        summary=last,
    )


def more_obvious(found: Found) -> list[float]:
    """How much higher the barrier is at scales other than 1, mean over them, for each seed."""
    by_seed = {
        scale: {row["config"]["seed"]: barriers([row]) for row in rows}
        for scale, rows in found["none"].items()
    }
    plain = by_seed.pop(1.0)
    return [
        float(np.mean([rows[seed][0] - barrier[0] for rows in by_seed.values()]))
        for seed, barrier in plain.items()
        if barrier and all(rows.get(seed) for rows in by_seed.values())
    ]


def claims() -> list[Claim]:
    """A line a network."""
    lines = []
    for size, networks in on_record(collect).items():
        for cell, found in networks.items():
            if values := more_obvious(found):
                lines.append(
                    Claim(
                        "WSA, Figure 4",
                        "scaling a layer raises the barrier",
                        f"{cell.label}, scales 1/4 to 4, {size}",
                        with_interval(values),
                        "",
                        verdict_of(values),
                        "barriers.md#figure-4-manual-scaling-and-rescaling-as-the-cure",
                    )
                )
    return lines


SCRIPT = MergingExperiment(
    name="fig4_scaling", description=__doc__, collect=collect, report=report, claims=claims
)
