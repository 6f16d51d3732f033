"""Running federated cells: the data, model and algorithm of each, resumed and recorded."""

import contextlib
import dataclasses
import functools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import tyro

from benchmarks.federated.cell import Cell
from benchmarks.record.data import data_digests, load_split, missing_data
from benchmarks.record.ledger import RUNS, Ledger, cell_id, is_finished, provenance
from benchmarks.record.workers import held_alone, run_in_workers

# Rounds whose client scopes a row keeps at most, evenly spaced, so that a ledger stays small.
_KEPT_ROUNDS = 300


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How cells run: nothing here changes a result beyond rounding."""

    execution: Literal["auto", "map", "vmap"] = "auto"
    """Clients one after another (map: CPU) or all at once (vmap: accelerators)."""
    mesh: bool = False
    """Spread the clients of a round over all devices, those of other processes included."""
    coordinator: str | None = None
    """HOST:PORT that the first of several processes listens on; start each with its --process."""
    processes: int = 1
    process: int = 0
    data_dir: Annotated[
        str | None, tyro.conf.arg(help_behavior_hint="(default: TFDS_DATA_DIR)")
    ] = None
    runs: Path = RUNS / "federated"
    """Checkpoints of cells under way."""
    workers: int = 0
    """Run cells in so many processes of one core each; 0 runs them here, on all cores."""
    note: str = ""
    """Kept in the rows: what else the machine did, where seconds are no measure of speed."""
    progress: bool = True


def join_processes(options: RunOptions) -> None:
    """Connect to the other processes, if there are any; before any array is made."""
    import jax

    if options.coordinator is None or jax.distributed.is_initialized():
        return
    # Read by the CPU's backend alone.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(options.coordinator, options.processes, options.process)


def federation_data(cell: Cell, data_dir: str | None) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Images and labels to train on and to evaluate on."""
    from wsa_jax.data import dataset_info, train_validation_split

    train = load_split(cell.dataset, dataset_info(cell.dataset).splits[0], data_dir, cell.side)
    if cell.evaluate_on == "test":
        held_out = load_split(cell.dataset, "test", data_dir, cell.side)
        return (train.images, train.labels), (held_out.images, held_out.labels)
    kept, validation = train_validation_split(train.labels, fraction=0.1, seed=0)
    train_part, validation_part = (
        (train.images[rows], train.labels[rows]) for rows in (kept, validation)
    )
    return train_part, validation_part


def cell_partition(cell: Cell, labels: Any) -> Any:
    """Which client owns which of the training labels."""
    from wsa_jax.federated import dirichlet_equal, dirichlet_unequal, iid, shards

    common = {"clients": cell.clients, "seed": cell.seed}
    if cell.partition == "iid":
        return iid(labels, **common)
    if cell.partition == "shards":
        return shards(labels, shards_per_client=cell.shards_per_client, **common)
    make = dirichlet_equal if cell.partition == "equal" else dirichlet_unequal
    return make(labels, alpha=cell.alpha, **common)


def cell_task(cell: Cell) -> Any:
    """The task of a cell: its model on images of its size."""
    from wsa_jax.data import dataset_info
    from wsa_jax.training import classification

    info = dataset_info(cell.dataset)
    module = cell_model(cell, info.num_classes)
    if not cell.side:
        return classification(module, info, augmentation=cell.augmentation)
    shape = (cell.side, cell.side, info.image_shape[2])
    return classification(
        module,
        dataclasses.replace(info, image_shape=shape),
        augmentation=cell.augmentation,
        padding=cell.side // 8,
    )


def cell_model(cell: Cell, num_classes: int) -> Any:
    """The Linen module of a cell."""
    from wsa_jax.models import CNN, MLP, vgg8

    if cell.model == "cnn":
        first, second, *units = (round(cell.width * n) for n in (*CNN.channels, *CNN.units))
        return CNN(num_classes, cell.init, (first, second), (units[0], units[1]), cell.kernel_size)
    if cell.model == "vgg8":
        return vgg8(num_classes, width=cell.width, initialization=cell.init)
    return MLP(features=(64, num_classes), initialization=cell.init)


def cell_algorithm(cell: Cell) -> Any:
    """The federated algorithm of a cell, with the library's own settings but FedProx's."""
    from wsa_jax import federated

    make = getattr(federated, cell.algorithm)
    return make(mu=cell.mu) if cell.algorithm == "fed_prox" else make()


def cell_wsa(cell: Cell) -> Any:
    """Weight scope alignment of a cell, None for the plain algorithm."""
    from wsa_jax.federated import WeightScopeAlignment
    from wsa_jax.federated.client import Form
    from wsa_jax.scope.layers import all_leaves, kernels
    from wsa_jax.scope.regularization import Scale, scope_window

    if not cell.strength:
        return None
    first, last = cell.window
    schedule = scope_window(cell.strength, start=first, stop=None if last < 0 else last)
    return WeightScopeAlignment(
        strength=schedule if cell.window != (0, -1) else cell.strength,
        form=cast(Form, cell.form),
        scale=cast(Scale, cell.scale),
        select=all_leaves if cell.layers == "all" else kernels,
        target=cell_target(cell),
        start=he_scope(cell) if cell.target == "he_fused" else None,
    )


def cell_target(cell: Cell) -> Any:
    """What clients are held to, as the library says it."""
    if cell.target == "fixed":
        return cell.target_mean, cell.target_std
    return he_scope(cell) if cell.target == "he" else "fused"


def he_scope(cell: Cell) -> Any:
    """The scope of the cell's model as He's initialisation would draw it from the same key."""
    import jax

    from wsa_jax.scope.layers import all_leaves, kernels
    from wsa_jax.scope.scope import weight_scope

    task = cell_task(dataclasses.replace(cell, init="he"))
    params, _ = task.init(jax.random.fold_in(jax.random.key(cell.seed), 0))
    return weight_scope(params, select=all_leaves if cell.layers == "all" else kernels)


def run_cell(cell: Cell, options: RunOptions, ledger: Ledger) -> dict[str, Any]:
    """Run one cell to its end, resuming what is there; its row is current after each evaluation.

    A resumed row says under "before" on which machine and code it began, and how far it got there.
    """
    import jax

    from wsa_jax.federated import Execution, LocalSettings, clients_mesh, simulate

    (images, labels), test = federation_data(cell, options.data_dir)
    execution = options.execution
    if execution == "auto":
        execution = "map" if jax.default_backend() == "cpu" else "vmap"

    name = cell_id(cell)
    row = (
        new_row(cell)
        | {"data": data_digests(cell.dataset, options.data_dir, cell.side)}
        | provenance()
    )
    if options.note:
        row["note"] = options.note
    found = ledger.find(name)
    kept = 0 if found is None else found["rounds_done"]

    def record(update: dict[str, Any]) -> None:
        add_round(row, cell, update)
        # A row brought from elsewhere without its checkpoint stays until this run is as far.
        if "test_accuracy" in update and options.process == 0 and row["rounds_done"] >= kept:
            ledger.write(row)

    directory = options.runs / name
    restored = _restored_rows(directory / "metrics.jsonl", directory)
    if restored and found is not None:
        began = {key: found[key] for key in ("versions", "machine", "time", "rounds_done")}
        row["before"] = [*found.get("before", []), began]
    for update in restored:
        record(update)
    result = simulate(
        jax.random.key(cell.seed),
        cell_task(cell),
        (images, labels),
        cell_partition(cell, labels),
        rounds=cell.rounds,
        algorithm=cell_algorithm(cell),
        wsa=cell_wsa(cell),
        participants=cell.participants,
        learning_rate=lambda index: cell.learning_rate * cell.decay ** (index + 1),
        local=LocalSettings(
            steps=cell.steps,
            batch_size=cell.batch_size,
            clip_norm=cell.clip_norm,
            weight_decay=cell.weight_decay,
            momentum=cell.momentum,
        ),
        execution=Execution(clients=execution, mesh=clients_mesh() if options.mesh else None),
        test=test,
        evaluate_every=cell.evaluate_every,
        directory=directory,
        on_round=record,
        progress=options.progress and options.process == 0,
        client_scopes=bool(cell.client_scopes),
    )
    finite = row["curve"][-1][2] is not None
    row |= {"status": "done" if finite else "diverged", "left_out": list(result.left_out)}
    if options.process == 0:
        ledger.write(row)
    return row


def run_cells(cells: Sequence[Cell], options: RunOptions, ledger: Ledger) -> list[dict[str, Any]]:
    """Run what is not done yet, in order; return the rows of all cells whose data is here.

    Cells that another process is running are left to it, without a row.
    """
    from wsa_jax.runs.processes import barrier

    if options.workers:
        return _run_in_workers(cells, options, ledger)
    join_processes(options)
    rows, absent = [], dict[str, str]()
    for index, cell in enumerate(cells):
        head = f"[{index + 1}/{len(cells)}] {cell.label}, seed {cell.seed}"
        found = ledger.find(cell_id(cell))
        if found is not None and is_finished(found):
            print(f"{head}: done before, skipped")
            rows.append(found)
        elif complaint := missing_data(cell.dataset, options.data_dir):
            print(f"{head}: no data here")
            absent[cell.dataset] = complaint
        elif (row := _run_alone(head, cell, options, ledger)) is not None:
            rows.append(row)
    for dataset, complaint in absent.items():
        print(f"{dataset}: {complaint}")
    # The first process writes the last row while the others would already read the ledger.
    barrier("cells")
    return rows


def _run_in_workers(
    cells: Sequence[Cell], options: RunOptions, ledger: Ledger
) -> list[dict[str, Any]]:
    if options.processes > 1 or options.mesh:
        sys.exit("--workers gives each cell one core; leave out --processes and --mesh")
    # The bars of several processes would overwrite each other.
    progress = options.progress and options.workers == 1
    alone = dataclasses.replace(options, workers=0, progress=progress)
    work = functools.partial(run_cells, cells, alone, ledger)
    run_in_workers(options.workers, work, options.runs / "compiled")
    found = (ledger.find(cell_id(cell)) for cell in cells)
    return [row for row in found if row is not None and row["curve"]]


def _run_alone(head: str, cell: Cell, options: RunOptions, ledger: Ledger) -> dict[str, Any] | None:
    """Run a cell, unless another process does; one that it has finished meanwhile is not run."""
    # Processes of one run work on each cell together.
    together = options.processes > 1
    name = cell_id(cell)
    with contextlib.nullcontext() if together else held_alone(name, options.runs) as holder:
        found = ledger.find(name)
        if holder is not None:
            print(f"{head}: left to {holder}")
            return None
        if is_finished(found):
            print(f"{head}: done by another process")
            return found
        print(f"{head} ({name})", flush=True)
        begin = time.perf_counter()
        row = run_cell(cell, options, ledger)
        seconds = time.perf_counter() - begin
        print(f"  {100 * row['accuracy']:.2f} % after {seconds:.0f} s", flush=True)
        return row


def new_row(cell: Cell) -> dict[str, Any]:
    """The row of a cell before its first round."""
    return {
        "id": cell_id(cell), "label": cell.label, "config": dataclasses.asdict(cell),
        "status": "started", "rounds_done": 0, "accuracy": None, "curve": [], "diagnostics": [],
        "dropped": 0, "seconds": 0.0, "stability": 0.0,
    }  # fmt: skip


def add_round(row: dict[str, Any], cell: Cell, update: dict[str, Any]) -> None:
    """Add what the simulation says of one round to a row."""
    row["seconds"] = round(row["seconds"] + update["seconds"], 4)
    row["rounds_done"] = update["round"]
    # Rounds recorded before clients could be dropped do not say it of themselves.
    row["dropped"] += update.get("dropped", 0)
    # Weights are smallest, and the share largest, in the first rounds, which nobody evaluates.
    row["stability"] = max(row["stability"], _short(update["stability"]) or 0.0)
    if "test_accuracy" in update:
        row["accuracy"] = update["test_accuracy"]
        row["curve"].append([update["round"], update["test_accuracy"], update["test_loss"]])
        row["diagnostics"].append(_diagnostics(update))
    if cell.client_scopes and (update["round"] - 1) % -(-cell.rounds // _KEPT_ROUNDS) == 0:
        layer = update["layers"].index(cell.client_scopes)
        kept = row.setdefault("client_scopes", {"round": [], "mean": [], "std": []})
        kept["round"].append(update["round"])
        for moment in ("mean", "std"):
            clients = update["client_scopes"][moment]
            # Clients differ in the fifth digit.
            kept[moment].append([_short(client[layer], digits=8) for client in clients])


def _restored_rows(metrics: Path, directory: Path) -> list[dict[str, Any]]:
    """The rows of rounds that a checkpoint covers; simulate calls on_round for the others."""
    from wsa_jax.runs.run_directory import read_rows

    steps = [
        int(path.name) for path in (directory / "checkpoints").glob("[0-9]*") if path.name.isdigit()
    ]
    if not steps or not metrics.exists():
        return []
    return read_rows(metrics, max(steps))[1]


def _diagnostics(update: dict[str, Any]) -> dict[str, Any]:
    names = (
        "round", "train_loss", "update_norm", "mean_update_norm", "layers", "client_divergence",
        "target_divergence", "client_std", "average_std", "fused_std", "stability",
    )  # fmt: skip
    return {name: _short(update[name]) for name in names}


def _short(value: Any, *, digits: int = 5) -> Any:
    """Some significant digits of every float."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    return [_short(item, digits=digits) for item in value] if isinstance(value, list) else value
