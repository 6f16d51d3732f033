"""Bring models' units into correspondence; every function here keeps the model's function."""

from wsa_jax.merging.align.activation_matching import activation_matching as activation_matching
from wsa_jax.merging.align.assignment import Matching as Matching
from wsa_jax.merging.align.assignment import align as align
from wsa_jax.merging.align.assignment import assign as assign
from wsa_jax.merging.align.match_many import weight_matching_many as weight_matching_many
from wsa_jax.merging.align.straight_through import straight_through as straight_through
from wsa_jax.merging.align.weight_matching import weight_matching as weight_matching
