"""The parent's end of a side: start its process, give it turns, read its memory."""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.ledger import ROOT
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
    own = peers / FOLDERS.get(kind.package, kind.package) / "bin" / "python"
    command = f"import importlib.util as u, sys; sys.exit(u.find_spec('{kind.package}') is None)"
    for python in (str(own), sys.executable):
        if not Path(python).exists():
            continue
        # Without the repository on the path, only an installed peer is found.
        where = ROOT.parent if kind.module == "ours" else Path(python).parent
        if subprocess.run([python, "-c", command], cwd=where, check=False).returncode == 0:
            return python
    return None


class Side:
    """A child process that runs one round when told to, and waits on a pipe meanwhile."""

    def __init__(self, name: str, python: str, kind: Kind, scenario: Scenario):
        self._name = name
        self._folder = tempfile.TemporaryDirectory()
        self._messages = Path(self._folder.name) / "messages"
        text = replace(scenario, variant=kind.variant).to_json()
        path = os.pathsep.join(filter(None, (str(ROOT.parent), os.environ.get("PYTHONPATH"))))
        begin = time.perf_counter()
        # A file, not a pipe: a framework that prints much must not wait for a reader.
        with self._messages.open("w") as messages:
            self._process = subprocess.Popen(
                [python, "-m", f"benchmarks.speed.peers.{kind.module}", text],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=messages, text=True,
                cwd=ROOT.parent, env=os.environ | {"PYTHONPATH": path},
            )  # fmt: skip
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
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=120)
        self._folder.cleanup()

    def _go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name} ended: {self._messages.read_text()[-3000:]}")
        return json.loads(line)


def status(process: int) -> dict[str, str]:
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


def peak_mib(process: int) -> float:
    """VmHWM; rusage would count the parent at the fork."""
    return float(status(process).get("VmHWM", "0 kB").split()[0]) / 1024
