"""How good a merge is: loss along a path and over a plane, barriers, and the ensemble."""

from wsa_jax.merging.evaluate.ensemble import ensemble
from wsa_jax.merging.evaluate.path import (
    LossPath,
    Path,
    accuracy_barrier,
    interpolate_path,
    loss_barrier,
)
from wsa_jax.merging.evaluate.plane import LossPlane, loss_plane

__all__ = [
    "LossPath",
    "LossPlane",
    "Path",
    "accuracy_barrier",
    "ensemble",
    "interpolate_path",
    "loss_barrier",
    "loss_plane",
]
