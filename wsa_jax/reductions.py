"""Norms, shares and means of pytrees that no magnitude breaks.

They are defined for every finite input, in float16 as in float64: taken in at least float32, and
scaled where a square would leave the range. NaN and infinity propagate. Numbers below the least
normal one (1.2e-38 in float32) are 0 to XLA on the CPU.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, PyTree, Real

from wsa_jax.door import door
from wsa_jax.leaves import is_array, is_inexact, is_key
from wsa_jax.types import Leaf


def wide(leaf: ArrayLike) -> Array:
    """Return the leaf in float32, or in its own dtype where that is wider.

    >>> wide(jnp.bfloat16(0.5)).dtype
    dtype('float32')
    """
    values = jnp.asarray(leaf)
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


@door
def norm(tree: PyTree) -> Float[Array, ""]:
    r"""Euclidean norm of all numbers of a tree, :math:`\sqrt{\sum_i |w_i|^2}`.

    Guarantees: computed in at least float32 and right at every magnitude; infinite only if a number
    is, or if the norm itself is beyond that type; the gradient at 0 is 0. One pass over the leaves,
    and a second only where squares leave the range.

    >>> float(norm({"w": jnp.array([3.0, 4.0])})), float(norm(jnp.full(4, 60000, jnp.float16)))
    (5.0, 120000.0)
    >>> f"{norm(jnp.array([3e25, 4e25])):.2g} {norm(jnp.array([3e-25, 4e-25])):.2g}"
    '5e+25 5e-25'
    """
    return _norm([wide(leaf) for leaf in jax.tree.leaves(tree) if _is_number(leaf)])


def sum_of_squares(tree: PyTree) -> Float[Array, ""]:
    """Square of the `norm`: infinite or 0 only where the square itself leaves the range.

    >>> float(sum_of_squares({"w": jnp.array([3.0, 4.0])}))
    25.0
    """
    root, scale = _scaled_norm(tree)
    return jnp.square(root / scale)


def unit(tree: PyTree) -> PyTree:
    """Divide a tree by its `norm`, in at least float32; a tree of zeros stays 0.

    >>> [round(x, 4) for x in unit(jnp.array([3e25, 4e25])).tolist()]
    [0.6, 0.8]
    """
    root, scale = _scaled_norm(tree)
    divisor = jnp.where(root == 0, 1.0, root)
    return jax.tree.map(lambda leaf: wide(leaf) * scale / divisor, tree)


@door
def clip_by_norm(tree: PyTree, limit: Real[ArrayLike, ""]) -> PyTree:
    """Scale a tree down to a global `norm` of at most ``limit``, in the leaves' own dtypes.

    Guarantees: right for every finite tree, even where its norm is beyond its dtype; a shorter tree
    is returned bitwise. A tree that holds NaN or infinity is returned as it is: divided by an
    infinite norm, its other numbers would become 0 and hide it.

    >>> [round(x, 4) for x in clip_by_norm(jnp.array([3e19, 4e19]), 1.0).tolist()]
    [0.6, 0.8]

    Source: Pascanu et al., 2012, Algorithm 1.
    """
    root, scale = _scaled_norm(tree)
    long = (root > limit * scale) & jnp.isfinite(root)
    divisor = jnp.where(long, root, 1.0)

    def clip(leaf: Leaf) -> Leaf:
        if not is_inexact(leaf):
            return leaf
        values = wide(leaf)
        clipped = values * scale / divisor * limit
        return jnp.where(long, clipped, values).astype(jnp.result_type(leaf))

    return jax.tree.map(clip, tree)


def clip_gradient(limit: Real[ArrayLike, ""]) -> optax.GradientTransformation:
    """Clip updates to a global norm: ``optax.clip_by_global_norm``, by `clip_by_norm`.

    >>> clip_gradient(1.0).update({"w": jnp.full(4, 300, jnp.float16)}, optax.EmptyState())[0]
    {'w': Array([0.5, 0.5, 0.5, 0.5], dtype=float16)}
    """
    return optax.stateless(lambda updates, params: clip_by_norm(updates, limit))


@door
def shares(weights: Real[ArrayLike, "models ..."] | Sequence[float | int]) -> Array | np.ndarray:
    """Divide weights by their sum over the leading axis, whatever their magnitude.

    Weights that are all 0 stay 0. Known weights are divided in float64, traced ones in float64
    where JAX has it.

    >>> shares([1.5e308, 0.5e308]).tolist()
    [0.75, 0.25]
    """
    if isinstance(weights, jax.core.Tracer):
        values, xp = wide(weights).astype(float), jnp  # float64 where JAX has it
    else:
        values, xp = np.asarray(weights, np.float64), np
    # Towards 1 first, by a power of 2 that rounds nothing: a sum of large weights would be
    # infinite, and the inverse of a large or small sum (XLA multiplies by it) 0 or infinite.
    half = 2.0 ** (xp.finfo(values.dtype).maxexp // 2)
    largest = xp.max(xp.abs(values), axis=0, keepdims=True, initial=0)
    scaled = values * xp.where(largest > 1, 1 / half, half).astype(values.dtype)
    total = xp.sum(scaled, axis=0, keepdims=True)
    with np.errstate(invalid="ignore"):  # an infinite weight gives NaN, as under a trace
        return scaled / xp.where(total == 0, 1, total)


@door
def weighted_mean(
    models: PyTree, weights: Real[ArrayLike, " models"] | Sequence[float | int]
) -> PyTree:
    """Average ``[models, ...]`` over its leading axis with weights normalised to sum to 1.

    Guarantees: weights of every magnitude; accumulates in at least float32 and keeps each leaf's
    dtype; a model of weight 0 is left out even where it holds NaN. Edge cases: weights that are all
    0 give zeros, NaN among them gives NaN. Integers and other leaves are the first model's.

    Raises:
      ValueError: weights are not one for each model of every leaf.

    >>> weighted_mean({"w": jnp.array([1.0, 5.0])}, jnp.array([3.0, 1.0]))["w"].item()
    2.0
    """
    share = shares(weights)

    def mean(leaf: Leaf) -> Leaf:
        if is_array(leaf) and leaf.shape[:1] != share.shape:
            raise ValueError(
                f"a leaf of shape {leaf.shape} has no leading axis of {len(share)} models; give "
                "leaves [models, ...] and one weight per model"
            )
        if not is_inexact(leaf):
            return leaf[0] if is_array(leaf) else leaf
        values = wide(leaf)
        column = jnp.asarray(share, _real(values.dtype)).reshape((-1,) + (1,) * (leaf.ndim - 1))
        terms = jnp.where(column != 0, column * values, 0.0)
        return jnp.sum(terms, axis=0).astype(jnp.result_type(leaf))

    return jax.tree.map(mean, models)


@jax.custom_jvp
def _norm(leaves: list[Array]) -> Array:
    root, scale = _scaled_root(leaves)
    return root / scale


@_norm.defjvp
def _norm_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Array, Array]:
    # By the chain rule, 1 / scale alone would leave the range.
    (leaves,), (moves,) = primals, tangents
    root = _norm(leaves)
    return root, _along(unit(leaves), moves, root.dtype)


def _scaled_norm(tree: PyTree) -> tuple[Array, Array]:
    """The norm as ``root / scale``, where scale is a power of 2, and 1 in the ordinary range."""
    return _scaled_root([wide(leaf) for leaf in jax.tree.leaves(tree) if _is_number(leaf)])


@jax.custom_jvp
def _scaled_root(leaves: list[Array]) -> tuple[Array, Array]:
    dtype = jnp.result_type(jnp.float32, *(_real(leaf.dtype) for leaf in leaves))

    def squares(scale: Any) -> Array:
        total = jnp.zeros((), dtype)
        for leaf in leaves:
            scaled = leaf.astype(jnp.promote_types(leaf.dtype, dtype)) * scale
            if jnp.iscomplexobj(scaled):
                total += jnp.sum(jnp.square(scaled.real) + jnp.square(scaled.imag))
            else:
                total += jnp.sum(jnp.square(scaled))
        return total

    # Small enough that no square of a large number overflows, large enough that none of a small one
    # underflows; a power of 2, so that it rounds nothing.
    limits = jnp.finfo(dtype)
    factor = 2.0 ** (25 * limits.maxexp // 32)

    def out_of_range(carry: tuple[Array, Array]) -> Array:
        total, scale = carry
        ordinary = (total < limits.max) & (total > limits.tiny / limits.eps**2)
        return (scale == 1) & ~ordinary

    def again(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        scale = jnp.where(carry[0] < 1, factor, 1 / factor).astype(dtype)
        return squares(scale), scale

    # A loop of one step or none, not a branch: under vmap, both sides of a branch are computed for
    # all, while a loop is entered only if one of them needs it. The scale is made inside, since XLA
    # would compute before the loop whatever does not depend on it.
    total, scale = jax.lax.while_loop(out_of_range, again, (squares(1), jnp.ones((), dtype)))
    # Not the root of 0, whose gradient is infinite even where it is not used.
    positive = total != 0
    root = jnp.where(positive, jnp.sqrt(jnp.where(positive, total, 1)), 0)
    return root, jnp.where(positive, scale, 1)


@_scaled_root.defjvp
def _scaled_root_jvp(
    primals: tuple[Any], tangents: tuple[Any]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    # A loop has no gradient by itself; the scale is a constant.
    (leaves,), (moves,) = primals, tangents
    root, scale = _scaled_root(leaves)
    along = scale * _along(unit(leaves), moves, root.dtype)
    return (root, scale), (along, jnp.zeros_like(scale))


def _along(way: list[Array], moves: list[Array], dtype: DTypeLike) -> Array:
    """How far moves go along a way: their real inner product, in the dtype of a norm."""
    products = (jnp.sum((jnp.conj(a) * b).real) for a, b in zip(way, moves, strict=True))
    return sum(products, jnp.zeros((), dtype))


def _is_number(leaf: Leaf) -> bool:
    """Whether a leaf holds numbers, not keys or functions."""
    return isinstance(leaf, int | float | complex) or (is_array(leaf) and not is_key(leaf))


def _real(dtype: DTypeLike) -> Any:
    """The dtype of a number's real part."""
    return jnp.finfo(dtype).dtype
