"""What `wsa_jax.training.fit` keeps on disk: the run's identity and checkpoints of its state."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from wsa_jax.runs.checkpoint import Checkpoints, as_json, check_identity, digest, write_atomically
from wsa_jax.scope.scope import WeightScope


class FitDirectory:
    """Identity (``run.json``) and checkpoints of one run of `wsa_jax.training.fit`.

    Guarantees: a process killed at any moment leaves the newest complete checkpoint, or none.

    Raises:
      ValueError: the directory holds another run; the message names the setting that differs.

    >>> import tempfile
    >>> directory = tempfile.mkdtemp()
    >>> run = FitDirectory(directory, {"steps": 10})
    >>> run.resume({"w": np.zeros(2)})[0]
    0
    >>> FitDirectory(directory, {"steps": 20})
    Traceback (most recent call last):
    ValueError: ... holds a run with steps = 10, but this one has 20; give another directory or ...
    """

    def __init__(self, directory: str | os.PathLike[str], identity: dict[str, Any]):
        path = Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        settings = path / "run.json"
        check_identity(settings, identity)
        if not settings.exists():
            write_atomically(settings, json.dumps(identity, indent=1))
        self._checkpoints = Checkpoints(path / "checkpoints")

    def resume(self, state: PyTree) -> tuple[int, PyTree]:
        """Return the newest checkpoint's step and state, or 0 and the given state.

        Raises:
          CheckpointError: the newest checkpoint is torn.
        """
        done = self._checkpoints.latest()
        return (0, state) if done is None else (done, self._checkpoints.restore(done, state))

    def save(self, step: int, state: PyTree) -> None:
        """Write the state after ``step`` steps."""
        self._checkpoints.save(step, state)


def fit_identity(
    key: Array,
    task_settings: tuple[tuple[str, str], ...],
    settings: Any,
    rates: np.ndarray,
    target: WeightScope | None,
    strength: Any,
    initial: PyTree,
    data: tuple[Any, Any],
) -> dict[str, Any]:
    """Return what must be the same for a run to be resumed, as JSON holds it.

    How its models are run (`map_models`) and how often it is saved are not part of it.
    """
    wsa = None
    if target is not None:
        wsa = {
            "strength": strength,
            "layers": list(target.names),
            "mean": np.asarray(target.mean).tolist(),
            "std": np.asarray(target.std).tolist(),
        }
    identity = {
        "kind": "fit",
        "key": [str(jax.random.key_impl(key)), np.asarray(jax.random.key_data(key)).tolist()],
        "task": [list(pair) for pair in task_settings],
        # The selection rule is a function; the target's layers say what it selects.
        "settings": {k: v for k, v in dataclasses.asdict(settings).items() if k != "select"},
        "learning rates": digest(rates),
        "weight scope regularization": wsa,
        "initial model": digest(*jax.tree.leaves(initial)),
        "data": digest(*data),
    }
    return as_json(identity)
