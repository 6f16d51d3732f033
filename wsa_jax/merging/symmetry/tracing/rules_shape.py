"""Rules of primitives that move, cut or repeat elements and compute nothing with them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from wsa_jax.merging.symmetry.tracing.axes import (
    Axis,
    atoms_of,
    cut,
    distribute,
    expand,
    fresh,
    is_positional,
    join,
    pin,
    product,
    size_of,
)
from wsa_jax.merging.symmetry.tracing.interpreter import (
    Origin,
    Rule,
    Value,
    Walk,
    merged_origin,
    unknown,
)

Sources = Sequence[Sequence[int]]


def _moved(walk: Walk, value: Value, axes: Sequence[Axis], sources: Sources) -> list[Value]:
    """One array whose axes come from the listed axes of another."""
    origin: Origin | None = None
    if value.origin is not None:
        origin = tuple(
            frozenset().union(*(value.origin[axis] for axis in source)) for source in sources
        )
    result = Value(tuple(axes), origin, value.constant)
    walk.record("move", [value], [result], sources=sources)
    return [result]


def _kept(axes: int) -> Sources:
    return [(axis,) for axis in range(axes)]


def _broadcast(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    value, shape = inputs[0], eqn.outvars[0].aval.shape
    if len(inputs) > 1:  # a shape known only at run time
        return unknown(walk, eqn, inputs)
    axes = [fresh(size, free=True) for size in shape]
    sources: list[tuple[int, ...]] = [()] * len(shape)
    for axis, place in enumerate(eqn.params["broadcast_dimensions"]):
        if size_of(value.axes[axis]) == shape[place]:
            axes[place], sources[place] = value.axes[axis], (axis,)
    return _moved(walk, value, axes, sources)


def _reshape(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    value, shape = inputs[0], eqn.outvars[0].aval.shape
    if len(inputs) > 1 or eqn.params.get("dimensions") is not None:
        return unknown(walk, eqn, inputs)
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
    return _moved(walk, value, axes, sources)


def _transpose(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    order = eqn.params["permutation"]
    return _moved(walk, inputs[0], [inputs[0].axes[a] for a in order], [(a,) for a in order])


def _squeeze(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    left = [a for a in range(len(inputs[0].axes)) if a not in eqn.params["dimensions"]]
    return _moved(walk, inputs[0], [inputs[0].axes[a] for a in left], [(a,) for a in left])


def _reverse(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    return _positions(walk, eqn, inputs[0], eqn.params["dimensions"])


def _positions(walk: Walk, eqn: Any, value: Value, pinned: Sequence[int]) -> list[Value]:
    """Pin some axes, whose length may change; the others stay."""
    reason, axes = walk.where(eqn), list(value.axes)
    for axis in pinned:
        pin(axes[axis], reason)
        axes[axis] = fresh(eqn.outvars[0].aval.shape[axis], reason=reason)
    return _moved(walk, value, axes, _kept(len(axes)))


def along(*keys: str) -> Rule:
    """The rule for primitives for which order matters along the axes that a parameter names."""

    def rule(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
        reason, outputs = walk.where(eqn), []
        named = next(eqn.params[key] for key in keys if key in eqn.params)
        axes = [named] if isinstance(named, int) else list(named)
        for value in inputs:
            for axis in axes:
                pin(value.axes[axis], reason)
        joined = list(inputs[0].axes)
        for value in inputs[1:]:
            joined = [join(a, b) for a, b in zip(joined, value.axes, strict=True)]
        for var in eqn.outvars:
            rank = len(var.aval.shape)
            left = [a for a in range(len(joined)) if a not in axes or rank == len(joined)]
            out = [joined[a] for a in left]
            for place, axis in enumerate(left):
                if axis in axes:
                    out[place] = fresh(var.aval.shape[place], reason=reason)
            outputs.append(Value(tuple(out)))
        walk.record(eqn.primitive.name, inputs, outputs, axes=axes)
        return outputs

    return rule


def _concatenate(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
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
    walk.record("concatenate", inputs, [result], dimension=dimension)
    return [result]


def _stack(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    place, reason = eqn.params["axis"], walk.where(eqn)
    axes = list(inputs[0].axes)
    for value in inputs[1:]:
        axes = [join(a, b) for a, b in zip(axes, value.axes, strict=True)]
    axes.insert(place, fresh(len(inputs), reason=reason))
    origin = merged_origin(inputs, inputs[0].shape)
    if origin is not None:
        origin = (*origin[:place], frozenset(), *origin[place:])
    result = Value(tuple(axes), origin)
    walk.record("stack", inputs, [result], dimension=place)
    return [result]


def _tile(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    axes = [
        product([fresh(times, free=True), axis])
        for times, axis in zip(eqn.params["reps"], inputs[0].axes, strict=True)
    ]
    return _moved(walk, inputs[0], axes, _kept(len(axes)))


def _pad(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
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
    walk.record("pad", [value, filler], [result])
    return [result]


def _part(axis: Axis, start: int, stop: int, reason: str) -> Axis:
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


def _slice(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    value, reason = inputs[0], walk.where(eqn)
    axes, shape = list(value.axes), eqn.outvars[0].aval.shape
    strides = eqn.params["strides"] or (1,) * len(axes)
    limits = zip(eqn.params["start_indices"], eqn.params["limit_indices"], strides, strict=True)
    for axis, (start, stop, stride) in enumerate(limits):
        if stride == 1:
            axes[axis] = _part(axes[axis], start, stop, reason)
        else:
            pin(axes[axis], reason)
            axes[axis] = fresh(shape[axis], reason=reason)
    return _moved(walk, value, axes, _kept(len(axes)))


def _split(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    value, axis, start, outputs = inputs[0], eqn.params["axis"], 0, []
    for size in eqn.params["sizes"]:
        axes = list(value.axes)
        axes[axis] = _part(axes[axis], start, start + int(size), walk.where(eqn))
        outputs += _moved(walk, value, axes, _kept(len(axes)))
        start += int(size)
    return outputs


def _dynamic_slice(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    shape = eqn.outvars[0].aval.shape
    moving = [axis for axis, size in enumerate(inputs[0].shape) if size != shape[axis]]
    return _positions(walk, eqn, inputs[0], moving)


def _dynamic_update_slice(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    value, update = inputs[0], inputs[1]
    reason, axes = walk.where(eqn), []
    for axis, given in zip(value.axes, update.axes, strict=True):
        if size_of(axis) == size_of(given):
            axes.append(join(axis, given))
        else:
            pin(axis, reason)
            pin(given, reason)
            axes.append(fresh(size_of(axis), reason=reason))
    result = Value(tuple(axes))
    walk.record("concatenate", [value, update], [result], dimension=None)
    return [result]


def _gather(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    table, indices = inputs
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    reason, shape = walk.where(eqn), eqn.outvars[0].aval.shape
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    axes: list[Axis] = [((),)] * len(shape)
    sources: list[tuple[int, ...]] = [()] * len(shape)
    places = iter(numbers.offset_dims)
    for axis, given in enumerate(table.axes):
        whole = sizes[axis] == size_of(given) and axis not in gone
        if not whole:
            pin(given, reason)
        if axis not in gone:
            place = next(places)
            axes[place] = given if whole else fresh(sizes[axis], reason=reason)
            sources[place] = (axis,)
    batch = [place for place in range(len(shape)) if place not in numbers.offset_dims]
    for place, axis in zip(batch, range(len(indices.axes) - 1), strict=True):
        if axis in numbers.start_indices_batching_dims:
            pin(indices.axes[axis], reason)
        axes[place] = indices.axes[axis]
    pin(indices.axes[-1], reason)
    result = Value(tuple(axes))
    for axis, pairs in enumerate(table.origin or ()):
        if axis not in gone:
            walk.produced |= pairs
    walk.record("move", [table], [result], sources=sources)
    walk.record("decide", [indices], [])
    return [result]


def _iota(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    del walk, inputs
    shape, along_axis = eqn.params["shape"], eqn.params["dimension"]
    reason = "positions are counted along it"
    axes = tuple(
        fresh(size, reason=reason) if axis == along_axis else fresh(size, free=True)
        for axis, size in enumerate(shape)
    )
    return [Value(axes, (frozenset(),) * len(shape))]


RULES: dict[str, Callable[..., list[Value]]] = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "rev": _reverse,
    "concatenate": _concatenate,
    "stack": _stack,
    "tile": _tile,
    "pad": _pad,
    "slice": _slice,
    "split": _split,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    "iota": _iota,
    "sort": along("dimension"),
    "argmax": along("axes"),
    "argmin": along("axes"),
    "cumsum": along("axis"),
    "cumprod": along("axis"),
    "cummax": along("axis"),
    "cummin": along("axis"),
    "cumlogsumexp": along("axis"),
}
