"""Checks of training settings, for local training and for `fit`."""

import math
import numbers
from typing import Any


def check_count(name: str, value: Any) -> None:
    """Raise a ValueError unless a setting is a positive integer.

    >>> check_count("steps", 0)
    Traceback (most recent call last):
    ValueError: steps must be a positive integer, got 0
    """
    if not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value}")


def check_sgd(settings: Any) -> None:
    """Raise a ValueError if steps, batch_size, clip_norm, weight_decay or momentum is invalid.

    >>> from wsa_jax.training.fit import FitSettings
    >>> FitSettings(steps=10, momentum=-0.9)
    Traceback (most recent call last):
    ValueError: momentum -0.9 is not in [0, 1); give 0 for none
    """
    for name in ("steps", "batch_size"):
        check_count(name, getattr(settings, name))
    clip_norm, decay, momentum = settings.clip_norm, settings.weight_decay, settings.momentum
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm {clip_norm} is not positive; give None for no clipping")
    if not 0 <= decay < math.inf:
        raise ValueError(f"weight_decay {decay} is not in [0, inf); give 0 for none")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum {momentum} is not in [0, 1); give 0 for none")
