"""Rules of primitives that compute: elementwise functions, sums, products, convolutions."""

from collections.abc import Sequence

import jax.numpy as jnp

from wsa_jax.merging.symmetry.tracing.axes import (
    Axis,
    expand,
    fresh,
    is_free,
    is_positional,
    join,
    pin,
    size_of,
)
from wsa_jax.merging.symmetry.tracing.interpreter import Walk, merged_origin, pin_all
from wsa_jax.merging.symmetry.tracing.steps import (
    Contract,
    Convolve,
    Decide,
    Elementwise,
    Index,
    Origin,
    Power,
    Reduce,
    Scaling,
    Value,
)
from wsa_jax.types import JaxprEqn

WINDOW = "places of a kernel or image"

_COPIES = frozenset(
    [
        "convert_element_type",
        "copy",
        "copy_p",
        "device_put",
        "name",
        "reduce_precision",
        "stop_gradient",
    ]
)


def elementwise(walk: Walk, eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    """Inputs of one shape have the same axes; numbers go with any."""
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
    index = _index(walk, eqn, inputs, axes)
    scaling = walk.scaling(eqn)
    if scaling == Power(None):
        scaling = Power(eqn.params["y"])
    constant = inputs[0].constant if eqn.primitive.name in _COPIES else None
    if eqn.primitive.name == "lt" and _counts_from_zero(inputs):
        constant = 0.0
    result = Value(tuple(axes), origin, constant, index)
    floating = jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.inexact)
    walk.record(eqn.primitive.name, Elementwise(scaling, floating), inputs, [result])
    return [result]


def _counts_from_zero(inputs: Sequence[Value]) -> bool:
    """Whether positions are compared with 0, which none of them is below."""
    index, bound = inputs[0].index, inputs[1].constant
    return index is not None and index.offset == 0 and bound == 0


def _index(walk: Walk, eqn: JaxprEqn, inputs: Sequence[Value], axes: list[Axis]) -> Index | None:
    """What positions along an axis become; where they are mere numbers, their axis is pinned."""
    if all(value.index is None for value in inputs):
        return None
    constants = [value.constant for value in inputs]
    indices = [value.index for value in inputs]
    match eqn.primitive.name, indices:
        case ("convert_element_type" | "copy" | "stop_gradient", [index]):
            return index
        case ("lt", [Index(offset=0), None]) if constants[1] == 0:
            return None
        case ("add", [Index(offset=0) as index, None]) if constants[1] == size_of(index.axis):
            # Counted from the end: of use only where an index is negative, and none is.
            return index._replace(offset=size_of(index.axis))
        case ("select_n", [None, Index(offset=0) as index, Index()]) if constants[0] == 0:
            return index
        case ("clamp", [None, Index(offset=0) as index, None]) if constants[0] == 0 and (
            constants[2] == size_of(index.axis) - 1
        ):
            return index
        case ("eq", [Index() as first, Index() as second]):
            # One-hot: positions against a count along an axis, which is then that of the positions.
            for chosen, counted in ((first, second), (second, first)):
                if not (is_positional(counted.axis) and chosen.offset == counted.offset == 0):
                    continue
                places = [a for a, v in enumerate(_own(inputs, axes)) if v == expand(counted.axis)]
                if len(places) == 1 and size_of(chosen.axis) == size_of(counted.axis):
                    axes[places[0]] = chosen.axis
                    return None
    walk.pin_indices(inputs)
    return None


def _own(inputs: Sequence[Value], axes: Sequence[Axis]) -> list[Axis]:
    """For each place, the axis of the one input that is not constant along it."""
    result = []
    for place in range(len(axes)):
        own = [v.axes[place] for v in inputs if len(v.axes) > place and not is_free(v.axes[place])]
        result.append(expand(own[0]) if len(own) == 1 else ())
    return result


def bitcast(walk: Walk, eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    """As a function of elements, unless an element becomes several."""
    same = len(eqn.outvars[0].aval.shape) == len(inputs[0].axes)
    return (elementwise if same else pin_all)(walk, eqn, inputs)


def pairwise(walk: Walk, eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    """Each output is its input."""
    outputs = [Value(v.axes, v.origin, v.constant, v.index) for v in inputs]
    for value, var, result in zip(inputs, eqn.outvars, outputs, strict=True):
        floating = jnp.issubdtype(var.aval.dtype, jnp.inexact)
        walk.record(eqn.primitive.name, Elementwise(Scaling.SAME, floating), [value], [result])
    return outputs


def reduce(walk: Walk, eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    """Without the axes reduced over."""
    value = inputs[0]
    kept = [axis for axis in range(len(value.axes)) if axis not in eqn.params["axes"]]
    origin = None if value.origin is None else tuple(value.origin[axis] for axis in kept)
    result = Value(tuple(value.axes[axis] for axis in kept), origin)
    walk.record(eqn.primitive.name, Reduce(kept, walk.scaling(eqn)), [value], [result])
    return [result]


def reduce_window(walk: Walk, eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    """Windows of more than one position have places."""
    value, params = inputs[0], eqn.params
    if len(eqn.outvars) != 1:
        return pin_all(walk, eqn, inputs)
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
    kind = Reduce(range(len(axes)), walk.scaling(eqn))
    walk.record(eqn.primitive.name, kind, [value], [result])
    return [result]


def dot_general(walk: Walk, eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    """Axes summed over are joined, and so are those of a batch."""
    contracted, batch = eqn.params["dimension_numbers"]
    return _contract(walk, eqn, inputs, contracted, batch, dropped=())


def ragged_dot(walk: Walk, eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    """Rows meet the matrix of the group that they lie in: both have positions."""
    left, right, sizes = inputs
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    contracted, batch = numbers.dot_dimension_numbers
    ragged, groups = numbers.lhs_ragged_dimensions, numbers.rhs_group_dimensions
    if set(ragged) & {*contracted[0], *batch[0]}:
        return pin_all(walk, eqn, inputs)
    reason = walk.where(eqn)
    for value, axes in ((left, ragged), (right, groups), (sizes, range(len(sizes.axes)))):
        for axis in axes:
            pin(value.axes[axis], reason)
    walk.record(eqn.primitive.name, Decide(), [sizes], [])
    return _contract(walk, eqn, [left, right], contracted, batch, dropped=groups)


def _contract(
    walk: Walk,
    eqn: JaxprEqn,
    inputs: Sequence[Value],
    contracted: Sequence[Sequence[int]],
    batch: Sequence[Sequence[int]],
    dropped: Sequence[int],
) -> list[Value]:
    """A sum of products; ``dropped`` are axes of the second input of which one index is read."""
    left, right = inputs
    summed = [join(left.axes[a], right.axes[b]) for a, b in zip(*contracted, strict=True)]
    shared = [join(left.axes[a], right.axes[b]) for a, b in zip(*batch, strict=True)]
    used = [{*contracted[0], *batch[0]}, {*contracted[1], *batch[1], *dropped}]
    free = [
        [axis for axis in range(len(value.axes)) if axis not in gone]
        for value, gone in zip(inputs, used, strict=True)
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
    inside = Value((*axes, *summed, *(right.axes[axis] for axis in dropped)))
    kind = Contract(contracted, batch, free, inside)
    walk.record(eqn.primitive.name, kind, inputs, [result])
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


def convolution(walk: Walk, eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    """Input channels are summed over, places have positions."""
    params, shape = eqn.params, eqn.outvars[0].aval.shape
    if params["batch_group_count"] != 1:
        return pin_all(walk, eqn, inputs)
    image, kernel = inputs
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    batch, features, *places = numbers.lhs_spec
    outs, ins, *offsets = numbers.rhs_spec
    _mark(walk, kernel, [ins], image, first=False)
    _mark(walk, image, [features], kernel, first=True)
    axes: list[Axis] = [((),)] * len(shape)
    axes[numbers.out_spec[0]] = image.axes[batch]
    # Grouped kernels sum within a group: the image's channels are groups times what is summed.
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
    # A window slides over places, so that their order counts; a window of one place does not.
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
    kind = Convolve(
        features=(features, ins),
        outs=(numbers.out_spec[1], outs),
        summed=summed,
        groups=groups,
        kept=[(numbers.out_spec[0], batch), *zip(numbers.out_spec[2:], places, strict=True)],
        inside=Value((*axes, summed)),
    )
    walk.record("conv_general_dilated", kind, inputs, [result])
    return [result]
