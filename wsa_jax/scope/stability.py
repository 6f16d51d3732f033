"""The bound within which an explicit regularization step shrinks towards its target."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from wsa_jax.door import door
from wsa_jax.scope.scope import (
    STD_FLOOR,
    Direction,
    WeightScope,
    check_same_layers,
    is_paper_direction,
    lift,
)
from wsa_jax.scope.transformation import Scale, layer_weights


@door
def stability(
    scope: WeightScope,
    target: WeightScope,
    *,
    learning_rate: Real[ArrayLike, ""],
    strength: Real[ArrayLike, ""],
    scale: Scale = "sum",
    direction: Direction = "weights||target",
) -> Float[Array, "*models layers"]:
    r"""Share of the stable range that an explicit step uses in each layer; below 1 is stable.

    .. math:: \frac{\eta \lambda}{2 n} \Big(\frac{1}{\tilde\sigma^2} + \frac{1}{\sigma^2}\Big) < 1

    Near the target this is a = η λ / (n σ̃²): a step moves the mean by the factor 1 - a and
    the std by 1 - 2a, so both shrink towards the target only for a < 1.
    ``scale="size"`` drops the n. In the direction ``"target||weights"`` the bound is

    .. math:: \frac{\eta \lambda}{2 n} \Big(\frac{1}{\sigma^2} + \frac{s}{\sigma^3}\Big) < 1,
              \qquad s^2 = \tilde\sigma^2 + (\mu - \tilde\mu)^2

    the same near the target, but far smaller where weights are narrower than their target, and
    wider where they are wider.

    >>> import jax.numpy as jnp
    >>> scope = WeightScope(mean=jnp.zeros(1), std=jnp.full(1, 0.1), names=("w",), sizes=(10,))
    >>> round(float(stability(scope, scope, learning_rate=0.01, strength=10.0)[0]), 3)
    1.0
    """
    check_same_layers(scope, target)
    size = jnp.asarray(target.sizes, jnp.float32)
    rate = learning_rate * strength * layer_weights(target.sizes, scale) / size
    # A constant layer has no std to overshoot: only its mean moves.
    target_std = lift(jnp.maximum(target.std, STD_FLOOR), scope.std.ndim)
    std = jnp.where(scope.std <= STD_FLOOR, target_std, scope.std)
    if is_paper_direction(direction):
        bound = target_std**-2.0 + std**-2.0
    else:
        wanted = jnp.hypot(target_std, scope.mean - lift(target.mean, std.ndim))
        bound = std**-2.0 * (1.0 + wanted / std)
    return 0.5 * lift(rate, std.ndim) * bound


# Compiled whole: each operation on its own is a program, and the check takes a second at first.
_stability = jax.jit(stability, static_argnames=("scale", "direction"))


@door
def check_stability(
    scope: WeightScope,
    target: WeightScope,
    *,
    learning_rate: Real[ArrayLike, ""],
    strength: Real[ArrayLike, ""],
    scale: Scale = "sum",
    direction: Direction = "weights||target",
) -> None:
    """Refuse an explicit gradient step that would overshoot its target: a host check.

    Raises:
      ValueError: a layer is outside the bound of `stability`, or the scope holds NaN; the message
        names the worst layer, its value and the ways out.

    >>> import jax.numpy as jnp
    >>> scope = WeightScope(mean=jnp.zeros(1), std=jnp.full(1, 0.1), names=("bias",), sizes=(10,))
    >>> check_stability(scope, scope, learning_rate=0.01, strength=50.0)
    Traceback (most recent call last):
    ValueError: weight scope regularization is unstable in layer bias: ...
    """
    used = np.asarray(
        _stability(
            scope,
            target,
            learning_rate=learning_rate,
            strength=strength,
            scale=scale,
            direction=direction,
        )
    )
    used = used.reshape(-1, used.shape[-1]).max(axis=0)
    if np.isnan(used).any():
        name = scope.names[int(np.argmax(np.isnan(used)))]
        raise ValueError(f"layer {name} holds NaN: check the parameters before regularizing them")
    worst = int(np.argmax(used))
    if used[worst] >= 1:
        largest = strength / float(used[worst])
        raise ValueError(
            f"weight scope regularization is unstable in layer {scope.names[worst]}: "
            f"learning_rate {learning_rate:g} x strength {strength:g} uses {used[worst]:.3g} "
            f"of the stable range (n = {scope.sizes[worst]}); use the proximal form, "
            f"strength < {largest:.3g}, a smaller learning rate, or a select without that layer"
        )


def check_bound(
    scope: WeightScope,
    target: WeightScope,
    rates: np.ndarray,
    strengths: np.ndarray,
    *,
    scale: Scale = "sum",
    direction: Direction = "weights||target",
) -> None:
    """`check_stability` for a run: at its largest step, from its initial scope and at its target.

    ``rates`` and ``strengths`` hold one number per step or round.

    >>> scope = WeightScope(mean=jnp.zeros(1), std=jnp.full(1, 0.1), names=("bias",), sizes=(10,))
    >>> narrow = WeightScope(mean=jnp.zeros(1), std=jnp.full(1, 0.05), names=("bias",), sizes=(10,))
    >>> check_bound(scope, narrow, np.full(2, 0.01), np.array([0.0, 3.0]))
    Traceback (most recent call last):
    ValueError: weight scope regularization is unstable in layer bias: ... uses 1.2 of the ...
    """
    worst = int(np.argmax(rates * strengths))
    for reached in (scope, target):
        check_stability(
            reached,
            target,
            learning_rate=float(rates[worst]),
            strength=float(strengths[worst]),
            scale=scale,
            direction=direction,
        )
