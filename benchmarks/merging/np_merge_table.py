"""NP Merge beside its rivals: the same models, the same samples, the same steps.

    python -m benchmarks np_merge_table [--preset smoke|cpu|paper] [--dataset cifar10|cifar100]

Two models of a network on the same data, on 80/20 classes, on Dirichlet(0.5) classes and on
disjoint classes, each without and with WSA in their training. Learning rates of NP Merge and of
fine-tuning are chosen for each network on the validation part of the first seed, on 80/20 classes,
four tried for each; everything else is fixed.

paper: VGG11 and ResNet20 of width 8, 200 epochs, all of the data. cpu cuts to VGG11 of width 1/8
and ResNet8 of width 1/2 with BatchNorm, 5,000 examples, 12 epochs, 1,000 samples. smoke: MLPs on
digits.
"""

import dataclasses
from collections.abc import Sequence
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
    seeds_of,
)
from benchmarks.merging.merge_rows import accuracies, accuracy_of, endpoints, table_row
from benchmarks.merging.merge_settings import (
    NAMES,
    NETWORKS,
    SAMPLES,
    SEEDS,
    SPLITS,
    STEPS,
    rates_of,
)
from benchmarks.merging.model_cell import ModelCell, Split
from benchmarks.merging.pairs import pair_cells
from benchmarks.record.claims import Claim, verdict_of, with_interval
from benchmarks.record.figures import METHODS as FIGURE_METHODS
from benchmarks.record.figures import caption, plain_axes
from benchmarks.record.statistics import Row, Settings, markdown_table, signed, spread
from benchmarks.refused import RefusedError
from benchmarks.script import Findings, Summary, figure_name

Setting = tuple[str, str, str]
"""Network, split, training."""
Found = dict[Setting, list[Row]]
"""One row a seed."""
WSA: Settings = {"strength": 10.0, "target": "initial"}
TRAININGS: dict[str, Settings] = {"plain": {}, "WSA": WSA}
METHODS = (
    "average",
    "activation matching",
    "weight matching",
    "rescaling",
    "rescaling, weight matching",
    "Fisher",
    "fine-tuning",
    "NP Merge",
)
CLAIM = (
    "NP Merge beats other merges and fine-tuning of the merge, and comes close to the ensemble; "
    "of the paper's tables no number could be obtained."
)


@dataclass(frozen=True, kw_only=True)
class Args(MergingArgs):
    """Arguments."""

    dataset: Literal["cifar10", "cifar100"] | None = None
    """Of the cpu and paper presets, by default cifar10; smoke has digits alone."""
    split: tuple[Split, ...] = SPLITS


def setting_rows(
    bench: Bench,
    preset: Preset,
    cell: ModelCell,
    seeds: Sequence[int],
    rates: tuple[float, float],
) -> list[Row]:
    """The tables of one network, split and training that there are, one a seed."""
    rows = (
        table_row(
            bench,
            pair_cells(cell, seed),
            seed,
            methods=METHODS,
            samples=SAMPLES[preset],
            steps=STEPS[preset],
            rates=rates,
        )
        for seed in seeds
    )
    return [row for row in rows if row is not None]


def settings(args: Args) -> dict[Setting, ModelCell]:
    """What is run, by network, split and training."""
    data: Settings = {} if args.dataset is None else {"dataset": args.dataset}
    return {
        (network, NAMES[split], training): dataclasses.replace(base, split=split, **wsa, **data)
        for network, base in NETWORKS[args.preset].items()
        for split in args.split
        for training, wsa in TRAININGS.items()
    }


def table(found: Found) -> str:
    """A line a setting, a column a method; test accuracy in percent over seeds."""
    head = ["network", "data", "training", "ends", *METHODS, "ensemble", "seeds"]
    lines = []
    for setting, rows in found.items():
        values = [spread(accuracies(rows, name)) for name in (*METHODS, "ensemble")]
        lines.append([*setting, spread(endpoints(rows)), *values, str(len(rows))])
    return markdown_table(head, lines)


def gains(found: Found, over: str) -> dict[int, list[float]]:
    """NP Merge less another method, in points: by seed, one for each setting that all seeds have.

    Settings of one seed share its data and initial weights: they are no independent values.
    """
    seeds = sorted({row["config"]["seed"] for rows in found.values() for row in rows})
    by_seed: dict[int, list[float]] = {seed: [] for seed in seeds}
    for rows in found.values():
        pairs = {
            row["config"]["seed"]: (accuracy_of(row, "NP Merge"), accuracy_of(row, over))
            for row in rows
        }
        differences = {
            seed: ours - theirs
            for seed, (ours, theirs) in pairs.items()
            if ours is not None and theirs is not None
        }
        if len(differences) == len(seeds):
            for seed, difference in differences.items():
                by_seed[seed].append(difference)
    return by_seed


def over_seeds(by_seed: dict[int, list[float]]) -> str:
    """Means over settings, and over seeds where there are enough for a standard error.

    >>> over_seeds({0: [1.0, 2.0], 1: [-1.0, 0.0]})
    'seed 0 +1.50, seed 1 -0.50; means over 2 settings, above 0 in 2 of 4'
    >>> over_seeds({0: [1.0], 1: [2.0], 2: [3.0]})
    '+2.00 ± 0.58 (standard error over 3 seeds); means over 1 setting, above 0 in 3 of 3'
    """
    values = [value for line in by_seed.values() for value in line]
    if not values:
        return "no setting that all seeds have"
    means = {seed: sum(line) / len(line) for seed, line in by_seed.items()}
    if len(means) < 3:
        text = ", ".join(f"seed {seed} {mean:+.2f}" for seed, mean in means.items())
    else:
        text = f"{signed(list(means.values()))} (standard error over {len(means)} seeds)"
    ahead = sum(value > 0 for value in values)
    count = len(values) // len(means)
    settings = f"{count} setting{'s' if count > 1 else ''}"
    return f"{text}; means over {settings}, above 0 in {ahead} of {len(values)}"


def draw(found: Found) -> Figure:
    """Accuracy of each method, a row a network, a column a split; means and seeds."""
    networks = {
        network: [split for name, split, _ in found if name == network]
        for network in dict.fromkeys(setting[0] for setting in found)
    }
    splits = list(dict.fromkeys(setting[1] for setting in found))
    figure = Figure(figsize=(2.6 * len(splits) + 2, 2.9 * len(networks)), layout="constrained")
    grid = figure.subplots(len(networks), len(splits), squeeze=False, sharex=True, sharey="row")
    for line, network in zip(grid, networks, strict=True):
        rows = [row for setting, kept in found.items() if setting[0] == network for row in kept]
        names = [name for name in ("ends", *METHODS, "ensemble") if _values(rows, name)]
        for axes, split in zip(line, splits, strict=True):
            for training, shift in (("plain", -0.14), ("WSA", 0.14)):
                kept = found.get((network, split, training), [])
                color = FIGURE_METHODS["with WSA" if training == "WSA" else "without WSA"]
                for place, name in enumerate(names):
                    if values := _values(kept, name):
                        at = [place + shift] * len(values)
                        axes.plot(values, at, "o", markersize=4, color=color, alpha=0.35)
                        axes.plot(np.mean(values), place + shift, "o", markersize=6, color=color)
            axes.set_title(f"{network}, {split}", fontsize=9)
            axes.set_yticks(range(len(names)), names, fontsize=8)
            axes.set_ylim(len(names) - 0.4, -0.6)
            plain_axes(axes, grid="x")
    for axes in grid[-1]:
        axes.set_xlabel("test accuracy, %", fontsize=8)
    handles = [
        Line2D(
            [],
            [],
            marker="o",
            linestyle="",
            color=FIGURE_METHODS[name],
            label=f"ends trained {name}",
        )
        for name in ("without WSA", "with WSA")
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    seeds = sorted({row["config"]["seed"] for rows in found.values() for row in rows})
    named = ", ".join(map(str, seeds))
    return caption(figure, f"merging two models, seeds {named} (pale), their mean (full)")


def _values(rows: list[Row], name: str) -> list[float]:
    """Accuracies of a method over rows, or of the models themselves."""
    return endpoints(rows) if name == "ends" else accuracies(rows, name)


def collect(bench: Bench, args: Args) -> Found:
    """The rows there are of every setting whose network's learning rates are chosen."""
    if args.preset == "smoke" and args.dataset:
        raise RefusedError(
            f"--dataset {args.dataset} is not of --preset smoke, which has digits; leave it out"
        )
    seeds = seeds_of(args, SEEDS)
    rates, found = dict[str, tuple[float, float] | None](), dict[Setting, list[Row]]()
    for setting, cell in settings(args).items():
        network = setting[0]
        if network not in rates:
            rates[network] = rates_of(bench, args.preset, cell)
        if chosen := rates[network]:
            found[setting] = setting_rows(bench, args.preset, cell, seeds, chosen)
    return {setting: rows for setting, rows in found.items() if rows}


def report(bench: Bench, args: Args, found: Found) -> Findings:
    """The table, what NP Merge gains, and the figure if no network is missing."""
    data = "" if args.dataset is None else f", {args.dataset}"
    lines = list[str]()
    last: Summary = {}
    for rival in ("weight matching", "fine-tuning", "ensemble"):
        last[f"over {rival}"] = gains(found, rival)
        told = over_seeds(last[f"over {rival}"])
        lines.append(f"* NP Merge less {rival}, points: {told}")
    other = "" if args.dataset in (None, "cifar10") else f"_{args.dataset}"
    parts = [table(found), "\n".join(lines), f"The paper: {CLAIM}"]
    figures = {figure_name(f"np_merge_table{other}", args.preset): lambda: draw(found)}
    if missing := sorted(bench.tally.undecided):
        open_rates = f"Learning rates are open, trials are missing: {', '.join(missing)}; no figure"
        parts, figures = [*parts, open_rates], {}
    return Findings(
        title=f"NP Merge and its rivals{data}: test accuracy, % (± std)",
        text="\n\n".join(parts),
        figures=figures,
        summary=last,
    )


def claims() -> list[Claim]:
    """NP Merge less each rival: mean over the settings of a seed, then over seeds."""
    rivals = {
        "weight matching": "beats the matched average",
        "fine-tuning": "beats fine-tuning that average",
        "ensemble": "is as good as the ensemble",
    }
    lines = []
    for size, found in on_record(collect, Args).items():
        networks = dict.fromkeys(setting[0] for setting in found)
        for rival, claim in rivals.items():
            by_seed = gains(found, rival)
            means = [float(np.mean(line)) for line in by_seed.values() if line]
            lines.append(
                Claim(
                    "NP Merge, tables",
                    f"NP Merge {claim}",
                    f"{' and '.join(networks)}, {len(found)} settings, {size}",
                    with_interval(means),
                    "",
                    verdict_of(means),
                    "np_merge.md#np-merge-and-its-rivals",
                )
            )
    return lines


SCRIPT = MergingExperiment(
    name="np_merge_table",
    description=__doc__,
    arguments=Args,
    collect=collect,
    report=report,
    claims=claims,
)
