"""Make one model of several whose units correspond."""

from wsa_jax.merging.combine.average import average as average
from wsa_jax.merging.combine.average import slerp as slerp
