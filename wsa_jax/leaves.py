"""What a leaf of a model is, and what it is called."""

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from wsa_jax.types import KeyPath, Leaf

# Attributes in which module systems hold a leaf.
_WRAPPERS = frozenset({"value", "raw_value"})


def key_path(path: KeyPath, separator: str = "/") -> str:
    """Join a JAX key path with slashes, without the wrapper names that module systems add.

    >>> [(path, _)] = jax.tree_util.tree_leaves_with_path({"Conv_0": {"kernel": 1.0}})
    >>> key_path(path)
    'Conv_0/kernel'
    """
    # Only the attribute of a wrapped leaf: a layer may be called value too, as in attention.
    if path and getattr(path[-1], "name", None) in _WRAPPERS:
        path = path[:-1]
    parts = [jax.tree_util.keystr((entry,), simple=True).lstrip(".") for entry in path]
    return separator.join(part for part in parts if part)


def is_weight(leaf: Leaf) -> bool:
    """Whether a leaf is a floating-point array (not an integer counter, a key or a function).

    >>> is_weight(jnp.ones(3)), is_weight(jnp.arange(3)), is_weight(jax.nn.relu)
    (True, False, False)
    """
    return (
        hasattr(leaf, "dtype")
        and hasattr(leaf, "shape")
        and jnp.issubdtype(leaf.dtype, jnp.floating)
    )


def is_inexact(leaf: Leaf) -> bool:
    """Whether a leaf is an array of floating-point or complex numbers: what can be averaged.

    >>> is_inexact(jnp.ones(3)), is_inexact(jnp.ones(3, complex)), is_inexact(1.0)
    (True, True, False)
    """
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)


def is_array(leaf: Leaf) -> bool:
    """Whether a leaf is an array, not a function or a plain number of Python.

    Flags and numbers of a module (``inference``, a dropout rate) are Python's, so that an ``if``
    may ask them under jit: they stay what they are.

    >>> is_array(jnp.ones(2)), is_array(2.0), is_array(jax.nn.relu)
    (True, False, False)
    """
    return hasattr(leaf, "dtype")


def is_key(leaf: Leaf) -> bool:
    """Whether a leaf is an array of JAX keys.

    >>> is_key(jax.random.key(0)), is_key(jnp.ones(2))
    (True, False)
    """
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def is_traced(tree: PyTree) -> bool:
    """Whether any leaf has no value yet (inside jit, vmap or grad)."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))
