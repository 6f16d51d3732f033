"""The parent's end of a side: start its process, give it turns, read its memory."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.record.ledger import ROOT
from benchmarks.speed.alternating import PeerError
from benchmarks.speed.peers.turns import Scenario


@dataclass(frozen=True)
class Kind:
    """A module of this folder, the package it needs, and which variant of it to run."""

    module: str
    package: str
    variant: str = ""


# Environments are named by the peer; Flower's package has a name of its own.
FOLDERS = {"flwr": "flower"}


def environment(kind: Kind, peers: Path) -> str | None:
    """The Python that has a peer's package: its own environment, else the present one."""
    # Absolute, but not resolved: an environment's Python is a link out of it.
    own = peers.absolute() / FOLDERS.get(kind.package, kind.package) / "bin" / "python"
    # Without the repository on the path, only an installed peer is found.
    where = ROOT.parent if kind.module == "ours" else None
    for python in (str(own), sys.executable):
        if Path(python).exists() and has_package(python, kind.package, where):
            return python
    return None


def has_package(python: str, package: str, where: Path | None = None) -> bool:
    """Whether a Python finds a package, started in a folder (default: its own)."""
    command = f"import importlib.util as u, sys; sys.exit(u.find_spec('{package}') is None)"
    folder = where or Path(python).parent
    return subprocess.run([python, "-c", command], cwd=folder, check=False).returncode == 0


class Side:
    """A child process that runs one round when told to, and waits on a pipe meanwhile.

    One that fails to start, or dies, raises `PeerError`, and has been closed.
    """

    def __init__(self, python: str, kind: Kind, scenario: Scenario):
        self._folder = tempfile.TemporaryDirectory()
        self._messages = Path(self._folder.name) / "messages"
        text = replace(scenario, variant=kind.variant).to_json()
        path = os.pathsep.join(filter(None, (str(ROOT.parent), os.environ.get("PYTHONPATH"))))
        begin = time.perf_counter()
        # A file, not a pipe: a framework that prints much must not wait for a reader.
        with self._messages.open("w") as messages:
            self._process = subprocess.Popen(
                [python, "-m", f"benchmarks.speed.peers.{kind.module}", text],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,
                text=True,
                cwd=ROOT.parent,
                env=os.environ | {"PYTHONPATH": path},
            )
        self._read()
        # Import, reading the data, compilation and the first round.
        self.startup = time.perf_counter() - begin

    def round(self) -> float:
        self._go()
        return self._read()["seconds"]

    def finish(self) -> dict[str, Any]:
        self._go()
        return self._read()

    def peak_mib(self) -> float:
        """Largest resident memory, summed over the process and all that it started."""
        return sum(peak_mib(process) for process in descendants(self._process.pid))

    def close(self) -> None:
        self._end()
        self._folder.cleanup()

    def _end(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=120)
        except subprocess.TimeoutExpired:
            for one in descendants(self._process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one, signal.SIGKILL)
            self._process.wait()

    def _go(self) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        try:
            # Of a process that has ended the line is empty.
            return json.loads(self._process.stdout.readline())
        except json.JSONDecodeError:
            raise self._failure() from None

    def _failure(self) -> PeerError:
        self._end()
        messages = self._messages.read_text(errors="replace")
        error = PeerError(reason(messages) or f"it ended with status {self._process.returncode}")
        # A traceback shows them, where the failure is not one to go on from.
        error.add_note(messages[-3000:])
        self.close()
        return error


def reason(messages: str) -> str:
    """The line of a process's messages that most likely says why it died; empty if none does."""
    lines = [line.strip() for line in messages.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return next(iter((errors or lines)[-1:]), "")[:200]


def status(process: int | Literal["self"]) -> dict[str, str]:
    """The fields of /proc/PID/status; none if the process has just ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return dict(line.split(":", 1) for line in lines if ":" in line)


def descendants(process: int) -> list[int]:
    everyone = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    parents = {one: int(status(one).get("PPid", 0)) for one in everyone}
    found = [process]
    for one in found:
        found.extend(child for child, parent in parents.items() if parent == one)
    return found


def peak_mib(process: int | Literal["self"] = "self") -> float:
    """Largest resident memory, VmHWM; rusage would count the parent at the fork."""
    return float(status(process).get("VmHWM", "0 kB").split()[0]) / 1024
