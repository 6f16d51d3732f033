"""Symmetries of a model: which units move together, and what may be done to them."""

from wsa_jax.merging.symmetry.equivalence import check_equivalence
from wsa_jax.merging.symmetry.explain import explain_spec
from wsa_jax.merging.symmetry.scaling import scale_layer
from wsa_jax.merging.symmetry.spec import AxisSpec, Group, Pinned, Tie, check_spec, hand_written
from wsa_jax.merging.symmetry.taps import taps
from wsa_jax.merging.symmetry.tracing import trace_spec
from wsa_jax.merging.symmetry.units import permute_units, scale_units

__all__ = [
    "AxisSpec",
    "Group",
    "Pinned",
    "Tie",
    "check_equivalence",
    "check_spec",
    "explain_spec",
    "hand_written",
    "permute_units",
    "scale_layer",
    "scale_units",
    "taps",
    "trace_spec",
]
