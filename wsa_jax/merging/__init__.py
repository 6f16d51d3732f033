"""Model merging: evaluate what lies between models."""

from wsa_jax.merging.evaluate import Path as Path
from wsa_jax.merging.evaluate import interpolate_path as interpolate_path
from wsa_jax.merging.evaluate import loss_barrier as loss_barrier
