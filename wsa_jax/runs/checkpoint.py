"""Checkpoints of a run's state: written atomically by orbax, kept by round, restored bitwise."""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from wsa_jax.tree import is_key, key_path


class CheckpointError(ValueError):
    """A checkpoint that cannot be restored: torn, or written by another run."""


class Checkpoints:
    """The checkpoints of one run in one directory.

    Writes are synchronous and atomic: a process killed at any moment leaves the previous checkpoint
    intact. Only the newest ``keep`` are kept.

    >>> import tempfile, jax.numpy as jnp
    >>> state = {"w": jnp.arange(3.0)}
    >>> checkpoints = Checkpoints(tempfile.mkdtemp())
    >>> checkpoints.latest() is None
    True
    >>> checkpoints.save(7, state)
    >>> checkpoints.latest(), checkpoints.restore(7, state)["w"].tolist()
    (7, [0.0, 1.0, 2.0])
    """

    def __init__(self, directory: str | os.PathLike[str], *, keep: int = 2):
        import orbax.checkpoint as ocp

        self.directory = Path(directory).resolve()
        self.directory.mkdir(parents=True, exist_ok=True)
        with _quiet():
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep, enable_async_checkpointing=False
                ),
            )

    def latest(self) -> int | None:
        """Return the newest step that has a checkpoint, or None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: PyTree) -> None:
        """Write the state of a step that has no checkpoint yet."""
        import orbax.checkpoint as ocp

        with _quiet():
            self._manager.save(step, args=ocp.args.StandardSave(_named(state)))

    def restore(self, step: int, like: PyTree) -> PyTree:
        """Read the state of a step into the structure, shapes and dtypes of ``like``.

        Raises:
          CheckpointError: the checkpoint is torn, or its leaves or shapes differ from ``like``'s.
        """
        import orbax.checkpoint as ocp

        named = _named(like)
        path = self.directory / str(step)
        try:
            with _quiet():
                found = self._manager.restore(step, args=ocp.args.StandardRestore())
        except (ValueError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
            raise CheckpointError(
                f"checkpoint {path} is torn or unreadable ({reason}); delete that folder to resume "
                "from the previous checkpoint, or the whole run to start again"
            ) from error
        for name, leaf in named.items():
            if name not in found:
                raise CheckpointError(
                    f"checkpoint {path} has no leaf {name}; it belongs to another model or "
                    "algorithm"
                )
            if found[name].shape != leaf.shape or found[name].dtype != leaf.dtype:
                raise CheckpointError(
                    f"leaf {name} of checkpoint {path} is {found[name].dtype}"
                    f"{list(found[name].shape)}, expected {leaf.dtype}{list(leaf.shape)}; "
                    "it belongs to another model"
                )
        leaves = [
            _array(found[name], old) for name, old in zip(named, jax.tree.leaves(like), strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that readers find the new text or the old one, even after a crash.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "note.txt"
    >>> write_atomically(path, "whole")
    >>> path.read_text()
    'whole'
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def check_identity(path: Path, identity: dict[str, Any]) -> None:
    """Raise a ValueError if a file says that its directory holds a run of another identity.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "run.json"
    >>> check_identity(path, {"steps": 10})  # There is none yet.
    >>> write_atomically(path, json.dumps({"steps": 20}))
    >>> check_identity(path, {"steps": 10})
    Traceback (most recent call last):
    ValueError: ... holds a run with steps = 20, but this one has 10; give another directory or ...
    """
    if not path.exists():
        return
    found = json.loads(path.read_text())
    for name, value in identity.items():
        if found.get(name) != value:
            raise ValueError(
                f"{path.parent} holds a run with {name} = {found.get(name)}, but this one "
                f"has {value}; give another directory or delete that one"
            )


def as_json(identity: dict[str, Any]) -> dict[str, Any]:
    """Return an identity as its file will hold it; its numbers may be NumPy's or JAX's.

    >>> as_json({"steps": np.int64(3), "range": (0, 1)})
    {'steps': 3, 'range': [0, 1]}
    """
    return json.loads(json.dumps(identity, default=lambda number: number.item()))


def digest(*arrays: Any) -> str:
    """Return sixteen hexadecimal digits determined by arrays' dtypes, shapes and values.

    >>> digest(np.ones(2)) == digest(np.ones(2)) != digest(np.ones(3))
    True
    """
    found = hashlib.sha256()
    for array in map(_numbers, arrays):
        found.update(f"{array.dtype}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).view(np.uint8).data)
    return found.hexdigest()[:16]


def _named(state: PyTree) -> dict[str, np.ndarray]:
    """Leaves by key path: a flat dictionary is the same on disk whatever classes hold the state."""
    named: dict[str, np.ndarray] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = key_path(path)
        if name in named:
            raise ValueError(f"the state has two leaves named {name}; rename one of them")
        named[name] = _numbers(leaf)
    return named


def _numbers(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)


def _array(found: np.ndarray, like: Any) -> jax.Array:
    """Restore a leaf; a key is stored as its numbers."""
    if is_key(like):
        return jax.random.wrap_key_data(jax.numpy.asarray(found), impl=jax.random.key_impl(like))
    return jax.numpy.asarray(found)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep orbax's progress lines out of users' terminals; its errors are exceptions."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
