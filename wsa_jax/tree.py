"""Pytrees of models: stacking, interpolation and weighted means, where optax.tree has none."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree, Real

# Attributes in which module systems hold a leaf.
_WRAPPERS = frozenset({"value", "raw_value"})


def key_path(path: tuple[Any, ...]) -> str:
    """Join a JAX key path with slashes, without the wrapper names that module systems add.

    >>> [(path, _)] = jax.tree_util.tree_leaves_with_path({"Conv_0": {"kernel": 1.0}})
    >>> key_path(path)
    'Conv_0/kernel'
    """
    # Only the attribute of a wrapped leaf: a layer may be called value too, as in attention.
    if path and getattr(path[-1], "name", None) in _WRAPPERS:
        path = path[:-1]
    parts = [jax.tree_util.keystr((entry,), simple=True).lstrip(".") for entry in path]
    return "/".join(part for part in parts if part)


def is_weight(leaf: Any) -> bool:
    """Whether a leaf is a floating-point array (not an integer counter, a key or a function).

    >>> is_weight(jnp.ones(3)), is_weight(jnp.arange(3)), is_weight(jax.nn.relu)
    (True, False, False)
    """
    return (
        hasattr(leaf, "dtype")
        and hasattr(leaf, "shape")
        and jnp.issubdtype(leaf.dtype, jnp.floating)
    )


def stack(models: Sequence[PyTree]) -> PyTree:
    """Stack models of one structure along a new leading axis, ``[models, ...]``.

    Leaves that are not arrays or numbers, such as functions, are the first model's.

    Raises:
      ValueError: no model is given, or structures or shapes differ; the message names the first
        leaf that does.

    >>> stack([{"w": jnp.zeros(2)}, {"w": jnp.ones(2)}])["w"].tolist()
    [[0.0, 0.0], [1.0, 1.0]]
    """
    if not models:
        raise ValueError("stack was given no model; give at least one")
    for other in models[1:]:
        check_same_structure(models[0], other)
    return jax.tree.map(
        lambda *leaves: jnp.stack(leaves) if is_array(leaves[0]) else leaves[0], *models
    )


def unstack(models: PyTree, count: int | None = None) -> list[PyTree]:
    """Split ``[models, ...]`` into a list of models, the inverse of `stack`.

    Args:
      models: a stack.
      count: the number of models, for trees that may hold no array to infer it from, such as the
        model state of a network without BatchNorm.

    Raises:
      ValueError: there is neither an array nor a count, or lengths differ.

    >>> [float(model["w"]) for model in unstack({"w": jnp.arange(3.0)})]
    [0.0, 1.0, 2.0]
    >>> unstack({}, count=2)
    [{}, {}]
    """
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(models) if is_array(leaf)}
    if count is not None:
        lengths.add((count,))
    if len(lengths) != 1 or () in lengths:
        raise ValueError(
            f"the leading axes of a stack are {sorted(lengths)}; give leaves [models, ...] of one "
            "length, and count where there is no array"
        )
    [(count,)] = lengths
    return [
        jax.tree.map(lambda leaf, i=i: leaf[i] if is_array(leaf) else leaf, models)
        for i in range(count)
    ]


def lerp(first: PyTree, second: PyTree, t: Real[ArrayLike, ""]) -> PyTree:
    """Interpolate linearly, ``(1 - t) first + t second``: exact at t = 0 and t = 1, any t allowed.

    Leaves that are not floating-point arrays are taken from ``first``.

    >>> lerp({"w": jnp.array(1.0)}, {"w": jnp.array(3.0)}, 0.25)["w"].item()
    1.5
    """
    check_same_structure(first, second)

    def mix(a: Any, b: Any) -> Any:
        if not is_weight(a):
            return a
        return ((1 - t) * wide(a) + t * wide(b)).astype(a.dtype)

    return jax.tree.map(mix, first, second)


def weighted_mean(models: PyTree, weights: Real[ArrayLike, " models"]) -> PyTree:
    """Average ``[models, ...]`` over its leading axis with weights normalised to sum to 1.

    Guarantees: accumulates in at least float32 and keeps each leaf's dtype; a model of weight 0 is
    left out even where it holds NaN. Edge case: weights that are all 0 give zeros.

    >>> weighted_mean({"w": jnp.array([1.0, 5.0])}, jnp.array([3.0, 1.0]))["w"].item()
    2.0
    """
    weights = jnp.asarray(weights, jnp.float32)
    total = jnp.sum(weights)
    share = jnp.where(total > 0, weights / jnp.where(total > 0, total, 1.0), 0.0)

    def mean(leaf: Any) -> Any:
        if not is_weight(leaf):
            return leaf[0] if is_array(leaf) else leaf
        column = share.reshape((-1,) + (1,) * (leaf.ndim - 1))
        terms = jnp.where(column > 0, column * wide(leaf), 0.0)
        return jnp.sum(terms, axis=0).astype(leaf.dtype)

    return jax.tree.map(mean, models)


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array or a number, not for example a function in an Equinox module.

    >>> is_array(jnp.ones(2)), is_array(2.0), is_array(jax.nn.relu)
    (True, True, False)
    """
    return hasattr(leaf, "dtype") or isinstance(leaf, bool | int | float | complex)


def wide(leaf: ArrayLike) -> Array:
    """Return the leaf in float32, or in its own dtype where that is wider.

    >>> wide(jnp.bfloat16(0.5)).dtype
    dtype('float32')
    """
    values = jnp.asarray(leaf)
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of JAX keys.

    >>> is_key(jax.random.key(0)), is_key(jnp.ones(2))
    (True, False)
    """
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def check_same_structure(first: PyTree, second: PyTree) -> None:
    """Raise a ValueError that names the first leaf in which two models differ in path or shape.

    >>> check_same_structure({"w": jnp.ones(2)}, {"w": jnp.ones(3)})
    Traceback (most recent call last):
    ValueError: leaf w has shape (2,) in the first model and (3,) in the second; ...
    """
    ours = {key_path(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(first)}
    theirs = {key_path(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(second)}
    for name in [*ours, *theirs]:
        if name in ours and name in theirs:
            continue
        where = "first" if name in ours else "second"
        raise ValueError(
            f"leaf {name} is only in the {where} model; the architectures must be equal"
        )
    for name, leaf in ours.items():
        shape, other = _shape(leaf), _shape(theirs[name])
        if shape != other:
            raise ValueError(
                f"leaf {name} has shape {shape} in the first model and {other} in the second; "
                "the architectures must be equal"
            )


def check_finite(params: PyTree, what: str = "params") -> None:
    """Raise a ValueError that names the first leaf holding NaN or infinity: a host check.

    >>> check_finite({"w": jnp.array([1.0, jnp.nan])})
    Traceback (most recent call last):
    ValueError: leaf w of params holds 1 NaN or infinite value of 2; ...
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not is_weight(leaf):
            continue
        bad = int(np.size(leaf) - np.isfinite(np.asarray(leaf, np.float32)).sum())
        if bad:
            raise ValueError(
                f"leaf {key_path(path)} of {what} holds {bad} NaN or infinite "
                f"value{'s' if bad > 1 else ''} of {np.size(leaf)}; give finite weights"
            )


def check_floating(params: PyTree) -> None:
    """Raise a ValueError that names the first leaf that a gradient step cannot move.

    >>> check_floating({"w": np.ones(2), "count": np.arange(2, dtype=np.int32)})
    Traceback (most recent call last):
    ValueError: leaf count of params is of type int32; ...
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if isinstance(leaf, float) or is_weight(leaf):
            continue
        kind = getattr(leaf, "dtype", type(leaf).__name__)
        raise ValueError(
            f"leaf {key_path(path)} of params is of type {kind}; give floating-point arrays only, "
            "and keep what is not trained in the model state or inside the task's functions"
        )


def check_shares(weights: Sequence[float] | Real[ArrayLike, " models"], what: str) -> None:
    """Raise a ValueError if concrete weights of models are negative, not finite or all 0.

    >>> check_shares([-1.0, 2.0], "weights")
    Traceback (most recent call last):
    ValueError: weights [-1.0, 2.0] are not shares; give finite numbers >= 0, not all 0
    """
    if isinstance(weights, jax.core.Tracer):
        return
    values = np.asarray(weights, np.float64)
    if not (np.isfinite(values).all() and (values >= 0).all() and values.any()):
        raise ValueError(
            f"{what} {values.tolist()} are not shares; give finite numbers >= 0, not all 0"
        )


def _shape(leaf: Any) -> tuple[int, ...]:
    """The shape of an array; () for anything else, such as a function in an Equinox module."""
    return tuple(getattr(leaf, "shape", ()))
