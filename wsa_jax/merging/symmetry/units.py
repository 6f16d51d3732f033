"""Move the units of a model's groups: permute, scale, and view a leaf as one row per unit."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, PyTree

from wsa_jax.door import door
from wsa_jax.leaves import is_traced, key_path
from wsa_jax.merging.symmetry.spec import AxisSpec, Group, Tie, check_spec, ties_by_leaf
from wsa_jax.types import Leaf

Permutations = Mapping[str, Integer[Array | np.ndarray, "*parent units"] | Sequence[Any]]
Scales = Mapping[str, Float[Array | np.ndarray, "*parent units"] | Sequence[Any]]


def identity_permutations(spec: AxisSpec) -> dict[str, Integer[np.ndarray, "*parent units"]]:
    """The identity permutation of every group, ``[units]`` or ``[parent's units, units]``."""
    shapes = {group.name: _map_shape(spec, group) for group in spec.groups}
    return {
        name: np.broadcast_to(np.arange(shape[-1]), shape).copy() for name, shape in shapes.items()
    }


@door
def permute_units(spec: AxisSpec, params: PyTree, permutations: Permutations) -> PyTree:
    """Reorder units: unit u of the result is unit ``permutation[u]`` of ``params``.

    Args:
      spec: which axes move together.
      params: a model.
      permutations: by group, ``[units]``; for a nested group ``[parent's units, units]``, counted
        before the parent moves. Groups without one do not move.

    Guarantees: the function is unchanged; values are moved, not computed with; differentiable;
    traces under jit with ``spec`` static.

    Raises:
      ValueError: a permutation of an unknown group or of the wrong shape, an order that is no
        permutation (traced orders are not checked), or a model that the spec is not for.

    >>> from wsa_jax.merging.symmetry.spec import hand_written
    >>> params = {"a": jnp.array([[1.0, 2.0, 3.0]]), "b": jnp.array([[1.0], [2.0], [3.0]])}
    >>> ties = [Tie(leaf="a", axis=1), Tie(leaf="b", axis=0, role="consumed")]
    >>> spec = hand_written({"hidden": ties}, params)
    >>> moved = permute_units(spec, params, {"hidden": jnp.array([2, 0, 1])})
    >>> moved["a"].tolist(), (params["a"] @ params["b"] == moved["a"] @ moved["b"]).item()
    ([[3.0, 1.0, 2.0]], True)
    """
    check_maps(spec, permutations)
    for name, order in permutations.items():
        _check_order(name, order)
    check_spec(spec, params)
    return gather_units(spec, params, permutations)


def gather_units(spec: AxisSpec, params: PyTree, permutations: Permutations) -> PyTree:
    """`permute_units` without its checks, also for a part of what a spec is for."""

    def move(leaf: Array, group: Group, tie: Tie) -> Array:
        if group.name not in permutations:
            return leaf
        # Known orders become indices on the host: as eager operations they would cost thirty small
        # compilations for each new width.
        xp = jnp if is_traced(permutations[group.name]) else np
        permutation = xp.asarray(permutations[group.name])
        position = np.arange(leaf.shape[tie.axis])
        inside, unit = units_of_axis(leaf.shape[tie.axis], group, tie)
        if group.parent is None:
            shift = permutation[unit] - unit
            index = xp.where(inside, position + shift * tie.inner, position)
            return jnp.take(leaf, index, axis=tie.axis)
        parent, parent_tie = spec[group.parent], spec.parent_tie(group, tie)
        owned, owner = units_of_axis(leaf.shape[parent_tie.axis], parent, parent_tie)
        if parent_tie.axis == tie.axis:
            shift = permutation[owner, unit] - unit
            index = xp.where(inside & owned, position + shift * tie.inner, position)
            return jnp.take(leaf, index, axis=tie.axis)
        shift = permutation[owner][:, unit] - unit[None]
        index = xp.where(
            inside[None] & owned[:, None], position[None] + shift * tie.inner, position[None]
        )
        index = index if parent_tie.axis < tie.axis else index.T
        both = (parent_tie.axis, tie.axis)
        index = index.reshape([leaf.shape[a] if a in both else 1 for a in range(leaf.ndim)])
        return jnp.take_along_axis(leaf, index, axis=tie.axis)

    return _map_ties(spec, params, move)


def _check_order(name: str, order: Leaf) -> None:
    """Raise a ValueError unless each row of an order names every unit once."""
    if is_traced(order):
        return
    rows = np.asarray(order)
    if not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(
            f"the order of group {name} has dtype {rows.dtype}; give integers, the units' numbers"
        )
    if (np.sort(rows, axis=-1) != np.arange(rows.shape[-1])).any():
        raise ValueError(
            f"the order of group {name} does not name each of its {rows.shape[-1]} units once; "
            "give a permutation"
        )


@door
def scale_units(spec: AxisSpec, params: PyTree, scales: Scales) -> PyTree:
    """Multiply what produces a unit by its scale, and divide what consumes it.

    Args:
      spec: which axes move together; every scaled group must admit scaling.
      params: a model.
      scales: by group, positive, ``[units]``; for a nested group ``[parent's units, units]``. A
        group that admits linear maps takes negative scales, too.

    Guarantees: with positive scales the function is unchanged up to rounding; scales of 1 change
    nothing at all.

    Raises:
      ValueError: a scale of an unknown group, of the wrong shape, or of a group that admits
        permutations only (a norm lies between); a scale that is 0, not finite, negative where that
        is not admitted, or that leaves a leaf's dtype no room; a model that the spec is not for.
        Traced scales are checked for shape only.

    >>> from wsa_jax.merging.symmetry.spec import hand_written
    >>> params = {"a": jnp.array([[1.0, 2.0]]), "b": jnp.array([[1.0], [4.0]])}
    >>> ties = [Tie(leaf="a", axis=1), Tie(leaf="b", axis=0, role="consumed")]
    >>> spec = hand_written({"hidden": ties}, params, admits="scaling")
    >>> scale_units(spec, params, {"hidden": jnp.array([1.0, 2.0])})["a"].tolist()
    [[1.0, 4.0]]
    """
    check_maps(spec, scales)
    for name in scales:
        if spec[name].admits == "permutation":
            raise ValueError(
                f"group {name} admits permutations only: its units pass a norm or a non-linearity "
                "that does not commute with scaling; leave it out"
            )
    check_spec(spec, params)
    for name, scale in scales.items():
        check_scale(spec[name], scale, params)

    def move(leaf: Array, group: Group, tie: Tie) -> Array:
        if group.name not in scales or tie.role == "statistic":
            return leaf
        scale, axes = jnp.asarray(scales[group.name]), [tie.axis]
        # Positions of the axis that belong to no unit of the group keep their scale.
        inside, unit = units_of_axis(leaf.shape[tie.axis], group, tie)
        if group.parent is None:
            factor = jnp.where(inside, scale[unit], 1.0)
        else:
            parent, parent_tie = spec[group.parent], spec.parent_tie(group, tie)
            owned, owner = units_of_axis(leaf.shape[parent_tie.axis], parent, parent_tie)
            if parent_tie.axis == tie.axis:
                factor = jnp.where(inside & owned, scale[owner, unit], 1.0)
            else:
                factor = jnp.where(inside & owned[:, None], scale[owner][:, unit], 1.0)
                factor = factor if parent_tie.axis < tie.axis else factor.T
                axes.append(parent_tie.axis)
        factor = factor.reshape([leaf.shape[a] if a in axes else 1 for a in range(leaf.ndim)])
        factor = factor.astype(leaf.dtype)
        return leaf / factor if tie.role == "consumed" else leaf * factor

    return _map_ties(spec, params, move)


def unit_rows(
    spec: AxisSpec, leaf: Float[Array, "..."], group: Group, tie: Tie
) -> Float[Array, "*parent units rest"]:
    """View a leaf as one row per unit: all the weights of a tie that belong to that unit.

    Returns:
      ``[units, rest]``, or ``[parent's units, units, rest]`` for a nested group, so that a cost
      between two models' units is a product of rows.

    >>> from wsa_jax.merging.symmetry.spec import hand_written
    >>> leaf = jnp.arange(8.0).reshape(4, 2)
    >>> spec = hand_written({"g": [Tie(leaf="b", axis=0, role="consumed", outer=2)]}, {"b": leaf})
    >>> unit_rows(spec, leaf, spec["g"], spec["g"].ties[0]).tolist()
    [[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]]
    """
    leaf = _layer(leaf, tie)
    if group.parent is None:
        return jnp.moveaxis(_block(leaf, group.size, tie), 1, 0).reshape(group.size, -1)
    parent, parent_tie = spec[group.parent], spec.parent_tie(group, tie)
    if parent_tie.axis == tie.axis:
        # The repeats of these units are the parent's repeats, its units, and what lies between.
        block = _block(leaf, group.size, tie)
        between = parent_tie.inner // (group.size * tie.inner)
        block = block.reshape(-1, parent.size, between, *block.shape[1:])
        return jnp.moveaxis(block, (1, 3), (0, 1)).reshape(parent.size, group.size, -1)
    rows = _block(leaf, parent.size, parent_tie)  # [outer, parent's units, inner, others...]
    axis = tie.axis + 3 if tie.axis < parent_tie.axis else tie.axis + 2
    rows = _block(rows, group.size, dataclasses.replace(tie, axis=axis))
    return jnp.moveaxis(rows, (4, 1), (0, 1)).reshape(parent.size, group.size, -1)


def check_maps(spec: AxisSpec, maps: Mapping[str, Any]) -> None:
    """Raise a ValueError that names a map of an unknown group or of the wrong shape."""
    for name, given in maps.items():
        expected = _map_shape(spec, spec[name])
        if np.shape(given) != expected:
            raise ValueError(
                f"the map of group {name} has shape {np.shape(given)}, expected {expected}"
            )


def check_scale(group: Group, given: Any, params: PyTree) -> None:
    """Raise a ValueError for a scale that loses the function or the weights."""
    if is_traced(given):
        return
    scale = np.asarray(given, np.float64)
    if not np.isfinite(scale).all() or (scale == 0).any():
        worst = scale[~np.isfinite(scale) | (scale == 0)][0]
        raise ValueError(
            f"scale {worst:g} of group {group.name} cannot be undone; give finite numbers above 0"
        )
    if group.admits != "linear" and (scale < 0).any():
        raise ValueError(
            f"scale {scale[scale < 0][0]:g} of group {group.name} is negative, and the group "
            "admits positive ones only: its units pass a ReLU or the like"
        )
    dtypes = {
        key_path(path): jnp.asarray(leaf).dtype if np.isscalar(leaf) else leaf.dtype
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if key_path(path) in {tie.leaf for tie in group.ties}
    }
    for leaf, dtype in dtypes.items():
        # Both the factor and its inverse must be numbers that the dtype holds at full precision.
        tiny = float(jnp.finfo(dtype).tiny) if jnp.issubdtype(dtype, jnp.inexact) else 0.0
        size = np.abs(scale)
        if size.min() < tiny or size.max() * tiny > 1:
            worst = size.min() if size.min() < tiny else size.max()
            raise ValueError(
                f"scale {worst:g} of group {group.name} or its inverse is outside the range of "
                f"{dtype} of leaf {leaf}; give one nearer to 1"
            )


def _map_shape(spec: AxisSpec, group: Group) -> tuple[int, ...]:
    own = (group.size,)
    return own if group.parent is None else (spec[group.parent].size, *own)


def units_of_axis(size: int, group: Group, tie: Tie) -> tuple[np.ndarray, np.ndarray]:
    """For each position of an axis: whether it is in the tie's block, and its unit (0 outside)."""
    within = np.arange(size) - tie.offset
    inside = (within >= 0) & (within < tie.outer * group.size * tie.inner)
    return inside, np.where(inside, within // tie.inner % group.size, 0)


def _layer(leaf: Array, tie: Tie) -> Array:
    """The part of a leaf in which a tie lies; axes keep their numbers."""
    for axis, position in tie.at:
        leaf = jax.lax.slice_in_dim(leaf, position, position + 1, axis=axis)
    return leaf


def _block(leaf: Array, units: int, tie: Tie) -> Array:
    """``[outer, units, inner, others...]`` of one tie, the others in their order."""
    stop = tie.offset + tie.outer * units * tie.inner
    block = jnp.moveaxis(jax.lax.slice_in_dim(leaf, tie.offset, stop, axis=tie.axis), tie.axis, 0)
    return block.reshape(tie.outer, units, tie.inner, *block.shape[1:])


def _map_ties(spec: AxisSpec, params: PyTree, move: Callable[[Array, Group, Tie], Array]) -> PyTree:
    by_leaf = ties_by_leaf(spec)
    named, structure = jax.tree_util.tree_flatten_with_path(params)
    leaves = []
    for path, leaf in named:
        for group, tie in by_leaf.get(key_path(path), ()):
            leaf = jnp.asarray(leaf)
            moved = move(_layer(leaf, tie), group, tie)
            if tie.at:
                starts = dict(tie.at)
                place = [starts.get(axis, 0) for axis in range(leaf.ndim)]
                moved = jax.lax.dynamic_update_slice(leaf, moved, place)
            leaf = moved
        leaves.append(leaf)
    return jax.tree_util.tree_unflatten(structure, leaves)
