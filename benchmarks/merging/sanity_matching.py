"""What weight matching must do before anything else is asked of it: two rows that are known.

    python -m benchmarks sanity_matching [--preset smoke|cpu|paper] [--data-dir FOLDER]

The first is the literature's: MLPs of width 512, trained from different seeds on all 60,000 images
of Fashion-MNIST, have next to no barrier once they are matched (Git Re-Basin). "Next to no" was
fixed before anything ran: a tenth of the barrier without matching, and one point of accuracy.

The second is exact: a network and its own copy with the units of every layer in another order are
one function; once matched they are one model, bit by bit, and the barrier is 0.

Fashion-MNIST is read from fashion-mnist/ in --data-dir, in TFDS_DATA_DIR, or in
/usr/share/datasets, where Debian's package dataset-fashion-mnist puts it. CIFAR-10, which the
planted convolutional networks have seen for two epochs, is read as everywhere else.

paper: 100 epochs, five pairs, and networks of full width. smoke: MLPs on digits.
"""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
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
from benchmarks.merging.fig5_otfusion import SMOKE
from benchmarks.merging.fig6_rebasin import ends
from benchmarks.merging.model_cell import ModelCell, Trained, model_data
from benchmarks.merging.pairs import Align, measured_path, model_spec, pair_cells, path_row
from benchmarks.record.claims import Claim, verdict_of, with_interval
from benchmarks.record.figures import caption, draw_recorded, figure_legend, panels
from benchmarks.record.ledger import cell_id
from benchmarks.record.statistics import Row, markdown_table, spread
from benchmarks.refused import RefusedError
from benchmarks.script import Findings, Summary, figure_name
from wsa_jax.merging import permute_units, weight_matching

FASHION = ModelCell(
    dataset="fashion-mnist",
    model="mlp",
    width=8.0,
    epochs=20,
    batch_size=250,
    augmentation="none",
    whole=True,
)
RESNET = ModelCell(width=0.25, norm="layer", side=16, examples=5_000, epochs=2)
VGG11 = ModelCell(model="vgg11", width=0.125, learning_rate=0.05, examples=5_000, epochs=2)
PAIRS: dict[Preset, ModelCell] = {
    "smoke": SMOKE,
    "cpu": FASHION,
    "paper": dataclasses.replace(FASHION, epochs=100),
}
PLANTED: dict[Preset, Sequence[ModelCell]] = {
    "smoke": (SMOKE,),
    "cpu": (FASHION, RESNET, dataclasses.replace(RESNET, norm="batch"), VGG11),
    "paper": (
        ModelCell(norm="layer", epochs=100),
        ModelCell(norm="batch", epochs=100),
        ModelCell(model="vgg11", learning_rate=0.05, epochs=100),
    ),
}
SEEDS: dict[Preset, Sequence[int]] = {"smoke": (0,), "cpu": (0, 1, 2), "paper": (0, 1, 2, 3, 4)}
ALIGNS: dict[Align, str] = {"none": "as they are", "weight": "matched"}
POINTS: dict[Preset, int] = {"smoke": 11, "cpu": 25, "paper": 25}
"""25 are Git Re-Basin's."""
PLANTED_POINTS = 11
PLANTED_EXAMPLES = 1_000
LITTLE = 0.1
"""What counts as next to no barrier: this share of the one without matching."""
LITTLE_ACCURACY = 1.0
"""In points."""
DEBIAN = "/usr/share/datasets"
PAGE = "barriers.md#what-matching-must-do"
CLAIM = (
    "wide MLPs have next to no barrier after matching, on MNIST (curves of Git Re-Basin; no "
    "numbers are given). What is planted is found in 10 of 100 residual MLPs by the public "
    "code (its issue 8)."
)


@dataclass(frozen=True, kw_only=True)
class PlantedCell:
    """A network and its copy with units in another order, matched."""

    model: str
    """Label of the network."""
    first: str
    """Its id in the ledger of models."""
    points: int = PLANTED_POINTS
    examples: int = PLANTED_EXAMPLES
    """Test examples evaluated."""
    seed: int = 0
    """Of the planted orders and of matching."""


class Found(NamedTuple):
    """What there is."""

    pairs: dict[str, list[Row | None]]
    """By align, one a seed."""
    planted: dict[str, Row | None]
    """By network."""


def folder_of(args: MergingArgs, dataset: str, *others: str) -> str | None:
    """The first folder that holds a data set: --data-dir, TFDS_DATA_DIR, others."""
    given = (args.data_dir, os.environ.get("TFDS_DATA_DIR"), *others)
    return next((root for root in given if root and (Path(root) / dataset).is_dir()), None)


def collect(bench: Bench, args: MergingArgs) -> Found | None:
    """The pairs of every seed as they are and matched, and the planted copies."""
    fashion, cifar = folder_of(args, "fashion-mnist", DEBIAN), folder_of(args, "cifar10")
    if fashion is None and args.preset != "smoke" and not args.report_only:
        raise RefusedError(
            "no fashion-mnist/ in --data-dir, TFDS_DATA_DIR or /usr/share/datasets; install "
            "Debian's dataset-fashion-mnist, or put the four idx files there"
        )
    base = PAIRS[args.preset]
    own = dataclasses.replace(bench, data_dir=fashion)
    pairs: dict[str, list[Row | None]] = {
        align: [
            path_row(own, base, seed, align, points=POINTS[args.preset], examples=0)
            for seed in seeds_of(args, SEEDS)
        ]
        for align in ALIGNS
    }
    planted = {
        cell.label: planted_row(
            dataclasses.replace(bench, data_dir=fashion if cell == FASHION else cifar), cell
        )
        for cell in PLANTED[args.preset]
    }
    there = any(row is not None for row in [*pairs["weight"], *planted.values()])
    return Found(pairs, planted) if there else None


def planted_row(bench: Bench, cell: ModelCell) -> Row | None:
    """Plant orders in a copy of a network, match it, and look at the line before and after."""
    cell = pair_cells(cell, 0)[0]
    config = PlantedCell(model=cell.label, first=cell_id(cell))

    def make(trained: Trained) -> Row:
        test = model_data(cell, bench.data_dir).test
        anchor, rng = trained.variables, np.random.default_rng(config.seed)
        spec = model_spec(cell, anchor)
        orders = {group.name: rng.permutation(group.size) for group in spec.groups}
        copy = permute_units(spec, anchor, orders)
        matching = weight_matching(jax.random.key(config.seed), spec, anchor, copy)
        matched = permute_units(spec, copy, matching.permutations)

        def line(other: dict) -> Row:
            return measured_path(cell, anchor, other, test, config.points, config.examples)

        return {
            "groups": len(spec.groups),
            "units": sum(group.size for group in spec.groups),
            "distance": distance(anchor, matched),
            "planted": line(copy),
            "matched": line(matched),
        }

    return bench.row(config, make, [cell])


def distance(first: dict, second: dict) -> float:
    """The largest difference of any number of two models."""
    differences = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), first, second)
    return max(jax.tree.leaves(differences))


def measured(found: Found, align: str, kind: str) -> list[float | None]:
    """A measure of the test lines, one a seed."""
    rows = found.pairs[align]
    return [None if row is None else row.get("test", {}).get(kind) for row in rows]


def left_of(found: Found) -> list[float]:
    """The share of the barrier that matching leaves, one a seed."""
    before, after = (measured(found, align, "barrier") for align in ALIGNS)
    both = zip(before, after, strict=True)
    return [matched / plain for plain, matched in both if plain and matched is not None]


def accuracy_lost(found: Found, align: str) -> list[float]:
    """Barriers in accuracy, in points."""
    values = measured(found, align, "accuracy_barrier")
    return [100 * value for value in values if value is not None]


def exact(row: Row) -> bool:
    """Whether what was planted is undone, bit by bit, and the loss is the same all along."""
    return row["distance"] == 0 and row["matched"]["barrier_endpoints"] == 0


def pairs_table(found: Found) -> str:
    """A line a seed: ends, and the line between them before and after matching."""
    head = ["pair", "test accuracy of ends, %"]
    for kind in ALIGNS.values():
        head += [f"barrier, {kind}", f"in accuracy, {kind}, points", f"half-way, {kind}, %"]
    lines = []
    for seed, both in enumerate(zip(*found.pairs.values(), strict=True)):
        cells = [f"{seed}", spread(ends([row for row in both[:1] if row is not None]))]
        for row in both:
            test = {} if row is None else row.get("test", {})
            if not test:
                cells += ["", "", ""]
                continue
            half = test["accuracy"][len(test["accuracy"]) // 2]
            cells += [
                f"{test['barrier']:.4f}",
                f"{100 * test['accuracy_barrier']:.2f}",
                f"{100 * half:.2f}",
            ]
        lines.append(cells)
    return markdown_table(head, lines)


def planted_table(found: Found) -> str:
    """A line a network: what was planted, and what is left of it."""
    head = ["network", "groups", "units", "barrier of the copy", "matched", "largest difference"]
    lines = [
        [
            name,
            str(row["groups"]),
            f"{row['units']:,}",
            f"{row['planted']['barrier_endpoints']:.3f}",
            f"{row['matched']['barrier_endpoints']:g}",
            f"{row['distance']:g}",
        ]
        for name, row in found.planted.items()
        if row is not None and "matched" in row
    ]
    return markdown_table(head, lines)


def report(bench: Bench, args: MergingArgs, found: Found) -> Findings:
    """Both tables, and the lines between the pairs."""
    base = PAIRS[args.preset]
    left = left_of(found)
    rows = [row for row in found.planted.values() if row is not None and "matched" in row]
    remarks = f"Matching leaves {100 * np.mean(left):.1f} % of the barrier." if left else ""
    parts = [pairs_table(found), remarks, planted_table(found), f"The literature: {CLAIM}"]
    return Findings(
        title=f"What matching must do: {base.label}",
        text="\n\n".join(part for part in parts if part),
        figures={figure_name("sanity_matching", args.preset): lambda: draw(found, base)},
        summary=Summary(left=left, planted=len(rows), exact=sum(map(exact, rows))),
    )


def draw(found: Found, base: ModelCell) -> Figure:
    """Test loss and accuracy along the line, before and after matching."""
    figure, axes = panels(2, width=5.0, height=3.8)
    for panel, (kind, label, factor) in zip(
        axes, (("loss", "test loss", 1), ("accuracy", "test accuracy, %", 100)), strict=True
    ):
        series = {
            name: [
                (row["test"]["t"], [np.nan if v is None else factor * v for v in line])
                for row in found.pairs[align]
                if row is not None and "test" in row
                for line in [row["test"][kind]]
            ]
            for align, name in ALIGNS.items()
        }
        draw_recorded(panel, series, xlabel="share of the second model", ylabel=label, legend=False)
    figure_legend(figure)
    count = len(found.pairs["weight"])
    return caption(figure, f"{base.label}, hidden layers of {64 * base.width:.0f}, {count} pairs")


def claims() -> list[Claim]:
    """The literature's row, in loss and in accuracy, and the exact one."""
    lines = []
    for size, found in on_record(collect).items():
        base = PAIRS["paper" if size == "full size" else "cpu"]
        left, lost = left_of(found), accuracy_lost(found, "weight")
        rows = [row for row in found.planted.values() if row is not None and "matched" in row]
        failed = [row["config"]["model"] for row in rows if not exact(row)]
        run = f"{base.label}, all of Fashion-MNIST"
        said = [
            (
                "next to no barrier after matching: a tenth is left at most",
                run,
                f"{with_interval([100 * share for share in left])} % left",
                verdict_of([LITTLE - share for share in left]),
            ),
            (
                "nor in accuracy: one point is lost at most",
                run,
                f"{with_interval(lost)} points lost",
                verdict_of([LITTLE_ACCURACY - value for value in lost]),
            ),
            (
                "planted orders are undone, and the barrier is 0",
                f"{len(rows)} networks and copies of them",
                f"exactly 0 in {len(rows) - len(failed)} of {len(rows)}",
                "confirmed" if rows and not failed else "the reverse" if rows else "not run yet",
            ),
        ]
        lines += [
            Claim("Git Re-Basin", claim, ran, ours, "", verdict, PAGE)
            for claim, ran, ours, verdict in said
        ]
    return lines


SCRIPT = MergingExperiment(
    name="sanity_matching",
    description=__doc__,
    collect=collect,
    report=report,
    claims=claims,
    data={"cpu": "Fashion-MNIST", "paper": "Fashion-MNIST"},
)
