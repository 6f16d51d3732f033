"""The proximal form of weight scope regularization: exact, and stable at every strength."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, PyTree, Real

from wsa_jax.door import door
from wsa_jax.schedules import check_non_negative, value_at
from wsa_jax.scope.layers import Rule, kernels, map_layers, select_layers
from wsa_jax.scope.scope import (
    STD_FLOOR,
    WeightScope,
    check_one_model,
    check_same_layers,
    scope_in_a_step,
)
from wsa_jax.scope.transformation import Scale, layer_weights, map_updates, targeted_transformation
from wsa_jax.types import Strength


@door
def proximal_scope_step(
    params: PyTree,
    target: WeightScope,
    *,
    step_size: Real[ArrayLike, ""],
    strength: Real[ArrayLike, ""],
    select: Rule = kernels,
    scale: Scale = "sum",
) -> PyTree:
    r"""Move the scope of each layer towards the target by the exact proximal step.

    .. math:: \arg\min_{w'} s \, D_{KL}(w') + \frac{\|w' - w\|^2}{2t}, \qquad k = \frac{t s}{n},

              \mu' = \frac{\mu + k \tilde\mu / \tilde\sigma^2}{1 + k / \tilde\sigma^2},\quad
              (1 + k/\tilde\sigma^2) \sigma'^2 - \sigma \sigma' - k = 0

    The minimiser keeps the standardised weights ``(w - mean) / std``; only mean and std move. The
    divergence is the paper's, of the weights from the target: of the other direction there is no
    proximal form, since its step may have several minima.

    Args:
      params: any pytree of arrays.
      target: scope of the same layers, ``[layers]``.
      step_size: t, the learning rate of the preceding optimiser step.
      strength: s, as in `scope_penalty`.
      select: rule that says which leaves are layers.
      scale: see `scope_penalty`.

    Returns:
      Parameters of the same structure, shapes and dtypes.

    Guarantees: stable for every step size and strength, unlike the explicit gradient: mean and std
    move monotonically towards the target and never past it. Strength 0 is the identity.

    Edge cases: where std is below `STD_FLOOR`, only the mean moves (the standardised weights are
    undefined).

    Raises:
      ValueError: params and target differ in layers, the target is of several models, or the scale
        is unknown.

    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.array([[3.0, 5.0]])}
    >>> from wsa_jax import weight_scope
    >>> target = weight_scope({"kernel": jnp.array([[-2.0, 2.0]])})
    >>> moved = proximal_scope_step(params, target, step_size=1e6, strength=1e6)
    >>> moved["kernel"].round(3).tolist()
    [[-2.0, 2.0]]

    Source: ours; the minimiser of WSA's Eq. 3 plus a quadratic.
    """
    for name, value in (("step_size", step_size), ("strength", strength)):
        check_non_negative(value, name, schedule=False)
    check_one_model(target)
    scope = scope_in_a_step(params, select)
    check_same_layers(scope, target)
    size = jnp.asarray(target.sizes, jnp.float32)
    k = step_size * strength * layer_weights(target.sizes, scale) / size
    precision = 1.0 / jnp.square(jnp.maximum(target.std, STD_FLOOR))
    # Divided by (1 + k precision), so that huge k neither overflows nor loses the target.
    keep = 1.0 / (1.0 + k * precision)
    mean = keep * scope.mean + (1.0 - keep) * target.mean
    half = 0.5 * keep * scope.std
    # keep k as 1 / (1/k + precision): k may be infinite.
    std = half + jnp.sqrt(jnp.square(half) + 1.0 / (1.0 / k + precision))
    moves = scope.std > STD_FLOOR
    ratio = jnp.where(moves, std / jnp.where(moves, scope.std, 1.0), 1.0)
    return map_layers(
        lambda weight, old, new, ratio, k: jnp.where(k > 0, new + (weight - old) * ratio, weight),
        params,
        select_layers(params, select),
        (scope.mean, mean, ratio, k),
        other=lambda leaf: leaf,
    )


@door
def proximal_scope(
    learning_rate: Strength,
    strength: Strength,
    *,
    target: WeightScope | None = None,
    select: Rule = kernels,
    scale: Scale = "sum",
) -> optax.GradientTransformationExtraArgs:
    """Apply `proximal_scope_step` to the preceding updates, as the last link of an optax chain.

    ``optax.chain(optax.sgd(rate), proximal_scope(rate, strength))``: the updates it returns lead
    from params to the proximal step of ``params + updates``. Arguments, schedules and updates that
    are None are as in `regularize_scope`; learning_rate is that of the preceding optimiser.

    Raises:
      ValueError: strength is negative or NaN, or an update lacks params or target.

    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.array([[3.0, 5.0]])}
    >>> from wsa_jax import weight_scope
    >>> target = weight_scope({"kernel": jnp.array([[-2.0, 2.0]])})
    >>> optimizer = optax.chain(optax.sgd(0.1), proximal_scope(0.1, 1e6))
    >>> zeros = {"kernel": jnp.zeros((1, 2))}
    >>> updates, _ = optimizer.update(zeros, optimizer.init(params), params, target=target)
    >>> optax.apply_updates(params, updates)["kernel"].round(2).tolist()
    [[-2.0, 2.0]]
    """
    check_non_negative(strength)
    if not callable(learning_rate):
        check_non_negative(learning_rate, "learning_rate")

    def change(updates: PyTree, count: Array, params: PyTree, target: WeightScope) -> PyTree:
        # Where an update is None the parameters stay; optax applies no such update.
        stepped = jax.tree.map(
            lambda u, w: w if u is None else optax.apply_updates(w, u),
            updates,
            params,
            is_leaf=lambda leaf: leaf is None,
        )
        moved = proximal_scope_step(
            stepped,
            target,
            step_size=value_at(learning_rate, count),
            strength=value_at(strength, count),
            select=select,
            scale=scale,
        )
        return map_updates(lambda u, new, old: (new - old).astype(u.dtype), updates, moved, params)

    return targeted_transformation("proximal_scope", change, select, target)
