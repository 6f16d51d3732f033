"""NP Merge against fine-tuning of the merge, as the samples grow from 50 to 5,000.

    python -m benchmarks.np_merge_data [--preset smoke|cpu|paper]

The models are those of `np_merge_table`'s first network on 80/20 classes, and so are the learning
rates, chosen there with 1,000 samples.
"""

import dataclasses
import sys

import tyro

from benchmarks.merging.merge_rows import report_growth, table_row
from benchmarks.merging.np_merge_table import NETWORKS, SEEDS, STEPS, rates_or_exit
from benchmarks.merging.pairs import Bench, MergingArgs, pair_cells, seeds_of
from benchmarks.record.statistics import Row

SAMPLES = {
    "smoke": (50, 200),
    "cpu": (50, 200, 1_000, 5_000),
    "paper": (50, 200, 500, 1_000, 2_000, 5_000),
}  # fmt: skip
METHODS = ("weight matching", "fine-tuning", "NP Merge")
CLAIM = "NP Merge is robust to little data and better than fine-tuning (no numbers obtained)."


def row_of(bench: Bench, args: MergingArgs, samples: int, seed: int) -> Row | None:
    """The table of a pair, with the rates of `np_merge_table`."""
    base = next(iter(NETWORKS[args.preset].values()))
    cell = dataclasses.replace(base, split="80-20")
    return table_row(
        bench, pair_cells(cell, seed), seed, methods=METHODS, samples=samples,
        steps=STEPS[args.preset], rates=rates_or_exit(bench, args.preset, base),
    )  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Merge with more and more samples."""
    args = tyro.cli(MergingArgs, args=argv, description=__doc__)
    report_growth(
        args, "np_merge_data", "NP Merge against samples", "samples", row_of,
        SAMPLES[args.preset], seeds_of(args, SEEDS), METHODS, CLAIM,
    )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
