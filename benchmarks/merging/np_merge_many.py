"""NP Merge of 2 to 8 models: three orders of pairs, and all at once.

    python -m benchmarks np_merge_many [--preset smoke|cpu|paper]

Each model is trained from its own seed on its own part of the data (Dirichlet 0.5 over all the
models there are), matched to the first, and merged: by pairs in the order given, by accuracy, or as
a balanced tree, and jointly by a softmax over models. Each pairwise merge takes as many steps as
the joint one and fine-tuning take in all; fine-tuning runs once more with the steps of all merges
together.
"""

import dataclasses
import functools
from collections.abc import Sequence

from benchmarks.merging.bench import Bench, MergingArgs, Preset, on_record
from benchmarks.merging.merge_rows import Growing, table_row
from benchmarks.merging.merge_settings import NETWORKS, SAMPLES, SEEDS, STEPS, rates_or_exit
from benchmarks.merging.pairs import pair_cells
from benchmarks.record.claims import Claim, verdict_of, with_interval
from benchmarks.record.statistics import Row, check_same_data
from wsa_jax.merging import METHODS as KNOWN
from wsa_jax.merging.combine.np_merge_many import Order
from wsa_jax.merging.methods import Pipeline, learned

COUNTS: dict[Preset, Sequence[int]] = {"smoke": (3,), "cpu": (2, 4, 8), "paper": (2, 3, 4, 6, 8)}
LONGER = "fine-tuning, steps of all merges"
METHODS = (
    "weight matching",
    "fine-tuning",
    "NP Merge, given",
    "NP Merge, accuracy",
    "NP Merge, tree",
    "NP Merge, joint",
)
CLAIM = "successive pairwise merges scale to many models (no numbers obtained)."


def ordered(order: Order) -> Pipeline:
    """NP Merge by pairs in an order; accuracies are those on the samples."""
    return Pipeline("weight", functools.partial(learned, order=order))


def row_of(bench: Bench, args: MergingArgs, count: int, seed: int) -> Row | None:
    """The table of the first ``count`` of a seed's models, and fine-tuning with more steps."""
    base = next(iter(NETWORKS[args.preset].values()))
    cell = dataclasses.replace(base, split="dirichlet", parts=COUNTS[args.preset][-1])
    orders = {f"NP Merge, {order}": ordered(order) for order in ("given", "accuracy", "tree")}
    rates = rates_or_exit(bench, args.preset, base)

    def row(methods: tuple[str, ...], merges: int) -> Row | None:
        return table_row(
            bench,
            pair_cells(cell, seed)[:count],
            seed,
            methods=methods,
            samples=SAMPLES[args.preset],
            steps=merges * STEPS[args.preset],
            rates=rates,
            extra=orders | {LONGER: KNOWN["fine-tuning"]},
        )

    found, longer = row(METHODS, 1), row((LONGER,), count - 1)
    if found is None or longer is None:
        return found
    check_same_data(found, longer)
    added = [line for line in longer.get("lines", ()) if line["method"] == LONGER]
    return found | {"lines": [*found.get("lines", ()), *added]}


GROWING = Growing(
    name="np_merge_many",
    title="NP Merge of many models",
    growing="models",
    row_of=row_of,
    counts=COUNTS,
    seeds=SEEDS,
    methods=(*METHODS, LONGER),
    claim=CLAIM,
)


def claims() -> list[Claim]:
    """NP Merge of the most models less its rivals of as many steps."""
    lines = []
    for size, found in on_record(GROWING.collect).items():
        count = max(found)
        for ours, theirs in (("accuracy", LONGER), ("joint", "fine-tuning")):
            values = GROWING.leads(found, count, f"NP Merge, {ours}", theirs)
            kind = "pairwise" if ours == "accuracy" else "joint"
            lines.append(
                Claim(
                    "NP Merge, text",
                    f"{kind} NP Merge of {count} models beats fine-tuning as long",
                    f"{count} ResNet8 x0.5, Dirichlet 0.5, {size}",
                    with_interval(values),
                    "",
                    verdict_of(values),
                    "np_merge.md#np-merge-of-many-models",
                )
            )
    return lines


SCRIPT = GROWING.script(__doc__, claims)
