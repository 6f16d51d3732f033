"""Numbers that may be schedules: their value at a step, and their check at the door."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Real

from wsa_jax.types import Strength

_LARGEST = float(np.finfo(np.float32).max)


def value_at(value: Strength, count: Array) -> Any:
    """Return a number as it is, or the value of a schedule at a count.

    >>> value_at(lambda step: 2.0 * step, jax.numpy.int32(3)), value_at(0.5, jax.numpy.int32(3))
    (Array(6., dtype=float32, weak_type=True), 0.5)
    """
    return value(count) if callable(value) else value


def check_non_negative(
    value: Strength | Real[np.ndarray, " rounds"],
    name: str = "strength",
    *,
    schedule: bool = True,
) -> None:
    """Raise a ValueError if a known number is negative, not finite or beyond float32.

    Schedules pass, unless ``schedule`` is False: then they are refused as well.

    >>> check_non_negative(-1.0)
    Traceback (most recent call last):
    ValueError: strength -1.0 is not a non-negative number; ...
    """
    if callable(value) and not schedule:
        raise ValueError(f"{name} is a schedule, which this function does not take; give a number")
    if callable(value) or isinstance(value, jax.core.Tracer):
        return
    values = np.asarray(value, np.float64).ravel()
    bad = values[~(np.isfinite(values) & (values >= 0))]
    if bad.size:
        raise ValueError(f"{name} {bad[0]} is not a non-negative number; give 0 to switch it off")
    if values.size and values.max() > _LARGEST:
        raise ValueError(f"{name} {values.max():g} is beyond float32; give at most {_LARGEST:.3g}")
