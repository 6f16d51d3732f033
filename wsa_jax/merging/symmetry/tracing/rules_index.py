"""Rules of primitives that read or write elements by index."""

from collections.abc import Sequence

from jax.lax import GatherDimensionNumbers

from wsa_jax.merging.symmetry.tracing.axes import Axis, fresh, join, pin, size_of
from wsa_jax.merging.symmetry.tracing.interpreter import Walk
from wsa_jax.merging.symmetry.tracing.rules_shape import positions
from wsa_jax.merging.symmetry.tracing.steps import (
    Concatenate,
    Decide,
    Lookup,
    Move,
    Origin,
    Scatter,
    Value,
)
from wsa_jax.types import JaxprEqn


def dynamic_slice(walk: Walk, eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    """A part that starts where the data say."""
    shape = eqn.outvars[0].aval.shape
    moving = [axis for axis, size in enumerate(inputs[0].shape) if size != shape[axis]]
    return positions(walk, eqn, inputs[0], moving)


def dynamic_update_slice(walk: Walk, eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    """A part that is written over where the data say."""
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
    walk.record("dynamic_update_slice", Concatenate(None), [value, update], [result])
    return [result]


def gather(walk: Walk, eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    """Whole axes stay, and what is looked up by index has positions."""
    table, indices = inputs
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    reason, shape = walk.where(eqn), eqn.outvars[0].aval.shape
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    axes: list[Axis] = [((),)] * len(shape)
    sources: list[tuple[int, ...]] = [()] * len(shape)
    places = iter(numbers.offset_dims)
    # Numbers that are looked up by a unit's own position move with the units.
    walk.pin_indices([table])
    looked_up = _looked_up(table, indices, numbers)
    if looked_up is None:
        walk.pin_indices([indices])
    elif indices.index is not None:
        join(table.axes[looked_up], indices.index.axis)
        walk.record("gather", Lookup(looked_up), [table], [])
    # A slice that is not the whole axis stands for positions in it, which must not move.
    for axis, given in enumerate(table.axes):
        whole = sizes[axis] == size_of(given) and axis not in gone
        if not whole and axis != looked_up:
            pin(given, reason)
        if axis not in gone:
            place = next(places)
            axes[place] = given if whole else fresh(sizes[axis], reason=reason)
            sources[place] = (axis,)
    # The axes of the indices that remain are those of what is looked up for each.
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
    walk.record("gather", Move(sources), [table], [result])
    walk.record("gather", Decide(), [indices], [])
    return [result]


def _looked_up(table: Value, indices: Value, numbers: GatherDimensionNumbers) -> int | None:
    """The axis along which single positions of that same axis are read, or None."""
    if indices.index is None or indices.index.offset or len(numbers.start_index_map) != 1:
        return None
    (axis,) = numbers.start_index_map
    fits = size_of(table.axes[axis]) == size_of(indices.index.axis)
    return axis if fits and axis in numbers.collapsed_slice_dims else None


def scatter(walk: Walk, eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    """Axes written as a whole are those of what is written; places to write to have positions."""
    operand, indices, updates = inputs
    numbers, reason = eqn.params["dimension_numbers"], walk.where(eqn)
    gone = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    axes: list[Axis] = []
    places: list[int | None] = []
    window = iter(numbers.update_window_dims)
    for axis, given in enumerate(operand.axes):
        place = None if axis in gone else next(window)
        if place is not None and size_of(updates.axes[place]) == size_of(given):
            axes.append(join(given, updates.axes[place]))
            places.append(place)
            continue
        pin(given, reason)
        if place is not None:
            pin(updates.axes[place], reason)
        axes.append(fresh(size_of(given), reason=reason))
        places.append(None)
    rest = [a for a in range(len(updates.axes)) if a not in numbers.update_window_dims]
    for place, axis in zip(rest, range(len(indices.axes) - 1), strict=True):
        # Sums do not depend on the order of their terms; what is overwritten does.
        if eqn.primitive.name == "scatter" or axis in numbers.scatter_indices_batching_dims:
            pin(indices.axes[axis], reason)
            pin(updates.axes[place], reason)
        else:
            join(updates.axes[place], indices.axes[axis])
    pin(indices.axes[-1], reason)
    origin: Origin | None = None
    if all(value.origin is not None for value in inputs):
        own, new = operand.origin or (), updates.origin or ()
        none: frozenset[tuple[int, int]] = frozenset()
        origin = tuple(
            pairs | (none if place is None else new[place])
            for pairs, place in zip(own, places, strict=True)
        )
    else:  # parameters that are written among data
        for value in (operand, updates):
            walk.produced |= frozenset().union(*(value.origin or ()))
    result = Value(tuple(axes), origin)
    kind = Scatter(places, walk.scaling(eqn))
    walk.record(eqn.primitive.name, kind, [operand, updates], [result])
    walk.record(eqn.primitive.name, Decide(), [indices], [])
    return [result]
