"""NP Merge against fine-tuning of the merge, as the samples grow from 50 to 5,000.

    python -m benchmarks np_merge_data [--preset smoke|cpu|paper]

The models are those of `np_merge_table`'s first network on 80/20 classes, and so are the learning
rates, chosen there with 1,000 samples. smoke: 200 samples alone, with which they are chosen.
"""

import dataclasses
from collections.abc import Sequence

from benchmarks.merging.bench import Bench, MergingArgs, Preset, on_record
from benchmarks.merging.merge_rows import Growing, table_row
from benchmarks.merging.merge_settings import NETWORKS, SEEDS, STEPS, rates_or_exit
from benchmarks.merging.pairs import pair_cells
from benchmarks.record.claims import Claim, verdict_of, with_interval
from benchmarks.record.statistics import Row

SAMPLES: dict[Preset, Sequence[int]] = {
    "smoke": (200,),
    "cpu": (50, 200, 1_000, 5_000),
    "paper": (50, 200, 500, 1_000, 2_000, 5_000),
}
METHODS = ("weight matching", "fine-tuning", "NP Merge")
CLAIM = "NP Merge is robust to little data and better than fine-tuning (no numbers obtained)."


def row_of(bench: Bench, args: MergingArgs, samples: int, seed: int) -> Row | None:
    """The table of a pair, with the rates of `np_merge_table`."""
    base = next(iter(NETWORKS[args.preset].values()))
    cell = dataclasses.replace(base, split="80-20")
    return table_row(
        bench,
        pair_cells(cell, seed),
        seed,
        methods=METHODS,
        samples=samples,
        steps=STEPS[args.preset],
        rates=rates_or_exit(bench, args.preset, base),
    )


GROWING = Growing(
    name="np_merge_data",
    title="NP Merge against samples",
    growing="samples",
    row_of=row_of,
    counts=SAMPLES,
    seeds=SEEDS,
    methods=METHODS,
    claim=CLAIM,
)


def claims() -> list[Claim]:
    """NP Merge less fine-tuning of the same merge, with the fewest and the most samples."""
    lines = []
    for size, found in on_record(GROWING.collect).items():
        for samples in (min(found), max(found)):
            values = GROWING.leads(found, samples, "NP Merge", "fine-tuning")
            lines.append(
                Claim(
                    "NP Merge, text",
                    f"NP Merge beats fine-tuning with {samples:,} samples",
                    f"ResNet8 x0.5, 80/20 classes, {size}",
                    with_interval(values),
                    "",
                    verdict_of(values),
                    "np_merge.md#np-merge-against-the-number-of-samples",
                )
            )
    return lines


SCRIPT = GROWING.script(__doc__, claims)
