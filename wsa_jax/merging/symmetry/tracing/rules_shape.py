"""Rules of primitives that move, cut or repeat elements and compute nothing with them."""

import math
from collections.abc import Sequence

from wsa_jax.merging.symmetry.tracing.axes import (
    Axis,
    atoms_of,
    cut,
    distribute,
    expand,
    fresh,
    is_free,
    is_positional,
    join,
    pin,
    product,
    size_of,
)
from wsa_jax.merging.symmetry.tracing.interpreter import AxisRule, Walk, merged_origin, pin_all
from wsa_jax.merging.symmetry.tracing.steps import (
    Concatenate,
    Contract,
    Elementwise,
    Index,
    Move,
    Origin,
    Pad,
    Reduce,
    Scaling,
    Stack,
    Value,
)
from wsa_jax.types import JaxprEqn

# Injective in the one input that varies, also in floating point unless they saturate.
_INCREASING = frozenset(
    ["add", "convert_element_type", "div", "exp", "log", "logistic", "mul", "neg", "sub"]
)

Sources = Sequence[Sequence[int]]


def moved(
    walk: Walk, eqn: JaxprEqn, value: Value, axes: Sequence[Axis], sources: Sources
) -> list[Value]:
    """One array whose axes come from the listed axes of another."""
    origin: Origin | None = None
    if value.origin is not None:
        origin = tuple(
            frozenset().union(*(value.origin[axis] for axis in source)) for source in sources
        )
    result = Value(tuple(axes), origin, value.constant, value.index)
    walk.record(eqn.primitive.name, Move(sources), [value], [result])
    return [result]


def _kept(axes: int) -> Sources:
    return [(axis,) for axis in range(axes)]


def broadcast(walk: Walk, eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    """Repeats are free: arrays are constant along them."""
    value, shape = inputs[0], eqn.outvars[0].aval.shape
    if len(inputs) > 1:  # a shape known only at run time
        return pin_all(walk, eqn, inputs)
    axes = [fresh(size, free=True) for size in shape]
    sources: list[tuple[int, ...]] = [()] * len(shape)
    for axis, place in enumerate(eqn.params["broadcast_dimensions"]):
        if size_of(value.axes[axis]) == shape[place]:
            axes[place], sources[place] = value.axes[axis], (axis,)
    return moved(walk, eqn, value, axes, sources)


def reshape(walk: Walk, eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    """Flatten and unflatten runs of axes that hold the same elements."""
    value, shape = inputs[0], eqn.outvars[0].aval.shape
    if len(inputs) > 1 or eqn.params.get("dimensions") is not None:
        return pin_all(walk, eqn, inputs)
    before, axes, sources = value.shape, [], []
    start = stop = 0
    while stop < len(shape) or start < len(before):
        first, place = start, stop
        sizes, targets = 1, 1
        # The smallest runs of axes that hold the same elements.
        while sizes != targets or (place == stop and first == start):
            if (sizes <= targets and start < len(before)) or stop == len(shape):
                sizes *= before[start]
                start += 1
            else:
                targets *= shape[stop]
                stop += 1
        source = tuple(range(first, start))
        axes += distribute(product([value.axes[axis] for axis in source]), shape[place:stop])
        sources += [source] * (stop - place)
    return moved(walk, eqn, value, axes, sources)


def transpose(walk: Walk, eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    """Axes in another order."""
    order = eqn.params["permutation"]
    return moved(walk, eqn, inputs[0], [inputs[0].axes[a] for a in order], [(a,) for a in order])


def squeeze(walk: Walk, eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    """Without axes of one position."""
    left = [a for a in range(len(inputs[0].axes)) if a not in eqn.params["dimensions"]]
    return moved(walk, eqn, inputs[0], [inputs[0].axes[a] for a in left], [(a,) for a in left])


def reverse(walk: Walk, eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    """Positions are counted from the other end."""
    return positions(walk, eqn, inputs[0], eqn.params["dimensions"])


def positions(walk: Walk, eqn: JaxprEqn, value: Value, pinned: Sequence[int]) -> list[Value]:
    """Pin some axes, whose length may change; the others stay."""
    reason, axes = walk.where(eqn), list(value.axes)
    for axis in pinned:
        pin(axes[axis], reason)
        axes[axis] = fresh(eqn.outvars[0].aval.shape[axis], reason=reason)
    return moved(walk, eqn, value, axes, _kept(len(axes)))


def along(*keys: str) -> AxisRule:
    """The rule for primitives for which order matters along the axes that a parameter names."""

    def rule(walk: Walk, eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
        named = next(eqn.params[key] for key in keys if key in eqn.params)
        return ordered(walk, eqn, inputs, [named] if isinstance(named, int) else list(named))

    return rule


def extreme_index(walk: Walk, eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    """The place of the largest: a position along the axis, if no two elements are equal."""
    (axis,), (value,) = eqn.params["axes"], inputs
    if not never_equal(walk, value, axis):
        return ordered(walk, eqn, inputs, [axis])
    kept = [place for place in range(len(value.axes)) if place != axis]
    index = Index(value.axes[axis], walk.where(eqn))
    result = Value(tuple(value.axes[place] for place in kept), index=index)
    walk.record(eqn.primitive.name, Reduce(kept, Scaling.NONE), inputs, [result])
    return [result]


def top_k(walk: Walk, eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    """The largest have ranks; their indices are positions, if no two elements are equal."""
    (value,) = inputs
    axis = eqn.params.get("axis", -1) % len(value.axes)
    if not never_equal(walk, value, axis):
        return ordered(walk, eqn, inputs, [axis])
    axes = list(value.axes)
    axes[axis] = fresh(eqn.outvars[0].aval.shape[axis], reason=walk.where(eqn))
    index = Index(value.axes[axis], walk.where(eqn))
    outputs = [Value(tuple(axes)), Value(tuple(axes), index=index)]
    kept = range(len(axes))
    walk.record(eqn.primitive.name, Reduce(kept, Scaling.NONE), inputs, outputs)
    return outputs


def never_equal(walk: Walk, value: Value, axis: int) -> bool:
    """Whether elements along an axis differ, for all inputs but a set of measure zero.

    They do after a product with a kernel, and what follows it may be increasing functions,
    shifts and scales that are the same along the axis, and biases.
    """
    makers = {id(result): step for step in walk.steps for result in step.outputs}
    while (step := makers.get(id(value))) is not None:
        match step.kind:
            case Contract(_, batch, free):
                kernels = [other.is_parameter for other in step.inputs]
                places = [*((None, a) for a in batch[0]), *((0, a) for a in free[0])]
                places += [(1, a) for a in free[1]]
                side, _ = places[axis]
                return side is not None and kernels[side]
            case Move(sources) if len(sources[axis]) == 1:
                value, axis = step.inputs[0], sources[axis][0]
            case Elementwise(floating=True) if step.name in _INCREASING:
                varying = [v for v in step.inputs if not v.is_parameter and len(v.axes) > axis]
                varying = [v for v in varying if not is_free(v.axes[axis])]
                if len(varying) != 1:
                    return False
                (value,) = varying
            case _:
                return False
    return False


def ordered(walk: Walk, eqn: JaxprEqn, inputs: Sequence[Value], axes: Sequence[int]) -> list[Value]:
    """Pin some axes, which the outputs may lack or have at another length; join the others."""
    reason, outputs = walk.where(eqn), []
    for value in inputs:
        for axis in axes:
            pin(value.axes[axis], reason)
    joined = list(inputs[0].axes)
    for value in inputs[1:]:
        joined = [join(a, b) for a, b in zip(joined, value.axes, strict=True)]
    origin = merged_origin(inputs, inputs[0].shape)
    kept: list[int] = []
    for var in eqn.outvars:
        shape = var.aval.shape
        kept = [a for a in range(len(joined)) if a not in axes or len(shape) == len(joined)]
        out = [joined[axis] for axis in kept]
        for place, axis in enumerate(kept):
            if axis in axes:
                out[place] = fresh(shape[place], reason=reason)
        outputs.append(Value(tuple(out), origin and tuple(origin[axis] for axis in kept)))
    walk.record(eqn.primitive.name, Reduce(kept, walk.scaling(eqn)), inputs, outputs)
    return outputs


def matrices(walk: Walk, eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    """Linear algebra: the last two axes are matrices, whose places matter; the others a batch."""
    reason = walk.where(eqn)
    rank = min(len(value.axes) for value in inputs) - 2
    batch = list(inputs[0].axes[:rank])
    for value in inputs:
        batch = [join(a, b) for a, b in zip(batch, value.axes[:rank], strict=True)]
        for axis in value.axes[rank:]:
            pin(axis, reason)
    outputs = []
    for var in eqn.outvars:
        rest = tuple(fresh(size, reason=reason) for size in var.aval.shape[rank:])
        outputs.append(Value((*batch, *rest)))
    walk.record(eqn.primitive.name, Reduce(range(rank), walk.scaling(eqn)), inputs, outputs)
    return outputs


def transforms(walk: Walk, eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    """A Fourier transform has frequencies along the last axes; the others stay."""
    rank = len(inputs[0].axes)
    return ordered(walk, eqn, inputs, range(rank - len(eqn.params["fft_lengths"]), rank))


def concatenate(walk: Walk, eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    """One axis becomes the sum of the inputs' axes."""
    dimension = eqn.params["dimension"]
    axes = list(inputs[0].axes)
    for value in inputs[1:]:
        for axis, given in enumerate(value.axes):
            axes[axis] = axes[axis] + given if axis == dimension else join(axes[axis], given)
    axes[dimension] = expand(axes[dimension])
    if is_positional(axes[dimension]):
        reason = next(atom.reason for atom in atoms_of(axes[dimension]) if not atom.free)
        axes[dimension] = fresh(size_of(axes[dimension]), reason=reason)
    result = Value(tuple(axes), merged_origin(inputs, tuple(size_of(axis) for axis in axes)))
    walk.record("concatenate", Concatenate(dimension), inputs, [result])
    return [result]


def stack(walk: Walk, eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    """A new axis of positions."""
    place, reason = eqn.params["axis"], walk.where(eqn)
    axes = list(inputs[0].axes)
    for value in inputs[1:]:
        axes = [join(a, b) for a, b in zip(axes, value.axes, strict=True)]
    axes.insert(place, fresh(len(inputs), reason=reason))
    origin = merged_origin(inputs, inputs[0].shape)
    if origin is not None:
        origin = (*origin[:place], frozenset(), *origin[place:])
    result = Value(tuple(axes), origin)
    walk.record("stack", Stack(place), inputs, [result])
    return [result]


def tile(walk: Walk, eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    """Units repeated as a whole."""
    axes = [
        product([fresh(times, free=True), axis])
        for times, axis in zip(eqn.params["reps"], inputs[0].axes, strict=True)
    ]
    return moved(walk, eqn, inputs[0], axes, _kept(len(axes)))


def pad(walk: Walk, eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    """Numbers before and behind an axis; free, as they are all the same."""
    value, filler = inputs
    axes, reason = list(value.axes), walk.where(eqn)
    for axis, config in enumerate(eqn.params["padding_config"]):
        low, high, interior = (int(number) for number in config)
        size = eqn.outvars[0].aval.shape[axis]
        if interior or low < 0 or high < 0 or is_positional(axes[axis]):
            if (low, high, interior) != (0, 0, 0):
                pin(axes[axis], reason)
                axes[axis] = fresh(size, reason=reason)
        else:
            axes[axis] = fresh(low, free=True) * (low > 0) + axes[axis]
            axes[axis] = expand(axes[axis] + fresh(high, free=True) * (high > 0))
    result = Value(tuple(axes), value.origin)
    walk.record("pad", Pad(), [value, filler], [result])
    return [result]


def part(axis: Axis, start: int, stop: int, reason: str) -> Axis:
    """Positions start to stop of an axis."""
    if (start, stop) == (0, size_of(axis)):
        return axis
    axis = expand(axis)
    if is_positional(axis):
        return fresh(stop - start, reason=reason)
    position, inside = 0, []
    for segment in cut(axis, [point for point in (start, stop) if 0 < point < size_of(axis)]):
        size = math.prod(atom.size for atom in segment)
        if start <= position and position + size <= stop:
            inside.append(segment)
        position += size
    return tuple(inside)


def slice_(walk: Walk, eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    """Parts of axes; a stride leaves positions."""
    value, reason = inputs[0], walk.where(eqn)
    axes, shape = list(value.axes), eqn.outvars[0].aval.shape
    strides = eqn.params["strides"] or (1,) * len(axes)
    limits = zip(eqn.params["start_indices"], eqn.params["limit_indices"], strides, strict=True)
    for axis, (start, stop, stride) in enumerate(limits):
        if stride == 1:
            axes[axis] = part(axes[axis], start, stop, reason)
        else:
            pin(axes[axis], reason)
            axes[axis] = fresh(shape[axis], reason=reason)
    return moved(walk, eqn, value, axes, _kept(len(axes)))


def unstack(walk: Walk, eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    """Each position of one axis alone, without the axis."""
    value, axis, outputs = inputs[0], eqn.params["axis"], []
    left = [place for place in range(len(value.axes)) if place != axis]
    for index in range(len(eqn.outvars)):
        part(value.axes[axis], index, index + 1, walk.where(eqn))
        outputs += moved(walk, eqn, value, [value.axes[a] for a in left], [(a,) for a in left])
    return outputs


def split(walk: Walk, eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    """Parts of one axis."""
    value, axis, start, outputs = inputs[0], eqn.params["axis"], 0, []
    for size in eqn.params["sizes"]:
        axes = list(value.axes)
        axes[axis] = part(axes[axis], start, start + int(size), walk.where(eqn))
        outputs += moved(walk, eqn, value, axes, _kept(len(axes)))
        start += int(size)
    return outputs


def iota(walk: Walk, eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    """Counted positions."""
    del walk, inputs
    shape, along_axis = eqn.params["shape"], eqn.params["dimension"]
    reason = "positions are counted along it"
    axes = tuple(
        fresh(size, reason=reason) if axis == along_axis else fresh(size, free=True)
        for axis, size in enumerate(shape)
    )
    return [Value(axes, (frozenset(),) * len(shape), index=Index(axes[along_axis], reason))]
