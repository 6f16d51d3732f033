"""Bring models' units into correspondence: by orders and scales, or by maps that mix units."""

from wsa_jax.merging.align.activation_matching import activation_matching
from wsa_jax.merging.align.activation_transport import activation_transport
from wsa_jax.merging.align.apply import align
from wsa_jax.merging.align.assignment import Matching, assign
from wsa_jax.merging.align.canonical_correlation import canonical_correlation
from wsa_jax.merging.align.match_many import weight_matching_many
from wsa_jax.merging.align.rescale_and_match import ScaledMatching, rescale_and_match
from wsa_jax.merging.align.rescaling import Rescaling, normalize_scales, rescale
from wsa_jax.merging.align.straight_through import straight_through
from wsa_jax.merging.align.unit_maps import UnitMaps
from wsa_jax.merging.align.weight_matching import weight_matching
from wsa_jax.merging.align.weight_transport import weight_transport
from wsa_jax.merging.align.zip_units import Zipped, zip_merge, zip_units

__all__ = [
    "Matching",
    "Rescaling",
    "ScaledMatching",
    "UnitMaps",
    "Zipped",
    "activation_matching",
    "activation_transport",
    "align",
    "assign",
    "canonical_correlation",
    "normalize_scales",
    "rescale",
    "rescale_and_match",
    "straight_through",
    "weight_matching",
    "weight_matching_many",
    "weight_transport",
    "zip_merge",
    "zip_units",
]
