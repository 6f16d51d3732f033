"""Averages of models: uniform, weighted, and along the great circle between two."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree, Real

from wsa_jax import checks
from wsa_jax.door import door, shown
from wsa_jax.tree import (
    as_stack,
    is_array,
    is_inexact,
    is_traced,
    norm,
    unit,
    weighted_mean,
    wide,
)
from wsa_jax.types import Leaf

# Below this angle, great circle and line agree up to float32 rounding; this close to half a turn,
# the circle is not determined.
_SMALL_ANGLE = 1e-4


@door
def average(
    models: PyTree,
    weights: Real[ArrayLike, " models"] | Sequence[float | int] | None = None,
) -> PyTree:
    r"""Average models: :math:`\sum_i p_i w_i / \sum_i p_i`, uniform by default.

    Args:
      models: a stack ``[models, ...]``, or a plain list or tuple of models; a list is never taken
        for a stack, even where a model is a list of layers.
      weights: ``[models]``, non-negative and not all 0; normalised here.

    Guarantees: sums in at least float32, keeps the dtype of each leaf, in which all models must
    agree; a model of weight 0 has no effect, even if it holds NaN. Complex weights are averaged as
    such; leaves that are neither are the first model's. Under jit, values are not checked.

    BatchNorm statistics are a tree like any other: means and variances both become arithmetic
    means. That leaves out the spread between the models' means, and the merged model's activations
    have other moments anyway, so call `reset_batch_norm` afterwards.

    Raises:
      ValueError: no model, models that differ in a leaf or its dtype, NaN in a model of positive
        weight (the leaf is named), or weights that are negative, infinite, all 0 or of the wrong
        number.

    >>> average([{"w": jnp.array(1.0)}, {"w": jnp.array(5.0)}], weights=[3, 1])["w"].item()
    2.0

    Source: WSA, section 3; McMahan et al., 2017, algorithm 1, for the weights.
    """
    if type(models) in (list, tuple) and not models:
        raise ValueError("no models to average; give at least one")
    if jax.tree_util.all_leaves([models]) and not is_array(models):
        raise ValueError(f"models of average is {shown(models)}; give a list of models, or a stack")
    models = as_stack(models)
    leaves = [leaf for leaf in jax.tree.leaves(models) if is_array(leaf)]
    if not leaves:
        return models
    count = leaves[0].shape[0]
    weights = np.ones(count) if weights is None else weights
    if np.shape(weights) != (count,):
        raise ValueError(
            f"weights has shape {np.shape(weights)} for {count} models; give one per model"
        )
    if not is_traced(weights):
        known = np.asarray(weights, np.float64)
        checks.shares(known, "weights")
        kept = np.flatnonzero(known)

        def pick(leaf: Leaf) -> Leaf:
            return leaf[kept] if is_array(leaf) else leaf

        checks.weights(models if len(kept) == count else jax.tree.map(pick, models), "the models")
    return weighted_mean(models, weights)


@door
def slerp(
    first: PyTree,
    second: PyTree,
    t: Real[ArrayLike, ""],
    *,
    per: Literal["leaf", "model"] = "leaf",
) -> PyTree:
    r"""Interpolate along the great circle, so that norms do not shrink as on the line.

    .. math:: \frac{\sin((1 - t)\Omega)}{\sin\Omega} w_1 + \frac{\sin(t\Omega)}{\sin\Omega} w_2,
              \quad \Omega = \angle(w_1, w_2)

    Args:
      first: model at t = 0; any pytree.
      second: model at t = 1, of the same structure.
      t: position.
      per: measure one angle per (flattened) leaf, or one over the whole model.

    Guarantees: exact at both ends; vectors of equal norm keep it, at every magnitude; computed in
    at least float32; keeps the dtype of each leaf, in which both models must agree. Complex weights
    are vectors of twice as many real numbers.

    Edge cases: (nearly) parallel, opposite or zero vectors are interpolated linearly, as
    `wsa_jax.tree.lerp` does. Leaves that are no floating-point or complex arrays are the first
    model's.

    Raises:
      ValueError: the models differ in a leaf, its dtype included, or hold NaN (the leaf is named),
        or ``per`` is unknown.

    >>> a, b = {"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([0.0, 1.0])}
    >>> [round(x, 4) for x in slerp(a, b, 0.5)["w"].tolist()]
    [0.7071, 0.7071]

    Source: Shoemake, 1985, section 3.3.
    """
    checks.one_of("per", per, ("leaf", "model"))
    if not is_traced(t) and not np.isfinite(np.asarray(t, np.float64)).all():
        raise ValueError(f"t {t} is no position; give a finite number, 0 for the first model")
    checks.pair(first, second)
    checks.weights(first, "the first model")
    checks.weights(second, "the second model")
    pairs = [
        (wide(a), wide(b))
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
        if is_inexact(a)
    ]
    whole = _shares(pairs, t) if per == "model" else None

    def mix(a: Leaf, b: Leaf) -> Leaf:
        if not is_inexact(a):
            return a
        pair = wide(a), wide(b)
        left, right = _shares([pair], t) if whole is None else whole
        return (left * pair[0] + right * pair[1]).astype(jnp.result_type(a))

    return jax.tree.map(mix, first, second)


def _shares(pairs: list[tuple[Array, Array]], t: Real[ArrayLike, ""]) -> tuple[Array, Array]:
    """Coefficients of both vectors, each given in parts."""
    t = jnp.asarray(t, float)
    left, right = unit([a for a, _ in pairs]), unit([b for _, b in pairs])
    both = (norm(left) > 0) & (norm(right) > 0)
    apart = norm(jax.tree.map(jnp.subtract, left, right))
    along = norm(jax.tree.map(jnp.add, left, right))
    # The half-angle form is accurate where arccos of a scalar product near 1 is not.
    angle = 2 * jnp.arctan2(jnp.where(both, apart, 0.0), jnp.where(both, along, 1.0))
    curved = both & (angle > _SMALL_ANGLE) & (angle < jnp.pi - _SMALL_ANGLE)
    angle = jnp.where(curved, angle, 1.0)

    def share(s: Array) -> Array:
        value = jnp.where(curved, jnp.sin(s * angle) / jnp.sin(angle), s)
        return jnp.where((s == 0) | (s == 1), s, value)

    return share(1 - t), share(t)
