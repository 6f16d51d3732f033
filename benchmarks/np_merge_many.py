"""NP Merge of 2 to 8 models: three orders of pairs, and all at once.

    python -m benchmarks.np_merge_many [--preset smoke|cpu|paper]

Each model is trained from its own seed on its own part of the data (Dirichlet 0.5 over all the
models there are), matched to the first, and merged: by pairs in the order given, by accuracy, or as
a balanced tree, and jointly by a softmax over models. Each pairwise merge takes as many steps as
the joint one takes in all.
"""

import dataclasses
import functools
import json
import sys
from typing import Any

import tyro

from benchmarks.comparison import markdown_table, spread
from benchmarks.np_merge_table import NETWORKS, STEPS
from benchmarks.np_tables import accuracy_of, endpoints, table_row
from benchmarks.pairs import Bench, MergingArgs, pair_cells, seeds_of

Row = dict[str, Any]
COUNTS = {"smoke": (2, 3), "cpu": (2, 4, 8), "paper": (2, 3, 4, 6, 8)}
SEEDS = {"smoke": (0,), "cpu": (0, 1), "paper": (0, 1, 2)}
SAMPLES = {"smoke": 200, "cpu": 1_000, "paper": 5_000}
METHODS = (
    "weight matching", "fine-tuning", "NP Merge, given", "NP Merge, accuracy", "NP Merge, tree",
    "NP Merge, joint",
)  # fmt: skip
CLAIM = "successive pairwise merges scale to many models (no numbers obtained)."


def ordered(order: str) -> Any:
    """NP Merge by pairs in an order; accuracies are those on the samples."""
    from wsa_jax.merging.methods import Pipeline, learned

    return Pipeline("weight", functools.partial(learned, order=order))


def rows_of(bench: Bench, args: MergingArgs, count: int) -> list[Row]:
    """One row a seed: the first ``count`` of the models."""
    base = next(iter(NETWORKS[args.preset].values()))
    most = COUNTS[args.preset][-1]
    cell = dataclasses.replace(base, split="dirichlet", parts=most)
    extra = {f"NP Merge, {order}": ordered(order) for order in ("given", "accuracy", "tree")}
    rows = [
        table_row(
            bench, pair_cells(cell, seed)[:count], seed, methods=METHODS,
            samples=SAMPLES[args.preset], steps=STEPS[args.preset], extra=extra,
        )
        for seed in seeds_of(args, SEEDS)
    ]  # fmt: skip
    return [row for row in rows if row is not None]


def accuracies(rows: list[Row], method: str) -> list[float]:
    """Of a method, in percent."""
    return [value for row in rows if (value := accuracy_of(row, method)) is not None]


def draw(found: dict[int, list[Row]]) -> Any:
    """Accuracy against the number of models, a line a method."""
    from matplotlib.figure import Figure

    from wsa_jax.plots import draw_curves

    figure = Figure(figsize=(6.0, 4.2), layout="constrained")
    axes = figure.subplots()
    seeds = min(len(rows) for rows in found.values())
    series = {
        method: [
            (list(found), [accuracies(rows, method)[seed] for rows in found.values()])
            for seed in range(seeds)
        ]
        for method in (*METHODS, "ensemble")
    }
    draw_curves(axes, series, xlabel="models", ylabel="test accuracy, %")
    axes.set_xticks(list(found))
    return figure


def main(argv: list[str] | None = None) -> None:
    """Merge more and more models."""
    args = tyro.cli(MergingArgs, args=argv, description=__doc__)
    bench = Bench.open(args)
    found = {count: rows_of(bench, args, count) for count in COUNTS[args.preset]}
    found = {count: rows for count, rows in found.items() if rows}
    if not found:
        sys.exit(f"{bench.rows.path} holds none of these rows: nothing to report")
    head = ["models", "ends", *METHODS, "ensemble", "seeds"]
    lines = [
        [str(count), spread([end for row in rows for end in endpoints(row)])]
        + [spread(accuracies(rows, name)) for name in (*METHODS, "ensemble")]
        + [str(len(rows))]
        for count, rows in found.items()
    ]
    print(f"\n## NP Merge of many models: test accuracy, %\n\n{markdown_table(head, lines)}")
    figure = bench.output / "np_merge_many.png"
    draw(found).savefig(figure, dpi=150)
    print(f"\nThe paper: {CLAIM}\n\nfigure: {figure}")
    summary = {
        str(count): {name: accuracies(rows, name) for name in (*METHODS, "ensemble")}
        for count, rows in found.items()
    }
    last = {"benchmark": "np_merge_many", "preset": args.preset, "accuracy": summary}
    print(json.dumps(last | {"figure": str(figure)}))


if __name__ == "__main__":
    main(sys.argv[1:])
