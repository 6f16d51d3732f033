"""Weight scopes: the Gaussian of each layer's weights, its fusion over models and its divergence.

Weight Scope Alignment (Xu et al., 2024), Eq. 1-4. Training-time use is in `regularization`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree, Real

from wsa_jax import checks
from wsa_jax.door import door, shown
from wsa_jax.reductions import shares, wide
from wsa_jax.scope.layers import Layer, Rule, kernels, select_layers

STD_FLOOR = 1e-6
"""Standard deviations below this are treated as this in divergences and their gradients."""

Direction = Literal["weights||target", "target||weights"]
"""Which Gaussian a divergence averages over: the weights' (the paper's Eq. 3) or the target's."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class WeightScope:
    """Mean and standard deviation of the weights of each layer: N(mean, std²), Eq. 1.

    Attributes:
      mean: ``[..., layers]``, float32, in units of the weights; leading axes are models.
      std: the same shape, maximum likelihood (divided by n), never negative.
      names: key path of each layer.
      sizes: number of weights of each layer.
    """

    mean: Float[Array | np.ndarray, "*models layers"]
    std: Float[Array | np.ndarray, "*models layers"]
    names: tuple[str, ...] = field(metadata={"static": True})
    sizes: tuple[int, ...] = field(metadata={"static": True})


@door
def weight_scope(params: PyTree, *, select: Rule = kernels) -> WeightScope:
    r"""Estimate the Gaussian of each layer's weights by maximum likelihood.

    .. math:: \mu = \frac1n \sum_i w_i, \qquad \sigma = \sqrt{\frac1n \sum_i (w_i - \mu)^2}

    Args:
      params: any pytree of arrays (Linen dict, `nnx.State`, Equinox module, plain dict).
      select: rule that says which leaves are layers.

    Returns:
      The scope, ``[layers]``, float32 whatever the dtype of the weights.

    Guarantees: two passes about a shifted origin, so no cancellation where the mean is far larger
    than the std; right at every magnitude that float32 holds; traceable by ``jit``, ``vmap``
    (models stack on the leading axis) and ``grad``.

    Edge cases: if a layer has one weight, or all are equal, std is exactly 0, and so is its
    gradient. A NaN weight makes only its own layer NaN.

    Raises:
      ValueError: the rule selects no leaf.

    >>> import jax.numpy as jnp
    >>> scope = weight_scope({"kernel": jnp.array([[1.0, 3.0], [5.0, 7.0]])})
    >>> scope.names, scope.mean.tolist(), round(float(scope.std[0]) ** 2, 3)
    (('kernel',), [4.0], 5.0)

    Source: WSA, Eq. 1-2.
    """
    return _estimate(params, select, _magnitude)


def scope_in_a_step(params: PyTree, select: Rule) -> WeightScope:
    """`weight_scope` without the pass that finds the magnitude, for every step of a training loop.

    Beyond a magnitude of 1e19 its std is infinite, below 1e-19 it is 0, which is far below
    `STD_FLOOR`.

    >>> scope_in_a_step({"w": jnp.array([[1.0, 3.0]])}, kernels).std.tolist()
    [1.0]
    """
    return _estimate(params, select, None)


def _estimate(params: PyTree, select: Rule, scale: Callable[[Array], Array] | None) -> WeightScope:
    layers = select_layers(params, select)
    leaves = jax.tree.leaves(params)
    moments = [_moments(leaves[i], axis, scale) for i, axis in _selected_leaves(layers)]
    return WeightScope(
        mean=jnp.concatenate([mean for mean, _ in moments]).astype(jnp.float32),
        std=jnp.concatenate([std for _, std in moments]).astype(jnp.float32),
        names=tuple(layer.name for layer in layers),
        sizes=tuple(layer.size for layer in layers),
    )


@door
def fuse_scopes(
    scopes: WeightScope | Sequence[WeightScope],
    *,
    weights: Real[ArrayLike, " models"] | Sequence[float | int] | None = None,
) -> WeightScope:
    r"""Fuse the scopes of several models: mean of the means, root mean square of the stds.

    .. math:: \tilde\mu = \sum_k p_k \mu_k, \qquad \tilde\sigma = \sqrt{\sum_k p_k \sigma_k^2}

    Args:
      scopes: a scope with a leading model axis, ``[models, ..., layers]``, or a sequence of scopes.
      weights: non-negative weights ``[models]``, normalised here; uniform (the paper's) if None.

    Returns:
      The fused scope, ``[..., layers]``.

    Guarantees: means and variances enter only as sums, so a round needs one reduction. The spread
    *between* the models' means is ignored, as in the paper. A model of weight 0 is left out even
    where its scope is NaN.

    Raises:
      ValueError: no model axis, an empty sequence, scopes of different layers, or weights that
        are not one per model, negative, not finite or all 0.

    >>> import jax.numpy as jnp
    >>> def scope(mean, std):
    ...     return WeightScope(
    ...         mean=jnp.array([mean]), std=jnp.array([std]), names=("kernel",), sizes=(4,)
    ...     )
    >>> fused = fuse_scopes([scope(0.0, 3.0), scope(2.0, 4.0)])
    >>> float(fused.mean[0]), round(float(fused.std[0]) ** 2, 3)
    (1.0, 12.5)

    Source: WSA, Eq. 4 (uniform weights).
    """
    stacked = scopes if isinstance(scopes, WeightScope) else _stack(scopes)
    if stacked.mean.ndim < 2:
        raise ValueError(
            f"fuse_scopes needs a leading model axis, given mean of shape {stacked.mean.shape}; "
            "stack scopes with jax.vmap or pass a sequence"
        )
    models = stacked.mean.shape[0]
    weights = np.ones(models) if weights is None else weights
    if np.shape(weights) != (models,):
        raise ValueError(
            f"weights of shape {np.shape(weights)} for {models} models; give one weight per model"
        )
    checks.shares(weights, "weights")
    share = jnp.asarray(shares(weights), jnp.float32)
    share = share.reshape((models,) + (1,) * (stacked.mean.ndim - 1))

    def fuse(values: Array | np.ndarray) -> Array:
        return jnp.sum(jnp.where(share > 0, share * values, 0.0), axis=0)

    # In units of the largest std, whose square may be out of range.
    largest = jnp.max(jnp.where(share > 0, stacked.std, 0.0), axis=0, keepdims=True)
    unit = jax.lax.stop_gradient(jnp.where((largest > 0) & (largest < jnp.inf), largest, 1.0))
    return WeightScope(
        mean=fuse(stacked.mean),
        std=unit[0] * _safe_sqrt(fuse(jnp.square(stacked.std / unit))),
        names=stacked.names,
        sizes=stacked.sizes,
    )


@door
def scope_divergence(
    scope: WeightScope, target: WeightScope, *, direction: Direction = "weights||target"
) -> Float[Array, "*models layers"]:
    r"""Kullback-Leibler divergence of each layer's scope from its target, in nats.

    .. math:: \mathrm{KL}(p \,\|\, \tilde p) = \log\frac{\tilde\sigma}{\sigma}
              + \frac{\sigma^2 + (\mu - \tilde\mu)^2}{2 \tilde\sigma^2} - \frac12

    and the same with weights and target exchanged for ``"target||weights"``.

    Args:
      scope: the scope of a model, or of several on leading axes.
      target: the target scope of the same layers; leading axes must be equal or absent.
      direction: ``"weights||target"`` (the paper's) or ``"target||weights"``. Near the target both
        are the same; far from it, the first makes much of weights that are wider than the target,
        the second of those that are narrower.

    Returns:
      ``[..., layers]``, never negative beyond rounding, 0 where scope and target agree.

    Edge cases: both stds are floored at `STD_FLOOR`, so a constant layer gives a large finite value
    whose gradient moves the mean only.

    Raises:
      ValueError: the layers differ; the message names the first that does.

    >>> import jax.numpy as jnp
    >>> scope = WeightScope(mean=jnp.array([0.0]), std=jnp.array([1.0]), names=("w",), sizes=(9,))
    >>> target = WeightScope(mean=jnp.array([1.0]), std=jnp.array([2.0]), names=("w",), sizes=(9,))
    >>> round(float(scope_divergence(scope, target)[0]), 4)  # log 2 + (1 + 1)/8 - 1/2
    0.4431
    >>> other = scope_divergence(scope, target, direction="target||weights")
    >>> round(float(other[0]), 4)  # -log 2 + (4 + 1)/2 - 1/2
    1.3069

    Source: WSA, Eq. 3.
    """
    check_same_layers(scope, target)
    averaged = jnp.maximum(scope.std, STD_FLOOR)
    other = lift(jnp.maximum(target.std, STD_FLOOR), averaged.ndim)
    if not is_paper_direction(direction):
        averaged, other = other, averaged
    ratio = averaged / other
    shift = (scope.mean - lift(target.mean, scope.mean.ndim)) / other
    return 0.5 * (jnp.square(ratio) + jnp.square(shift) - 1.0) - jnp.log(ratio)


@door
def constant_target(
    scope: WeightScope, *, mean: float | int = 0.0, std: float | int = 0.1
) -> WeightScope:
    """Return a pre-defined target: one Gaussian for all layers of ``scope`` (WSA, Fig. 12).

    Raises:
      ValueError: std is not positive.

    >>> scope = weight_scope({"kernel": jnp.eye(3)})
    >>> constant_target(scope, std=0.5).std.tolist()
    [0.5]
    """
    if not std > 0:
        raise ValueError(f"target std {std} is not positive; give std > 0")
    return WeightScope(
        mean=jnp.full_like(scope.mean, mean),
        std=jnp.full_like(scope.std, std),
        names=scope.names,
        sizes=scope.sizes,
    )


def is_paper_direction(direction: str) -> bool:
    """Whether a divergence is the paper's, of the weights from the target.

    >>> is_paper_direction("target||weights")
    False
    """
    checks.one_of("direction", direction, get_args(Direction))
    return direction == "weights||target"


def lift(values: Float[ArrayLike, "..."], ndim: int) -> Array:
    """Add leading axes of size 1, so that one target broadcasts to the scopes of several models.

    >>> lift(jnp.ones(3), 2).shape
    (1, 3)
    """
    values = jnp.asarray(values)
    return values.reshape((1,) * (ndim - values.ndim) + values.shape)


def check_same_layers(scope: WeightScope, target: WeightScope) -> None:
    """Raise a ValueError that names the first layer in which two scopes differ.

    >>> check_same_layers(weight_scope({"w": jnp.eye(3)}), weight_scope({"w": jnp.eye(2)}))
    Traceback (most recent call last):
    ValueError: layer w has 9 weights, but layer w of the target has 4; ...
    """
    if scope.names == target.names and scope.sizes == target.sizes:
        return
    hint = "estimate both with the same select and the same architecture"
    ours = list(zip(scope.names, scope.sizes, strict=True))
    theirs = list(zip(target.names, target.sizes, strict=True))
    for (name, size), (target_name, target_size) in zip(ours, theirs, strict=False):
        if (name, size) != (target_name, target_size):
            raise ValueError(
                f"layer {name} has {size} weights, but layer {target_name} of the target has "
                f"{target_size}; {hint}"
            )
    longer, which = (ours, "scope") if len(ours) > len(theirs) else (theirs, "target")
    name = longer[min(len(ours), len(theirs))][0]
    raise ValueError(
        f"layer {name} is only in the {which} ({len(ours)} against {len(theirs)} layers); {hint}"
    )


def check_one_model(target: WeightScope) -> None:
    """Raise a ValueError unless a target of parameters is one scope, ``[layers]``.

    >>> many = jax.vmap(weight_scope)({"w": jnp.ones((5, 2, 2))})
    >>> check_one_model(many)
    Traceback (most recent call last):
    ValueError: the target has mean of shape (5, 1), a scope of each of several models; give one...
    """
    if target.mean.ndim != 1:
        raise ValueError(
            f"the target has mean of shape {target.mean.shape}, a scope of each of several models; "
            "give one, such as fuse_scopes(scopes)"
        )


def _selected_leaves(layers: tuple[Layer, ...]) -> list[tuple[int, int | None]]:
    """Each selected leaf once, with its layer axis, in order."""
    return list(dict.fromkeys((layer.leaf, layer.axis) for layer in layers))


def _moments(
    leaf: ArrayLike, axis: int | None, scale: Callable[[Array], Array] | None
) -> tuple[Array, Array]:
    """Mean and std of a leaf in at least float32, or of each slice along its layer axis."""
    values = wide(leaf)
    if axis is None:
        rows = values.reshape(1, -1)
    else:
        rows = jnp.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    factor = 1.0 if scale is None else jax.lax.stop_gradient(scale(rows))
    rows = rows * factor
    # The variance does not depend on the origin. As origin, the first weight costs no pass,
    # leaves nothing to cancel, and makes the variance of equal weights exactly 0.
    origin = jax.lax.stop_gradient(rows[:, :1])
    shift = jnp.mean(rows - origin, axis=1, keepdims=True)
    # About the mean as rounded, from the weights themselves and not from what was subtracted
    # above: that would be written out and read again. What the rounding left out is taken off.
    centre = jax.lax.stop_gradient(origin + shift)
    rest = shift - (centre - origin)
    variance = jnp.mean(jnp.square(rows - centre), axis=1, keepdims=True) - jnp.square(rest)
    mean, std = (origin + shift) / factor, _safe_sqrt(jnp.maximum(variance, 0.0)) / factor
    return mean[:, 0], std[:, 0]


def _magnitude(rows: Array) -> Array:
    """A power of 2 for each row that brings it to where squares neither overflow nor vanish."""
    largest = jnp.max(jnp.abs(rows), axis=1, keepdims=True)
    half = 2.0 ** (5 * jnp.finfo(rows.dtype).maxexp // 8)
    ordinary = (largest > half**-0.375) & (largest < half**0.5)
    factor = jnp.where(ordinary, 1.0, jnp.where(largest > 1, 1 / half, half))
    return factor.astype(rows.dtype)


def _safe_sqrt(variance: Array) -> Array:
    """Square root whose gradient at 0 is 0 instead of infinite."""
    is_zero = variance == 0
    return jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, variance)))


def _stack(scopes: Sequence[WeightScope]) -> WeightScope:
    wrong = [one for one in scopes if not isinstance(one, WeightScope)]
    if wrong:
        raise ValueError(
            f"scopes of fuse_scopes hold {shown(wrong[0])}; give results of weight_scope(params)"
        )
    if not scopes:
        raise ValueError("fuse_scopes was given no scope; give at least one")
    for other in scopes[1:]:
        check_same_layers(other, scopes[0])
    return jax.tree.map(lambda *values: jnp.stack(values), *scopes)
