"""The table and the figure of recorded federated runs, from their JSONL.

    python -m benchmarks.federated_report

prints the table in Markdown and writes the figures beside the results.
"""

import dataclasses
import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.cells import Cell
from benchmarks.comparison import Row, paired_curves, paired_gains
from benchmarks.figures import Curve, accuracy_curves, figure_legend, legend_below, shared_length
from benchmarks.ledger import RESULTS, Ledger


@dataclass(frozen=True, kw_only=True)
class Args:
    """Which rows to show."""

    results: Path = RESULTS / "federated.jsonl"
    output: Path = RESULTS
    rounds: int = 100
    """Rows of runs of this length; figures of another than the first record's are named by it."""


def by_label(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows of one setting together, each baseline before what is built on it, seeds in order."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["label"]].append(row)

    def place(item: tuple[str, list[Row]]) -> tuple:
        config = item[1][0]["config"]
        names = ("learning_rate", "init", "target", "scale", "form", "strength")
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
    """The plain runs with the same initial weights and learning rate."""
    config = row["config"]
    for group in groups.values():
        other = group[0]["config"]
        same = all(
            other[name] == config[name] for name in ("init", "learning_rate", "alpha", "clients")
        )
        if same and other["strength"] == 0:
            return group
    return []


def largest_stability(row: Row) -> float:
    """Over all rounds; older rows hold it of evaluated rounds alone."""
    evaluated = [each["stability"] or 0.0 for each in row["diagnostics"]]
    return max([row.get("stability", 0.0), *evaluated])


def markdown(groups: dict[str, list[Row]], rounds: int) -> str:
    """The table, one line a setting."""
    lines = [
        "| setting | seeds | rounds | test accuracy, % | gain over its baseline, paired "
        "| largest share of the stable range |",
        "|---|---|---|---|---|---|",
    ]
    for label, group in groups.items():
        done = [row["rounds_done"] for row in group]
        accuracies = [f"{100 * row['accuracy']:.2f}" for row in group]
        gain = (
            paired_gain(group, baseline_of(group[0], groups))
            if group[0]["config"]["strength"]
            else None
        )
        share = max(largest_stability(row) for row in group)
        explicit = group[0]["config"]["form"] in ("gradient", "penalty")
        lines.append(
            f"| {label} | {', '.join(str(row['config']['seed']) for row in group)} "
            f"| {rounds if min(done) == rounds else ', '.join(map(str, done)) + ' (unfinished)'} "
            f"| {', '.join(accuracies)} | {'' if gain is None else f'{gain:+.2f}'} "
            f"| {f'{share:.2g}' if explicit else ''} |"
        )
    return "\n".join(lines)


def figure(groups: dict[str, list[Row]]) -> Any:
    """Accuracy against rounds of the controls, and what each setting gains over its baseline."""
    from matplotlib.figure import Figure

    from wsa_jax.plots import draw_curves

    picture = Figure(figsize=(11, 5), layout="constrained")
    controls, gains = picture.subplots(1, 2)

    def control(config: Row) -> bool:
        return config["form"] in ("none", "gradient") and config["strength"] in (0, 10)

    accuracy = {
        label: accuracy_curves(group)
        for label, group in groups.items()
        if control(group[0]["config"])
    }
    draw_curves(controls, accuracy, xlabel="round", ylabel="test accuracy, %")
    gained = {label: _gain_curves(group, groups) for label, group in groups.items()}
    gained = {label: runs for label, runs in gained.items() if runs}
    if gained:
        draw_curves(gains, gained, xlabel="round", ylabel="gain over its baseline, points")
    gains.axhline(0, color="#3a4a5a", linewidth=0.8)
    for axes in (controls, gains):
        legend_below(axes)
    controls.set_title("Accuracy: baselines and +WSA 10", fontsize=10)
    gains.set_title("Gain on the same seed (bands: its seeds)", fontsize=10)
    return picture


def _gain_curves(group: list[Row], groups: dict[str, list[Row]]) -> list[Curve]:
    """Accuracy less that of the baseline of the same seed, in points, where both were evaluated."""
    if not group[0]["config"]["strength"]:
        return []
    return shared_length(list(paired_curves(group, baseline_of(group[0], groups)).values()))


def mechanism(groups: dict[str, list[Row]]) -> Any:
    """What WSA does to the scopes: divergence between clients, and the std the average loses."""
    from matplotlib.figure import Figure

    from wsa_jax.plots import draw_curves

    picture = Figure(figsize=(11, 4.2), layout="constrained")
    axes = picture.subplots(1, 3)
    shown = {
        label: group
        for label, group in groups.items()
        if group[0]["config"]["strength"] in (0, 10)
        and group[0]["config"]["learning_rate"] == 0.01
        and group[0]["config"]["init"] == "reference"
    }

    def series(value: Any) -> dict[str, Any]:
        return {
            label: shared_length(
                [
                    (
                        [d["round"] for d in row["diagnostics"]],
                        [value(d) for d in row["diagnostics"]],
                    )
                    for row in group
                ]
            )
            for label, group in shown.items()
        }

    layer = -1
    draw_curves(
        axes[0], series(lambda d: max(sum(d["client_divergence"]), 1e-12)),
        xlabel="round", ylabel="divergence between clients, nats",
    )  # fmt: skip
    draw_curves(
        axes[1],
        series(lambda d: d["fused_std"][layer]),
        xlabel="round",
        ylabel="fused std of the last layer",
    )
    draw_curves(
        axes[2],
        series(lambda d: 100 * (1 - d["average_std"][layer] / d["fused_std"][layer])),
        xlabel="round", ylabel="std lost by averaging, last layer, %",
    )  # fmt: skip
    axes[0].set_yscale("log")
    for panel in axes:
        panel.get_legend().remove()
    # Under all panels: below one of them, the names would widen the gap beside it.
    figure_legend(picture, axes[0])
    return picture


def main(argv: list[str] | None = None) -> None:
    args = tyro.cli(Args, args=argv, description=__doc__)
    rows = [
        row
        for row in Ledger(args.results).rows()
        if row["config"]["rounds"] == args.rounds and row["curve"]
    ]
    if not rows:
        sys.exit(
            f"{args.results} holds no run of {args.rounds} rounds; "
            "make one with python -m benchmarks.federated"
        )
    shown = of_one_context(rows)
    groups = by_label(shown)
    if len(rows) > len(shown):
        print(f"{len(rows) - len(shown)} of {len(rows)} rows are of other experiments\n")
    print(markdown(groups, args.rounds))
    length = "" if args.rounds == Args.rounds else f"_{args.rounds}"
    for name, make in (("federated", figure), ("federated_mechanism", mechanism)):
        make(groups).savefig(args.output / f"{name}{length}.png", dpi=150)
    gains = {
        label: paired_gain(group, baseline_of(group[0], groups))
        for label, group in groups.items()
        if group[0]["config"]["strength"]
    }
    print(json.dumps({"benchmark": "federated_report", "rounds": args.rounds, "gain": gains}))


if __name__ == "__main__":
    main(sys.argv[1:])
