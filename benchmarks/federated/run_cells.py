"""Running federated cells: checked, one after another or by workers, resumed and recorded."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro

from benchmarks.federated.cell import Cell
from benchmarks.federated.cell_parts import (
    cell_algorithm,
    cell_local,
    cell_partition,
    cell_task,
    cell_wsa,
    federation_data,
)
from benchmarks.federated.cell_row import add_round, failed_row, new_row, restored_rows
from benchmarks.federated.check_cells import check_cells
from benchmarks.record.data import data_digests, missing_data
from benchmarks.record.failure import FAILURES
from benchmarks.record.ledger import RUNS, Ledger, cell_id, is_finished, provenance
from benchmarks.record.statistics import Row
from benchmarks.record.workers import held_alone, run_in_workers
from benchmarks.refused import RefusedError
from wsa_jax.federated import Execution, clients_mesh, simulate
from wsa_jax.runs.processes import barrier


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
    if options.coordinator is None or jax.distributed.is_initialized():
        return
    # Read by the CPU's backend alone.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(options.coordinator, options.processes, options.process)


def run_cell(cell: Cell, options: RunOptions, ledger: Ledger) -> Row:
    """Run one cell to its end, resuming what is there; its row is current after each evaluation.

    A resumed row says under "before" on which machine and code it began, and how far it got there.
    """
    (images, labels), test = federation_data(cell, options.data_dir)
    execution = options.execution
    if execution == "auto":
        execution = "map" if jax.default_backend() == "cpu" else "vmap"

    name = cell_id(cell)
    digests = data_digests(cell.dataset, options.data_dir, cell.side)
    row: Row = new_row(cell) | {"data": digests} | provenance()
    if options.note:
        row["note"] = options.note
    found = ledger.find(name)
    kept = 0 if found is None else found["rounds_done"]

    def record(update: Row) -> None:
        add_round(row, cell, update)
        # A row brought from elsewhere without its checkpoint stays until this run is as far.
        if "test_accuracy" in update and options.process == 0 and row["rounds_done"] >= kept:
            ledger.write(row)

    directory = options.runs / name
    restored = restored_rows(directory / "metrics.jsonl", directory)
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
        local=cell_local(cell),
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


def run_cells(cells: Sequence[Cell], options: RunOptions, ledger: Ledger) -> list[Row]:
    """Run what is not done yet, in order; return the rows of all cells whose data is here.

    Settings of all cells are checked before the first one runs. One that fails on the way is
    recorded with its reason, and the next one runs. Cells that another process is running are left
    to it, without a row.
    """
    if options.workers:
        return _run_in_workers(cells, options, ledger)
    join_processes(options)
    check_cells(_unfinished(cells, ledger), options.data_dir)
    return _run_in_order(cells, options, ledger)


def _unfinished(cells: Sequence[Cell], ledger: Ledger) -> list[Cell]:
    finished = {row["id"] for row in ledger.rows() if is_finished(row)}
    return [cell for cell in cells if cell_id(cell) not in finished]


def _run_in_order(cells: Sequence[Cell], options: RunOptions, ledger: Ledger) -> list[Row]:
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


def _run_in_workers(cells: Sequence[Cell], options: RunOptions, ledger: Ledger) -> list[Row]:
    if options.processes > 1 or options.mesh:
        raise RefusedError("--workers gives each cell one core; leave out --processes and --mesh")
    check_cells(_unfinished(cells, ledger), options.data_dir)
    # The bars of several processes would overwrite each other.
    progress = options.progress and options.workers == 1
    alone = dataclasses.replace(options, workers=0, progress=progress)
    work = functools.partial(_run_in_order, cells, alone, ledger)
    run_in_workers(options.workers, work, options.runs / "compiled")
    found = (ledger.find(cell_id(cell)) for cell in cells)
    return [row for row in found if row is not None and (row["curve"] or row["status"] == "failed")]


def _run_alone(head: str, cell: Cell, options: RunOptions, ledger: Ledger) -> Row | None:
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
        try:
            row = run_cell(cell, options, ledger)
        except FAILURES as error:
            # The other processes of one run would wait for this one.
            if together:
                raise
            row = ledger.write(failed_row(ledger.find(name), cell, error))
            print(f"  failed: {row['reason']}", flush=True)
            return row
        seconds = time.perf_counter() - begin
        print(f"  {100 * row['accuracy']:.2f} % after {seconds:.0f} s", flush=True)
        return row
