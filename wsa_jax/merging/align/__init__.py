"""Bring models' units into correspondence without changing what the models compute."""

from wsa_jax.merging.align.activation_matching import activation_matching as activation_matching
from wsa_jax.merging.align.apply import align as align
from wsa_jax.merging.align.assignment import Matching as Matching
from wsa_jax.merging.align.assignment import assign as assign
from wsa_jax.merging.align.match_many import weight_matching_many as weight_matching_many
from wsa_jax.merging.align.rescale_and_match import ScaledMatching as ScaledMatching
from wsa_jax.merging.align.rescale_and_match import rescale_and_match as rescale_and_match
from wsa_jax.merging.align.rescaling import Rescaling as Rescaling
from wsa_jax.merging.align.rescaling import normalize_scales as normalize_scales
from wsa_jax.merging.align.rescaling import rescale as rescale
from wsa_jax.merging.align.straight_through import straight_through as straight_through
from wsa_jax.merging.align.weight_matching import weight_matching as weight_matching
