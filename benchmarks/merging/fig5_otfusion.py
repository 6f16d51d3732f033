"""WSA's Figure 5: the line between two models with and without WSA, as they are and by OT Fusion.

    python -m benchmarks fig5 [--preset smoke|cpu|paper] [--network mlp|resnet|vgg]
        [--dataset cifar10 cifar100 svhn]

Two models of one setting are trained from different seeds on the same data; the second one is left
as it is, transported to the first by activations (on 1,000 training images) or by weights, and the
line between both is evaluated on the test set. WSA's setting and the baseline are chosen on the
first data set from three each, by the validation loss of the transported average of seed 0; all
other seeds are compared, paired.

SVHN is read from where tensorflow_datasets prepared svhn_cropped, and refused where it is not.

cpu is small, and complete: images of 16x16, all of the training data but the validation part; an
MLP with two layers of 256, or ResNet8 of width 0.5 with LayerNorm. paper: VGG11 at full size (the
paper does not name its network; OT Fusion's is VGG11). smoke: MLPs on digits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

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
from benchmarks.merging.fig6_rebasin import (
    BASELINES,
    SMALL_RESNET_WSA,
    WSA,
    choose,
    ends,
    middle,
    name_of,
    paired_differences,
    setting,
)
from benchmarks.merging.model_cell import ModelCell, check_cells
from benchmarks.merging.pairs import Align, barriers, path_row
from benchmarks.record.claims import Claim, verdict_of, with_interval
from benchmarks.record.data import missing_data
from benchmarks.record.figures import draw_recorded, figure_legend, panels
from benchmarks.record.statistics import Row, Settings, markdown_table, spread
from benchmarks.refused import RefusedError
from benchmarks.script import Findings, Summary, figure_name

Network = Literal["mlp", "resnet", "vgg"]
DatasetName = Literal["cifar10", "cifar100", "svhn"]
Rows = dict[str, list[Row | None]]
"""By align, one a seed."""
# SVHN as tensorflow_datasets calls its images of 32x32.
DATASETS: dict[DatasetName, str] = {
    "cifar10": "cifar10",
    "cifar100": "cifar100",
    "svhn": "svhn_cropped",
}
OT = "activation transport"
ALIGNS: dict[Align, str] = {
    "none": "vanilla",
    "activation transport": "OT Fusion",
    "weight transport": "OT Fusion, weights",
}
SMOKE = ModelCell(dataset="digits", model="mlp", epochs=4, batch_size=50, augmentation="none")
BASES: dict[Network, ModelCell] = {
    "mlp": ModelCell(model="mlp", width=4.0, epochs=20, learning_rate=0.05, side=16),
    "resnet": ModelCell(depth=8, width=0.5, norm="layer", epochs=20, side=16),
    "vgg": ModelCell(model="vgg11", epochs=100, learning_rate=0.05),
}
NETWORKS: dict[Preset, Network] = {"smoke": "mlp", "cpu": "mlp", "paper": "vgg"}
SEEDS: dict[Preset, Sequence[int]] = {"smoke": (0, 1), "cpu": (0, 1, 2, 3), "paper": (0, 1, 2, 3)}
POINTS = 11
CLAIM = (
    "OT Fusion lowers the barrier of plain interpolation, and WSA improves it further (curves on "
    "SVHN and CIFAR-10; no numbers are given)."
)


@dataclass(frozen=True, kw_only=True)
class Args(MergingArgs):
    """Arguments."""

    dataset: tuple[DatasetName, ...] = ("cifar10", "cifar100")
    """The first is the one on which settings are chosen."""
    network: Network | None = None
    """By default the preset's."""


class Outcome(NamedTuple):
    """What there is of a network."""

    trials: dict[str, Rows]
    """By setting: seed 0 of the first data set."""
    chosen: dict[str, Settings] | None
    """"without WSA" and "with WSA"; None while trials are missing."""
    rows: dict[str, dict[str, Rows]]
    """By data set and chosen setting: all seeds."""


def base_of(args: Args) -> ModelCell:
    """The network of a command line."""
    return SMOKE if args.preset == "smoke" else BASES[args.network or NETWORKS[args.preset]]


def rows_of(bench: Bench, cell: ModelCell, seeds: Sequence[int]) -> Rows:
    """The lines of a setting, by align."""
    return {
        align: [path_row(bench, cell, s, align, points=POINTS, examples=0) for s in seeds]
        for align in ALIGNS
    }


def collect(bench: Bench, args: Args) -> Outcome | None:
    """Choose settings on the first seed of the first data set, and compare them on all others."""
    base, seeds = base_of(args), seeds_of(args, SEEDS)
    smoke = args.preset == "smoke"
    datasets = ("digits",) if smoke else tuple(DATASETS[name] for name in args.dataset)
    count = 1 if smoke else 3
    candidates = {
        "without WSA": BASELINES[:count],
        "with WSA": (SMALL_RESNET_WSA if base.model == "resnet" else WSA)[:count],
    }

    def cell(dataset: str, extra: Settings) -> ModelCell:
        return setting(base, extra | {"dataset": dataset})

    if not args.report_only:
        if absent := [told for name in datasets if (told := missing_data(name, bench.data_dir))]:
            raise RefusedError(*absent)
        check_cells(cell(name, extra) for name in datasets for extra in candidates["with WSA"])
    trials = {
        name_of(extra): rows_of(bench, cell(datasets[0], extra), seeds[:1])
        for extras in candidates.values()
        for extra in extras
    }
    chosen: dict[str, Settings] = {}
    for name, extras in candidates.items():
        best = choose(trials, extras, align=OT)
        if best is None:
            bench.tally.undecided.add("settings")
            there = any(row is not None for rows in trials.values() for row in rows[OT])
            return Outcome(trials, None, {}) if there else None
        chosen[name] = best
    rows = {
        dataset: {
            name: rows_of(bench, cell(dataset, extra), seeds) for name, extra in chosen.items()
        }
        for dataset in datasets
    }
    return Outcome(trials, chosen, rows)


def compared(found: Outcome, dataset: str, align: str) -> list[float]:
    """Barriers without WSA less those with it, paired; seed 0 chose and is left out."""
    without, with_wsa = (found.rows[dataset][name][align] for name in found.chosen or ())
    return paired_differences(without[1:], with_wsa[1:])


def helped(found: Outcome, dataset: str, name: str) -> list[float]:
    """Vanilla barriers less those after OT Fusion, paired."""
    rows = found.rows[dataset][name]
    return paired_differences(rows["none"][1:], rows[OT][1:])


def middles(rows: Sequence[Row | None]) -> list[float]:
    """Test accuracies of the averages, in percent."""
    paths = [row["test"]["accuracy"] for row in rows if row is not None and "test" in row]
    return [100 * path[len(path) // 2] for path in paths if None not in path]


def trials_table(found: Outcome) -> str:
    """What the settings were chosen by: seed 0 of the first data set."""
    head = ["setting", "transported average: validation loss"]
    head += [f"test barrier, {kind}" for kind in ALIGNS.values()]
    winners = [name_of(extra) for extra in (found.chosen or {}).values()]
    lines = [
        [f"**{name}**" if name in winners else name, f"{middle(row):.3f}"]
        + [spread(barriers(rows[align][:1])) for align in ALIGNS]
        for name, rows in found.trials.items()
        if (row := rows[OT][0]) is not None
    ]
    return markdown_table(head, lines)


def report(bench: Bench, args: Args, found: Outcome) -> Findings:
    """Barriers and averages by data set, setting and align; the lines themselves."""
    base = base_of(args)
    last: Summary = {"benchmark": "fig5_otfusion", "chosen": None}
    title = f"Figure 5: OT Fusion with and without WSA, {base.label}"
    if found.chosen is None:
        ran = sum(rows[OT][0] is not None for rows in found.trials.values())
        left = f"Settings are not chosen yet: {ran} of {len(found.trials)} trials were run."
        return Findings(title=title, text=left, summary=last)
    last["chosen"] = {name: name_of(extra) for name, extra in found.chosen.items()}
    head = ["data", "setting", "ends, %"]
    head += [f"barrier, {kind}" for kind in ALIGNS.values()]
    head += [f"average, {kind}, %" for kind in ALIGNS.values()] + ["seeds"]
    lines, remarks = [], []
    for dataset, settings in found.rows.items():
        for name, rows in settings.items():
            there = [row for row in rows["none"][1:] if row is not None]
            lines.append(
                [dataset, f"{name} ({last['chosen'][name]})", spread(ends(there))]
                + [spread(barriers(rows[align][1:])) for align in ALIGNS]
                + [spread(middles(rows[align][1:])) for align in ALIGNS]
                + [str(len(there))]
            )
        for align, kind in ALIGNS.items():
            gain = compared(found, dataset, align)
            last[f"{dataset}, {kind}"] = gain
            if gain:
                remarks.append(
                    f"* {dataset}, {kind}: the barrier is lower with WSA by {with_interval(gain)}"
                )
    parts = [markdown_table(head, lines), "\n".join(remarks), "The trials, on seed 0:"]
    text = "\n\n".join([*parts, trials_table(found), f"The paper: {CLAIM}"])
    name = "fig5_otfusion" + (f"_{args.network}" if args.network else "")
    return Findings(
        title=title,
        text=text,
        figures={figure_name(name, args.preset): lambda: draw(found, base)},
        summary=last,
    )


def draw(found: Outcome, base: ModelCell) -> Figure:
    """Test accuracy along the line, a panel a data set; one line a setting and align."""
    figure, axes = panels(len(found.rows), width=5.2, height=4.2)
    for panel, (dataset, settings) in zip(axes, found.rows.items(), strict=False):
        series = {
            f"{kind}, {name}": [
                (row["test"]["t"], [np.nan if v is None else 100 * v for v in line])
                for row in rows[align][1:]
                if row is not None and "test" in row
                for line in [row["test"]["accuracy"]]
            ]
            for align, kind in ALIGNS.items()
            for name, rows in settings.items()
            if align != "weight transport"
        }
        draw_recorded(
            panel,
            series,
            xlabel="share of the second model",
            ylabel="test accuracy, %",
            legend=False,
        )
        panel.set_title(f"{dataset}, {base.label}", fontsize=10)
    figure_legend(figure, columns=2)
    return figure


def claims() -> list[Claim]:
    """Both halves of the paper's sentence, by network and data set."""
    found = [
        (BASES[NETWORKS["paper" if size == "full size" else "cpu"]], outcome)
        for size, outcome in on_record(collect, Args).items()
    ]
    # A network that is named is the same at every size.
    named = on_record(collect, Args, network="resnet").get("small networks")
    found += [] if named is None else [(BASES["resnet"], named)]
    return [
        Claim(
            "WSA, Figure 5",
            claim,
            f"{base.label}, {dataset}, best of 3 trials a side",
            f"lower by {with_interval(values)}" if values else "",
            "",
            verdict_of(values),
            "barriers.md#figure-5-ot-fusion-with-and-without-wsa",
        )
        for base, outcome in found
        if outcome.chosen is not None
        for dataset in outcome.rows
        for claim, values in (
            ("OT Fusion lowers the barrier, with WSA", helped(outcome, dataset, "with WSA")),
            ("WSA lowers OT Fusion's barrier further", compared(outcome, dataset, OT)),
        )
    ]


SCRIPT = MergingExperiment(
    name="fig5_otfusion",
    description=__doc__,
    arguments=Args,
    collect=collect,
    report=report,
    claims=claims,
    data={"cpu": "CIFAR at 16x16", "paper": "CIFAR"},
)
