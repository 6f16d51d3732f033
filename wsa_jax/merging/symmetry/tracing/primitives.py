"""What is known of each primitive: its effect on axes, and how its result scales.

One table. A primitive that is not in it pins every axis that it meets.
"""

from fractions import Fraction

from wsa_jax.merging.symmetry.tracing import (
    rules_compute,
    rules_index,
    rules_loops,
    rules_shape,
)
from wsa_jax.merging.symmetry.tracing.interpreter import AxisRule, Primitive
from wsa_jax.merging.symmetry.tracing.rules_compute import elementwise
from wsa_jax.merging.symmetry.tracing.rules_shape import along
from wsa_jax.merging.symmetry.tracing.steps import Power, Scaling, ScalingRule


def _table(axes: AxisRule, names: dict[ScalingRule, str]) -> dict[str, Primitive]:
    return {
        name: Primitive(axes, scaling)
        for scaling, listed in names.items()
        for name in listed.split()
    }


_ELEMENTWISE: dict[ScalingRule, str] = {
    Scaling.SAME: """
        neg copy copy_p convert_element_type reduce_precision name stop_gradient device_put real
        imag pvary sharding_constraint layout_constraint""",
    Scaling.SUM: "add sub add_any",
    Scaling.PRODUCT: "mul",
    Scaling.QUOTIENT: "div",
    Scaling.EXTREME: "max min clamp",
    Scaling.SELECTED: "select_n",
    Scaling.COMPARED: "eq ne lt le gt ge eq_to le_to lt_to",
    Power(0): "sign is_finite",
    Power(1): "abs",
    Power(2): "square",
    Power(Fraction(1, 2)): "sqrt",
    Power(Fraction(-1, 2)): "rsqrt",
    Power(Fraction(1, 3)): "cbrt",
    Power(None): "integer_pow",
    Scaling.NONE: """
        acos acosh and asin asinh atan atan2 atanh bessel_i0e bessel_i1e ceil clz complex conj cos
        cosh digamma erf erf_inv erfc exp exp2 expm1 floor igamma igamma_grad_a igammac lgamma log
        log1p log2 logistic mulhi nextafter not one_minus_square or polygamma population_count pow
        random_gamma_grad regularized_incomplete_beta rem round shard_alike shift_left
        shift_right_arithmetic shift_right_logical sin sinh tan tanh xor zeta""",
}
_REDUCTIONS: dict[ScalingRule, str] = {
    Scaling.LINEAR: "reduce_sum",
    Scaling.KEPT: "reduce_max reduce_min",
    Scaling.NONE: "reduce_prod reduce_and reduce_or reduce_xor",
}
_WINDOWS: dict[ScalingRule, str] = {
    Scaling.LINEAR: "reduce_window_sum",
    Scaling.KEPT: "reduce_window_max reduce_window_min",
    Scaling.NONE: "reduce_window",
}
_SCATTERS: dict[ScalingRule, str] = {
    Scaling.SUM: "scatter scatter-add scatter-sub scatter_add scatter_sub",
    Scaling.EXTREME: "scatter-max scatter-min scatter_max scatter_min",
    Scaling.NONE: "scatter-mul scatter_mul",
}
_MATRICES: dict[ScalingRule, str] = {
    Scaling.NONE: """
        cholesky eig eigh geqrf householder_product hessenberg lu qr schur svd triangular_solve
        tridiagonal""",
}

PRIMITIVES: dict[str, Primitive] = {
    **_table(elementwise, _ELEMENTWISE),
    **_table(rules_compute.reduce, _REDUCTIONS),
    **_table(rules_compute.reduce_window, _WINDOWS),
    # Products.
    "dot_general": Primitive(rules_compute.dot_general),
    "ragged_dot_general": Primitive(rules_compute.ragged_dot),
    "conv_general_dilated": Primitive(rules_compute.convolution),
    # Order matters along an axis.
    "sort": Primitive(along("dimension")),
    "argmax": Primitive(rules_shape.extreme_index),
    "argmin": Primitive(rules_shape.extreme_index),
    "cumsum": Primitive(along("axis"), Scaling.LINEAR),
    "cumprod": Primitive(along("axis")),
    "cummax": Primitive(along("axis")),
    "cummin": Primitive(along("axis")),
    "cumlogsumexp": Primitive(along("axis")),
    "top_k": Primitive(rules_shape.top_k),
    "fft": Primitive(rules_shape.transforms, Scaling.LINEAR),
    **_table(rules_shape.matrices, _MATRICES),
    # Elements are moved, cut or repeated.
    "broadcast_in_dim": Primitive(rules_shape.broadcast),
    "reshape": Primitive(rules_shape.reshape),
    "transpose": Primitive(rules_shape.transpose),
    "squeeze": Primitive(rules_shape.squeeze),
    "rev": Primitive(rules_shape.reverse),
    "concatenate": Primitive(rules_shape.concatenate),
    "stack": Primitive(rules_shape.stack),
    "tile": Primitive(rules_shape.tile),
    "pad": Primitive(rules_shape.pad),
    "slice": Primitive(rules_shape.slice_),
    "split": Primitive(rules_shape.split),
    "unstack": Primitive(rules_shape.unstack),
    "dynamic_slice": Primitive(rules_index.dynamic_slice),
    "dynamic_update_slice": Primitive(rules_index.dynamic_update_slice),
    "gather": Primitive(rules_index.gather),
    "iota": Primitive(rules_shape.iota),
    **_table(rules_index.scatter, _SCATTERS),
    "bitcast_convert_type": Primitive(rules_compute.bitcast),
    "optimization_barrier": Primitive(rules_compute.pairwise),
    # Loops and branches.
    "scan": Primitive(rules_loops.scan),
    "while": Primitive(rules_loops.while_loop),
    "cond": Primitive(rules_loops.cond),
}
