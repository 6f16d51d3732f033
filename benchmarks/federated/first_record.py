"""The first record, and what it grew to: FedAvg with and without WSA, setting by setting.

    python -m benchmarks first_record [--rounds 1500]

prints the table of recorded runs of one length and writes the figures beside the results.
"""

import dataclasses
import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.federated.cell import Cell
from benchmarks.federated.comparison import paired_curves, paired_gains
from benchmarks.federated.experiment import data_name
from benchmarks.federated.figures import accuracy_curves
from benchmarks.record.claims import with_interval
from benchmarks.record.figures import (
    INK,
    METHODS,
    Curve,
    caption,
    dots,
    draw_recorded,
    plain_axes,
    shared_length,
)
from benchmarks.record.ledger import RESULTS, Ledger
from benchmarks.record.statistics import Row, markdown_table
from benchmarks.script import Findings, Report


@dataclass(frozen=True, kw_only=True)
class Args:
    """Which rows to show."""

    results: Path = RESULTS / "federated.jsonl"
    output: Path = RESULTS
    rounds: int = 100
    """Rows of runs of this length; figures of another than the first record's are named by it."""


def by_label(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows of one setting together, each baseline before what is built on it, seeds in order.

    Runs that were evaluated every so many rounds stand apart: figures show one kind of rounds.
    """
    every: dict[str, set[int]] = defaultdict(set)
    for row in rows:
        every[row["label"]].add(row["config"]["evaluate_every"])
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        rounds = row["config"]["evaluate_every"]
        apart = f", evaluated every {rounds}" if len(every[row["label"]]) > 1 else ""
        groups[row["label"] + apart].append(row)

    def place(item: tuple[str, list[Row]]) -> tuple:
        config = item[1][0]["config"]
        names = ("learning_rate", "init", "target", "scale", "form", "strength", "evaluate_every")
        order = tuple(config[name] for name in names)
        return (order[0], order[1] == "he", config["strength"] != 0, *order[2:])

    return {
        label: sorted(group, key=lambda row: row["config"]["seed"])
        for label, group in sorted(groups.items(), key=place)
    }


def paired_gain(group: list[Row], baseline: list[Row]) -> float | None:
    """Mean difference in accuracy over the seeds that both have, in points, at equal rounds."""
    gains = paired_gains(group, baseline)
    return float(np.mean(gains)) if gains else None


def of_one_context(rows: list[Row]) -> list[Row]:
    """The rows of the first record's data, model, clients, algorithm and test set.

    What the first record varied may differ; other tables of the same ledger stay out. Where none is
    of that context, it is that of the first row.
    """
    varied = {"init", "form", "scale", "strength", "target", "target_std", "learning_rate", "seed"}
    varied |= {"rounds", "evaluate_every"}

    def context(config: Row) -> Row:
        return {name: value for name, value in config.items() if name not in varied}

    def like(config: Row) -> list[Row]:
        return [row for row in rows if context(row["config"]) == context(config)]

    # As a row has it: JSON knows no tuples.
    first = json.loads(json.dumps(dataclasses.asdict(Cell().canonical())))
    return like(first) or like(rows[0]["config"])


def baseline_of(row: Row, groups: dict[str, list[Row]]) -> list[Row]:
    """The plain runs with the same initial weights and learning rate.

    Those evaluated as often come first, where there are others.
    """
    config, names = row["config"], ("init", "learning_rate", "alpha", "clients")

    def differs(group: list[Row]) -> bool:
        return group[0]["config"]["evaluate_every"] != config["evaluate_every"]

    for group in sorted(groups.values(), key=differs):
        other = group[0]["config"]
        if other["strength"] == 0 and all(other[name] == config[name] for name in names):
            return group
    return []


def largest_stability(row: Row) -> float:
    """Over all rounds; older rows hold it of evaluated rounds alone."""
    evaluated = [each["stability"] or 0.0 for each in row["diagnostics"]]
    return max([row.get("stability", 0.0), *evaluated])


def markdown(groups: dict[str, list[Row]], rounds: int) -> str:
    """The table, one line a setting."""
    head = [
        "setting",
        "seeds",
        "rounds",
        "test accuracy, %",
        "gain over its baseline, paired ± 95 % interval",
        "largest share of the stable range",
    ]
    lines = []
    for label, group in groups.items():
        done = [row["rounds_done"] for row in group]
        gain = (
            with_interval(paired_gains(group, baseline_of(group[0], groups)))
            if group[0]["config"]["strength"]
            else ""
        )
        share = max(largest_stability(row) for row in group)
        explicit = group[0]["config"]["form"] in ("gradient", "penalty")
        lines.append(
            [
                label,
                ", ".join(str(row["config"]["seed"]) for row in group),
                str(rounds) if min(done) == rounds else f"{', '.join(map(str, done))} (unfinished)",
                ", ".join(f"{100 * row['accuracy']:.2f}" for row in group),
                gain,
                f"{share:.2g}" if explicit else "",
            ]
        )
    return markdown_table(head, lines)


def figure(groups: dict[str, list[Row]], rounds: int) -> Figure:
    """Accuracy against rounds of the controls, and what each setting gained at the end.

    Few settings show their gain on the way, too.
    """
    picture = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = picture.subplots(1, 2, width_ratios=(1, 1))

    def control(config: Row) -> bool:
        return config["form"] in ("none", "gradient") and config["strength"] in (0, 10)

    accuracy = {
        label: accuracy_curves(group)
        for label, group in groups.items()
        if control(group[0]["config"])
    }
    draw_recorded(left, accuracy, xlabel="round", ylabel="test accuracy, %")
    left.set_title("accuracy (bands: seeds)", fontsize=10)
    treated = {label: group for label, group in groups.items() if group[0]["config"]["strength"]}
    if len(treated) <= 3:
        gained = {label: _gain_curves(group, groups) for label, group in treated.items()}
        draw_recorded(right, gained, xlabel="round", ylabel="gain on the same seed, points")
        right.axhline(0, color=INK, linewidth=0.8)
    else:
        _last_gains(right, treated, groups)
    right.set_title(f"gain over the same setting without WSA, {rounds:,} rounds", fontsize=10)
    return caption(picture, where(groups, rounds))


def where(groups: dict[str, list[Row]], rounds: int) -> str:
    """Data, network and clients of the rows, and their rounds."""
    cell = Cell.from_config(next(iter(groups.values()))[0]["config"])
    return f"{data_name(cell)}, {cell.network}, {cell.clients} clients, {rounds:,} rounds"


def _last_gains(axes: Axes, treated: dict[str, list[Row]], groups: dict[str, list[Row]]) -> None:
    """The last gain of each setting, a line each."""
    for place, group in enumerate(treated.values()):
        gains = paired_gains(group, baseline_of(group[0], groups))
        if gains:
            dots(axes, place, gains, METHODS["FedAvg +WSA"])
    names = [label.removeprefix("FedAvg ") for label in treated]
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.axvline(0, color=INK, linewidth=0.8)
    plain_axes(axes, grid="x")
    axes.set_xlabel("points (pale: seeds, bar: 95 % interval)")


def _gain_curves(group: list[Row], groups: dict[str, list[Row]]) -> list[Curve]:
    """Accuracy less that of the baseline of the same seed, in points, where both were evaluated."""
    if not group[0]["config"]["strength"]:
        return []
    return shared_length(list(paired_curves(group, baseline_of(group[0], groups)).values()))


def groups_of(args: Args) -> dict[str, list[Row]]:
    """The first record's settings that have runs of one length, by label."""
    rows = [
        row
        for row in Ledger(args.results).rows()
        if row["config"]["rounds"] == args.rounds and row["curve"]
    ]
    if not rows:
        sys.exit(
            f"{args.results} holds no run of {args.rounds} rounds; "
            "make one with python -m benchmarks federated"
        )
    return by_label(of_one_context(rows))


def named(name: str, args: Args) -> str:
    """Figures of another length than the first record's are named by it."""
    return name if args.rounds == Args.rounds else f"{name}_{args.rounds}"


def found(args: Args) -> Findings:
    """The table and the figure."""
    groups = groups_of(args)
    gains = {
        label: paired_gain(group, baseline_of(group[0], groups))
        for label, group in groups.items()
        if group[0]["config"]["strength"]
    }
    return Findings(
        title=f"FedAvg with and without WSA, {args.rounds:,} rounds",
        text=markdown(groups, args.rounds),
        figures={named("first_record", args): lambda: figure(groups, args.rounds)},
        summary={"rounds": args.rounds, "gain": gains},
    )


SCRIPT = Report(
    name="first_record",
    description=__doc__,
    arguments=Args,
    found=found,
)
