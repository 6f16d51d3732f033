"""Bring models' units into correspondence without changing what the models compute."""

from wsa_jax.merging.align.activation_matching import activation_matching
from wsa_jax.merging.align.apply import align
from wsa_jax.merging.align.assignment import Matching, assign
from wsa_jax.merging.align.match_many import weight_matching_many
from wsa_jax.merging.align.rescale_and_match import ScaledMatching, rescale_and_match
from wsa_jax.merging.align.rescaling import Rescaling, normalize_scales, rescale
from wsa_jax.merging.align.straight_through import straight_through
from wsa_jax.merging.align.weight_matching import weight_matching

__all__ = [
    "Matching",
    "Rescaling",
    "ScaledMatching",
    "activation_matching",
    "align",
    "assign",
    "normalize_scales",
    "rescale",
    "rescale_and_match",
    "straight_through",
    "weight_matching",
    "weight_matching_many",
]
