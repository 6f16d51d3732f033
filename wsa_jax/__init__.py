"""Train models so that they merge, then merge them: weight scope alignment on JAX pytrees."""

from wsa_jax.scope.layers import all_leaves as all_leaves
from wsa_jax.scope.layers import constant_layers as constant_layers
from wsa_jax.scope.layers import kernels as kernels
from wsa_jax.scope.layers import matching as matching
from wsa_jax.scope.layers import matrices as matrices
from wsa_jax.scope.layers import stacked as stacked
from wsa_jax.scope.layers import without as without
from wsa_jax.scope.proximal import proximal_scope as proximal_scope
from wsa_jax.scope.proximal import proximal_scope_step as proximal_scope_step
from wsa_jax.scope.regularization import regularize_scope as regularize_scope
from wsa_jax.scope.regularization import scope_gradient as scope_gradient
from wsa_jax.scope.regularization import scope_penalty as scope_penalty
from wsa_jax.scope.regularization import scope_window as scope_window
from wsa_jax.scope.scope import WeightScope as WeightScope
from wsa_jax.scope.scope import constant_target as constant_target
from wsa_jax.scope.scope import fuse_scopes as fuse_scopes
from wsa_jax.scope.scope import scope_divergence as scope_divergence
from wsa_jax.scope.scope import weight_scope as weight_scope
from wsa_jax.scope.stability import check_stability as check_stability
from wsa_jax.scope.stability import stability as stability

__version__ = "0.1.0"
