"""The directory of a run: its identity, its rows and its checkpoints; how it resumes."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple

from jaxtyping import PyTree

from wsa_jax.runs.checkpoint import Checkpoints
from wsa_jax.runs.files import (
    CheckpointError,
    directory_path,
    make_folder,
    one_line,
    read_lines,
    read_object,
    write_atomically,
)
from wsa_jax.runs.identity import check_identity, identity_digest
from wsa_jax.runs.interrupts import interrupts_wait
from wsa_jax.runs.lock import DirectoryLock
from wsa_jax.runs.processes import barrier, on_host, said_by_first, writes
from wsa_jax.types import Json

Compare = Callable[[list[Json]], str | None]
"""What in the rows is of another run, and what it would be in this one; None if nothing is."""


class Resumed(NamedTuple):
    """Where a run goes on: steps done, the state after them, and their rows."""

    done: int
    state: PyTree
    rows: list[Json]


class RunDirectory:
    """Identity (``run.json``), rows (``metrics.jsonl``) and checkpoints of one run.

    Used as a context manager, by one process at a time: it is locked until the context ends. With
    several processes (`jax.distributed`), all share a file system and call every method, and the
    first one locks and writes. A directory that cannot be written to is read: a finished run
    there is returned.

    Guarantees: a process killed at any moment leaves the newest complete checkpoint, or none, and
    the rows up to it. What is read back is what was written, or an error says what is not. A
    KeyboardInterrupt that passes through gets a note that says how far the run is saved.

    Args:
      directory: the folder, made where it does not exist; ``~`` is the home folder.
      identity: what must be the same for the run to be resumed, see `run_identity`.
      total: steps of the whole run.
      unit: what a step is called, here and in its row.
      keeps_rows: whether each step has a row.

    Raises:
      ValueError: the directory holds another run, and the message names the setting that differs;
        or it is no path.
      CheckpointError: the directory is in use, or a file in it is torn.

    >>> import tempfile
    >>> directory = tempfile.mkdtemp()
    >>> with RunDirectory(directory, {"rate": 0.1}, total=2) as run:
    ...     run.resume({"w": 0.0}).done
    ...     run.append([{"round": 1}])
    ...     run.save(1, {"w": 0.5})
    0
    >>> with RunDirectory(directory, {"rate": 0.1}, total=2) as run:
    ...     done, state, rows = run.resume({"w": 0.0})
    >>> done, float(state["w"]), rows
    (1, 0.5, [{'round': 1}])
    >>> RunDirectory(directory, {"rate": 0.2}, total=2)
    Traceback (most recent call last):
    ValueError: ... holds a run with rate = 0.1, but this one has 0.2; give another directory or ...
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        identity: Json,
        *,
        total: int,
        unit: Literal["round", "step"] = "round",
        keeps_rows: bool = True,
    ):
        self.path = directory_path(directory)
        self._total, self._unit = total, unit
        self._settings, self._metrics = self.path / "run.json", self.path / "metrics.jsonl"
        self._keeps_rows = keeps_rows
        # Lines to keep at the first append, None after it.
        self._lines: list[str] | None = []
        self._rows, self._saved = hashlib.sha256(), 0
        self._lock = _lock_together(self.path)
        with contextlib.ExitStack() as unlock:
            unlock.callback(self.close)
            self._identity = check_identity(self._settings, identity)
            self._checkpoints = Checkpoints(
                self.path / "checkpoints",
                run=identity_digest(self._identity),
                read_only=self._lock is not None and self._lock.read_only,
            )
            unlock.pop_all()

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
        if isinstance(error, KeyboardInterrupt):
            error.add_note(f"interrupted after {self._unit} {self._saved}; start again to resume")

    def close(self) -> None:
        """Give the directory free."""
        if self._lock is not None:
            self._lock.release()

    def resume(self, state: PyTree, compare: Compare = lambda rows: None) -> Resumed:
        """Return the newest checkpoint's state and the rows up to it, or the given state.

        Args:
          state: the state before the first step, also for structure, shapes and dtypes.
          compare: says in which way rows are not this run's, None if they are.

        Raises:
          CheckpointError: the newest checkpoint, or a row up to it, is torn or of another run.
          ValueError: the run is longer than this one, or has rows that are not this one's.
        """
        with contextlib.ExitStack() as unlock:
            unlock.callback(self.close)
            found = self._read(state, compare)
            self._write_identity()
            unlock.pop_all()
        self._saved = found.done
        return found

    def _read(self, state: PyTree, compare: Compare) -> Resumed:
        done = self._checkpoints.latest()
        if done is None:
            self._check_unused()
            return Resumed(0, state, [])
        if done > self._total:
            raise ValueError(
                f"{self.path} holds a run of {done} {self._unit}s, more than {self._unit}s "
                f"{self._total}; give {self._unit}s >= {done} or another directory"
            )
        rows: list[Json] = []
        if self._keeps_rows:
            self._lines, rows = read_rows(self._metrics, done, self._unit)
            self._rows.update("".join(f"{line}\n" for line in self._lines).encode())
        state = self._checkpoints.restore(done, state, note=self._rows.hexdigest()[:16])
        if difference := compare(rows):
            raise ValueError(f"{self.path} holds a run with {difference}; give another directory")
        if self._lock is not None and self._lock.read_only and done < self._total:
            raise CheckpointError(
                f"{self.path} cannot be written to, and its run has done {done} of {self._total} "
                f"{self._unit}s; copy it to a directory that can be, and give that one"
            )
        return Resumed(done, state, rows)

    def append(self, rows: list[Json]) -> None:
        """Add rows to the metrics and wait until they are on disk."""
        if not writes():
            return
        text = "".join(json.dumps(row) + "\n" for row in rows)
        self._check_held()
        with interrupts_wait(), one_line(self._metrics, "write"):
            if self._lines is not None:
                # Rows past the checkpoint belong to rounds that were run again.
                write_atomically(self._metrics, "".join(f"{x}\n" for x in self._lines) + text)
                self._lines = None
            else:
                with self._metrics.open("a", encoding="utf-8") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
        self._rows.update(text.encode())

    def save(self, step: int, state: PyTree) -> None:
        """Write a checkpoint; the rows up to it must have been appended."""
        self._check_held()
        with interrupts_wait():
            self._checkpoints.save(step, on_host(state), note=self._rows.hexdigest()[:16])
            self._saved = step

    def _check_held(self) -> None:
        if self._lock is not None:
            self._lock.check()

    def _check_unused(self) -> None:
        """Rows without the identity and the checkpoint they belong to are somebody else's."""
        if not self._settings.exists() and self._metrics.exists():
            raise CheckpointError(
                f"{self._metrics} is there, but neither {self._settings.name} nor a checkpoint; "
                "move it away, or give another directory"
            )

    def _write_identity(self) -> None:
        """Write the identity where there is none, once all processes have looked for it."""
        missing = not self._settings.exists()
        barrier(str(self._settings))
        if missing and writes():
            with one_line(self._settings, "write"):
                write_atomically(self._settings, json.dumps(self._identity, indent=1))
        barrier(str(self._settings))


def read_rows(metrics: Path, done: int, unit: str = "round") -> tuple[list[str], list[Json]]:
    """Return the first lines of a run's metrics, and their rows, which count 1, 2, ..., done.

    Raises:
      CheckpointError: rows are missing, twice there, in another order or torn.
    """
    way_out = f"delete {metrics.parent} to start again"
    lines = read_lines(metrics) if metrics.exists() else []
    if len(lines) < done:
        raise CheckpointError(
            f"{metrics} has {len(lines)} rows, but the checkpoint is of {unit} {done}; {way_out}"
        )
    rows = []
    for number, line in enumerate(lines[:done], 1):
        row = read_object(line, f"{metrics}, line {number},", way_out)
        if row.get(unit) != number:
            raise CheckpointError(
                f"{metrics}, line {number}, is of {unit} {row.get(unit)}, not {number}: rows are "
                f"missing, doubled or in another order; {way_out}"
            )
        rows.append(row)
    return lines[:done], rows


def _lock_together(path: Path) -> DirectoryLock | None:
    """Lock the directory in the first process; where it is refused, every process says so."""
    lock, refusal = None, ""
    if writes():
        try:
            make_folder(path)
            lock = DirectoryLock(path)
        except CheckpointError as error:
            refusal = str(error)
    if refusal := said_by_first(refusal):
        raise CheckpointError(refusal)
    return lock
