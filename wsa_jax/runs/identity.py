"""The identity of a run: what must be the same for it to be resumed, as JSON holds it."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from wsa_jax.runs.files import CheckpointError, read_object, read_text
from wsa_jax.tree import is_key
from wsa_jax.types import Json

# What `deeper` says; runs of earlier versions do not say it, and resume.
_DEEPER = re.compile(r" \[deeper [0-9a-f]{16}\]")


def run_identity(
    kind: str, key: Array, task: tuple[tuple[str, str], ...], parts: Mapping[str, Any]
) -> Json:
    """Return the identity of a run: its kind, its key, its task, and the parts its kind names.

    Args:
      kind: which function runs it, ``fit`` for example.
      key: the run's key, or keys.
      task: what tells the task from others, see `wsa_jax.runs.described.task_settings`.
      parts: everything else that changes a result; arrays by their `digest`. How a run is executed,
        and how often it is saved, are no part of it.

    >>> run_identity("fit", jax.random.key(1), (), {"steps": np.int64(3)})
    {'kind': 'fit', 'key': ['threefry2x32', [0, 1]], 'task': [], 'steps': 3}
    """
    numbers = [str(jax.random.key_impl(key)), np.asarray(jax.random.key_data(key)).tolist()]
    return as_json({"kind": kind, "key": numbers, "task": task, **parts})


def as_json(identity: Json) -> Json:
    """Return an identity as its file will hold it; its numbers may be NumPy's or JAX's.

    >>> as_json({"steps": np.int64(3), "range": (0, 1)})
    {'steps': 3, 'range': [0, 1]}
    """
    return json.loads(json.dumps(identity, default=lambda number: number.item()))


def identity_digest(identity: Json) -> str:
    """Return the digest of an identity that checkpoints are sealed with."""
    return text_digest(json.dumps(identity, sort_keys=True))


def check_identity(path: Path, identity: Json) -> Json:
    """Return the identity in a directory's file, or the given one where there is none yet.

    The two are equal, but 10 in one may be 10.0 in the other; checkpoints are sealed with the one
    in the file.

    Raises:
      ValueError: the directory holds a run of another identity.
      CheckpointError: the file cannot be read, or is none of a run.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "run.json"
    >>> check_identity(path, {"steps": 10})  # There is none yet.
    {'steps': 10}
    >>> _ = path.write_text(json.dumps({"steps": 20}))
    >>> check_identity(path, {"steps": 10})
    Traceback (most recent call last):
    ValueError: ... holds a run with steps = 20, but this one has 10; give another directory or ...
    """
    if not path.exists():
        return identity
    way_out = f"delete {path.parent} to start again, or give another directory"
    found = read_object(read_text(path), str(path), way_out)
    for name, value in identity.items():
        if found.get(name) not in (value, _as_earlier(value)):
            raise ValueError(
                f"{path.parent} holds a run with {name} = {found.get(name)}, but this one "
                f"has {value}; give another directory or delete that one"
            )
    if more := sorted(found.keys() - identity.keys()):
        raise CheckpointError(f"{path} has an entry {more[0]!r} that no run writes; {way_out}")
    return found


def digest(*arrays: Any) -> str:
    """Return sixteen hexadecimal digits determined by arrays' dtypes, shapes and values.

    >>> digest(np.ones(2)) == digest(np.ones(2)) != digest(np.ones(3))
    True
    """
    found = hashlib.sha256()
    for leaf in arrays:
        array = np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
        found.update(f"{array.dtype}{array.shape}".encode())
        # A view of the array's own buffer: nothing is copied.
        found.update(np.ascontiguousarray(array).view(np.uint8).data)
    return found.hexdigest()[:16]


def deeper(text: str) -> str:
    """Return what is said of all that a description leaves out.

    >>> deeper("inside")
    ' [deeper 106b086224a4d945]'
    """
    return f" [deeper {text_digest(text)}]"


def _as_earlier(value: Any) -> Any:
    """A part of an identity as a version wrote it that did not look so deep."""
    return json.loads(_DEEPER.sub("", json.dumps(value)))


def text_digest(text: str) -> str:
    """Return sixteen hexadecimal digits determined by a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
