"""Bring models' units into correspondence; every function here keeps the model's function."""

from wsa_jax.merging.align.assignment import Matching as Matching
from wsa_jax.merging.align.assignment import align as align
from wsa_jax.merging.align.assignment import assign as assign
from wsa_jax.merging.align.weight_matching import weight_matching as weight_matching
