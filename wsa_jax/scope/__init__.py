"""Weight scopes: their layers, moments, fusion and divergence, and regularization towards them."""

from wsa_jax.scope.layers import (
    all_leaves,
    constant_layers,
    kernels,
    matching,
    matrices,
    stacked,
    without,
)
from wsa_jax.scope.proximal import proximal_scope, proximal_scope_step
from wsa_jax.scope.regularization import (
    regularize_scope,
    scope_gradient,
    scope_penalty,
    scope_window,
)
from wsa_jax.scope.scope import (
    WeightScope,
    constant_target,
    fuse_scopes,
    scope_divergence,
    weight_scope,
)
from wsa_jax.scope.stability import check_stability, stability

__all__ = [
    "WeightScope",
    "all_leaves",
    "check_stability",
    "constant_layers",
    "constant_target",
    "fuse_scopes",
    "kernels",
    "matching",
    "matrices",
    "proximal_scope",
    "proximal_scope_step",
    "regularize_scope",
    "scope_divergence",
    "scope_gradient",
    "scope_penalty",
    "scope_window",
    "stability",
    "stacked",
    "weight_scope",
    "without",
]
