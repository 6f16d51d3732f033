"""The momentum of a running statistic, found from what a step makes of a large old value.

A step leaves ``m old + (1 - m) batch``. From a large old value L it leaves ``high`` and from 0 it
leaves ``low``, for the same batch, so ``m = (high - low) / L`` up to the rounding of the step's
dtype. What is needed is 1 - m, of which that rounding is a far larger share: m = 0.999 rounded to
float32 is an error of 3e-5 relative to 1 - m. Momenta are written down with few decimals, so the
simplest decimal number that rounds to what was seen is taken.
"""

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

# What 1 - m may be wrong by, relatively, if m is not the simplest number: half precision tells
# momenta up to 0.99 in float16 and up to 0.93 in bfloat16.
_TOLERANCE = 1 / 16

NOT_FINITE, NO_AVERAGE, TOO_COARSE = 1, 2, 3
FAULTS = {
    NOT_FINITE: "is not finite after a step from a large old value; let the step keep it in "
    "float32",
    NO_AVERAGE: "is no running average: a step does not leave momentum * old + (1 - momentum) * "
    "batch; give select without it",
    TOO_COARSE: "comes back in half precision, which cannot tell its momentum from 1; let the step "
    "keep it in float32",
}


def probe_size(dtype: DTypeLike) -> float:
    """An old value beside which a batch is small, and which a step in this dtype can hold.

    >>> probe_size(jnp.float16), probe_size(jnp.float32) == 2.0**60
    (32768.0, True)
    """
    return 2.0**15 if dtype == jnp.float16 else 2.0**60


def share_of(probe: float, high: Array, low: Array, dtype: DTypeLike) -> tuple[Array, Array]:
    """The batch's share 1 - m of a statistic that is not frozen, and what is wrong with it.

    Args:
      probe: the large old value.
      high: what a step leaves of it.
      low: what the same step leaves of 0.
      dtype: the dtype in which the step returns the statistic.

    Returns:
      The share in (0, 1], and a key of `FAULTS` or 0 for none.

    >>> share, fault = share_of(2.0**15, jnp.float16(0.9) * 2.0**15, jnp.zeros(()), jnp.float16)
    >>> round(float(share), 6), int(fault)
    (0.1, 0)
    """
    precision = float(jnp.finfo(dtype).eps) / 2
    momentum = (high - low) / probe
    if jnp.finfo(dtype).bits == 16:
        share = 1 - _simplest(momentum, precision)
    else:
        digits = 1e7 if jnp.finfo(dtype).bits == 32 else 1e14
        share = jnp.round((1 - momentum) * digits) / digits
        # Not 0, which stands for a frozen statistic.
        share = jnp.where((share <= 0) & (momentum < 1 + precision), 1 / digits, share)
    fault = jnp.where(share * _TOLERANCE < precision, TOO_COARSE, 0)
    fault = jnp.where((share > 1 + precision) | (share < -precision), NO_AVERAGE, fault)
    fault = jnp.where(jnp.isfinite(momentum), fault, NOT_FINITE)
    return jnp.clip(share, precision, 1.0), fault


def _simplest(value: Array, error: float) -> Array:
    """The number of fewest decimals within an error of a value."""
    found = value
    for digits in (1e4, 1e3, 1e2, 1e1):
        rounded = jnp.round(value * digits) / digits
        found = jnp.where(jnp.abs(rounded - value) <= error, rounded, found)
    return found
