"""Federated training on real images, with and without weight scope alignment: cells of a ledger.

    python -m benchmarks.federated --preset cpu --strength 0 1 10 --seed 0 1

runs every combination of the values given, each once; finished cells are skipped and interrupted
ones resume. Strength 0 is the plain algorithm. The last line printed is one JSON object.
"""

import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import tyro

from benchmarks.ledger import RESULTS, RUNS, Ledger, cell_id, provenance


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One experiment: plain values only, and nothing that does not change its result."""

    dataset: str = "cifar10"
    model: Literal["cnn", "mlp"] = "cnn"
    init: Literal["reference", "he"] = "reference"
    partition: Literal["equal", "unequal", "iid"] = "equal"
    alpha: float = 0.5
    clients: int = 10
    participants: int = 10
    rounds: int = 100
    algorithm: Literal["fed_avg"] = "fed_avg"
    form: Literal["gradient", "penalty", "proximal", "none"] = "gradient"
    scale: Literal["sum", "size", "none"] = "sum"
    strength: float = 0.0
    target: Literal["fused", "fixed", "none"] = "fused"
    target_std: float = 0.1
    window: tuple[int, int] = (0, -1)
    learning_rate: float = 0.01
    decay: float = 0.998
    steps: int = 20
    batch_size: int = 50
    augmentation: Literal["none", "batch", "example"] = "batch"
    evaluate_on: Literal["test", "validation"] = "test"
    evaluate_every: int = 10
    seed: int = 0

    def canonical(self) -> "Cell":
        """The same cell with settings that cannot matter set to one value, so that it runs once."""
        cell = self
        if cell.strength == 0:
            cell = dataclasses.replace(
                cell, form="none", scale="none", target="none", target_std=0.0, window=(0, -1)
            )
        elif cell.target == "fused":
            cell = dataclasses.replace(cell, target_std=0.0)
        return dataclasses.replace(cell, alpha=0.0) if cell.partition == "iid" else cell

    @property
    def label(self) -> str:
        """How tables and figures call the cell, without its seed."""
        parts = ["FedAvg"]
        if self.strength:
            parts.append(f"+WSA {self.strength:g}")
            parts += [self.form] if self.form != "gradient" else []
            parts += ["scaled by n"] if self.scale == "size" else []
            parts += [f"target N(0, {self.target_std:g}²)"] if self.target == "fixed" else []
            if self.window != (0, -1):
                end = "T" if self.window[1] < 0 else self.window[1]
                parts.append(f"rounds [{self.window[0]}, {end})")
        parts += ["He init"] if self.init == "he" else []
        parts += [f"lr {self.learning_rate:g}"] if self.learning_rate != 0.01 else []
        return (
            " ".join(parts[:2]) + "".join(f", {part}" for part in parts[2:])
            if self.strength
            else ", ".join(parts)
        )


PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "dataset": "digits", "model": "mlp", "clients": 4, "participants": 4, "rounds": 3,
        "evaluate_every": 1, "augmentation": "none",
    },
    "cpu": {"rounds": 100},
    "paper": {"rounds": 1500, "evaluate_every": 25},
}  # fmt: skip

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
    _WSA | {"target": "fixed"},
    {"strength": 1.0, "form": "proximal"},
    {"learning_rate": 0.1},
    _WSA | {"learning_rate": 0.1},
)


@dataclass(frozen=True, kw_only=True)
class Args:
    """Values given more than once make a grid; None leaves the preset's own."""

    preset: Literal["smoke", "cpu", "paper"] = "cpu"
    """smoke: seconds, on embedded digits; cpu: 100 rounds; paper: 1,500 rounds."""
    study: bool = False
    """Run the cells of the first record instead of one grid."""
    dataset: str | None = None
    alpha: tuple[float, ...] = ()
    """Dirichlet concentration: smaller is less alike."""
    partition: Literal["equal", "unequal", "iid"] | None = None
    clients: int | None = None
    participation: int | None = None
    """Clients drawn a round; all by default."""
    rounds: int | None = None
    algorithm: tuple[Literal["fed_avg"], ...] = ()
    form: tuple[Literal["gradient", "penalty", "proximal"], ...] = ()
    scale: tuple[Literal["sum", "size"], ...] = ()
    strength: tuple[float, ...] = ()
    """The paper's lambda; 0 is the plain algorithm."""
    target: tuple[Literal["fused", "fixed"], ...] = ()
    target_std: float | None = None
    window: tuple[int, int] | None = None
    """Rounds [first, last) in which WSA is on; a last of -1 is the end."""
    init: tuple[Literal["reference", "he"], ...] = ()
    learning_rate: tuple[float, ...] = ()
    augmentation: Literal["none", "batch", "example"] | None = None
    evaluate_on: Literal["test", "validation"] | None = None
    """Choose settings on validation (a tenth of the training data), never on test."""
    seed: tuple[int, ...] = ()
    execution: Literal["map", "vmap"] = "map"
    """Clients one after another (CPU) or all at once (accelerators)."""
    data_dir: Annotated[
        str | None, tyro.conf.arg(help_behavior_hint="(default: TFDS_DATA_DIR)")
    ] = None
    results: Path = RESULTS / "federated.jsonl"
    runs: Path = RUNS / "federated"
    """Checkpoints of cells under way."""
    progress: bool = True


def cells_of(args: Args) -> list[Cell]:
    """The cells that a command line asks for, in order, each once."""
    base = dict(PRESETS[args.preset])
    single = {
        "dataset": args.dataset, "partition": args.partition, "clients": args.clients,
        "rounds": args.rounds, "target_std": args.target_std, "window": args.window,
        "augmentation": args.augmentation, "evaluate_on": args.evaluate_on,
    }  # fmt: skip
    base |= {name: value for name, value in single.items() if value is not None}
    if args.participation or args.clients:
        base["participants"] = args.participation or args.clients
    if args.dataset is not None:
        base["model"] = "mlp" if args.dataset == "digits" else "cnn"
    lists = {
        name: getattr(args, name)
        for name in (
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
        if getattr(args, name)
    }
    grid: Iterable[dict[str, Any]] = STUDY
    if not args.study:
        grid = (
            dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())
        )
    cells = [Cell(**(base | chosen)).canonical() for chosen in grid]
    return list({cell_id(cell): cell for cell in cells}.values())


def run_cell(cell: Cell, args: Args, ledger: Ledger) -> dict[str, Any]:
    """Run one cell to its end, resuming what is there; its row is current after each evaluation."""
    import jax

    from wsa_jax.data import dataset_info, load_dataset, train_validation_split
    from wsa_jax.federated import (
        Execution,
        LocalSettings,
        WeightScopeAlignment,
        dirichlet_equal,
        dirichlet_unequal,
        iid,
        simulate,
    )
    from wsa_jax.federated.client import Form
    from wsa_jax.models import CNN, MLP
    from wsa_jax.regularization import Scale, scope_window
    from wsa_jax.training import classification

    info = dataset_info(cell.dataset)
    train = load_dataset(cell.dataset, split=info.splits[0], data_dir=args.data_dir)
    images, labels = train.images, train.labels
    if cell.evaluate_on == "test":
        held_out = load_dataset(cell.dataset, split="test", data_dir=args.data_dir)
        test = (held_out.images, held_out.labels)
    else:
        kept, validation = train_validation_split(labels, fraction=0.1, seed=0)
        test = (images[validation], labels[validation])
        images, labels = images[kept], labels[kept]
    if cell.partition == "iid":
        partition = iid(labels, clients=cell.clients, seed=cell.seed)
    else:
        make = dirichlet_equal if cell.partition == "equal" else dirichlet_unequal
        partition = make(labels, clients=cell.clients, alpha=float(cell.alpha), seed=cell.seed)
    module = (
        CNN(num_classes=info.num_classes, initialization=cell.init)
        if cell.model == "cnn"
        else MLP(features=(64, info.num_classes), initialization=cell.init)
    )
    wsa = None
    if cell.strength:
        first, last = cell.window
        schedule = scope_window(cell.strength, start=first, stop=None if last < 0 else last)
        wsa = WeightScopeAlignment(
            strength=schedule if cell.window != (0, -1) else cell.strength,
            form=cast(Form, cell.form),
            scale=cast(Scale, cell.scale),
            target="fused" if cell.target == "fused" else (0.0, cell.target_std),
        )

    name = cell_id(cell)
    row: dict[str, Any] = {
        "id": name, "label": cell.label, "config": dataclasses.asdict(cell), "status": "started",
        "rounds_done": 0, "accuracy": None, "curve": [], "diagnostics": [], "seconds": 0.0,
    } | provenance()  # fmt: skip

    def record(update: dict[str, Any]) -> None:
        row["seconds"] = round(row["seconds"] + update["seconds"], 1)
        row["rounds_done"] = update["round"]
        if "test_accuracy" in update:
            row["accuracy"] = update["test_accuracy"]
            row["curve"].append([update["round"], update["test_accuracy"], update["test_loss"]])
            row["diagnostics"].append(_diagnostics(update))
            ledger.write(row)

    directory = args.runs / name
    metrics = directory / "metrics.jsonl"
    finished = _restored_rows(metrics, directory)
    for update in finished:
        record(update)
    result = simulate(
        jax.random.key(cell.seed),
        classification(module, info, augmentation=cell.augmentation),
        (images, labels),
        partition,
        rounds=cell.rounds,
        wsa=wsa,
        participants=cell.participants,
        learning_rate=lambda index: cell.learning_rate * cell.decay ** (index + 1),
        local=LocalSettings(steps=cell.steps, batch_size=cell.batch_size),
        execution=Execution(clients=args.execution),
        test=test,
        evaluate_every=cell.evaluate_every,
        directory=directory,
        on_round=record,
        progress=args.progress,
    )
    row |= {"status": "done", "left_out": list(result.left_out)}
    ledger.write(row)
    return row


def _restored_rows(metrics: Path, directory: Path) -> list[dict[str, Any]]:
    """The rows of rounds that a checkpoint covers; simulate calls on_round for the others."""
    steps = [
        int(path.name) for path in (directory / "checkpoints").glob("[0-9]*") if path.name.isdigit()
    ]
    if not steps or not metrics.exists():
        return []
    return [json.loads(line) for line in metrics.read_text().splitlines()[: max(steps)]]


def _diagnostics(update: dict[str, Any]) -> dict[str, Any]:
    names = (
        "round", "train_loss", "update_norm", "mean_update_norm", "layers", "client_divergence",
        "target_divergence", "client_std", "average_std", "fused_std", "stability",
    )  # fmt: skip

    def short(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.5g}")
        return [short(item) for item in value] if isinstance(value, list) else value

    return {name: short(update[name]) for name in names}


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
    cells = cells_of(args)
    ledger = Ledger(args.results)
    rows = []
    for index, cell in enumerate(cells):
        name = cell_id(cell)
        found = ledger.find(name)
        if found is not None and found["status"] == "done":
            print(
                f"[{index + 1}/{len(cells)}] {cell.label}, seed {cell.seed}: done before, skipped"
            )
            rows.append(found)
            continue
        print(f"[{index + 1}/{len(cells)}] {cell.label}, seed {cell.seed} ({name})", flush=True)
        begin = time.perf_counter()
        rows.append(run_cell(cell, args, ledger))
        print(
            f"  {100 * rows[-1]['accuracy']:.2f} % after {time.perf_counter() - begin:.0f} s",
            flush=True,
        )
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
