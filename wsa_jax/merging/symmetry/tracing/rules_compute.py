"""Rules of primitives that compute: elementwise functions, sums, products, convolutions."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from wsa_jax.merging.symmetry.tracing.axes import Axis, fresh, join, pin, size_of
from wsa_jax.merging.symmetry.tracing.interpreter import Origin, Value, Walk, merged_origin, unknown

WINDOW = "places of a kernel or image"

_ELEMENTWISE = """
abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp
clz complex conj convert_element_type copy copy_p cos cosh device_put digamma div eq erf erf_inv
erfc exp exp2 expm1 floor ge gt igamma igammac imag integer_pow is_finite layout_constraint le
lgamma log log1p logistic lt max min mul name ne neg nextafter not or polygamma population_count
pow pvary real reduce_precision regularized_incomplete_beta rem round rsqrt select_n shard_alike
sharding_constraint shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt
square stop_gradient sub tan tanh xor
"""
_SAME = {"convert_element_type", "copy", "copy_p", "device_put", "reduce_precision", "name",
         "stop_gradient"}  # fmt: skip
_REDUCTIONS = [
    "reduce_sum",
    "reduce_max",
    "reduce_min",
    "reduce_prod",
    "reduce_and",
    "reduce_or",
    "reduce_xor",
]
_WINDOWS = ["reduce_window_sum", "reduce_window_max", "reduce_window_min", "reduce_window"]


def _elementwise(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    shape = eqn.outvars[0].aval.shape
    axes: list[Axis] = [fresh(size, free=True) for size in shape]
    for value in inputs:
        if len(value.axes) == len(shape):
            pairs = zip(axes, value.axes, strict=True)
            axes = [join(a, b) if size_of(a) == size_of(b) else a for a, b in pairs]
    origin = merged_origin(inputs, shape)
    if origin is None:  # parameters that meet data: biases, scales of norms
        for value in inputs:
            if value.origin is not None:
                walk.produced |= frozenset().union(*value.origin)
    same = eqn.primitive.name in _SAME
    result = Value(tuple(axes), origin, inputs[0].constant if same else None)
    floating = jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.inexact)
    power = eqn.params.get("y")
    walk.record(eqn.primitive.name, inputs, [result], power=power, floating=floating)
    return [result]


def _pairwise(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    del eqn
    outputs = [Value(value.axes, value.origin, value.constant) for value in inputs]
    for value, result in zip(inputs, outputs, strict=True):
        walk.record("copy", [value], [result])
    return outputs


def _reduce(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    value = inputs[0]
    left = [axis for axis in range(len(value.axes)) if axis not in eqn.params["axes"]]
    origin = None if value.origin is None else tuple(value.origin[axis] for axis in left)
    result = Value(tuple(value.axes[axis] for axis in left), origin)
    walk.record(eqn.primitive.name, [value], [result], left=left, axes=eqn.params["axes"])
    return [result]


def _reduce_window(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    value, params = inputs[0], eqn.params
    if len(eqn.outvars) != 1:
        return unknown(walk, eqn, inputs)
    axes, ones = list(value.axes), (1,) * len(value.axes)
    windows = zip(
        params["window_dimensions"],
        params["window_strides"],
        params["padding"],
        params.get("base_dilation") or ones,
        strict=True,
    )
    for axis, (window, stride, padding, dilation) in enumerate(windows):
        if (window, stride, tuple(padding), dilation) != (1, 1, (0, 0), 1):
            pin(axes[axis], WINDOW)
            axes[axis] = fresh(eqn.outvars[0].aval.shape[axis], reason=WINDOW)
    result = Value(tuple(axes))
    walk.record(eqn.primitive.name, [value], [result])
    return [result]


def _dot_general(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    (contracted, batch) = eqn.params["dimension_numbers"]
    left, right = inputs
    summed = [join(left.axes[a], right.axes[b]) for a, b in zip(*contracted, strict=True)]
    shared = [join(left.axes[a], right.axes[b]) for a, b in zip(*batch, strict=True)]
    free = [
        [axis for axis in range(len(value.axes)) if axis not in (*contracted[i], *batch[i])]
        for i, value in enumerate(inputs)
    ]
    axes = [*shared, *(v.axes[a] for v, kept in zip(inputs, free, strict=True) for a in kept)]
    _mark(walk, left, contracted[0], right, first=True)
    _mark(walk, right, contracted[1], left, first=False)
    origin: Origin | None = None
    if left.origin is not None and right.origin is not None:
        both = [left.origin[a] | right.origin[b] for a, b in zip(*batch, strict=True)]
        origin = (
            *both,
            *(left.origin[axis] for axis in free[0]),
            *(right.origin[axis] for axis in free[1]),
        )
    result = Value(tuple(axes), origin)
    # Nesting needs to know what stands side by side while the products are summed.
    inside = Value((*axes, *summed))
    walk.record(
        "contract", inputs, [result], contracted=contracted, batch=batch, free=free, inside=inside
    )
    return [result]


def _mark(walk: Walk, value: Value, summed: Sequence[int], other: Value, *, first: bool) -> None:
    if value.origin is None:
        return
    # Of two parameters (a low-rank product), the second consumes what the first produces.
    takes = not (other.is_parameter and first)
    for axis, pairs in enumerate(value.origin):
        if axis in summed:
            (walk.consumed if takes else walk.produced).update(pairs)
        elif other.origin is None:
            walk.produced |= pairs


def _convolution(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    params, shape = eqn.params, eqn.outvars[0].aval.shape
    if params["batch_group_count"] != 1:
        return unknown(walk, eqn, inputs)
    image, kernel = inputs
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    batch, features, *places = numbers.lhs_spec
    outs, ins, *offsets = numbers.rhs_spec
    _mark(walk, kernel, [ins], image, first=False)
    _mark(walk, image, [features], kernel, first=True)
    axes: list[Axis] = [((),)] * len(shape)
    axes[numbers.out_spec[0]] = image.axes[batch]
    if groups == 1:
        summed = join(image.axes[features], kernel.axes[ins])
        axes[numbers.out_spec[1]] = kernel.axes[outs]
    else:
        (group,) = fresh(groups)
        summed = fresh(kernel.shape[ins])
        join(kernel.axes[ins], summed)
        join(image.axes[features], ((*group, *summed[0]),))
        result_axis = ((*group, *fresh(shape[numbers.out_spec[1]] // groups)[0]),)
        axes[numbers.out_spec[1]] = join(kernel.axes[outs], result_axis)
    windows = zip(places, offsets, numbers.out_spec[2:], params["padding"], strict=True)
    for (place, offset, out, padding), stride, spread in zip(
        windows, params["window_strides"], params["lhs_dilation"], strict=True
    ):
        size = kernel.shape[offset]
        if (size, stride, spread, tuple(padding)) == (1, 1, 1, (0, 0)):
            axes[out] = image.axes[place]
            continue
        pin(image.axes[place], WINDOW)
        pin(kernel.axes[offset], WINDOW)
        axes[out] = fresh(shape[out], reason=WINDOW)
    result = Value(tuple(axes))
    walk.record(
        "convolve",
        inputs,
        [result],
        features=(features, ins),
        outs=(numbers.out_spec[1], outs),
        summed=summed,
        groups=groups,
        kept=[(numbers.out_spec[0], batch), *zip(numbers.out_spec[2:], places, strict=True)],
        inside=Value((*axes, summed)),
    )
    return [result]


def _top_k(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    reason, value = walk.where(eqn), inputs[0]
    axis = eqn.params.get("axis", -1) % len(value.axes)
    pin(value.axes[axis], reason)
    outputs = []
    for var in eqn.outvars:
        axes = list(value.axes)
        axes[axis] = fresh(var.aval.shape[axis], reason=reason)
        outputs.append(Value(tuple(axes)))
    walk.record("top_k", inputs, outputs)
    return outputs


RULES: dict[str, Callable[..., list[Value]]] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(_WINDOWS, _reduce_window),
    "dot_general": _dot_general,
    "conv_general_dilated": _convolution,
    "optimization_barrier": _pairwise,
    "top_k": _top_k,
}
