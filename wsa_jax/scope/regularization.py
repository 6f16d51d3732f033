"""Weight scope regularization: keep the layers' scopes close to a target while training (Eq. 10).

Three forms of one idea: a loss term (`scope_penalty`), an optax transformation with the analytic
gradient (`regularize_scope`), and a proximal step that no strength can make unstable
(`proximal_scope`). The loss term and the transformation are equal up to rounding.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree, Real

from wsa_jax.door import door
from wsa_jax.schedules import check_non_negative, value_at
from wsa_jax.scope.layers import Rule, kernels, map_layers, select_layers
from wsa_jax.scope.scope import (
    STD_FLOOR,
    Direction,
    WeightScope,
    check_one_model,
    check_same_layers,
    is_paper_direction,
    scope_divergence,
    scope_in_a_step,
)
from wsa_jax.scope.transformation import (
    RegularizeScopeState as RegularizeScopeState,
)
from wsa_jax.scope.transformation import (
    Scale,
    check_start,
    check_target,
    held_layers,
    map_updates,
    targeted_transformation,
)
from wsa_jax.types import Strength


@door
def scope_penalty(
    params: PyTree,
    target: WeightScope,
    *,
    select: Rule = kernels,
    scale: Scale = "sum",
    direction: Direction = "weights||target",
) -> Float[Array, ""]:
    r"""Sum over layers of the divergence from the target: the second term of the local loss.

    .. math:: \sum_\ell D_{KL}(p(w^\ell) \,\|\, \tilde p^\ell)
              \quad\text{or}\quad \sum_\ell n_\ell D_{KL}(\cdot)

    Args:
      params: any pytree of arrays.
      target: scope of the same layers, ``[layers]``.
      select: the rule the target was estimated with.
      scale: ``"sum"`` (the paper's) or ``"size"`` (each divergence times its layer's size: the same
        pull on every weight, whatever the size of its layer).
      direction: ``"weights||target"`` (the paper's) or ``"target||weights"``, the divergence the
        other way round: see `scope_divergence`.

    Returns:
      A scalar, in nats. Multiply it by the strength and add it to the loss.

    Edge cases: a layer with std below `STD_FLOOR` has a finite value, and a gradient on its mean
      only; in the direction ``"target||weights"`` no gradient, since its slope has no bound there.
      A layer whose target is constant is refused by name; under a trace it counts 0.

    Raises:
      ValueError: params and target differ in layers, the target is of several models or has
        constant layers, or the scale or the direction is unknown.

    >>> import jax.numpy as jnp
    >>> from wsa_jax import weight_scope
    >>> params = {"kernel": jnp.array([[1.0, -1.0], [1.0, -1.0]])}
    >>> float(scope_penalty(params, weight_scope(params)))
    0.0

    Source: WSA, Eq. 10.
    """
    check_one_model(target)
    check_target(target, select)
    scope = scope_in_a_step(params, select)
    weights = held_layers(target, scale)
    divergence = scope_divergence(scope, target, direction=direction)
    if not is_paper_direction(direction):
        divergence = jnp.where(scope.std > STD_FLOOR, divergence, jax.lax.stop_gradient(divergence))
    # Not 0 times a divergence, which may be infinite.
    return jnp.sum(jnp.where(weights > 0, divergence, 0.0) * weights)


@door
def scope_gradient(
    params: PyTree,
    target: WeightScope,
    *,
    select: Rule = kernels,
    scale: Scale = "sum",
    direction: Direction = "weights||target",
) -> PyTree:
    r"""Gradient of `scope_penalty` in closed form, without a backward pass.

    .. math:: \frac{1}{n}\Big[\frac{\mu - \tilde\mu}{\tilde\sigma^2}
              + (w - \mu)\Big(\frac{1}{\tilde\sigma^2} - \frac{1}{\sigma^2}\Big)\Big]

    or, in the direction ``"target||weights"``,

    .. math:: \frac{1}{n \sigma^2}\Big[\mu - \tilde\mu
              + (w - \mu)\Big(1 - \frac{\tilde\sigma^2 + (\mu - \tilde\mu)^2}{\sigma^2}\Big)\Big]

    Returns:
      The structure, shapes and dtypes of params; zeros where a leaf is not selected.

    Edge cases: as for `scope_penalty`, whose gradient by autodiff it equals up to rounding.

    >>> import jax, jax.numpy as jnp
    >>> params = {"kernel": jnp.arange(6.0).reshape(2, 3)}
    >>> from wsa_jax import weight_scope
    >>> target = weight_scope({"kernel": jnp.eye(2, 3)})
    >>> by_autodiff = jax.jit(jax.grad(scope_penalty))(params, target)["kernel"]
    >>> in_closed_form = jax.jit(scope_gradient)(params, target)["kernel"]
    >>> bool(jnp.allclose(in_closed_form, by_autodiff, rtol=1e-5))
    True
    """
    check_target(target, select)
    return _gradient(params, target, 1.0, select, scale, direction)


def _gradient(
    params: PyTree,
    target: WeightScope,
    strength: Any,
    select: Rule,
    scale: Scale,
    direction: Direction,
) -> PyTree:
    """``strength`` times the gradient: 1/n alone would be rounded to 0 in half precision."""
    check_one_model(target)
    scope = scope_in_a_step(params, select)
    check_same_layers(scope, target)
    size = jnp.asarray(target.sizes, jnp.float32)
    per_weight = strength * held_layers(target, scale) / size
    spread, shift = scope.std > STD_FLOOR, scope.mean - target.mean
    precision = 1.0 / jnp.square(jnp.maximum(scope.std, STD_FLOOR))
    if is_paper_direction(direction):
        target_precision = 1.0 / jnp.square(jnp.maximum(target.std, STD_FLOOR))
        slope = per_weight * jnp.where(spread, target_precision - precision, 0.0)
        pull = per_weight * shift * target_precision
    else:
        # What the target spreads about the weights' mean. Without spread no pull has a bound.
        wanted = jnp.square(jnp.maximum(target.std, STD_FLOOR)) + jnp.square(shift)
        held = per_weight * jnp.where(spread, precision, 0.0)
        slope, pull = held * (1.0 - wanted * precision), held * shift
    return map_layers(
        lambda weight, mean, pull, slope: pull + (weight - mean) * slope,
        params,
        select_layers(params, select),
        (scope.mean, pull, slope),
        other=jnp.zeros_like,
    )


@door
def regularize_scope(
    strength: Strength,
    *,
    target: WeightScope | None = None,
    select: Rule = kernels,
    scale: Scale = "sum",
    direction: Direction = "weights||target",
) -> optax.GradientTransformationExtraArgs:
    """Add ``strength`` times the gradient of the scope penalty to the updates.

    Chain it before clipping and before the optimiser, and give the target at each update, or once::

        optimizer = optax.chain(wsa_jax.regularize_scope(1.0), optax.sgd(0.1))
        updates, state = optimizer.update(grads, state, params, target=target)

        fixed = optax.chain(wsa_jax.regularize_scope(1.0, target=target), optax.sgd(0.1))
        train_state = flax.training.train_state.TrainState.create(..., tx=fixed)

    Args:
      strength: a non-negative number, a traced scalar, or a schedule of the number of updates made
        so far, which begins at 0.
      target: used where an update gives none, as in Flax's ``TrainState`` and other loops that
        call ``update(updates, state, params)``; an update's own target takes precedence.
      select: rule that says which leaves are layers.
      scale: see `scope_penalty`.
      direction: see `scope_penalty`.

    Guarantees: equal to the loss term by autodiff up to rounding; composes under ``optax.chain``,
    ``jit``, ``vmap`` and ``scan``; dtypes of the updates are kept, and so are updates that are None
    (leaves that Equinox filters out). Strength 0 leaves updates as they are. Under
    ``optax.inject_hyperparams`` give ``static_args=("select",)``.

    Raises:
      ValueError: strength is negative or NaN, the direction is unknown, an update lacks params or
        target, or known parameters (in ``init``) or a known target have constant layers, such as
        biases that start at 0: they are named, and left out by `without`.

    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.eye(2)}  # mean 0.5, std 0.5
    >>> transform = regularize_scope(2.0)
    >>> zeros = {"kernel": jnp.zeros((2, 2))}
    >>> from wsa_jax import weight_scope
    >>> wide = weight_scope({"kernel": 1.0 + 2.0 * jnp.eye(2)})
    >>> updates, _ = transform.update(zeros, transform.init(params), params, target=wide)
    >>> expected = 2.0 * scope_gradient(params, wide)["kernel"]
    >>> bool(jnp.allclose(updates["kernel"], expected)), bool(jnp.all(expected == 0))
    (True, False)

    Source: WSA, Eq. 10 and its gradient.
    """
    check_non_negative(strength)
    is_paper_direction(direction)

    def change(updates: PyTree, count: Array, params: PyTree, target: WeightScope) -> PyTree:
        gradient = _gradient(params, target, value_at(strength, count), select, scale, direction)
        return map_updates(lambda u, g: u + g.astype(u.dtype), updates, gradient)

    return targeted_transformation("regularize_scope", change, select, target, check_start)


@door
def scope_window(
    strength: Real[ArrayLike, ""], *, start: int = 0, stop: int | None = None
) -> Callable[[Any], Array]:
    """Schedule: ``strength`` in the window [start, stop) and 0 outside (the paper's Fig. 10).

    Counted from 0: updates in an optax chain, rounds in `wsa_jax.federated.simulate`, where the
    row of round index i has ``"round": i + 1``.

    Raises:
      ValueError: strength is negative, or the window is empty or starts before 0.

    >>> schedule = scope_window(10.0, start=2, stop=4)
    >>> [float(schedule(step)) for step in range(5)]
    [0.0, 0.0, 10.0, 10.0, 0.0]
    """
    check_non_negative(strength)
    if start < 0 or (stop is not None and stop <= start):
        raise ValueError(f"window [{start}, {stop}) is empty or negative; give 0 <= start < stop")

    def schedule(step: Any) -> Array:
        step = jnp.asarray(step)
        inside = step >= start if stop is None else (step >= start) & (step < stop)
        return jnp.where(inside, jnp.float32(strength), 0.0)

    return schedule
