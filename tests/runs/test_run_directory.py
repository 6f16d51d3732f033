"""One process in a directory, rows that count 1, 2, ..., done, and one line for whatever is not."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.runs.mutate import run as run_tiny
from wsa_jax.runs import files, lock
from wsa_jax.runs.files import CheckpointError
from wsa_jax.runs.identity import deeper
from wsa_jax.runs.interrupts import interrupts_wait
from wsa_jax.runs.run_directory import RunDirectory

pytestmark = pytest.mark.usefixtures("frozen")

ROOT = Path(__file__).resolve().parents[2]
STATE = {"w": jnp.zeros(3)}
HOLDER = """
import sys, time
from wsa_jax.runs.run_directory import RunDirectory
with RunDirectory(sys.argv[1], {"rate": 0.1}, total=3):
    print("held", flush=True)
    time.sleep(120)
"""


def opened(directory, total=3, **identity):
    return RunDirectory(directory, {"rate": 0.1} | identity, total=total)


def go_on(directory, until, total=3):
    """Run up to a round and return what was resumed from."""
    with opened(directory, total) as run:
        found = run.resume(STATE)
        for index in range(found.done + 1, until + 1):
            run.append([{"round": index, "loss": 1 / index}])
            run.save(index, {"w": jnp.full(3, float(index))})
    return found


def refused(directory, match, error=CheckpointError, **arguments):
    """The one line with which a start is refused; the directory is free afterwards."""
    for _ in range(2):
        with pytest.raises(error, match=match) as found, opened(directory, **arguments) as run:
            run.resume(STATE)
    assert "\n" not in str(found.value)
    assert str(directory) in str(found.value)


@pytest.fixture
def saved(tmp_path):
    go_on(tmp_path / "run", until=2)
    return tmp_path / "run"


class TestLock:
    def test_a_second_process_is_told_who_holds_it_and_takes_over_when_that_dies(self, tmp_path):
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path)],
            env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        refused(tmp_path, f"in use by process {holder.pid} on {socket.gethostname()}; wait until")
        assert not (tmp_path / "metrics.jsonl").exists()
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
        assert go_on(tmp_path, until=1).done == 0

    def test_two_runs_of_one_process(self, tmp_path):
        with opened(tmp_path):
            refused(tmp_path, f"in use by process {os.getpid()} on ")
        assert go_on(tmp_path, until=1).done == 0

    def test_a_lock_file_without_text_still_holds(self, tmp_path):
        with opened(tmp_path):
            (tmp_path / ".lock").write_text("")
            refused(tmp_path, "in use by another process; wait")

    def test_a_directory_deleted_meanwhile_is_not_written_to(self, saved):
        with opened(saved) as run:
            run.resume(STATE)
            saved.rename(saved.with_name("elsewhere"))
            go_on(saved, until=1)
            with pytest.raises(CheckpointError, match="was deleted or replaced while this run"):
                run.append([{"round": 3}])
            with pytest.raises(CheckpointError, match="was deleted or replaced while this run"):
                run.save(3, STATE)
        assert go_on(saved, until=1).done == 1

    def test_file_systems_without_locks_are_warned_of(self, tmp_path, monkeypatch):
        def no_locks(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr("fcntl.flock", no_locks)
        with pytest.warns(UserWarning, match=r"has no locks .* only one process at a time"):
            assert go_on(tmp_path, until=1).done == 0


class TestRows:
    def test_rows_and_state_come_back(self, saved):
        done, state, rows = go_on(saved, until=2)
        assert (done, rows) == (2, [{"round": 1, "loss": 1.0}, {"round": 2, "loss": 0.5}])
        np.testing.assert_array_equal(state["w"], np.full(3, 2.0))

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            ([0, 0, 1], r"metrics.jsonl, line 2, is of round 1, not 2: rows are missing, doubled"),
            ([1, 0], r"metrics.jsonl, line 1, is of round 2, not 1"),
            ([0], r"metrics.jsonl has 1 rows, but the checkpoint is of round 2"),
            ([0, '{"round": 2, "lo'], r"line 2, is torn or foreign \(no JSON object\); delete"),
            ([0, "[2]"], r"line 2, is torn or foreign"),
            ([0, ""], r"line 2, is torn or foreign"),
            ([0, '{"round": 2, "loss": 0.25}'], r"rows up to 2 are not those .* was saved with"),
        ],
    )
    def test_rows_that_are_not_those_saved(self, saved, lines, message):
        metrics = saved / "metrics.jsonl"
        before = metrics.read_text().splitlines()
        now = [before[line] if isinstance(line, int) else line for line in lines]
        metrics.write_text("".join(f"{line}\n" for line in now))
        refused(saved, message)
        assert metrics.read_text().splitlines() == now

    def test_rows_past_the_checkpoint_stay_until_they_are_run_again(self, saved):
        with opened(saved) as run:
            run.resume(STATE)
            run.append([{"round": 3}])
        rows = (saved / "metrics.jsonl").read_text()
        assert len(rows.splitlines()) == 3
        assert go_on(saved, until=2).done == 2
        assert (saved / "metrics.jsonl").read_text() == rows
        assert go_on(saved, until=3).done == 2
        assert len((saved / "metrics.jsonl").read_text().splitlines()) == 3

    def test_somebody_elses_rows(self, tmp_path):
        (tmp_path / "metrics.jsonl").write_text('{"round": 1}\n')
        refused(tmp_path, "metrics.jsonl is there, but neither run.json nor a checkpoint")
        assert (tmp_path / "metrics.jsonl").read_text() == '{"round": 1}\n'


class TestIdentity:
    @pytest.mark.parametrize("text", ["", '{"rate": 0.', "[]", "null", "3", '"x"', "[" * 9999])
    def test_a_file_that_is_no_identity(self, saved, text):
        (saved / "run.json").write_text(text)
        refused(saved, r"run.json is torn or foreign \(no JSON object\); delete .* to start again")

    def test_bytes_that_are_no_text(self, saved):
        (saved / "run.json").write_bytes(b"\xff\xfe\x00")
        refused(saved, "run.json is torn: it holds bytes that are no text")

    def test_an_entry_that_no_run_writes(self, saved):
        (saved / "run.json").write_text('{"rate": 0.1, "more": 1}')
        refused(saved, "run.json has an entry 'more' that no run writes")

    def test_a_deleted_one_is_written_anew_for_its_own_run_alone(self, saved):
        before = (saved / "run.json").read_text()
        (saved / "run.json").unlink()
        refused(saved, "checkpoints/2 belongs to another run; delete that folder", rate=0.2)
        assert not (saved / "run.json").exists()
        assert go_on(saved, until=2).done == 2
        assert (saved / "run.json").read_text() == before

    @pytest.mark.parametrize(("first", "again"), [(10, 10.0), (10.0, 10), (0, False)])
    def test_equal_numbers_of_another_type_go_on_with_the_run(self, tmp_path, first, again):
        for index, number in enumerate((first, again, first), 1):
            with opened(tmp_path, clip_norm=number) as run:
                assert run.resume(STATE).done == index - 1
                run.append([{"round": index}])
                run.save(index, STATE)
        assert json.loads((tmp_path / "run.json").read_text())["clip_norm"] is not again

    def test_a_run_that_does_not_say_what_lies_deeper_is_of_an_earlier_version(self, tmp_path):
        one, other = ([["module", f"Net{deeper(text)}"], 0] for text in "ab")
        for name, first in (("earlier", [["module", "Net"], 0]), ("now", one)):
            with opened(tmp_path / name, task=first) as run:
                run.resume(STATE)
                run.append([{"round": 1}])
                run.save(1, STATE)
            with opened(tmp_path / name, task=one) as run:
                assert run.resume(STATE).done == 1
        for task in (other, [["module", "Net"], 0]):
            refused(tmp_path / "now", "holds a run with task = ", ValueError, task=task)

    def test_name_and_text_are_on_disk_before_anything_follows(self, tmp_path, monkeypatch):
        synced = []
        monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_ino))
        with opened(tmp_path) as run:
            run.resume(STATE)
        inodes = [(tmp_path / "run.json").stat().st_ino, tmp_path.stat().st_ino]
        assert synced == inodes


class TestPlaces:
    @pytest.mark.parametrize(
        ("directory", "match"),
        [
            ("", "directory is an empty path"),
            ("  ", "directory is an empty path"),
            ("a\0b", "has a character that no path may have"),
            ("~nobody-of-this-name/x", "names a home folder that is not known"),
        ],
    )
    def test_what_is_no_path(self, directory, match):
        with pytest.raises(ValueError, match=match) as error:
            opened(directory)
        assert "\n" not in str(error.value)

    def test_a_name_that_is_too_long(self, tmp_path):
        refused(tmp_path / ("x" * 300), r"\(File name too long\); give a shorter name")

    def test_a_file(self, tmp_path):
        (tmp_path / "file").write_text("kept")
        refused(tmp_path / "file", "file is a file, not a folder; move it away or give another")
        refused(tmp_path / "file" / "below", r"\(Not a directory\); move it away")
        assert (tmp_path / "file").read_text() == "kept"

    def test_home(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        go_on("~/run", until=1)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]

    @pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", ".lock"])
    def test_a_folder_in_the_place_of_a_file(self, saved, name):
        (saved / name).unlink()
        (saved / name).mkdir()
        refused(saved, rf"cannot \w+ {saved / name} \(Is a directory\); move it away")

    def test_a_file_in_the_place_of_the_checkpoints(self, tmp_path):
        (tmp_path / "checkpoints").write_text("")
        refused(tmp_path, "checkpoints is a file, not a folder")


class TestRefusedBySystem:
    def test_a_full_disk_keeps_the_last_checkpoint(self, saved, monkeypatch):
        def full(file):
            raise OSError(errno.ENOSPC, "No space left on device")

        with opened(saved) as run:
            run.resume(STATE)
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", full)
                with pytest.raises(CheckpointError, match="No space left.*; free some") as error:
                    run.append([{"round": 3}])
        assert "\n" not in str(error.value)
        assert str(saved / "metrics.jsonl") in str(error.value)
        assert go_on(saved, until=3).done == 2

    def test_a_checkpoint_that_cannot_be_written(self, saved, monkeypatch):
        with opened(saved) as run:
            run.resume(STATE)
            run.append([{"round": 3}])
            manager = run._checkpoints._manager

            def full(*_, **__):
                raise ValueError("RESOURCE_EXHAUSTED: No space left on device\nmore")

            monkeypatch.setattr(manager, "save", full)
            with pytest.raises(CheckpointError, match=r"checkpoints/3 \(RESOURCE.*; free") as error:
                run.save(3, STATE)
        assert "\n" not in str(error.value)
        assert go_on(saved, until=3).done == 2

    @pytest.fixture
    def read_only(self, monkeypatch):
        """A file system on which nothing can be opened for writing."""
        opens = os.open

        def refuse(path, flags, *mode, **more):
            if flags & (os.O_RDWR | os.O_WRONLY):
                raise OSError(errno.EROFS, "Read-only file system", str(path))
            return opens(path, flags, *mode, **more)

        monkeypatch.setattr(lock.os, "open", refuse)
        monkeypatch.setattr(files.os, "open", refuse)

    def test_a_finished_run_is_returned_where_nothing_can_be_written(self, saved, read_only):
        before = {path: path.stat().st_mtime_ns for path in saved.rglob("*")}
        with opened(saved, total=2) as run:
            assert run.resume(STATE).done == 2
        assert {path: path.stat().st_mtime_ns for path in saved.rglob("*")} == before

    def test_an_unfinished_one_is_refused(self, saved, read_only):
        refused(saved, "cannot be written to, and its run has done 2 of 3 rounds; copy it")


@pytest.mark.parametrize("kind", ["simulate", "fit"])
def test_checkpoints_of_another_run_of_the_same_shapes(tmp_path, kind):
    for seed in (0, 1):
        run_tiny(kind, tmp_path / str(seed), seed)
    ours, theirs = (tmp_path / name / "checkpoints" for name in "01")
    newest = max(ours.iterdir(), key=lambda path: int(path.name)).name
    (ours / newest).rename(tmp_path / "kept")
    (theirs / newest).rename(ours / newest)
    with pytest.raises(CheckpointError, match=f"{newest} belongs to another run; delete that"):
        run_tiny(kind, tmp_path / "0", 0)


def test_a_checkpoint_without_seal_is_of_an_earlier_version(tmp_path):
    import orbax.checkpoint as ocp

    manager = ocp.CheckpointManager(tmp_path / "checkpoints")
    manager.save(1, args=ocp.args.StandardSave({"w": np.zeros(3)}))
    manager.close()
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"round": 1}) + "\n")
    refused(tmp_path, "checkpoints/1 has no digests: an earlier version wrote it")


def test_keyboard_interrupt_says_what_is_saved(saved):
    def interrupted():
        with opened(saved) as run:
            run.resume(STATE)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as error:
        interrupted()
    assert error.value.__notes__ == ["interrupted after round 2; start again to resume"]
    assert jax.tree.leaves(go_on(saved, until=3).state)


def test_ctrl_c_within_a_write_waits_for_its_end(saved, monkeypatch):
    def interrupted():
        with opened(saved) as run:
            run.resume(STATE)
            save = run._checkpoints.save

            def while_saving(*args, **named):
                signal.raise_signal(signal.SIGINT)
                save(*args, **named)

            monkeypatch.setattr(run._checkpoints, "save", while_saving)
            run.append([{"round": 3}])
            run.save(3, {"w": jnp.full(3, 3.0)})
            raise AssertionError("the interrupt was lost")

    with pytest.raises(KeyboardInterrupt) as error:
        interrupted()
    assert error.value.__notes__ == ["interrupted after round 3; start again to resume"]
    assert go_on(saved, until=3).done == 3


def test_a_second_ctrl_c_does_not_wait():
    reached = []

    def impatient():
        with interrupts_wait():
            for _ in range(3):
                signal.raise_signal(signal.SIGINT)
                reached.append("went on")

    with pytest.raises(KeyboardInterrupt):
        impatient()
    assert reached == ["went on"]


def test_a_run_in_another_thread_is_left_alone(tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.append(go_on(tmp_path, until=1).done))
    thread.start()
    thread.join()
    assert found == [0]
