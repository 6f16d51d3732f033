"""A ledger of experiment cells: each has an id made of its configuration, and is run once.

Results live in one JSONL file a table, one row a cell. Started again, finished cells are skipped
and an interrupted one resumes from its checkpoint; until then its row says how far it got. A row's
status is "started", "done", or "diverged": finished, but with a number that is not finite.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
RUNS = ROOT.parent / ".runs"


def cell_id(config: Any) -> str:
    """Twelve hexadecimal digits that follow from a configuration (a dataclass of plain values).

    Only fields that differ from their defaults count, so that a field added later, with a default
    that means what was done before, leaves ids as they are.

    >>> @dataclasses.dataclass
    ... class Config:
    ...     rounds: int = 3
    >>> @dataclasses.dataclass
    ... class Longer(Config):
    ...     seed: int = 0
    >>> cell_id(Config()) == cell_id(Longer(3)) != cell_id(Longer(3, seed=1))
    True
    """
    changed = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != field.default
    }
    text = json.dumps(changed, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def is_finished(row: dict[str, Any] | None) -> bool:
    """Whether a cell need not run again: it is done, or it diverged.

    >>> is_finished({"status": "diverged"}), is_finished({"status": "started"}), is_finished(None)
    (True, False, False)
    """
    return row is not None and row["status"] in ("done", "diverged")


def as_recorded(row: dict[str, Any]) -> dict[str, Any]:
    """The row as a ledger gives it back: with None for NaN and infinity, which JSON does not have.

    >>> as_recorded({"status": "done", "loss": [0.5, float("nan")]})
    {'status': 'diverged', 'loss': [0.5, None]}
    """
    lost: list[str] = []
    # Called with each such number's name; None, which `append` returns, takes its place.
    kept = json.loads(json.dumps(row), parse_constant=lost.append)
    return kept | {"status": "diverged"} if lost and kept.get("status") == "done" else kept


class LedgerError(ValueError):
    """A ledger that cannot be read or written; one line with its path, and the line of the row."""


class Row(dict[str, Any]):
    """A row as a ledger holds it; a field that is missing is named with the row's place."""

    def __init__(self, fields: dict[str, Any], place: str):
        super().__init__(fields)
        self.place = place

    def __missing__(self, key: str) -> Any:
        raise LedgerError(f"{self.place} has no {key!r}: it is no row of this table; {_MEND}")


_MEND = "mend or delete that line"


class Ledger:
    """One JSONL file of results, rewritten atomically under a lock at every change.

    Every line is a row with an id of its own; anything else is refused, and nothing is skipped.
    """

    def __init__(self, path: Path):
        self.path = path

    def rows(self) -> list[dict[str, Any]]:
        """All rows, in the order in which cells were first started.

        Raises:
          LedgerError: a line is no row, or has the id of another one.
        """
        if not self.path.exists():
            return []
        with self._one_line("read"):
            return list(_rows(self.path, self.path.stat().st_ino, self.path.stat().st_mtime_ns))

    def find(self, cell: str) -> dict[str, Any] | None:
        """The row of a cell, None if it was never started."""
        return next((row for row in self.rows() if row["id"] == cell), None)

    def write(self, row: dict[str, Any]) -> dict[str, Any]:
        """Put a row in, or in the place of the row of the same id; return it `as_recorded`.

        Raises:
          LedgerError: the file is damaged, and is left so; or it cannot be written.
        """
        from wsa_jax.runs.files import write_atomically

        row = as_recorded(row)
        with self._one_line("write"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._one_line("write"), self._lock():
            rows = self.rows()
            ids = [other["id"] for other in rows]
            if row["id"] in ids:
                rows[ids.index(row["id"])] = row
            else:
                rows.append(row)
            write_atomically(
                self.path, "".join(json.dumps(r, allow_nan=False) + "\n" for r in rows)
            )
        return row

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        folder = self.path.resolve().parent
        # Git tracks the committed results' folder and ignores that of runs.
        folder = RUNS if folder == RESULTS else folder
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f".{self.path.name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _one_line(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LedgerError(
                f"cannot {doing} {self.path} ({error.strerror}); give a file that can be, and "
                "space for it: what was recorded stays"
            ) from error


@functools.lru_cache(maxsize=16)
def _rows(path: Path, inode: int, changed: int) -> tuple[Row, ...]:
    """The rows of a file as it is: tables ask for them hundreds of times."""
    text = path.read_bytes()
    if not text:
        raise LedgerError(f"{path} is empty; restore it, or delete it to start anew")
    rows, lines = list[Row](), dict[str, int]()
    for number, line in enumerate(text.removesuffix(b"\n").split(b"\n"), 1):
        row = _row(line, f"{path}, line {number},")
        if row["id"] in lines:
            raise LedgerError(
                f"{row.place} has the id {row['id']} of line {lines[row['id']]}; {_MEND}"
            )
        lines[row["id"]] = number
        rows.append(row)
    return tuple(rows)


def _row(line: bytes, place: str) -> Row:
    try:
        fields = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise LedgerError(f"{place} is torn or foreign (no JSON object); {_MEND}") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("id"), str):
        raise LedgerError(f"{place} is torn or foreign (no object with an id); {_MEND}")
    return Row(fields, place)


def provenance() -> dict[str, Any]:
    """Versions, machine and time: what a row needs to be compared with another one."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "versions": {name: importlib.metadata.version(name) for name in packages}
        | {"python": platform.python_version(), "wsa_jax": _commit()},
        "machine": _cpu() | {"cores": os.cpu_count(), "devices": _devices()},
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


# What runs write: it tells nothing about the code that they ran.
_WRITTEN = (":!benchmarks/results", ":!benchmarks/RESULTS.md", ":!docs/results")


def _commit(root: Path = ROOT) -> str:
    """The commit the code is of, with a mark where the working tree's code differs from it."""
    git = ["git", "-C", str(root)]
    found = subprocess.run(
        [*git, "describe", "--always"], capture_output=True, text=True, check=False
    )
    if name := found.stdout.strip():
        changes = [*git, "diff", "--quiet", "HEAD", "--", ".", *_WRITTEN]
        return name + ("-dirty" if subprocess.run(changes, check=False).returncode else "")
    try:
        return importlib.metadata.version("wsa-jax")
    except importlib.metadata.PackageNotFoundError:
        # A bare copy of the sources, on a borrowed machine for example.
        return "unknown"


def _cpu(info: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """Name, family, model and AVX-512 of the processor, as far as the system tells.

    Machines of one name may differ in the rest, and then in rounding and speed.
    """
    lines = info.read_text().splitlines() if info.exists() else []
    # Cores follow one another: from the last to the first, the first one's stay.
    found = {
        name.strip(): value.strip()
        for name, colon, value in (line.partition(":") for line in reversed(lines))
        if colon
    }
    cpu: dict[str, Any] = {
        "cpu": found.get("model name") or platform.processor() or platform.machine()
    }
    for key, name in (("cpu_family", "cpu family"), ("cpu_model", "model")):
        if name in found:
            cpu[key] = found[name]
    if "flags" in found:
        cpu["avx512f"] = "avx512f" in found["flags"].split()
    return cpu


def _devices() -> list[str]:
    import jax

    return [str(device.device_kind) for device in jax.devices()]
