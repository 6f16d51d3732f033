"""Federated training on real images, with and without weight scope alignment: cells of a ledger.

    python -m benchmarks federated --preset cpu --strength 0 1 10 --seed 0 1

runs every combination of the values given, each once; finished cells are skipped and interrupted
ones resume. Strength 0 is the plain algorithm.
"""

import dataclasses
import itertools
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.federated.cell import PRESETS, Algorithm, Cell
from benchmarks.federated.experiment import (
    CommonArgs,
    cells_state,
    failures,
    print_states,
    resolve,
)
from benchmarks.federated.run_cells import run_cells
from benchmarks.record.ledger import cell_id
from benchmarks.record.statistics import Row
from benchmarks.refused import RefusedError
from benchmarks.script import Command, Preset, State, Summary

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
class Args(CommonArgs):
    """Values given more than once make a grid; None leaves the preset's own."""

    preset: Preset = "cpu"
    """smoke: seconds, on embedded digits; short: 100 rounds; cpu: 1,500 rounds of half-size images
    and network; paper: 1,500 rounds."""
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
    algorithm: tuple[Algorithm, ...] = ()
    mu: float | None = None
    """FedProx's strength; by default 0.1 on CIFAR-10, 0.001 on CIFAR-100, 1 on CINIC-10."""
    model: Literal["cnn", "mlp", "vgg8"] | None = None
    width: float | None = None
    """Factor on the channels and units of the CNN and VGG8."""
    kernel_size: int | None = None
    """Of the CNN's convolutions."""
    side: int | None = None
    """Height and width of the images, made of block means; 0 leaves them as they are stored."""
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
    report_only: bool = False
    """Print the table of what is recorded, and run nothing."""
    output: Path | None = None
    """Folder of a smoke run's ledger and checkpoints, by default a temporary one."""


_SINGLE = (
    "dataset",
    "model",
    "width",
    "kernel_size",
    "side",
    "partition",
    "shards_per_client",
    "clients",
    "rounds",
    "mu",
    "target_mean",
    "target_std",
    "window",
    "augmentation",
    "evaluate_on",
)
_LISTS = (
    "alpha",
    "algorithm",
    "form",
    "scale",
    "target",
    "init",
    "learning_rate",
    "strength",
    "seed",
)


# Where else these would change nothing: cells that differ in them alone are one cell.
_NEEDS = {
    "alpha": "--partition equal or unequal",
    "shards_per_client": "--partition shards",
    "mu": "--algorithm fed_prox",
    "width": "--model cnn or vgg8",
    "kernel_size": "--model cnn",
    "form": "a --strength above 0",
    "scale": "a --strength above 0",
    "target": "a --strength above 0",
    "window": "a --strength above 0",
    "target_mean": "--target fixed and a --strength above 0",
    "target_std": "--target fixed and a --strength above 0",
}


def cells_of(args: Args) -> list[Cell]:
    """The cells that a command line asks for, in order, each once.

    Exits where a value given is in none of them.
    """
    base = args.base()
    if args.dataset is not None:
        # Digits are too small for the convolutions, and for smaller images.
        base |= {"model": "mlp", "side": 0} if args.dataset == "digits" else {"model": "cnn"}
    single = {name: value for name in _SINGLE if (value := getattr(args, name)) is not None}
    base |= single
    drawn = args.clients if args.participation is None else args.participation
    if drawn is not None:
        base["participants"] = drawn
    lists = {name: value for name in _LISTS if (value := getattr(args, name))}
    grid: Iterable[dict[str, Any]] = STUDY
    if not args.study:
        grid = (
            dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())
        )
    elif lists:
        given = " ".join(_flag(name, *values) for name, values in lists.items())
        raise RefusedError(
            f"--study has cells of its own, {given} would change none; leave one of them out"
        )
    cells = [Cell(**(base | chosen)).canonical() for chosen in grid]
    for name, need in _NEEDS.items():
        for value in lists.get(name, (single[name],) if name in single else ()):
            # NaN equals nothing; it is refused with the cells.
            if value == value and all(getattr(cell, name) != value for cell in cells):
                raise RefusedError(
                    f"{_flag(name, value)} changes no cell here; give {need}, or leave it out"
                )
    return list({cell_id(cell): cell for cell in cells}.values())


def _flag(name: str, *values: Any) -> str:
    """A setting and its values as the command line has them."""
    return " ".join((f"--{name.replace('_', '-')}", *map(str, np.ravel(values))))


def print_table(rows: list[Row]) -> None:
    """Print final accuracies, one line a cell."""
    parts = sorted({row["config"]["evaluate_on"] for row in rows})
    table = Table(title=f"{' and '.join(parts).capitalize()} accuracy, %")
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


def count(preset: Preset) -> State | None:
    """Of the first record's cells."""
    if preset not in PRESETS:
        return None
    return cells_state(cells_of(dataclasses.replace(Args(study=True), preset=preset)))


def run(args: Args) -> Summary:
    cells = cells_of(args)
    options, ledger, _ = resolve(args)
    last: Summary = {"preset": args.preset}
    if args.dry_run:
        return last | print_states(cells, ledger, args.data_dir)
    if args.report_only:
        found = {row["id"]: row for row in ledger.rows() if row["curve"]}
        rows = [found[name] for name in map(cell_id, cells) if name in found]
    else:
        rows = run_cells(cells, options, ledger)
    if not rows and args.report_only:
        sys.exit(f"{ledger.path} holds none of these cells: nothing to report")
    if not rows:
        sys.exit("no cell could run: its data is not here")
    print_table(rows)
    accuracy = {f"{row['label']}, seed {row['config']['seed']}": row["accuracy"] for row in rows}
    known = [value for value in accuracy.values() if value is not None]
    mean = float(np.mean(known)) if known else None
    return last | {"accuracy": accuracy, "mean_accuracy": mean} | failures(rows)


SCRIPT = Command(name="federated", description=__doc__, arguments=Args, function=run, count=count)
