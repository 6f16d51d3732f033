"""Federated training on real images, with and without weight scope alignment: cells of a ledger.

    python -m benchmarks.federated --preset cpu --strength 0 1 10 --seed 0 1

runs every combination of the values given, each once; finished cells are skipped and interrupted
ones resume. Strength 0 is the plain algorithm. The last line printed is one JSON object.
"""

import itertools
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from benchmarks.cells import PRESETS, Algorithm, Cell
from benchmarks.ledger import RESULTS, Ledger, cell_id
from benchmarks.run_cells import RunOptions, run_cells

# The first record: what it takes to see a gain where there is one, most decisive cells first.
_WSA: dict[str, Any] = {"strength": 10.0}
STUDY: tuple[dict[str, Any], ...] = (
    {},
    _WSA,
    {"seed": 1},
    _WSA | {"seed": 1},
    {"init": "he"},
    {"strength": 1.0},
    _WSA | {"form": "proximal"},
    {"strength": 1.0, "scale": "size", "form": "proximal"},
    {"strength": 0.001, "scale": "size"},
    _WSA | {"init": "he"},
    _WSA | {"scale": "size", "form": "proximal"},
    {"strength": 1.0, "form": "proximal"},
    {"learning_rate": 0.1},
    _WSA | {"learning_rate": 0.1},
)


@dataclass(frozen=True, kw_only=True)
class Args(RunOptions):
    """Values given more than once make a grid; None leaves the preset's own."""

    preset: Literal["smoke", "cpu", "paper"] = "cpu"
    """smoke: seconds, on embedded digits; cpu: 100 rounds; paper: 1,500 rounds."""
    study: bool = False
    """Run the cells of the first record instead of one grid."""
    dataset: str | None = None
    alpha: tuple[float, ...] = ()
    """Dirichlet concentration: smaller is less alike."""
    partition: Literal["equal", "unequal", "iid", "shards"] | None = None
    shards_per_client: int | None = None
    clients: int | None = None
    participation: int | None = None
    """Clients drawn a round; all by default."""
    rounds: int | None = None
    algorithm: tuple[Algorithm, ...] = ()
    mu: float | None = None
    """FedProx's strength; by default 0.1 on CIFAR-10, 0.001 on CIFAR-100, 1 on CINIC-10."""
    model: Literal["cnn", "mlp", "vgg8"] | None = None
    width: float | None = None
    """Factor on VGG8's channels."""
    form: tuple[Literal["gradient", "penalty", "proximal"], ...] = ()
    scale: tuple[Literal["sum", "size"], ...] = ()
    strength: tuple[float, ...] = ()
    """The paper's lambda; 0 is the plain algorithm."""
    target: tuple[Literal["fused", "fixed"], ...] = ()
    target_mean: float | None = None
    target_std: float | None = None
    window: tuple[int, int] | None = None
    """Rounds [first, last) in which WSA is on; a last of -1 is the end."""
    init: tuple[Literal["reference", "he"], ...] = ()
    learning_rate: tuple[float, ...] = ()
    augmentation: Literal["none", "batch", "example"] | None = None
    evaluate_on: Literal["test", "validation"] | None = None
    """Choose settings on validation (a tenth of the training data), never on test."""
    seed: tuple[int, ...] = ()
    results: Path = RESULTS / "federated.jsonl"


_SINGLE = (
    "dataset", "model", "width", "partition", "shards_per_client", "clients", "rounds", "mu",
    "target_mean", "target_std", "window", "augmentation", "evaluate_on",
)  # fmt: skip
_LISTS = (
    "alpha", "algorithm", "form", "scale", "target", "init", "learning_rate", "strength", "seed",
)  # fmt: skip


def cells_of(args: Args) -> list[Cell]:
    """The cells that a command line asks for, in order, each once."""
    base = dict(PRESETS[args.preset])
    if args.dataset is not None:
        base["model"] = "mlp" if args.dataset == "digits" else "cnn"
    base |= {name: value for name in _SINGLE if (value := getattr(args, name)) is not None}
    if args.participation or args.clients:
        base["participants"] = args.participation or args.clients
    lists = {name: value for name in _LISTS if (value := getattr(args, name))}
    grid: Iterable[dict[str, Any]] = STUDY
    if not args.study:
        grid = (
            dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())
        )
    cells = [Cell(**(base | chosen)).canonical() for chosen in grid]
    return list({cell_id(cell): cell for cell in cells}.values())


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print final accuracies, one line a cell."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Test accuracy, %")
    table.add_column("setting")
    for name in ("seed", "rounds", "accuracy", "s/round"):
        table.add_column(name, justify="right")
    for row in rows:
        done = max(row["rounds_done"], 1)
        accuracy = "-" if row["accuracy"] is None else f"{100 * row['accuracy']:.2f}"
        table.add_row(
            row["label"],
            str(row["config"]["seed"]),
            str(done),
            accuracy,
            f"{row['seconds'] / done:.2f}",
        )
    Console(width=100).print(table)


def main(argv: list[str] | None = None) -> None:
    args = tyro.cli(Args, args=argv, description=__doc__)
    rows = run_cells(cells_of(args), args, Ledger(args.results))
    if not rows:
        sys.exit("no cell could run: its data is not here")
    print_table(rows)
    accuracy = {f"{row['label']}, seed {row['config']['seed']}": row["accuracy"] for row in rows}
    print(
        json.dumps(
            {
                "benchmark": "federated",
                "preset": args.preset,
                "accuracy": accuracy,
                "mean_accuracy": float(np.mean([row["accuracy"] for row in rows])),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
