"""Cells dealt out to processes: locks, pinning, failures, and a cell taken over by another."""

import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.federated.grid import Args, cells_of
from benchmarks.federated.run_cells import RunOptions, run_cell, run_cells
from benchmarks.record.ledger import Ledger, cell_id
from benchmarks.record.workers import held_alone, run_in_workers, usable_cores
from tests.benchmarks.in_workers import describe_and_fail_once

HOLD = """
import os, sys
from pathlib import Path
from benchmarks.record.workers import held_alone
with held_alone("cell", Path(sys.argv[1])) as holder:
    print(os.getpid(), holder, flush=True)
    sys.stdin.read()
"""

START = """
import functools, sys
from pathlib import Path
from benchmarks.record.workers import run_in_workers
from tests.benchmarks.in_workers import hold_and_wait
folder = Path(sys.argv[1])
run_in_workers(1, functools.partial(hold_and_wait, folder), folder / "compiled")
"""
ROOT = Path(__file__).resolve().parents[2]


def waited_for(condition):
    """What the condition gives once it is true, within a minute."""
    end = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


def is_free(folder):
    with held_alone("cell", folder) as holder:
        return holder is None


def start_holder(folder):
    """Another process that holds the lock until it is killed; returns it and its pid."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    pid, holder = process.stdout.readline().split()
    assert holder == "None"
    return process, int(pid)


def test_a_lock_names_its_holder_and_that_of_a_dead_process_is_free(tmp_path):
    process, pid = start_holder(tmp_path)
    try:
        with held_alone("cell", tmp_path) as holder:
            assert json.loads(holder) == {"host": os.uname().nodename, "pid": pid}
        with held_alone("other", tmp_path) as holder:
            assert holder is None
    finally:
        process.kill()
        process.communicate()
    assert json.loads((tmp_path / ".cell.lock").read_text())["pid"] == pid
    with held_alone("cell", tmp_path) as holder:
        assert holder is None
    assert json.loads((tmp_path / ".cell.lock").read_text())["pid"] == os.getpid()


def test_a_cell_of_another_process_is_left_to_it(tmp_path, capsys):
    (cell,) = cells_of(Args(preset="smoke"))
    options = RunOptions(runs=tmp_path / "runs", progress=False)
    ledger = Ledger(tmp_path / "rows.jsonl")
    with held_alone(cell_id(cell), options.runs):
        assert run_cells([cell], options, ledger) == []
    assert f'left to {{"host": "{os.uname().nodename}", "pid": {os.getpid()}}}' in (
        capsys.readouterr().out
    )
    assert ledger.rows() == []


class InterruptedRunError(Exception):
    pass


class Interrupting(Ledger):
    """A ledger whose second evaluation is the last one of its process."""

    def write(self, row):
        super().write(row)
        if row["rounds_done"] == 2:
            raise InterruptedRunError


def test_another_worker_ends_an_interrupted_cell_as_if_nothing_had_happened(tmp_path):
    cells = cells_of(Args(preset="smoke", seed=(0, 1)))
    whole = RunOptions(runs=tmp_path / "whole", progress=False)
    expected = run_cell(cells[0], whole, Ledger(tmp_path / "whole.jsonl"))
    options = RunOptions(runs=tmp_path / "runs", workers=2, progress=False, note="a test")
    path = tmp_path / "rows.jsonl"
    with pytest.raises(InterruptedRunError):
        run_cell(cells[0], options, Interrupting(path))
    rows = run_cells(cells, options, Ledger(path))
    assert [row["id"] for row in rows] == [cell_id(cell) for cell in cells]
    assert [row["status"] for row in rows] == ["done", "done"]
    assert [row["note"] for row in rows] == ["a test", "a test"]
    assert rows[0]["before"][0]["rounds_done"] == 2
    # Workers have one core and compile for themselves, which may round otherwise.
    assert rows[0]["rounds_done"] == 3
    np.testing.assert_allclose(rows[0]["curve"], expected["curve"], rtol=1e-6)


def test_workers_take_one_core_each_share_compiled_code_and_outlive_one_that_fails(tmp_path, capfd):
    seen = tmp_path / "seen"
    seen.mkdir()
    with pytest.raises(SystemExit, match=r"1 of 2 workers failed \(exit 1, see above\)"):
        run_in_workers(2, functools.partial(describe_and_fail_once, seen), tmp_path / "compiled")
    assert "ZeroDivisionError: the first one" in capfd.readouterr().err
    found = [json.loads(path.read_text()) for path in seen.glob("*.json")]
    assert len(found) == 2
    cores = usable_cores()
    # Two workers share the only core of a small machine.
    assert {tuple(worker["cores"]) for worker in found} == {(core,) for core in cores[:2]}
    assert {worker["cache"] for worker in found} == {str(tmp_path / "compiled")}


def test_workers_end_with_a_process_that_is_killed(tmp_path):
    command = [sys.executable, "-c", START, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        waited_for((tmp_path / "holds").exists)
        assert not is_free(tmp_path)
    finally:
        process.kill()
        process.wait()
    waited_for(lambda: is_free(tmp_path))


def test_workers_are_not_for_runs_over_several_processes():
    for options in (RunOptions(workers=2, processes=2), RunOptions(workers=1, mesh=True)):
        with pytest.raises(SystemExit, match="leave out --processes and --mesh"):
            run_cells([], options, None)
