"""NP Merge against fine-tuning of the merge, as the samples grow from 50 to 5,000.

    python -m benchmarks.np_merge_data [--preset smoke|cpu|paper]

The models are those of `np_merge_table` on 80/20 classes. Learning rates are chosen for each number
of samples on the validation part of the first seed, three tried for each method.
"""

import dataclasses
import json
import sys
from typing import Any

import tyro

from benchmarks.comparison import markdown_table, spread
from benchmarks.np_merge_table import GRID, NETWORKS, SEEDS, STEPS
from benchmarks.np_tables import accuracy_of, choose_rates, endpoints, table_row
from benchmarks.pairs import Bench, MergingArgs, pair_cells, seeds_of

Row = dict[str, Any]
SAMPLES = {
    "smoke": (50, 200),
    "cpu": (50, 200, 1_000, 5_000),
    "paper": (50, 200, 500, 1_000, 2_000, 5_000),
}  # fmt: skip
METHODS = ("weight matching", "fine-tuning", "NP Merge")
CLAIM = "NP Merge is robust to little data and better than fine-tuning (no numbers obtained)."


def rows_of(bench: Bench, args: MergingArgs, samples: int) -> list[Row]:
    """One row a seed, with rates chosen for this number of samples."""
    base = next(iter(NETWORKS[args.preset].values()))
    cell = dataclasses.replace(base, split="80-20")

    def evaluate(method: str, rates: tuple[float, float]) -> Row | None:
        return table_row(
            bench, pair_cells(cell, 0), 0, methods=(method,), samples=samples,
            steps=STEPS[args.preset], rates=rates, part="validation",
        )  # fmt: skip

    rates = choose_rates(evaluate, GRID)
    rows = [
        table_row(
            bench, pair_cells(cell, seed), seed, methods=METHODS, samples=samples,
            steps=STEPS[args.preset], rates=rates,
        )
        for seed in seeds_of(args, SEEDS)
    ]  # fmt: skip
    return [row for row in rows if row is not None]


def accuracies(rows: list[Row], method: str) -> list[float]:
    """Of a method, in percent."""
    return [value for row in rows if (value := accuracy_of(row, method)) is not None]


def draw(found: dict[int, list[Row]]) -> Any:
    """Accuracy against samples, a line a method."""
    from matplotlib.figure import Figure

    from wsa_jax.plots import draw_curves

    figure = Figure(figsize=(5.4, 3.8), layout="constrained")
    axes = figure.subplots()
    count = min(len(rows) for rows in found.values())
    series = {
        method: [
            (list(found), [accuracies(rows, method)[seed] for rows in found.values()])
            for seed in range(count)
        ]
        for method in (*METHODS, "ensemble")
    }
    draw_curves(axes, series, xlabel="samples", ylabel="test accuracy, %")
    axes.set_xscale("log")
    axes.set_xticks(list(found), [f"{count:,}" for count in found])
    axes.minorticks_off()
    return figure


def main(argv: list[str] | None = None) -> None:
    """Merge with more and more samples."""
    args = tyro.cli(MergingArgs, args=argv, description=__doc__)
    bench = Bench.open(args)
    found = {count: rows_of(bench, args, count) for count in SAMPLES[args.preset]}
    found = {count: rows for count, rows in found.items() if rows}
    if not found:
        sys.exit(f"{bench.rows.path} holds none of these rows: nothing to report")
    head = ["samples", "ends", *METHODS, "ensemble", "seeds"]
    lines = [
        [f"{count:,}", spread([end for row in rows for end in endpoints(row)])]
        + [spread(accuracies(rows, name)) for name in (*METHODS, "ensemble")]
        + [str(len(rows))]
        for count, rows in found.items()
    ]
    print(f"\n## NP Merge against samples: test accuracy, %\n\n{markdown_table(head, lines)}")
    figure = bench.output / "np_merge_data.png"
    draw(found).savefig(figure, dpi=150)
    print(f"\nThe paper: {CLAIM}\n\nfigure: {figure}")
    summary = {
        str(count): {name: accuracies(rows, name) for name in (*METHODS, "ensemble")}
        for count, rows in found.items()
    }
    last = {"benchmark": "np_merge_data", "preset": args.preset, "accuracy": summary}
    print(json.dumps(last | {"figure": str(figure)}))


if __name__ == "__main__":
    main(sys.argv[1:])
