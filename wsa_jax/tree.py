"""Pytrees of models: stacking, interpolation and weighted means, where optax.tree has none."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PyTree, Real

from wsa_jax import checks
from wsa_jax.leaves import is_array as is_array
from wsa_jax.leaves import is_key as is_key
from wsa_jax.leaves import is_traced as is_traced
from wsa_jax.leaves import is_weight as is_weight
from wsa_jax.leaves import key_path as key_path


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
        checks.same_structure(models[0], other)
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
    checks.same_structure(first, second)

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


def wide(leaf: ArrayLike) -> Array:
    """Return the leaf in float32, or in its own dtype where that is wider.

    >>> wide(jnp.bfloat16(0.5)).dtype
    dtype('float32')
    """
    values = jnp.asarray(leaf)
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def as_list(models: PyTree) -> list[PyTree]:
    """Return a plain list or tuple of models as a list, and split a stack ``[models, ...]``.

    Raises:
      ValueError: leading axes of unequal length, or no array that tells the number of models.

    >>> [model["w"].item() for model in as_list({"w": jnp.arange(2.0)})]
    [0.0, 1.0]
    """
    return list(models) if type(models) in (list, tuple) else unstack(as_stack(models))


def as_stack(models: PyTree) -> PyTree:
    """Return a stack ``[models, ...]`` as it is, and stack a plain list or tuple of models.

    A list is always taken for a list of models: a stack of models that are themselves lists of
    layers has to be given as a list of models (see `wsa_jax.tree.unstack`).

    Raises:
      ValueError: no models, models that differ (the leaf is named), or leading axes of unequal
        length.

    >>> as_stack([{"w": jnp.zeros(2)}] * 3)["w"].shape
    (3, 2)
    """
    if type(models) in (list, tuple):
        return stack(models)
    leaves = filter(is_array, jax.tree.leaves(models))
    lengths = {jnp.shape(leaf)[:1] for leaf in leaves}
    if len(lengths) > 1 or lengths & {(), (0,)}:
        raise ValueError(
            f"models is not a stack: its leaves' leading axes are {sorted(lengths)}; "
            "give leaves [models, ...] or a list of models"
        )
    return models
