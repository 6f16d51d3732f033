"""Every align with every combine and every repair, on the same pairs, with and without WSA.

    python -m benchmarks merging_grid [--preset smoke|cpu|paper] [--network mlp resnet vgg]

Two models of one setting are trained from different seeds on the same data. All methods see the
same 1,000 training images; NP Merge takes 200 steps on them, at the rate of least validation error
of four, tried once on seed 0 without WSA. Accuracies are those of the test set.

What a model does not admit is named in its table: REPAIR is a reset of the statistics where there
is BatchNorm, and units that a norm follows cannot be rescaled.

cpu: all of CIFAR-10 but the validation part, at 16x16. The MLP of Figure 5 in its two chosen
settings, on the three pairs that did not choose them; ResNet8 of half the width with BatchNorm, two
pairs. paper: VGG11 and ResNet20 with BatchNorm at full size. smoke: MLPs on digits, few methods.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.merging.bench import (
    Bench,
    MergingArgs,
    MergingExperiment,
    Preset,
    on_record,
)
from benchmarks.merging.fig5_otfusion import BASES, SMOKE
from benchmarks.merging.fig6_rebasin import setting
from benchmarks.merging.grid_gains import (
    MATCHED,
    align_gains,
    grid_table,
    learning_gains,
    repair_gains,
    scope_gains,
)
from benchmarks.merging.grid_methods import (
    ALIGNS,
    AVERAGE,
    NP,
    Column,
    Rows,
    learnt_of,
    methods_of,
    not_admitted,
    repair_of,
    values_of,
)
from benchmarks.merging.merge_rows import accuracies, accuracy_of, endpoints, table_row
from benchmarks.merging.merge_settings import GRIDS, SAMPLES, STEPS
from benchmarks.merging.model_cell import ModelCell, check_cells
from benchmarks.merging.pairs import pair_cells
from benchmarks.record.claims import Claim, verdict_of, with_interval
from benchmarks.record.figures import METHODS as COLORS
from benchmarks.record.figures import caption, plain_axes
from benchmarks.record.statistics import Row, Settings, spread
from benchmarks.script import Findings, Summary, figure_name
from wsa_jax.merging.aligns import AlignName
from wsa_jax.merging.combines import learned
from wsa_jax.merging.methods import Pipeline

Network = Literal["mlp", "resnet", "vgg"]
Found = dict[Network, dict[str, Rows]]
"""By network and training."""
RESNET = ModelCell(depth=8, width=0.5, norm="batch", epochs=10, side=16)
NETWORKS: dict[Preset, dict[Network, ModelCell]] = {
    "smoke": {"mlp": SMOKE},
    "cpu": {"mlp": BASES["mlp"], "resnet": RESNET},
    "paper": {"vgg": BASES["vgg"], "resnet": ModelCell(norm="batch", epochs=100)},
}
TO_INITIAL: Settings = {"strength": 10.0, "target": "initial"}
TRAININGS: dict[Network, dict[str, Settings]] = {
    # Figure 5's choice.
    "mlp": {
        "without WSA": {"weight_decay": 2e-3},
        "with WSA": {"strength": 10.0, "target": "fixed", "target_std": 0.05},
    },
    "resnet": {"without WSA": {}, "with WSA": TO_INITIAL},
    "vgg": {"without WSA": {}, "with WSA": TO_INITIAL},
}
SEEDS: dict[Network, Sequence[int]] = {"mlp": (1, 2, 3), "resnet": (0, 1), "vgg": (0, 1, 2)}
SMOKE_ALIGNS: tuple[AlignName, ...] = ("weight",)
PAGE = "np_merge.md#every-align-with-every-combine-and-repair"
PAPER = (
    "REPAIR lifts the matched average of two VGG11 from 67.3 to 84.9 % (ends 89.4 and 89.8), that "
    "of two ResNet20 x4 with BatchNorm by a reset from 11.7 to 90.3; CCA Merge and NP Merge give "
    "no numbers that could be obtained."
)


@dataclass(frozen=True, kw_only=True)
class Args(MergingArgs):
    """Arguments."""

    network: tuple[Network, ...] = ()
    """By default the preset's."""


def networks_of(args: Args) -> dict[Network, ModelCell]:
    """The networks of a command line."""
    cells = NETWORKS["smoke"] if args.preset == "smoke" else NETWORKS["cpu"] | NETWORKS["paper"]
    cells = cells | NETWORKS[args.preset]
    return {name: cells[name] for name in args.network or NETWORKS[args.preset]}


def collect(bench: Bench, args: Args) -> Found:
    """The rows there are of every network, training and align."""
    found: Found = {}
    for network, base in networks_of(args).items():
        trainings = {
            name: setting(base, extra)
            for name, extra in TRAININGS[network].items()
            if args.preset != "smoke" or name == "without WSA"
        }
        if not args.report_only:
            check_cells(trainings.values())
        seeds = args.seed or ((0,) if args.preset == "smoke" else SEEDS[network])
        rate = rate_of(bench, args.preset, trainings["without WSA"])
        if rate is None:
            bench.tally.undecided.add(base.label)
            continue
        found[network] = {
            name: {
                align: [grid_row(bench, args.preset, cell, seed, align, rate) for seed in seeds]
                for align in (SMOKE_ALIGNS if args.preset == "smoke" else ALIGNS)
            }
            for name, cell in trainings.items()
        }
    there = any(
        row is not None
        for trainings in found.values()
        for rows in trainings.values()
        for line in rows.values()
        for row in line
    )
    return found if there else {}


def grid_row(
    bench: Bench,
    preset: Preset,
    cell: ModelCell,
    seed: int,
    align: AlignName,
    rate: float,
    **part: str,
) -> Row | None:
    """All methods of one align on one pair, in one row."""
    methods = methods_of(cell, align)
    if part:
        methods = {NP: Pipeline(align, learned, ("labels",))}
    named = {f"{ALIGNS[align]}: {name}": method for name, method in methods.items()}
    return table_row(
        bench,
        pair_cells(cell, seed),
        seed,
        methods=tuple(named),
        samples=SAMPLES[preset],
        steps=STEPS[preset],
        rates=(rate, 1e-3),
        extra=named,
        **part,
    )


def rate_of(bench: Bench, preset: Preset, cell: ModelCell) -> float | None:
    """NP Merge's rate of best validation accuracy after weight matching, on seed 0."""
    scores = {}
    for rate, _ in GRIDS[preset]:
        row = grid_row(bench, preset, cell, 0, MATCHED, rate, part="validation")
        score = accuracy_of(row, f"{ALIGNS[MATCHED]}: {NP}")
        if score is None:
            return None
        scores[rate] = score
    return max(scores, key=lambda rate: scores[rate])


def report(bench: Bench, args: Args, found: Found) -> Findings:
    """A table a network and training, and what repair, learning and WSA gain."""
    cells, parts = networks_of(args), list[str]()
    last = Summary()
    # A grid without a row says nothing; what it asks for is counted in the list of scripts.
    for network, trainings in found.items():
        for training, rows in trainings.items():
            cell = setting(cells[network], TRAININGS[network][training])
            first = [row for row in next(iter(rows.values())) if row is not None]
            if not first:
                continue
            known = spread(accuracies(first, "ensemble"))
            known = f"ends {spread(endpoints(first))} %, ensemble {known} %"
            gains = {
                f"{repair_of(cell)} after weight matching": repair_gains(cell, rows),
                "NP Merge over the repaired average, mean over aligns": learning_gains(cell, rows),
            }
            remarks = [
                f"* {name}: {with_interval(values)} points."
                for name, values in gains.items()
                if values
            ]
            last |= {f"{network}, {training}, {name}": values for name, values in gains.items()}
            parts += [
                f"{cells[network].label}, {training}: {known}.",
                grid_table(cell, rows),
                "\n".join(remarks),
            ]
        # Of both trainings alike: each method is compared with itself.
        if len(trainings) > 1:
            gained = scope_gains(cells[network], trainings)
            last[f"{network}, WSA"] = gained
            if gained:
                parts.append(
                    "What merges lose of their ends' accuracy, without WSA less with it: "
                    f"{with_interval(gained)} points, mean over all methods."
                )
        parts.append(not_admitted(cells[network]))
    if missing := sorted(bench.tally.undecided):
        parts.append(f"NP Merge's rate is open, trials are missing: {', '.join(missing)}.")
    parts.append(f"The papers: {PAPER}")
    return Findings(
        title="Merging grid: test accuracy, % (± std)",
        text="\n\n".join(part for part in parts if part),
        figures={figure_name("merging_grid", args.preset): lambda: draw(found, cells)},
        summary=last,
    )


def marked(cell: ModelCell) -> dict[str, tuple[Column, str]]:
    """What the figure shows of a network: a column of its table, and its marker."""
    return {
        "average": ((AVERAGE, "none"), "o"),
        "average, repaired": ((AVERAGE, repair_of(cell)), "s"),
        "NP Merge": (learnt_of(cell), "^"),
    }


def draw(found: Found, cells: Mapping[Network, ModelCell]) -> Figure:
    """Accuracy by align, a panel a network; the means over seeds."""
    figure = Figure(figsize=(5.4 * len(found) + 1.6, 4.6), layout="constrained")
    axes = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    for panel, (network, trainings) in zip(axes, found.items(), strict=True):
        for training, rows in trainings.items():
            shift = 0.0 if len(trainings) == 1 else -0.16 if training == "without WSA" else 0.16
            color, cell = COLORS[training], cells[network]
            there = [row for row in next(iter(rows.values())) if row is not None]
            if there:
                panel.axvline(float(np.mean(endpoints(there))), color=color, linewidth=0.9, ls="--")
            for place, align in enumerate(rows):
                for column, marker in marked(cell).values():
                    known = [x for x in values_of(rows, align, *column) if x is not None]
                    if known:
                        panel.plot(
                            float(np.mean(known)), place + shift, marker, color=color, markersize=6
                        )
        names = [ALIGNS[align] for align in next(iter(trainings.values()))]
        panel.set_yticks(range(len(names)), names, fontsize=8)
        panel.set_ylim(len(names) - 0.5, -0.5)
        panel.set_xlabel("test accuracy, %")
        panel.set_title(cells[network].label, fontsize=10)
        plain_axes(panel, grid="x")
    handles = [
        Line2D([], [], marker=marker, linestyle="", color="0.35", label=name)
        for name, (_, marker) in marked(next(iter(cells.values()))).items()
    ]
    shown = list(dict.fromkeys(name for trainings in found.values() for name in trainings))
    handles += [Line2D([], [], color=COLORS[name], linewidth=3, label=name) for name in shown]
    handles.append(Line2D([], [], color="0.35", linestyle="--", label="the models themselves"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return caption(figure, "merging two models, means over pairs")


def claims() -> list[Claim]:
    """Repair, learning, CCA and WSA, by network; the first three without WSA."""
    lines = []
    for size, found in on_record(collect, Args).items():
        cells = networks_of(Args(preset="paper" if size == "full size" else "cpu"))
        for network, trainings in found.items():
            cell, rows = cells[network], trainings["without WSA"]
            run = f"{cell.label}, two models"
            repaired_by = repair_gains(cell, rows)
            learnt = learning_gains(cell, rows)
            linear = align_gains(cell, rows, "canonical correlation", "activation")
            scopes = scope_gains(cell, trainings)
            stated = [
                ("REPAIR", f"{repair_of(cell)} raises the matched average", run, repaired_by),
                ("CCA Merge", "CCA beats activation matching", f"{run}, repaired", linear),
                ("NP Merge, tables", "NP Merge beats the average, whatever the align", run, learnt),
                ("WSA, Figure 5", "merges keep more with WSA, whatever the method", run, scopes),
            ]
            lines += [
                Claim(
                    source,
                    claim,
                    ran,
                    f"{with_interval(values)} points" if values else "",
                    "",
                    verdict_of(values),
                    PAGE,
                )
                for source, claim, ran, values in stated
            ]
    return lines


SCRIPT = MergingExperiment(
    name="merging_grid",
    description=__doc__,
    arguments=Args,
    collect=collect,
    report=report,
    claims=claims,
    data={"cpu": "CIFAR-10 at 16x16", "paper": "CIFAR-10"},
)
