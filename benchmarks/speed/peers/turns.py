"""What every side in a process of its own has in common, with nothing to install but NumPy.

A side is a child process: `python -m benchmarks.speed.peers.NAME SCENARIO`, the scenario as JSON.
It runs one round, answers its seconds as a line of JSON, and waits on its input before the next
one; blocked there it uses no processor. After the last round and one more line those of
`federated_round` answer the loss of the model they have trained.
"""

import dataclasses
import functools
import json
import os
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.speed.cores import use_cores

# Examples on which the trained model's loss is taken: the same ones on every side.
EVALUATED = 2000
# Those whose versions a side reports, where it has them.
PACKAGES = ("jax", "torch", "pfl", "flwr", "ray", "fedjax", "numpy")


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One federated round: who trains how, on which data; plain values, so that it is JSON."""

    clients: int
    participants: int
    steps: int
    batch: int
    learning_rate: float
    rounds: int
    threads: int
    clip_norm: float = 10.0
    weight_decay: float = 1e-4
    data: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    scale: float = 255.0
    variant: str = ""
    algorithm: str = "fed_avg"

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_argv(cls) -> "Scenario":
        return cls(**json.loads(sys.argv[1]))


class Data(NamedTuple):
    """uint8 images [n, h, w, c], int32 labels [n], and the rows of each client [clients, rows]."""

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray


# Clients that one of Flower's actors trains one after another share what it has read.
@functools.lru_cache(maxsize=1)
def load(folder: str) -> Data:
    return Data(*(np.load(Path(folder) / f"{name}.npy") for name in Data._fields))


def save(data: Data, folder: str) -> None:
    for name, array in data._asdict().items():
        np.save(Path(folder) / f"{name}.npy", array)


class Turns:
    """The clock of a side: `done` after every round, `finish` after the last one.

    Must be made before a framework starts its threads: it restricts the process to as many
    processors as the scenario has threads. What frameworks print goes to the error stream.
    """

    def __init__(self, scenario: Scenario):
        use_cores(scenario.threads)
        sys.stdout.flush()
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._begin = time.perf_counter()

    def done(self, seconds: float | None = None) -> None:
        """Answer the seconds since the last turn began, or those given, and wait for the next."""
        self._answer({"seconds": time.perf_counter() - self._begin if seconds is None else seconds})
        if not sys.stdin.readline():
            raise SystemExit("told to end before the last round")
        self._begin = time.perf_counter()

    def finish(self, loss: float, **more: float) -> None:
        installed = {found.name: found.version for found in metadata.distributions()}
        packages = {name: installed[name] for name in PACKAGES if name in installed}
        self._answer({"loss": loss, "packages": packages, **more})

    def _answer(self, values: dict[str, Any]) -> None:
        self._answers.write(json.dumps(values) + "\n")
        self._answers.flush()
