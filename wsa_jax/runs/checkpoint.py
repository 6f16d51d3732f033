"""Checkpoints of a run's state: written atomically by orbax, sealed, kept by step."""

import contextlib
import gc
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from wsa_jax.runs.files import CheckpointError, directory_path, first_line, make_folder
from wsa_jax.runs.identity import digest, text_digest
from wsa_jax.runs.interrupts import interrupts_wait
from wsa_jax.tree import is_key, key_path
from wsa_jax.types import Json

# The leaf that holds the seal: what the others must be, of which step of which run.
_SEAL = "__seal__"

# What orbax, and the libraries below it, raise for files that are torn or refused.
FAILURES = (
    ValueError,
    OSError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
)


class Checkpoints:
    """The checkpoints of one run in one directory.

    Writes are synchronous and atomic: a process killed at any moment leaves the previous checkpoint
    intact. Only the newest ``keep`` are kept. Each is sealed by a digest of every leaf, its step
    and the identity of its run, which are compared when it is read.

    Args:
      directory: folder of the checkpoints, one folder a step.
      run: digest of the identity of the run, see `identity_digest`.
      keep: number of checkpoints kept.
      read_only: write and delete nothing.

    Raises:
      CheckpointError: the folder cannot be made or read.

    >>> import tempfile
    >>> state = {"w": jnp.arange(3.0), "rank 0": jnp.zeros((3, 0))}
    >>> checkpoints = Checkpoints(tempfile.mkdtemp())
    >>> checkpoints.latest() is None
    True
    >>> checkpoints.save(7, state)
    >>> found = checkpoints.restore(7, state)
    >>> checkpoints.latest(), found["w"].tolist(), found["rank 0"].shape
    (7, [0.0, 1.0, 2.0], (3, 0))
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        run: str = "",
        keep: int = 2,
        read_only: bool = False,
    ):
        import orbax.checkpoint as ocp

        self.directory = directory_path(directory).resolve()
        self._run = run
        options: Json = {"max_to_keep": keep}
        if read_only:
            options = {"read_only": True, "max_to_keep": None, "save_interval_steps": 0}
            options |= {"create": False, "cleanup_tmp_directories": False}
        else:
            make_folder(self.directory)
        with _undisturbed(f"cannot open the checkpoints in {self.directory}"):
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(enable_async_checkpointing=False, **options),
            )

    def latest(self) -> int | None:
        """Return the newest step that has a checkpoint, or None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: PyTree, *, note: str = "") -> None:
        """Write the state of a step that has no checkpoint yet.

        Args:
          step: the step.
          state: arrays, keys and numbers of any structure; leaves of size 0 included.
          note: sealed with the state: `restore` must be given the same.

        Raises:
          CheckpointError: it cannot be written: the disk is full, for example.
        """
        import orbax.checkpoint as ocp

        named = _named(state)
        # Orbax refuses leaves without elements; their shapes and dtypes are in the seal.
        stored = {name: leaf for name, leaf in named.items() if leaf.size}
        stored[_SEAL] = _as_bytes(_seal(step, self._run, note, named))
        with _undisturbed(
            f"cannot write checkpoint {self.directory / str(step)}",
            "free some space, or give a directory that can be written to, and start again: the run "
            "is safe up to its last checkpoint",
        ):
            written = self._manager.save(step, args=ocp.args.StandardSave(stored))
        if not written:
            raise CheckpointError(
                f"checkpoint {self.directory / str(step)} was not written: there is one of step "
                f"{self.latest()}; delete it, or give another directory"
            )

    def restore(self, step: int, like: PyTree, *, note: str = "") -> PyTree:
        """Read the state of a step into the structure, shapes and dtypes of ``like``.

        Raises:
          CheckpointError: the checkpoint is torn or changed, of another step or run, or its
            leaves or shapes differ from ``like``'s.
        """
        import orbax.checkpoint as ocp

        path = self.directory / str(step)
        with _undisturbed(f"checkpoint {path} is torn or unreadable", _TORN):
            found = dict(self._manager.restore(step, args=ocp.args.StandardRestore()))
            seal = _read_seal(found.pop(_SEAL, None), path)
            found |= {
                name: np.zeros(shape, jnp.dtype(dtype))
                for name, (dtype, shape, _) in seal["leaves"].items()
                if 0 in shape
            }
        named = _named(like)
        _check_origin(seal, path, step, self._run, note)
        _check_leaves(found, named, path)
        _check_digests(seal, found, path)
        leaves = [
            _as_leaf(found[name], old)
            for name, old in zip(named, jax.tree.leaves(like), strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)


_TORN = "delete that folder to resume from the previous checkpoint, or the whole run to start again"


def _seal(step: int, run: str, note: str, named: dict[str, np.ndarray]) -> str:
    leaves = {
        name: [str(leaf.dtype), list(leaf.shape), digest(leaf)] for name, leaf in named.items()
    }
    text = json.dumps({"step": step, "run": run, "note": note, "leaves": leaves})
    return f"{text_digest(text)} {text}"


def _read_seal(found: object, path: Path) -> Json:
    if found is None:
        raise CheckpointError(
            f"checkpoint {path} has no digests: an earlier version wrote it, or it is damaged; "
            "delete the run to start again, or give another directory"
        )
    own, _, text = np.asarray(found, np.uint8).tobytes().decode().partition(" ")
    if own != text_digest(text):
        raise CheckpointError(
            f"checkpoint {path} is torn or unreadable (its digests are changed); {_TORN}"
        )
    return json.loads(text)


def _check_origin(seal: Json, path: Path, step: int, run: str, note: str) -> None:
    if seal["run"] != run:
        raise CheckpointError(
            f"checkpoint {path} belongs to another run; delete that folder to resume from the "
            "previous checkpoint, or give another directory"
        )
    if seal["step"] != step:
        raise CheckpointError(
            f"checkpoint {path} is of step {seal['step']}, not {step}: the folder was renamed or "
            f"copied; {_TORN}"
        )
    if seal["note"] != note:
        raise CheckpointError(
            f"the rows up to {step} are not those that checkpoint {path} was saved with: the file "
            f"beside the checkpoints was changed; put it back, or {_TORN}"
        )


def _check_leaves(found: Json, named: dict[str, np.ndarray], path: Path) -> None:
    for name, leaf in named.items():
        if name not in found:
            raise CheckpointError(
                f"checkpoint {path} has no leaf {name}; it belongs to another model or algorithm"
            )
        if found[name].shape != leaf.shape or found[name].dtype != leaf.dtype:
            raise CheckpointError(
                f"leaf {name} of checkpoint {path} is {found[name].dtype}"
                f"{list(found[name].shape)}, expected {leaf.dtype}{list(leaf.shape)}; "
                "it belongs to another model"
            )
    if more := sorted(found.keys() - named.keys()):
        raise CheckpointError(
            f"checkpoint {path} has a leaf {more[0]} that this run has not; it belongs to another "
            "model or algorithm"
        )


def _check_digests(seal: Json, found: Json, path: Path) -> None:
    for name, array in found.items():
        if seal["leaves"].get(name, [""])[-1] != digest(array):
            raise CheckpointError(
                f"leaf {name} of checkpoint {path} is not what was saved: the file is damaged; "
                f"{_TORN}"
            )


def _named(state: PyTree) -> dict[str, np.ndarray]:
    """Leaves by key path: a flat dictionary is the same on disk whatever classes hold the state."""
    named: dict[str, np.ndarray] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = key_path(path)
        if name in named:
            raise ValueError(f"the state has two leaves named {name}; rename one of them")
        named[name] = np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
    return named


def _as_leaf(found: np.ndarray, like: Any) -> jax.Array:
    """Restore a leaf; a key is stored as its numbers."""
    if is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(found), impl=jax.random.key_impl(like))
    return jnp.asarray(found)


def _as_bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


@contextlib.contextmanager
def _undisturbed(
    what: str, way_out: str = "move it away, or give another directory"
) -> Generator[None]:
    """Let orbax finish, and name the path where it, or a library below it, fails."""
    try:
        with interrupts_wait(), quiet():
            yield
    except CheckpointError:
        raise
    except FAILURES as error:
        raise CheckpointError(f"{what} ({first_line(error)}); {way_out}") from error


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Keep orbax's progress lines, and its tasks' complaints, out of users' terminals.

    What fails is an exception. The tasks that orbax leaves behind then end, and are collected,
    here, since they write tracebacks when they go.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels, hook = [logger.level for logger in loggers], sys.unraisablehook

    def without_late_tasks(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = without_late_tasks
    try:
        yield
    except FAILURES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            time.sleep(0.1)
            gc.collect()
        raise
    finally:
        sys.unraisablehook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
