"""What the NP Merge experiments have in common: networks, samples, steps, and rates chosen once."""

import dataclasses
from collections.abc import Sequence

from benchmarks.merging.bench import Bench, MissingTrialsError, Preset
from benchmarks.merging.merge_rows import choose_rates, score_of, table_row
from benchmarks.merging.model_cell import ModelCell, Split
from benchmarks.merging.pairs import pair_cells

RESNET8 = ModelCell(depth=8, width=0.5, norm="batch", epochs=12, examples=5_000)
VGG11 = ModelCell(model="vgg11", width=0.125, epochs=12, examples=5_000, learning_rate=0.05)
NETWORKS: dict[Preset, dict[str, ModelCell]] = {
    "smoke": {
        "MLP": ModelCell(
            dataset="digits", model="mlp", epochs=4, batch_size=50, augmentation="none"
        )
    },
    "cpu": {
        "ResNet8 BN x0.5": RESNET8,
        "VGG11 x0.125": VGG11,
    },
    "paper": {
        "VGG11": ModelCell(model="vgg11", epochs=200, learning_rate=0.08, batch_size=500),
        "ResNet20 x8 BN": ModelCell(
            width=8.0, norm="batch", epochs=200, learning_rate=0.5, batch_size=500
        ),
    },
}
SPLITS: tuple[Split, ...] = ("all", "80-20", "dirichlet", "classes")
NAMES = {
    "all": "same data",
    "80-20": "80/20 classes",
    "dirichlet": "Dirichlet 0.5",
    "classes": "disjoint classes",
}
GRID = ((0.03, 3e-4), (0.1, 1e-3), (0.3, 3e-3), (1.0, 1e-2))
GRIDS: dict[Preset, Sequence[tuple[float, float]]] = {
    "smoke": GRID[1:2],
    "cpu": GRID,
    "paper": GRID,
}
SAMPLES = {"smoke": 200, "cpu": 1_000, "paper": 5_000}
STEPS = {"smoke": 20, "cpu": 200, "paper": 1_000}
SEEDS: dict[Preset, Sequence[int]] = {"smoke": (0,), "cpu": (0, 1, 2), "paper": (0, 1, 2)}


def rates_of(bench: Bench, preset: Preset, cell: ModelCell) -> tuple[float, float] | None:
    """Learning rates chosen on the validation part of seed 0, on 80/20 classes, without WSA."""
    cell = dataclasses.replace(cell, split="80-20", strength=0.0, target="none")

    def score(method: str, rates: tuple[float, float]) -> float | None:
        row = table_row(
            bench,
            pair_cells(cell, 0),
            0,
            methods=(method,),
            samples=SAMPLES[preset],
            steps=STEPS[preset],
            rates=rates,
            part="validation",
        )
        return score_of(row, method)

    rates = choose_rates(score, GRIDS[preset])
    if rates is None:
        bench.tally.undecided.add(cell.label)
    return rates


def rates_or_exit(bench: Bench, preset: Preset, cell: ModelCell) -> tuple[float, float]:
    """`rates_of` where all that is shown depends on them."""
    rates = rates_of(bench, preset, cell)
    if rates is None:
        raise MissingTrialsError(
            f"{bench.rows.path} lacks trials of learning rates for {cell.label}: none is chosen; "
            "run without --report-only"
        )
    return rates
