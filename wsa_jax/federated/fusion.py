"""What clients send of their weight scopes, as sums, and the target that the server makes of it."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from wsa_jax.scope.scope import WeightScope

Fusion = Literal["mean_square", "pooled", "sum"]


def scope_moments(
    scope: WeightScope, target: WeightScope, fusion: Fusion
) -> tuple[Float[Array, " layers"], Float[Array, " layers"]]:
    """Mean and second moment of a client's layers, whose averages give the next target.

    "pooled" takes the second moment about the old target's mean, which every client knows: about 0,
    the squares of large means would drown the variance.
    """
    variance = jnp.square(scope.std)
    if fusion == "pooled":
        variance = variance + jnp.square(scope.mean - target.mean)
    return jnp.asarray(scope.mean), variance


def fused_moments(
    means: tuple[Float[Array, " layers"], Float[Array, " layers"]],
    count: Float[Array, ""],
    target: WeightScope,
    fusion: Fusion,
) -> tuple[Float[Array, " layers"], Float[Array, " layers"]]:
    """Mean and std of the next target, of the averages over `count` clients.

    >>> import jax.numpy as jnp
    >>> from wsa_jax.scope.scope import WeightScope
    >>> old = WeightScope(mean=jnp.zeros(1), std=jnp.ones(1), names=("w",), sizes=(9,))
    >>> averages = (jnp.array([0.5]), jnp.array([4.0]))
    >>> for fusion in ("mean_square", "sum"):
    ...     print(fused_moments(averages, jnp.float32(9), old, fusion)[1])
    [2.]
    [6.]
    """
    mean, second = means
    if fusion == "pooled":
        # Rounding may leave less than nothing where all clients agree on a layer without spread.
        second = jnp.maximum(second - jnp.square(mean - target.mean), 0.0)
    if fusion == "sum":
        second = count * second
    return mean, jnp.sqrt(second)
