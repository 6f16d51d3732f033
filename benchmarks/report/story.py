"""The results in one picture, for the front page: a panel a question, its answer as its title.

    python -m benchmarks story

The verdicts are those of the table of results.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.federated import table2_cross_silo
from benchmarks.federated.experiment import Args as TableArgs
from benchmarks.federated.experiment import recorded
from benchmarks.federated.figures import accuracy_curves
from benchmarks.federated.paired_claims import FULL, SEEDS
from benchmarks.merging import fig6_rebasin, np_merge_table
from benchmarks.merging.bench import on_record
from benchmarks.merging.merge_rows import accuracies, endpoints
from benchmarks.merging.pairs import barriers
from benchmarks.record.claims import Claim
from benchmarks.record.figures import INK, METHODS, dots, draw_recorded, plain_axes
from benchmarks.record.ledger import RESULTS, Ledger
from benchmarks.script import Findings, Report


@dataclass(frozen=True, kw_only=True)
class Args:
    """Where the picture goes."""

    output: Path = RESULTS


def federated_panel(axes: Axes) -> Claim:
    """FedAvg with and without WSA at full length; diamonds are the paper's."""
    line = table2_cross_silo.comparisons(TableArgs(preset=FULL.preset))[0]
    rows_of = recorded(Ledger(RESULTS / "federated.jsonl"), SEEDS)
    sides = {"FedAvg": line.baseline, "FedAvg +WSA": line.treated}
    series = {name: accuracy_curves(rows_of(cell)) for name, cell in sides.items()}
    draw_recorded(axes, series, xlabel="round", ylabel="test accuracy, %", legend=False)
    for name, accuracy in zip(sides, line.paper or (), strict=False):
        axes.plot(line.baseline.rounds, accuracy, "D", color=METHODS[name], markerfacecolor="white")
    axes.set_ylim(bottom=40)
    axes.legend(title="diamonds: the paper", frameon=False, fontsize=8, title_fontsize=8)
    return table2_cross_silo.claims()[0]


def barrier_panel(axes: Axes) -> list[Claim]:
    """The barrier between two MLPs, not matched and matched, of the best settings a side."""
    found = on_record(fig6_rebasin.collect, fig6_rebasin.Args, network="mlp")["small networks"]
    sides = {"without WSA": found.baseline, "with WSA": found.wsa}
    for shift, (name, extra) in zip((-0.12, 0.12), sides.items(), strict=True):
        rows = found.rows[fig6_rebasin.name_of(extra)]
        for place, align in enumerate(("none", "weight")):
            dots(axes, place + shift, barriers(rows[align][1:]), METHODS[name])
    _categories(axes, ("not matched", "Git Re-Basin"))
    axes.set_xlabel("loss barrier between two MLPs")
    axes.set_xlim(left=0)
    return [claim for claim in fig6_rebasin.claims() if "MLP" in claim.run]


def merging_panel(axes: Axes) -> list[Claim]:
    """Two ResNets of different classes merged; means over the seeds."""
    found = on_record(np_merge_table.collect, np_merge_table.Args)["small networks"]
    rows = found["ResNet8 BN x0.5", "80/20 classes", "plain"]
    shown = ("ends", "average", "weight matching", "fine-tuning", "NP Merge", "ensemble")
    for place, name in enumerate(shown):
        values = endpoints(rows) if name == "ends" else accuracies(rows, name)
        color = METHODS.get(name, INK)
        axes.plot(values, [place] * len(values), "o", markersize=4, color=color, alpha=0.4)
        axes.plot(float(np.mean(values)), place, "o", markersize=8, color=color)
    _categories(axes, shown)
    axes.set_xlabel("test accuracy of merged ResNets, %")
    return np_merge_table.claims()


def _categories(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    plain_axes(axes, grid="x")


def draw() -> Figure:
    """Three panels; their titles are the verdicts."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.1, 1, 1))
    gain = federated_panel(left)
    plain, matched = barrier_panel(middle)
    average, tuned = merging_panel(right)[:2]
    left.set_title(
        f"WSA in federated learning:\n{gain.verdict} ({gain.ours.split(' (')[0]} points)"
    )
    middle.set_title(
        f"WSA lowers the barrier: {plain.verdict};\nafter Git Re-Basin: {matched.verdict}"
    )
    right.set_title(
        f"NP Merge beats averaging: {average.verdict};\nbeats fine-tuning: {tuned.verdict}"
    )
    for axes in figure.axes:
        axes.title.set_fontsize(10)
    return figure


def found() -> Findings:
    """The picture."""
    return Findings(
        title="WSA and NP Merge in one picture, CIFAR-10",
        text="",
        figures={"story": draw},
    )


SCRIPT = Report(
    name="story",
    description=__doc__,
    arguments=Args,
    found=lambda args: found(),
)
