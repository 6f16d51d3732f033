"""Weight scope regularization: keep the layers' scopes close to a target while training (Eq. 10).

Three forms of one idea: a loss term (`scope_penalty`), an optax transformation with the analytic
gradient (`regularize_scope`), and a proximal step that no strength can make unstable
(`proximal_scope`). The loss term and the transformation are equal to rounding.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from wsa_jax.scope import STD_FLOOR, WeightScope, check_same_layers, scope_divergence, weight_scope
from wsa_jax.select import Layer, Rule, kernels, select_layers

Scale = Literal["sum", "size"]
"""How layers add up: ``"sum"`` is the paper's sum of divergences; ``"size"`` weighs each by its n."""

Strength = float | Array | Callable[[Any], Any]
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

    Edge cases: a layer with std below `STD_FLOOR` has a finite value and a gradient on its mean only.

    Raises:
      ValueError: params and target differ in layers, or the scale is unknown.

    >>> import jax, jax.numpy as jnp
    >>> params = {"kernel": jnp.array([[1.0, -1.0], [1.0, -1.0]])}
    >>> float(scope_penalty(params, weight_scope(params)))
    0.0

    Source: WSA, Eq. 10.
    """
    divergence = scope_divergence(weight_scope(params, select=select), target)
    return jnp.sum(divergence * _layer_weights(target.sizes, scale))


def scope_gradient(
    params: PyTree, target: WeightScope, *, select: Rule = kernels, scale: Scale = "sum"
) -> PyTree:
    r"""Gradient of `scope_penalty` in closed form, without a backward pass.

    .. math:: \frac{1}{n}\Big[\frac{\mu - \tilde\mu}{\tilde\sigma^2}
              + (w - \mu)\Big(\frac{1}{\tilde\sigma^2} - \frac{1}{\sigma^2}\Big)\Big]

    Returns:
      The structure, shapes and dtypes of params; zeros where a leaf is not selected.

    Edge cases: as `scope_penalty`, and equal to its gradient by autodiff to rounding.

    >>> import jax, jax.numpy as jnp
    >>> params = {"kernel": jnp.arange(6.0).reshape(2, 3)}
    >>> target = weight_scope({"kernel": jnp.eye(2, 3)})
    >>> by_autodiff = jax.grad(scope_penalty)(params, target)["kernel"]
    >>> bool(jnp.allclose(scope_gradient(params, target)["kernel"], by_autodiff, rtol=1e-5))
    True
    """
    scope = weight_scope(params, select=select)
    check_same_layers(scope, target)
    size = jnp.asarray(target.sizes, jnp.float32)
    per_weight = _layer_weights(target.sizes, scale) / size
    target_precision = 1.0 / jnp.square(jnp.maximum(target.std, STD_FLOOR))
    precision = 1.0 / jnp.square(jnp.maximum(scope.std, STD_FLOOR))
    slope = per_weight * jnp.where(scope.std > STD_FLOOR, target_precision - precision, 0.0)
    pull = per_weight * (scope.mean - target.mean) * target_precision
    return _map_layers(
        lambda weight, mean, pull, slope: pull + (weight - mean) * slope,
        params, select_layers(params, select), (scope.mean, pull, slope), other=jnp.zeros_like,
    )  # fmt: skip


def regularize_scope(
    strength: Strength, *, select: Rule = kernels, scale: Scale = "sum"
) -> optax.GradientTransformationExtraArgs:
    """Add ``strength`` times the gradient of the scope penalty to the updates.

    Chain it before clipping and before the optimiser, and give the target at each update::

        optimizer = optax.chain(wsa_jax.regularize_scope(1.0), optax.sgd(0.1))
        updates, state = optimizer.update(grads, state, params, target=target)

    Args:
      strength: a non-negative number, a traced scalar, or a schedule of the number of updates.
      select: rule that says which leaves are layers.
      scale: see `scope_penalty`.

    Guarantees: equal to the loss term by autodiff to rounding; composes under ``optax.chain``,
    ``jit``, ``vmap`` and ``scan``; dtypes of the updates are kept. Strength 0 leaves them as they are.

    Raises:
      ValueError: strength is negative or NaN, or an update lacks params or target.

    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.eye(2)}
    >>> transform = regularize_scope(1.0)
    >>> zeros = {"kernel": jnp.zeros((2, 2))}
    >>> target = weight_scope(params)
    >>> updates, _ = transform.update(zeros, transform.init(params), params, target=target)
    >>> float(jnp.abs(updates["kernel"]).max())
    0.0

    Source: WSA, Eq. 10 and its gradient.
    """
    check_strength(strength)

    def init(params: PyTree) -> RegularizeScopeState:
        select_layers(params, select)
        return RegularizeScopeState(count=jnp.zeros((), jnp.int32))

    def update(
        updates: PyTree,
        state: RegularizeScopeState,
        params: PyTree | None = None,
        *,
        target: WeightScope | None = None,
        **extra: Any,
    ) -> tuple[PyTree, RegularizeScopeState]:
        del extra
        if params is None or target is None:
            missing = "params" if params is None else "target"
            raise ValueError(
                f"regularize_scope got no {missing}: call update(updates, state, params, target=scope)"
            )
        scaled = strength(state.count) if callable(strength) else strength
        gradient = scope_gradient(params, target, select=select, scale=scale)
        updates = jax.tree.map(lambda u, g: u + (scaled * g).astype(u.dtype), updates, gradient)
        return updates, RegularizeScopeState(count=optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


def proximal_scope_step(
    params: PyTree,
    target: WeightScope,
    *,
    step_size: float | Float[Array, ""],
    strength: float | Float[Array, ""],
    select: Rule = kernels,
    scale: Scale = "sum",
) -> PyTree:
    r"""Move the scope of each layer towards the target by the exact proximal step.

    .. math:: \arg\min_{w'} s \, D_{KL}(w') + \frac{\|w' - w\|^2}{2t}, \qquad k = \frac{t s}{n},\quad
              \mu' = \frac{\mu + k \tilde\mu / \tilde\sigma^2}{1 + k / \tilde\sigma^2},\quad
              (1 + k/\tilde\sigma^2) \sigma'^2 - \sigma \sigma' - k = 0

    The minimiser keeps the standardised weights ``(w - mean) / std``; only mean and std move.

    Args:
      params: any pytree of arrays.
      target: scope of the same layers.
      step_size: t, the learning rate of the optimiser step before it.
      strength: s, as in `scope_penalty`.
      select: rule that says which leaves are layers.
      scale: see `scope_penalty`.

    Returns:
      Parameters of the same structure, shapes and dtypes.

    Guarantees: stable for every step size and strength, where the explicit gradient is not: mean
    and std move monotonically towards the target and never past it. Strength 0 keeps the scope.

    Edge cases: std below `STD_FLOOR` moves the mean only (the standardised weights are undefined).

    Raises:
      ValueError: params and target differ in layers, or the scale is unknown.

    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.array([[3.0, 5.0]])}
    >>> target = weight_scope({"kernel": jnp.array([[-2.0, 2.0]])})
    >>> moved = proximal_scope_step(params, target, step_size=1e6, strength=1e6)
    >>> moved["kernel"].round(3).tolist()
    [[-2.0, 2.0]]

    Source: ours; the minimiser of WSA's Eq. 3 plus a quadratic.
    """
    scope = weight_scope(params, select=select)
    check_same_layers(scope, target)
    size = jnp.asarray(target.sizes, jnp.float32)
    k = step_size * strength * _layer_weights(target.sizes, scale) / size
    precision = 1.0 / jnp.square(jnp.maximum(target.std, STD_FLOOR))
    # Divided by (1 + k precision), so that huge k neither overflows nor loses the target.
    keep = 1.0 / (1.0 + k * precision)
    mean = keep * scope.mean + (1.0 - keep) * target.mean
    half = 0.5 * keep * scope.std
    std = half + jnp.sqrt(jnp.square(half) + keep * k)
    moves = scope.std > STD_FLOOR
    ratio = jnp.where(moves, std / jnp.where(moves, scope.std, 1.0), 1.0)
    return _map_layers(
        lambda weight, old, new, ratio: new + (weight - old) * ratio,
        params, select_layers(params, select), (scope.mean, mean, ratio), other=lambda leaf: leaf,
    )  # fmt: skip


def proximal_scope(
    learning_rate: Strength, strength: Strength, *, select: Rule = kernels, scale: Scale = "sum"
) -> optax.GradientTransformationExtraArgs:
    """Follow the updates before it by `proximal_scope_step`, as the last link of an optax chain.

    ``optax.chain(optax.sgd(rate), proximal_scope(rate, strength))``: the updates it returns lead
    from params to the proximal step of ``params + updates``.

    Raises:
      ValueError: strength is negative or NaN, or an update lacks params or target.

    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.array([[3.0, 5.0]])}
    >>> target = weight_scope({"kernel": jnp.array([[-2.0, 2.0]])})
    >>> optimizer = optax.chain(optax.sgd(0.1), proximal_scope(0.1, 1e6))
    >>> zeros = {"kernel": jnp.zeros((1, 2))}
    >>> updates, _ = optimizer.update(zeros, optimizer.init(params), params, target=target)
    >>> optax.apply_updates(params, updates)["kernel"].round(2).tolist()
    [[-2.0, 2.0]]
    """
    check_strength(strength)
    if not callable(learning_rate):
        check_strength(learning_rate, "learning_rate")

    def init(params: PyTree) -> RegularizeScopeState:
        select_layers(params, select)
        return RegularizeScopeState(count=jnp.zeros((), jnp.int32))

    def update(
        updates: PyTree,
        state: RegularizeScopeState,
        params: PyTree | None = None,
        *,
        target: WeightScope | None = None,
        **extra: Any,
    ) -> tuple[PyTree, RegularizeScopeState]:
        del extra
        if params is None or target is None:
            missing = "params" if params is None else "target"
            raise ValueError(
                f"proximal_scope got no {missing}: call update(updates, state, params, target=scope)"
            )
        moved = proximal_scope_step(
            optax.apply_updates(params, updates),
            target,
            step_size=_at(learning_rate, state.count),
            strength=_at(strength, state.count),
            select=select,
            scale=scale,
        )
        updates = jax.tree.map(
            lambda u, new, old: (new - old).astype(u.dtype), updates, moved, params
        )
        return updates, RegularizeScopeState(count=optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


def scope_window(
    strength: float, *, start: int = 0, stop: int | None = None
) -> Callable[[Any], Array]:
    """Schedule that is ``strength`` in the window [start, stop) and 0 outside (the paper's Fig. 10).

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


def stability(
    scope: WeightScope,
    target: WeightScope,
    *,
    learning_rate: float | Float[Array, ""],
    strength: float | Float[Array, ""],
    scale: Scale = "sum",
) -> Float[Array, "*models layers"]:
    r"""How much of the stable range an explicit gradient step uses in each layer: below 1 is stable.

    .. math:: \frac{\eta \lambda}{2 n} \Big(\frac{1}{\tilde\sigma^2} + \frac{1}{\sigma^2}\Big) < 1

    Near the target this is a = η λ / (n σ̃²): a step moves the mean by the factor 1 - a and the std by
    1 - 2a, so both shrink towards the target only for a < 1. ``scale="size"`` drops the n.

    >>> import jax.numpy as jnp
    >>> scope = WeightScope(mean=jnp.zeros(1), std=jnp.full(1, 0.1), names=("w",), sizes=(10,))
    >>> round(float(stability(scope, scope, learning_rate=0.01, strength=10.0)[0]), 3)
    1.0
    """
    check_same_layers(scope, target)
    size = jnp.asarray(target.sizes, jnp.float32)
    rate = learning_rate * strength * _layer_weights(target.sizes, scale) / size
    # A constant layer has no std to overshoot: only its mean moves.
    std = jnp.where(scope.std > STD_FLOOR, scope.std, target.std)
    precision = jnp.maximum(target.std, STD_FLOOR) ** -2.0
    return 0.5 * rate * (precision + jnp.maximum(std, STD_FLOOR) ** -2.0)


def check_stability(
    scope: WeightScope,
    target: WeightScope,
    *,
    learning_rate: float,
    strength: float,
    scale: Scale = "sum",
) -> None:
    """Refuse an explicit gradient step that would overshoot its target: a host check.

    Raises:
      ValueError: a layer is outside the bound of `stability`; names the worst layer, its value, and
        the ways out. Also where the scope holds NaN.

    >>> import jax.numpy as jnp
    >>> scope = WeightScope(mean=jnp.zeros(1), std=jnp.full(1, 0.1), names=("bias",), sizes=(10,))
    >>> check_stability(scope, scope, learning_rate=0.01, strength=50.0)
    Traceback (most recent call last):
    ValueError: weight scope regularization is unstable in layer bias: learning_rate 0.01 x strength 50...
    """
    used = np.asarray(
        stability(scope, target, learning_rate=learning_rate, strength=strength, scale=scale)
    )
    used = used.reshape(-1, used.shape[-1]).max(axis=0)
    if np.isnan(used).any():
        name = scope.names[int(np.argmax(np.isnan(used)))]
        raise ValueError(f"layer {name} holds NaN: check the parameters before regularizing them")
    worst = int(np.argmax(used))
    if used[worst] >= 1:
        largest = strength / float(used[worst])
        raise ValueError(
            f"weight scope regularization is unstable in layer {scope.names[worst]}: learning_rate "
            f"{learning_rate:g} x strength {strength:g} uses {used[worst]:.3g} of the stable range "
            f"(n = {scope.sizes[worst]}); use the proximal form, strength < {largest:.3g}, a smaller "
            "learning rate, or leave the layer out by select"
        )


def check_strength(strength: Strength, name: str = "strength") -> None:
    """Raise a ValueError where a concrete strength is negative or NaN; schedules pass.

    >>> check_strength(-1.0)
    Traceback (most recent call last):
    ValueError: strength -1.0 is not a non-negative number; ...
    """
    if callable(strength) or isinstance(strength, jax.core.Tracer):
        return
    if not np.all(np.asarray(strength) >= 0) or not np.all(np.isfinite(np.asarray(strength))):
        raise ValueError(f"{name} {strength} is not a non-negative number; give 0 to switch it off")


def _at(value: Strength, count: Array) -> Any:
    return value(count) if callable(value) else value


def _layer_weights(sizes: tuple[int, ...], scale: str) -> Array:
    if scale == "sum":
        return jnp.ones(len(sizes), jnp.float32)
    if scale == "size":
        return jnp.asarray(sizes, jnp.float32)
    raise ValueError(f"scale {scale!r} is unknown; give 'sum' (the paper's) or 'size'")


def _map_layers(
    fun: Callable[..., Array],
    params: PyTree,
    layers: tuple[Layer, ...],
    vectors: tuple[Float[Array, " layers"], ...],
    *,
    other: Callable[[Any], Any],
) -> PyTree:
    """Apply ``fun(leaf, *values of its layer)`` in float32 to selected leaves, ``other`` elsewhere."""
    leaves, structure = jax.tree.flatten(params)
    mapped = [other(leaf) if hasattr(leaf, "dtype") else leaf for leaf in leaves]
    first = {}
    for position, layer in enumerate(layers):
        first.setdefault(layer.leaf, (position, layer.axis))
    for leaf, (position, axis) in first.items():
        weight = jnp.asarray(leaves[leaf])
        if axis is None:
            values = [vector[position] for vector in vectors]
        else:
            count = weight.shape[axis]
            shape = tuple(count if i == axis else 1 for i in range(weight.ndim))
            values = [vector[position : position + count].reshape(shape) for vector in vectors]
        mapped[leaf] = fun(weight.astype(jnp.float32), *values).astype(weight.dtype)
    return jax.tree.unflatten(structure, mapped)
