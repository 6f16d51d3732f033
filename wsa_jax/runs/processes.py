"""Several processes in one run (`jax.distributed`): they wait for, and agree with, one another."""

import jax
import numpy as np
from jaxtyping import PyTree

from wsa_jax.types import Leaf

_LENGTH = 2000


def writes() -> bool:
    """Whether this process writes the run's files: the first one does."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until every process has called this."""
    from jax.experimental import multihost_utils

    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def said_by_first(text: str) -> str:
    """Return what the first process says; every process must call it.

    >>> said_by_first("ready")
    'ready'
    """
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return text
    padded = text.encode()[:_LENGTH].ljust(_LENGTH, b"\0")
    found = multihost_utils.broadcast_one_to_all(np.frombuffer(padded, np.uint8))
    return np.asarray(found, np.uint8).tobytes().rstrip(b"\0").decode(errors="replace")


def on_host(tree: PyTree) -> PyTree:
    """Gather arrays that lie on other processes' devices as NumPy; every process must call it.

    Arrays that lie on this process's devices alone are returned as they are.
    """
    from jax.experimental import multihost_utils

    def fetch(leaf: Leaf) -> Leaf:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return leaf
        if leaf.is_fully_replicated:
            return np.asarray(leaf.addressable_data(0))
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(fetch, tree)
