"""Rules that take each coordinate by itself: the median, and the trimmed mean."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Integer, PyTree, Real

from wsa_jax import checks
from wsa_jax.tree import wide


def coordinate_median(
    models: PyTree, keep: Bool[ArrayLike, " models"] | Real[ArrayLike, " models"]
) -> PyTree:
    """Median of each coordinate over the models that ``keep`` marks, ``[models, ...] -> [...]``.

    Guarantees: for an even number, the mean of the two in the middle; fewer than half of the models
    cannot move a coordinate past the others' range. Edge case: if no model is kept, zeros.

    >>> coordinate_median({"w": jnp.array([1.0, 99.0, 3.0])}, jnp.ones(3))["w"].item()
    3.0

    Source: Yin et al., 2018, Definition 1.
    """
    kept, count = _kept(keep)
    lower, upper = jnp.maximum(count - 1, 0) // 2, count // 2

    def median(leaf: Array) -> Array:
        ordered = _ordered(leaf, kept)
        upper_value = ordered[jnp.minimum(upper, len(kept) - 1)]
        # Halves first: the sum of two large numbers may be infinite.
        return jnp.where(count > 0, ordered[lower] / 2 + upper_value / 2, 0.0)

    return jax.tree.map(median, models)


def trimmed_mean(
    models: PyTree, keep: Bool[ArrayLike, " models"] | Real[ArrayLike, " models"], trim: float
) -> PyTree:
    """Mean of each coordinate without the ``floor(trim k)`` least and greatest of the k kept.

    Edge cases: trim 0 gives the mean; if no model is kept, the result is zeros.

    Raises:
      ValueError: trim is not in [0, 0.5).

    >>> trimmed_mean({"w": jnp.array([1.0, 2.0, 3.0, 99.0])}, jnp.ones(4), 0.25)["w"].item()
    2.5

    Source: Yin et al., 2018, Definition 2.
    """
    check_trim(trim)
    kept, count = _kept(keep)
    # A table, because 0.3 x 10 must not become 2 by rounding.
    cuts = jnp.array([math.floor(trim * k + 1e-9) for k in range(len(kept) + 1)])
    cut = cuts[count]
    place = jnp.arange(len(kept))
    inside = (place >= cut) & (place < count - cut)
    small = 0.5 ** math.ceil(math.log2(len(kept)))

    def mean(leaf: Array) -> Array:
        ordered = _ordered(leaf, kept)
        rows = inside.reshape((-1,) + (1,) * (leaf.ndim - 1))
        # A power of 2 rounds nothing, and the sum of large numbers stays finite.
        total = (jnp.where(rows, ordered, 0.0) * small).sum(axis=0)
        return total / jnp.maximum(inside.sum(), 1) / small

    return jax.tree.map(mean, models)


def check_trim(trim: object) -> None:
    """Raise a ValueError unless some models are left in the middle."""
    checks.number("trim", trim, 0, 0.5, "the share left out at each end")


def _kept(keep: ArrayLike) -> tuple[Array, Integer[Array, ""]]:
    kept = jnp.asarray(keep) > 0
    return kept, kept.sum()


def _ordered(leaf: Array, kept: Array) -> Array:
    """Kept values in ascending order, then the others."""
    rows = kept.reshape((-1,) + (1,) * (leaf.ndim - 1))
    return jnp.sort(jnp.where(rows, wide(leaf), jnp.inf), axis=0)
