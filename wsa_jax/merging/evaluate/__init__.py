"""How good a merge is: loss along a path and over a plane, barriers, and the ensemble."""

from wsa_jax.merging.evaluate.ensemble import ensemble as ensemble
from wsa_jax.merging.evaluate.path import Path as Path
from wsa_jax.merging.evaluate.path import accuracy_barrier as accuracy_barrier
from wsa_jax.merging.evaluate.path import interpolate_path as interpolate_path
from wsa_jax.merging.evaluate.path import loss_barrier as loss_barrier
from wsa_jax.merging.evaluate.plane import LossPlane as LossPlane
from wsa_jax.merging.evaluate.plane import loss_plane as loss_plane
