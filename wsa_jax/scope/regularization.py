"""Weight scope regularization: keep the layers' scopes close to a target while training (Eq. 10).

Three forms of one idea: a loss term (`scope_penalty`), an optax transformation with the analytic
gradient (`regularize_scope`), and a proximal step that no strength can make unstable
(`proximal_scope`). The loss term and the transformation are equal up to rounding.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree, Real

from wsa_jax.scope.layers import Rule, kernels, map_layers, select_layers
from wsa_jax.scope.scope import (
    STD_FLOOR,
    WeightScope,
    check_same_layers,
    scope_divergence,
    weight_scope,
)

Scale = Literal["sum", "size"]
"""How divergences are combined: ``"sum"`` (the paper's) or ``"size"``, each times its layer's n."""

Strength = Real[ArrayLike, ""] | Callable[[Any], Any]
"""The paper's lambda, in loss units per nat: a number, or an optax-style schedule of the step."""


class RegularizeScopeState(NamedTuple):
    """Number of updates made so far, for schedules of strength."""

    count: Array


def scope_penalty(
    params: PyTree, target: WeightScope, *, select: Rule = kernels, scale: Scale = "sum"
) -> Float[Array, ""]:
    r"""Sum over layers of the divergence from the target: the second term of the local loss.

    .. math:: \sum_\ell D_{KL}(p(w^\ell) \,\|\, \tilde p^\ell)
              \quad\text{or}\quad \sum_\ell n_\ell D_{KL}(\cdot)

    Args:
      params: any pytree of arrays.
      target: scope of the same layers.
      select: the rule the target was estimated with.
      scale: ``"sum"`` (the paper's) or ``"size"`` (each divergence times its layer's size: the same
        pull on every weight, whatever the size of its layer).

    Returns:
      A scalar, in nats. Multiply it by the strength and add it to the loss.

    Edge cases: a layer with std below `STD_FLOOR` has a finite value, and a gradient on its mean
      only.

    Raises:
      ValueError: params and target differ in layers, or the scale is unknown.

    >>> import jax, jax.numpy as jnp
    >>> params = {"kernel": jnp.array([[1.0, -1.0], [1.0, -1.0]])}
    >>> float(scope_penalty(params, weight_scope(params)))
    0.0

    Source: WSA, Eq. 10.
    """
    divergence = scope_divergence(weight_scope(params, select=select), target)
    return jnp.sum(divergence * layer_weights(target.sizes, scale))


def scope_gradient(
    params: PyTree, target: WeightScope, *, select: Rule = kernels, scale: Scale = "sum"
) -> PyTree:
    r"""Gradient of `scope_penalty` in closed form, without a backward pass.

    .. math:: \frac{1}{n}\Big[\frac{\mu - \tilde\mu}{\tilde\sigma^2}
              + (w - \mu)\Big(\frac{1}{\tilde\sigma^2} - \frac{1}{\sigma^2}\Big)\Big]

    Returns:
      The structure, shapes and dtypes of params; zeros where a leaf is not selected.

    Edge cases: as for `scope_penalty`, whose gradient by autodiff it equals up to rounding.

    >>> import jax, jax.numpy as jnp
    >>> params = {"kernel": jnp.arange(6.0).reshape(2, 3)}
    >>> target = weight_scope({"kernel": jnp.eye(2, 3)})
    >>> by_autodiff = jax.grad(scope_penalty)(params, target)["kernel"]
    >>> bool(jnp.allclose(scope_gradient(params, target)["kernel"], by_autodiff, rtol=1e-5))
    True
    """
    return _gradient(params, target, 1.0, select, scale)


def _gradient(
    params: PyTree, target: WeightScope, strength: Any, select: Rule, scale: Scale
) -> PyTree:
    """``strength`` times the gradient: 1/n alone would be rounded to 0 in half precision."""
    scope = weight_scope(params, select=select)
    check_same_layers(scope, target)
    size = jnp.asarray(target.sizes, jnp.float32)
    per_weight = strength * layer_weights(target.sizes, scale) / size
    target_precision = 1.0 / jnp.square(jnp.maximum(target.std, STD_FLOOR))
    precision = 1.0 / jnp.square(jnp.maximum(scope.std, STD_FLOOR))
    slope = per_weight * jnp.where(scope.std > STD_FLOOR, target_precision - precision, 0.0)
    pull = per_weight * (scope.mean - target.mean) * target_precision
    return map_layers(
        lambda weight, mean, pull, slope: pull + (weight - mean) * slope,
        params, select_layers(params, select), (scope.mean, pull, slope), other=jnp.zeros_like,
    )  # fmt: skip


def regularize_scope(
    strength: Strength,
    *,
    target: WeightScope | None = None,
    select: Rule = kernels,
    scale: Scale = "sum",
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

    Guarantees: equal to the loss term by autodiff up to rounding; composes under ``optax.chain``,
    ``jit``, ``vmap`` and ``scan``; dtypes of the updates are kept, and so are updates that are None
    (leaves that Equinox filters out). Strength 0 leaves updates as they are. Under
    ``optax.inject_hyperparams`` give ``static_args=("select",)``.

    Raises:
      ValueError: strength is negative or NaN, or an update lacks params or target.

    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.eye(2)}  # mean 0.5, std 0.5
    >>> transform = regularize_scope(2.0)
    >>> zeros = {"kernel": jnp.zeros((2, 2))}
    >>> wide = weight_scope({"kernel": 1.0 + 2.0 * jnp.eye(2)})
    >>> updates, _ = transform.update(zeros, transform.init(params), params, target=wide)
    >>> expected = 2.0 * scope_gradient(params, wide)["kernel"]
    >>> bool(jnp.allclose(updates["kernel"], expected)), bool(jnp.all(expected == 0))
    (True, False)

    Source: WSA, Eq. 10 and its gradient.
    """
    check_strength(strength)

    def change(updates: PyTree, count: Array, params: PyTree, target: WeightScope) -> PyTree:
        gradient = _gradient(params, target, value_at(strength, count), select, scale)
        return map_updates(lambda u, g: u + g.astype(u.dtype), updates, gradient)

    return targeted_transformation("regularize_scope", change, select, target)


def map_updates(fun: Callable[..., Array], updates: PyTree, *others: PyTree) -> PyTree:
    """`jax.tree.map` over updates, keeping those that are None, as optax does.

    >>> map_updates(jnp.add, {"a": 1.0, "b": None}, {"a": 2.0, "b": 3.0})["b"] is None
    True
    """
    return jax.tree.map(
        lambda update, *rest: None if update is None else fun(update, *rest),
        updates, *others, is_leaf=lambda leaf: leaf is None,
    )  # fmt: skip


def targeted_transformation(
    name: str,
    change: Callable[[PyTree, Array, PyTree, WeightScope], PyTree],
    select: Rule,
    target: WeightScope | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Make an optax transformation from ``change(updates, count, params, target) -> updates``.

    Raises:
      ValueError: an update lacks params, or lacks a target where none was given here; or, in
        ``init``, the rule selects none of the parameters.

    >>> transform = targeted_transformation("keep", lambda u, count, params, target: u, kernels)
    >>> int(transform.init({"kernel": jnp.eye(2)}).count)
    0
    """
    given = target

    def init(params: PyTree) -> RegularizeScopeState:
        select_layers(params, select)
        return RegularizeScopeState(count=jnp.zeros((), jnp.int32))

    def update(
        updates: PyTree,
        state: Any,
        params: PyTree | None = None,
        *,
        target: WeightScope | None = None,
        **extra: Any,
    ) -> tuple[PyTree, RegularizeScopeState]:
        del extra
        target = given if target is None else target
        if params is None or target is None:
            missing = "params" if params is None else "target"
            way = "" if params is None else f", or give target to {name}"
            raise ValueError(
                f"{name} got no {missing}: call update(updates, state, params, target=scope){way}"
            )
        updates = change(updates, state.count, params, target)
        return updates, RegularizeScopeState(count=jnp.asarray(optax.safe_increment(state.count)))

    return optax.GradientTransformationExtraArgs(init, update)


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
    check_strength(strength)
    if start < 0 or (stop is not None and stop <= start):
        raise ValueError(f"window [{start}, {stop}) is empty or negative; give 0 <= start < stop")

    def schedule(step: Any) -> Array:
        step = jnp.asarray(step)
        inside = step >= start if stop is None else (step >= start) & (step < stop)
        return jnp.where(inside, jnp.float32(strength), 0.0)

    return schedule


def check_strength(
    strength: Strength | Real[np.ndarray, " rounds"],
    name: str = "strength",
    *,
    schedule: bool = True,
) -> None:
    """Raise a ValueError if a concrete strength is negative or not finite.

    Schedules pass, unless ``schedule`` is False: then they are refused as well.

    >>> check_strength(-1.0)
    Traceback (most recent call last):
    ValueError: strength -1.0 is not a non-negative number; ...
    """
    if callable(strength) and not schedule:
        raise ValueError(f"{name} is a schedule, which this function does not take; give a number")
    if callable(strength) or isinstance(strength, jax.core.Tracer):
        return
    values = np.asarray(strength, np.float64).ravel()
    bad = values[~(np.isfinite(values) & (values >= 0))]
    if bad.size:
        raise ValueError(f"{name} {bad[0]} is not a non-negative number; give 0 to switch it off")


def value_at(value: Strength, count: Array) -> Any:
    """Return a number as it is, or the value of a schedule at a count.

    >>> value_at(optax.constant_schedule(2.0), jnp.int32(3)), value_at(0.5, jnp.int32(3))
    (2.0, 0.5)
    """
    return value(count) if callable(value) else value


def layer_weights(sizes: tuple[int, ...], scale: str) -> Float[Array, " layers"]:
    """Return the factor of each layer's divergence: 1 (``"sum"``) or its size (``"size"``).

    >>> layer_weights((4, 9), "size").tolist()
    [4.0, 9.0]
    """
    if scale == "sum":
        return jnp.ones(len(sizes), jnp.float32)
    if scale == "size":
        return jnp.asarray(sizes, jnp.float32)
    raise ValueError(f"scale {scale!r} is unknown; give 'sum' (the paper's) or 'size'")
