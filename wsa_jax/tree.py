"""Pytrees of models: stacking and interpolation, where optax.tree has none."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, PyTree, Real

from wsa_jax import checks
from wsa_jax.door import door
from wsa_jax.leaves import is_array as is_array
from wsa_jax.leaves import is_inexact as is_inexact
from wsa_jax.leaves import is_key as is_key
from wsa_jax.leaves import is_traced as is_traced
from wsa_jax.leaves import is_weight as is_weight
from wsa_jax.leaves import key_path as key_path
from wsa_jax.reductions import clip_by_norm as clip_by_norm
from wsa_jax.reductions import clip_gradient as clip_gradient
from wsa_jax.reductions import norm as norm
from wsa_jax.reductions import shares as shares
from wsa_jax.reductions import sum_of_squares as sum_of_squares
from wsa_jax.reductions import unit as unit
from wsa_jax.reductions import weighted_mean as weighted_mean
from wsa_jax.reductions import wide as wide
from wsa_jax.types import Leaf


@door
def stack(models: Sequence[PyTree]) -> PyTree:
    """Stack models of one structure along a new leading axis, ``[models, ...]``.

    Leaves that are not arrays, such as functions, flags and plain numbers of Python, are the first
    model's; a warning names a number that differs.

    Raises:
      ValueError: no model is given, or structures, shapes or dtypes differ; the message names the
        first leaf that does.

    >>> stack([{"w": jnp.zeros(2)}, {"w": jnp.ones(2)}])["w"].tolist()
    [[0.0, 0.0], [1.0, 1.0]]
    """
    if not len(models):
        raise ValueError("stack was given no model; give at least one")
    for other in models[1:]:
        checks.pair(models[0], other)
    return jax.tree.map(
        lambda *leaves: jnp.stack(leaves) if is_array(leaves[0]) else leaves[0], *models
    )


@door
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


@door
def lerp(first: PyTree, second: PyTree, t: Real[ArrayLike, ""]) -> PyTree:
    """Interpolate linearly, ``(1 - t) first + t second``, any t allowed.

    Of finite models exact at t = 0 and t = 1; what is NaN or infinite in either is not finite in
    the result, whatever its share: 0 times infinity is NaN.

    Computed in at least float32, in each leaf's own dtype at the end; complex leaves as such. Other
    leaves (integers, flags and plain numbers of Python) are taken from ``first``; a warning names a
    number of Python that differs.

    Raises:
      ValueError: structures, shapes or dtypes differ; the message names the first leaf that does.

    >>> lerp({"w": jnp.array(1.0)}, {"w": jnp.array(3.0)}, 0.25)["w"].item()
    1.5
    """
    checks.pair(first, second)
    if isinstance(t, int):
        checks.number("t", t, -1e38, 1e38, "a share of the second, 0.5 for the middle")
        t = float(t)  # integers of Python are wider than those of JAX

    def mix(a: Leaf, b: Leaf) -> Leaf:
        if not is_inexact(a):
            return a
        return ((1 - t) * wide(a) + t * wide(b)).astype(jnp.result_type(a))

    return jax.tree.map(mix, first, second)


def as_list(models: PyTree) -> list[PyTree]:
    """Return a plain list or tuple of models as a list, and split a stack ``[models, ...]``.

    Raises:
      ValueError: leading axes of unequal length, or no array that tells the number of models.

    >>> [model["w"].item() for model in as_list({"w": jnp.arange(2.0)})]
    [0.0, 1.0]
    """
    return list(models) if type(models) in (list, tuple) else unstack(as_stack(models))


def at_least_one(models: PyTree) -> list[PyTree]:
    """Return models to merge as a list, as `as_list` does, and refuse none.

    >>> at_least_one([])
    Traceback (most recent call last):
    ValueError: no models to merge; give at least one
    """
    listed = as_list(models)
    if not listed:
        raise ValueError("no models to merge; give at least one")
    return listed


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
