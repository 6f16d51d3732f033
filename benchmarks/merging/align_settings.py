"""Which settings of CCA Merge and ZipIt! merge best: where the library's defaults come from.

    python -m benchmarks align_settings [--preset smoke|cpu|paper]

Pairs of models of three networks, trained on the same data or on disjoint classes, are averaged
after both aligns at every setting. Settings are chosen by the mean accuracy of the averages on the
validation part of the training data, which no model is trained on; test accuracies are recorded for
the chosen ones alone. A default changes where the chosen setting is better by more than chance.

cpu: CIFAR-10 as 16x16 images; MLPs on all of it (20 epochs), ResNet8 of width 1/2 with BatchNorm on
10,000 examples (5 epochs). paper: VGG11 and ResNet20 of width 8. smoke: MLPs on digits.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array
from matplotlib.figure import Figure

from benchmarks.merging.bench import Bench, MergingArgs, MergingExperiment, Preset, seeds_of
from benchmarks.merging.merge_rows import accuracies, accuracy_of, endpoints, table_row
from benchmarks.merging.merge_settings import NETWORKS, SAMPLES
from benchmarks.merging.model_cell import ModelCell, Split
from benchmarks.merging.pairs import pair_cells
from benchmarks.record.claims import with_interval
from benchmarks.record.figures import figure_legend, panels, plain_axes
from benchmarks.record.statistics import Row, markdown_table, spread
from benchmarks.script import Findings, figure_name
from wsa_jax.merging import (
    Budget,
    Evidence,
    MergeResult,
    Model,
    align,
    canonical_correlation,
    zip_units,
)
from wsa_jax.merging.aligns import activations_of
from wsa_jax.merging.combines import uniform
from wsa_jax.merging.symmetry.spec import AxisSpec
from wsa_jax.merging.table import Method
from wsa_jax.plots import PALETTE

GRIDS: Mapping[str, Sequence[float]] = {
    "CCA Merge, regularization": (0.001, 0.01, 0.1, 1.0, 10.0, 100.0),
    "ZipIt!, repeat": (0.0, 0.01, 0.1, 0.3, 0.5, 1.0),
}
DEFAULTS = {"CCA Merge, regularization": 1.0, "ZipIt!, repeat": 0.1}
REFERENCES = ("average", "weight matching")
MLP = ModelCell(model="mlp", width=4.0, epochs=20, learning_rate=0.05, side=16)
RESNET8 = ModelCell(depth=8, width=0.5, norm="batch", examples=10_000, epochs=5, side=16)
CELLS: dict[Preset, dict[str, ModelCell]] = {
    "smoke": NETWORKS["smoke"],
    "cpu": {"MLP 256": MLP, "ResNet8 BN x0.5": RESNET8},
    "paper": NETWORKS["paper"],
}
SPLITS: dict[Preset, dict[Split, str]] = {
    "smoke": {"all": "same data"},
    "cpu": {"all": "same data", "classes": "disjoint classes"},
    "paper": {"all": "same data", "classes": "disjoint classes"},
}
SEEDS: dict[Preset, Sequence[int]] = {"smoke": (0,), "cpu": (0, 1), "paper": (0, 1, 2)}
Lines = dict[tuple[str, str], list[Row]]
"""By network and data, one row a seed."""


class Outcome(NamedTuple):
    """What there is."""

    validation: Lines
    chosen: dict[str, float] | None
    """By align; None while validation rows are missing."""
    test: Lines


def name_of(align_name: str, value: float) -> str:
    """How rows call an align at a setting."""
    return f"{align_name} {value:g}"


def method_of(align_name: str, value: float) -> Method:
    """The average of the models after an align at a setting, with BatchNorm repaired."""

    def merge(
        key: Array,
        spec: AxisSpec,
        models: Sequence[Model],
        evidence: Evidence,
        *,
        budget: Budget,
    ) -> MergeResult:
        read = activations_of(spec, evidence.task)
        variables = [model.variables for model in models]
        if align_name.startswith("CCA"):
            maps = canonical_correlation(
                spec, variables, read, evidence.inputs, regularization=value
            )
        else:
            maps = zip_units(spec, variables, read, evidence.inputs, repeat=value)
        moved = [
            Model.of(align(spec, own, there)) for own, there in zip(variables, maps, strict=True)
        ]
        return uniform(key, moved, evidence, budget)

    return merge


TRIED: dict[str, Method] = {
    name_of(align_name, value): method_of(align_name, value)
    for align_name, grid in GRIDS.items()
    for value in grid
}


def rows_of(bench: Bench, args: MergingArgs, methods: Sequence[str], part: str) -> Lines:
    """Tables of all networks, splits and seeds; those that are there."""
    found: Lines = {}
    for network, base in CELLS[args.preset].items():
        for split, said in SPLITS[args.preset].items():
            cell = dataclasses.replace(base, split=split)
            rows = [
                table_row(
                    bench,
                    pair_cells(cell, seed),
                    seed,
                    methods=tuple(methods),
                    samples=SAMPLES[args.preset],
                    steps=1,
                    part=part,
                    extra=TRIED,
                )
                for seed in seeds_of(args, SEEDS)
            ]
            found[network, said] = [row for row in rows if row is not None]
    return found


def score(rows: Lines, name: str) -> float:
    """The mean accuracy over networks and data, each a mean over seeds."""
    return float(np.mean([np.mean(accuracies(of_one, name)) for of_one in rows.values()]))


def collect(bench: Bench, args: MergingArgs) -> Outcome | None:
    """Try all settings on the validation part, then the chosen ones on the test set."""
    validation = rows_of(bench, args, [*REFERENCES, *TRIED], "validation")
    there = [row for rows in validation.values() for row in rows]
    asked = len(validation) * len(seeds_of(args, SEEDS))
    if len(there) < asked:
        bench.tally.undecided.add("settings")
        return Outcome(validation, None, {}) if there else None
    chosen = {
        align_name: max(grid, key=lambda value, a=align_name: score(validation, name_of(a, value)))
        for align_name, grid in GRIDS.items()
    }
    names = [name_of(*choice) for choice in chosen.items()]
    return Outcome(validation, chosen, rows_of(bench, args, [*REFERENCES, *names], "test"))


def lead(rows: Lines, align_name: str, value: float) -> list[float]:
    """Accuracies at a setting less those at the default, paired, in points."""
    names = (name_of(align_name, value), name_of(align_name, DEFAULTS[align_name]))
    pairs = [
        [accuracy_of(row, name) for name in names] for of_one in rows.values() for row in of_one
    ]
    return [mine - other for mine, other in pairs if mine is not None and other is not None]


def table(rows: Lines, methods: Sequence[str]) -> str:
    """A line a network and its data, a column a method."""
    lines = [
        [*setting, spread(endpoints(of_one))]
        + [spread(accuracies(of_one, method)) for method in methods]
        + [str(len(of_one))]
        for setting, of_one in rows.items()
        if of_one
    ]
    return markdown_table(["network", "data", "ends", *methods, "seeds"], lines)


def short(rows: Lines, align_name: str, best: float | None) -> str:
    """A line a network and its data, a column a setting; the chosen one is bold."""
    grid = GRIDS[align_name]
    head = [f"**{value:g}**" if value == best else f"{value:g}" for value in grid]
    lines = [
        [*setting, *(spread(accuracies(of_one, name_of(align_name, v))) for v in grid)]
        for setting, of_one in rows.items()
        if of_one
    ]
    if all(rows.values()):
        means = [f"{score(rows, name_of(align_name, value)):.2f}" for value in grid]
        lines.append(["mean", "", *means])
    return markdown_table(["network", "data", *head], lines)


def draw(found: Outcome) -> Figure:
    """Validation accuracy against each setting, below that pair's best, a line a network."""
    figure, axes = panels(len(GRIDS))
    for panel, (align_name, grid) in zip(axes, GRIDS.items(), strict=True):
        for index, ((network, said), rows) in enumerate(found.validation.items()):
            values = np.array(
                [[accuracy_of(row, name_of(align_name, v)) for v in grid] for row in rows], float
            )
            if len(values):
                panel.plot(
                    range(len(grid)),
                    (values - values.max(1, keepdims=True)).mean(0),
                    "o-",
                    color=PALETTE[index % len(PALETTE)],
                    label=f"{network}, {said}",
                )
        panel.set_xticks(range(len(grid)), [f"{value:g}" for value in grid])
        panel.set_xlabel(align_name)
        panel.set_ylabel("validation accuracy less the pair's best, points")
        plain_axes(panel)
    figure_legend(figure)
    return figure


def report(bench: Bench, args: MergingArgs, found: Outcome) -> Findings:
    """A table an align, one of the chosen settings on the test set, and a figure."""
    chosen = found.chosen or {}
    parts = [
        f"{align_name}: validation accuracy of the average, % (± std)\n\n"
        f"{short(found.validation, align_name, chosen.get(align_name))}"
        for align_name in GRIDS
    ]
    leads = {name: lead(found.validation, name, value) for name, value in chosen.items()}
    parts += [
        f"{name} {chosen[name]:g} less the default {DEFAULTS[name]:g}, paired, points: "
        f"{with_interval(values).replace('seed', 'pair')}"
        for name, values in leads.items()
        if chosen[name] != DEFAULTS[name]
    ]
    if found.test:
        names = [*REFERENCES, *(name_of(*choice) for choice in chosen.items())]
        parts.append(f"The chosen settings: test accuracy, %\n\n{table(found.test, names)}")
    means = {
        name: score(found.validation, name)
        for name in (*REFERENCES, *TRIED)
        if all(found.validation.values())
    }
    return Findings(
        title="Settings of CCA Merge and ZipIt!, chosen on validation data",
        text="\n\n".join(parts),
        figures={figure_name("align_settings", args.preset): lambda: draw(found)},
        summary={"chosen": chosen, "defaults": DEFAULTS, "leads": leads, "validation": means},
    )


SCRIPT = MergingExperiment(
    name="align_settings", description=__doc__, collect=collect, report=report
)
