"""Maps from one model's units to another's that need not be permutations, and how weights move.

A permutation pairs units. Optimal transport, canonical correlation and zipping mix them, and the
models may differ in width: then the result has the first model's shape.
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Inexact, PyTree

from wsa_jax import checks
from wsa_jax.leaves import key_path
from wsa_jax.merging.symmetry.spec import AxisSpec, Group, Tie, check_spec, ties_by_leaf
from wsa_jax.types import Json, Leaf

__all__ = [
    "UnitMaps",
    "identity_maps",
    "map_leaf",
    "map_units",
    "movable",
    "resized",
    "rows_of",
    "second_sizes",
    "wide",
]


class UnitMaps(NamedTuple):
    """How to write one model in another one's units.

    Attributes:
      forward: by group, ``[units, own units]``: what each unit of the result is made of. It is
        applied where units are produced (kernels' outputs, biases, norms), and to statistics.
      backward: by group, ``[own units, units]``: how much each unit of the result stands for each
        of the model's own, applied where units are consumed.
      info: diagnostics by name, not needed to apply the maps; ``"unmoved"`` names the groups that
        have no map, each with the reason.
    """

    forward: dict[str, Float[np.ndarray, "units own"]]
    backward: dict[str, Float[np.ndarray, "own units"]]
    info: Json


def identity_maps(spec: AxisSpec, names: Iterable[str], info: Json) -> UnitMaps:
    """The maps of the model whose units the others are written in."""
    eyes = {name: np.eye(spec[name].size) for name in names}
    return UnitMaps(eyes, dict(eyes), info)


def movable(spec: AxisSpec) -> tuple[dict[str, Group], dict[str, str]]:
    """Groups that maps are made for, and why the others have none.

    >>> from wsa_jax.merging.symmetry.spec import hand_written
    >>> spec = hand_written({"hidden": [Tie(leaf="a", axis=1)]}, {"a": np.ones((2, 3))})
    >>> movable(spec)[1]["hidden"]
    "no tie of role 'consumed' says which weights its units meet next"
    """
    parents = {group.parent for group in spec.groups}
    reasons = {}
    for group in spec.groups:
        if group.parent is not None:
            reasons[group.name] = f"its units are nested in those of {group.parent}"
        elif group.name in parents:
            reasons[group.name] = "other groups are nested in its units"
        elif not any(tie.role == "consumed" for tie in group.ties):
            reasons[group.name] = "no tie of role 'consumed' says which weights its units meet next"
    return {g.name: g for g in spec.groups if g.name not in reasons}, reasons


def second_sizes(
    spec: AxisSpec,
    first: PyTree,
    second: PyTree,
    which: str,
    own: Collection[str] = (),
) -> dict[str, int]:
    """How many units each group has in a second model, which may be of another width.

    Args:
      spec: of the first model.
      first: the first model.
      second: another one, of equal leaves.
      which: what messages call the second model.
      own: leaves that stay each model's own, whose axes without units may differ.

    Raises:
      ValueError: a leaf that only one model has, an axis of another size where no group lies
        (inputs, outputs, classes), sizes that fit no number of units, or another number of units in
        nested groups or in layers that one leaf stacks.
    """
    checks.same_structure(*(jax.tree.map(lambda _: 0, tree) for tree in (first, second)))
    check_spec(spec, first)
    ours, theirs = _shapes(first), _shapes(second)
    blocks: dict[tuple[str, int], list[tuple[Group, Tie]]] = {}
    for group in spec.groups:
        for tie in group.ties:
            blocks.setdefault((tie.leaf, tie.axis), []).append((group, tie))
    # An axis that a group has for itself tells its size; others must agree.
    sizes: dict[str, int] = {}
    for (leaf, axis), there in blocks.items():
        group = there[0][0]
        if group.name in sizes or any(other.name != group.name or t.at for other, t in there):
            continue
        each = sum(tie.outer * tie.inner for _, tie in there)
        grown = theirs[leaf][axis] - ours[leaf][axis] if len(theirs[leaf]) > axis else 0
        if grown % each == 0:
            sizes[group.name] = group.size + grown // each
    sizes = {group.name: sizes.get(group.name, group.size) for group in spec.groups}
    _check_grown(spec, sizes, which)
    for leaf, shape in ours.items():
        _check_leaf(leaf, shape, theirs[leaf], blocks, sizes, which, leaf in own)
    return sizes


def _check_leaf(
    leaf: str,
    shape: tuple[int, ...],
    other: tuple[int, ...],
    blocks: Mapping[tuple[str, int], Sequence[tuple[Group, Tie]]],
    sizes: Mapping[str, int],
    which: str,
    own: bool,
) -> None:
    if len(shape) != len(other):
        raise ValueError(
            f"leaf {leaf} has shape {shape} in the first model and {other} in {which}; "
            "the architectures must be equal but for their widths"
        )
    for axis, (size, found) in enumerate(zip(shape, other, strict=True)):
        there = {tie.offset: (g, tie) for g, tie in blocks.get((leaf, axis), ())}.values()
        grown = sum(tie.outer * tie.inner * (sizes[g.name] - g.size) for g, tie in there)
        if size + grown == found or (own and not there):
            continue
        if not there:
            raise ValueError(
                f"axis {axis} of leaf {leaf} has size {size} in the first model and {found} in "
                f"{which}, and no units that could be mapped (inputs, outputs or classes); "
                "merge models whose inputs and heads are equal"
            )
        named = ", ".join(f"{sizes[g.name]} units of group {g.name}" for g, _ in there)
        raise ValueError(
            f"axis {axis} of leaf {leaf} has size {found} in {which}, which does not fit {named}; "
            "the architectures must be equal but for their widths"
        )


def _check_grown(spec: AxisSpec, sizes: Mapping[str, int], which: str) -> None:
    _, reasons = movable(spec)
    for group in spec.groups:
        if sizes[group.name] == group.size:
            continue
        stacked = next((tie.leaf for tie in group.ties if tie.at), None)
        reason = reasons.get(group.name) or (stacked and f"leaf {stacked} stacks layers")
        if reason:
            raise ValueError(
                f"group {group.name} has {group.size} units in the first model and "
                f"{sizes[group.name]} in {which}, and cannot be mapped to another width: {reason}"
            )


def resized(spec: AxisSpec, sizes: Mapping[str, int]) -> AxisSpec:
    """The spec of a model of other widths.

    >>> groups = (Group(name="a", size=2, ties=(Tie(leaf="k", axis=0),)),
    ...           Group(name="b", size=3, ties=(Tie(leaf="k", axis=0, offset=2),)))
    >>> resized(AxisSpec(groups=groups), {"a": 4, "b": 3})["b"].ties[0].offset
    4
    """
    if all(sizes.get(group.name, group.size) == group.size for group in spec.groups):
        return spec
    blocks = [(group, tie) for group in spec.groups for tie in group.ties]

    def shifted(tie: Tie) -> Tie:
        before = [
            (group, block)
            for group, block in blocks
            if (block.leaf, block.axis) == (tie.leaf, tie.axis)
            and block.offset + block.outer * group.size * block.inner <= tie.offset
        ]
        grown = sum(b.outer * b.inner * (sizes.get(g.name, g.size) - g.size) for g, b in before)
        return dataclasses.replace(tie, offset=tie.offset + grown)

    groups = tuple(
        dataclasses.replace(
            group,
            size=sizes.get(group.name, group.size),
            ties=tuple(shifted(tie) for tie in group.ties),
        )
        for group in spec.groups
    )
    return dataclasses.replace(spec, groups=groups)


def map_units(spec: AxisSpec, params: PyTree, maps: UnitMaps) -> PyTree:
    """Write a model in another one's units, in float64 on the host.

    Statistics move by the same map, and are held between the least and the greatest that they come
    from: a variance stays one until it is estimated again.
    """
    theirs = resized(spec, {name: len(own) for name, own in maps.backward.items()})
    check_spec(theirs, params)
    by_leaf = ties_by_leaf(theirs)

    def moved(path: tuple, leaf: Leaf) -> Leaf:
        ties = [(g, t) for g, t in by_leaf.get(key_path(path), ()) if g.name in maps.forward]
        if not ties:
            return leaf
        values = map_leaf(np.asarray(leaf, wide(leaf)), ties, maps)
        return jnp.asarray(values, jnp.asarray(leaf).dtype)

    return jax.tree_util.tree_map_with_path(moved, params)


def map_leaf(
    values: Inexact[np.ndarray, "..."], ties: Iterable[tuple[Group, Tie]], maps: UnitMaps
) -> Inexact[np.ndarray, "..."]:
    """Write one leaf in another model's units, at those of its ties whose groups have a map."""
    # The last block of an axis first: where the others begin does not change then.
    for group, tie in sorted(ties, key=lambda pair: -pair[1].offset):
        if group.name in maps.forward:
            consumed = tie.role == "consumed"
            matrix = maps.backward[group.name].T if consumed else maps.forward[group.name]
            values = _map_block(values, group.size, tie, matrix)
    return values


def rows_of(
    values: Inexact[np.ndarray, "..."], size: int, tie: Tie
) -> Float[np.ndarray, "units rest"]:
    """One row for each unit of a tie: all weights that belong to it."""
    front, start, stop = _front(values[_layer(values, tie)], size, tie)
    block = front[start:stop].reshape(tie.outer, size, -1)
    rows = np.moveaxis(block, 1, 0).reshape(size, -1)
    return np.concatenate([rows.real, rows.imag], axis=1) if np.iscomplexobj(rows) else rows


def wide(leaf: Leaf) -> type:
    """The type in which maps are applied: double precision; complex numbers stay complex."""
    return np.complex128 if jnp.iscomplexobj(leaf) else np.float64


def _map_block(values: np.ndarray, size: int, tie: Tie, matrix: np.ndarray) -> np.ndarray:
    """Multiply the units of one block of one axis by ``[new units, units]``."""
    layer = _layer(values, tie)
    front, start, stop = _front(values[layer], size, tie)
    block = front[start:stop].reshape(tie.outer, size, tie.inner, -1)
    found = np.moveaxis(np.tensordot(matrix, block, (1, 1)), 0, 1)
    if tie.role == "statistic":
        found = np.clip(found, block.min(initial=np.inf), block.max(initial=-np.inf))
    found = found.reshape(-1, *front.shape[1:])
    result = np.moveaxis(np.concatenate([front[:start], found, front[stop:]]), 0, tie.axis)
    if not tie.at:
        return result
    values = values.copy()
    values[layer] = result
    return values


def _front(values: np.ndarray, size: int, tie: Tie) -> tuple[np.ndarray, int, int]:
    """The leaf with a tie's axis first, and where the block begins and ends."""
    stop = tie.offset + tie.outer * size * tie.inner
    return np.moveaxis(values, tie.axis, 0), tie.offset, stop


def _layer(values: np.ndarray, tie: Tie) -> tuple[slice, ...]:
    places = dict(tie.at)
    return tuple(
        slice(places[axis], places[axis] + 1) if axis in places else slice(None)
        for axis in range(values.ndim)
    )


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    named = jax.tree_util.tree_leaves_with_path(tree)
    return {key_path(path): tuple(np.shape(leaf)) for path, leaf in named}
