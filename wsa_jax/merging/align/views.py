"""Where a block's units lie in a leaf, and the products of two models' units there.

A *view* is one tie of a block's root, in a layout in which the product is a plain matrix product.
Views of equal geometry share a compilation.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wsa_jax.merging.align.blocks import Signature
from wsa_jax.merging.symmetry.spec import AxisSpec, Group, Tie, depth_of
from wsa_jax.merging.symmetry.units import gather_units, unit_rows, units_of_axis

__all__ = ["View", "lay", "products", "update_products", "views_of"]

_OWN, _LEAF = "own", "leaf"
_CHUNK = 16  # Units that `update_products` takes at once.

Matrices: TypeAlias = tuple[Float[Array, "..."], ...]


class View(NamedTuple):
    """One tie of a block's root.

    Attributes:
      leaf: key path of the leaf.
      tie: the tie of the block's root in that leaf.
      local: the leaf's symmetries under local names, so that equal geometries are equal static
        arguments; ``"own"`` is the block's root, ``"own/..."`` what is nested in it.
      others: groups that move the rest of the leaf, as ``(name in local, name in spec)``.
      signatures: groups of the block that meet in the leaf, by names in the spec: one for each
        matrix of `products`.
      layout: ``"pair"``: one other group moves the rest, ``[its units, rest, units]``; ``"flat"``:
        ``[..., units]``; ``"leaf"``: as in the model.
    """

    leaf: str
    tie: Tie
    local: AxisSpec
    others: tuple[tuple[str, str], ...]
    signatures: tuple[Signature, ...]
    layout: Literal["pair", "flat", "leaf"]


class _Place(NamedTuple):
    """A part of a leaf in which the same groups of a block meet: positions along each axis."""

    groups: tuple[int, ...]
    positions: tuple[np.ndarray, ...]
    along: tuple[tuple[int, ...], ...]


@functools.partial(jax.jit, static_argnames=("local", "layout", "ordered"))
def products(
    local: AxisSpec,
    layout: str,
    first: Array,
    second: Array,
    permutations: Mapping[str, Array],
    ordered: bool = False,
) -> Matrices:
    """Multiply each unit's weights in the first model by each unit's in the second.

    Args:
      local: symmetries of the leaf.
      layout: layout of the leaf, see `View`.
      first: the leaf in the first model.
      second: the leaf in the second model.
      permutations: permutations of the groups that move the rest of the leaf.
      ordered: sort along the rest instead of permuting: the greatest value that each product can
        take, whatever the other groups' orders (rearrangement inequality).

    Returns:
      For each signature of the view, the products of its units: rows and columns count the units
      of its first group, in each those of its second, and so on.
    """
    own = local[_OWN]
    if ordered and layout == "pair":
        first, second = jnp.sort(first, axis=0), jnp.sort(second, axis=0)
    elif ordered:
        first, second = _ordered(local, first), _ordered(local, second)
    elif layout == "pair":
        ((_, permutation),) = permutations.items()
        second = second[permutation]
    else:
        second = gather_units(local, {_LEAF: second}, permutations)[_LEAF]
    if layout != "leaf":
        rows = (x.reshape(-1, own.size) for x in (first, second))
        return (jnp.einsum("kn,km->nm", *rows, precision=jax.lax.Precision.HIGHEST),)
    totals: dict[tuple[int, ...], Array] = {}
    for place in _places(local, first.shape):
        rows = [_rows(local, x, place) for x in (first, second)]
        if ordered and _shares_axis(local):
            rows = [jnp.sort(x, axis=-1) for x in rows]
        found = jnp.einsum("nk,mk->nm", *rows, precision=jax.lax.Precision.HIGHEST)
        totals[place.groups] = totals.get(place.groups, 0.0) + found
    return tuple(totals.values())


@jax.jit
def update_products(
    scores: Float[Array, "units units"],
    first: Float[Array, "others rest units"],
    second: Float[Array, "others rest units"],
    moved: Array,
    count: Array,
    new: Array,
    old: Array,
) -> Float[Array, "units units"]:
    """Bring the products of a ``"pair"`` view up to date after ``count`` other units moved.

    The work is proportional to ``count``, not to the number of all units: ``moved[:count]`` lists
    those that moved, and ``new`` and ``old`` are the other group's orders.
    """
    chunk = min(_CHUNK, moved.shape[0])

    def body(index: Array, scores: Array) -> Array:
        place = index * chunk + jnp.arange(chunk)
        units = jnp.take(moved, place, mode="clip")
        change = second[new[units]] - second[old[units]]
        change = jnp.where((place < count)[:, None, None], change, 0.0)
        rows = (x.reshape(-1, scores.shape[0]) for x in (first[units], change))
        return scores + jnp.einsum("kn,km->nm", *rows, precision=jax.lax.Precision.HIGHEST)

    return jax.lax.fori_loop(0, -(-count // chunk), body, scores)


def lay(root: Group, view: View, leaf: Array) -> Array:
    """A leaf in a view's layout, in float32."""
    leaf = jnp.asarray(leaf, jnp.float32)
    if view.layout == "leaf":
        return leaf
    rows = unit_rows(AxisSpec(groups=(root,)), leaf, root, view.tie)
    others = [n for axis, n in enumerate(leaf.shape) if axis != view.tie.axis]
    flat = jnp.moveaxis(rows.reshape(root.size, -1, *others), 0, -1)
    if view.layout == "flat":
        return flat
    other = view.local.groups[1]
    rows = unit_rows(view.local, flat, other, other.ties[0])
    return rows.reshape(other.size, -1, root.size)


def views_of(
    spec: AxisSpec,
    groups: tuple[Group, ...],
    tie: Tie,
    here: Sequence[tuple[Group, Tie]],
    shape: tuple[int, ...],
) -> list[View]:
    """Views of one tie of a block's root.

    One view, unless a nested group lies on several axes of the leaf: then one for each of them, in
    which the order of the others is taken as it stands.
    """
    inside = _nested_in(spec, groups, tie, here)
    axes = {g.name: sorted({t.axis for other, t in inside if other == g}) for g, _ in inside}
    views = []
    for chosen in itertools.product(*axes.values()):
        active = dict(zip(axes, chosen, strict=True))
        nested = [(group, t) for group, t in inside if t.axis == active[group.name]]
        nested = _nested_in(spec, groups, tie, nested)
        others = [
            pair
            for pair in here
            if pair not in nested and _meets(spec, groups[0], tie, *pair, shape)
        ]
        views.append(_view(spec, groups[0], tie, nested, others, shape))
    return views


def _nested_in(
    spec: AxisSpec,
    groups: tuple[Group, ...],
    tie: Tie,
    here: Sequence[tuple[Group, Tie]],
) -> list[tuple[Group, Tie]]:
    """Ties of nested groups whose parents' units are those of the root's tie, parents first."""
    places, found = {(groups[0].name, tie)}, []
    for group in groups[1:]:
        for other, t in here:
            if other == group and (group.parent, spec.parent_tie(group, t)) in places:
                places.add((group.name, t))
                found.append((group, t))
    return found


def _meets(
    spec: AxisSpec, root: Group, tie: Tie, other: Group, t: Tie, shape: tuple[int, ...]
) -> bool:
    """Whether a tie lies among a root's units, or across them, and moves what lies there."""
    if (other, t) == (root, tie):
        return False
    while True:
        size = shape[tie.axis]
        if (
            t.axis == tie.axis
            and not (units_of_axis(size, other, t)[0] & units_of_axis(size, root, tie)[0]).any()
        ):
            return False
        if other.parent is None:
            return True
        other, t = spec[other.parent], spec.parent_tie(other, t)


def _view(
    spec: AxisSpec,
    root: Group,
    tie: Tie,
    nested: Sequence[tuple[Group, Tie]],
    others: Sequence[tuple[Group, Tie]],
    shape: tuple[int, ...],
) -> View:
    # As in the model, unless the root's axis is its own: then units come last, repeats first.
    whole = bool(nested) or any(t.axis == tie.axis for _, t in others)
    role = any(other.parent is not None for other, _ in [*nested, *others])

    def placed(t: Tie) -> Tie:
        axis = t.axis if whole else t.axis + 1 - (t.axis > tie.axis)
        # Roles tell parents' ties apart; where there is no parent, more leaves look equal without.
        return dataclasses.replace(t, leaf=_LEAF, axis=axis, role=t.role if role else "produced")

    own = placed(tie) if whole else Tie(leaf=_LEAF, axis=len(shape))
    local = {_OWN: Group(name=_OWN, size=root.size, ties=(own,))}
    names = {(root.name, tie): _OWN}
    listed: dict[tuple[str, str | None], str] = {}
    outer = sorted(others, key=lambda pair: depth_of(spec, pair[0]))
    for group, t in [*nested, *outer]:
        # A parent's units may lie in the leaf twice, as on both axes of a square kernel.
        parent = group.parent and names[group.parent, spec.parent_tie(group, t)]
        prefix = f"{_OWN}/" if (group, t) in nested else ""
        name = listed.setdefault((group.name, parent), f"{prefix}{len(listed)}")
        names[group.name, t] = name
        known = local.get(name, Group(name=name, size=group.size, ties=(), parent=parent))
        local[name] = dataclasses.replace(known, ties=(*known.ties, placed(t)))
    places = AxisSpec(groups=tuple(local.values()))
    spec_names = {name: given for (given, _), name in listed.items()} | {_OWN: root.name}
    layout: Literal["pair", "flat", "leaf"] = "leaf" if whole else "flat"
    if not whole and len(others) == 1:
        other, t = others[0]
        if t.offset == 0 and t.outer * other.size * t.inner == shape[t.axis]:
            layout = "pair"
    signatures: list[Signature] = [(root.name,)]
    if whole:
        inner = [group.name for group in _tree(places)]
        found = dict.fromkeys(place.groups for place in _places(places, shape, tie.leaf))
        signatures = [tuple(spec_names[inner[index]] for index in groups) for groups in found]
    pairs = [(name, given) for name, given in spec_names.items() if name != _OWN]
    return View(
        leaf=tie.leaf,
        tie=tie,
        local=places,
        others=tuple(pair for pair in pairs if not _is_own(pair[0])),
        signatures=tuple(signatures),
        layout=layout,
    )


def _places(local: AxisSpec, shape: tuple[int, ...], leaf: str = _LEAF) -> list[_Place]:
    """Parts of a leaf that hold the root's units, by the groups that meet there."""
    tree = _tree(local)
    axes = [_classes(tree, axis, size, leaf) for axis, size in enumerate(shape)]
    found = []
    for parts in itertools.product(*axes):
        groups = tuple(sorted(set().union(*(along for along, _ in parts))))
        if 0 in groups:  # The root; without it, the place is another tie's.
            along, positions = zip(*parts, strict=True)
            found.append(_Place(groups, positions, along))
    return found


def _classes(
    tree: Sequence[Group], axis: int, size: int, leaf: str
) -> list[tuple[tuple[int, ...], np.ndarray]]:
    """Groups that hold positions of an axis, and those positions, ordered by the groups' units."""
    covered, units = np.zeros((2, len(tree), size), int)
    for row, group in enumerate(tree):
        for tie in group.ties:
            if tie.axis == axis:
                inside, unit = units_of_axis(size, group, tie)
                covered[row] |= inside
                units[row] = np.where(inside, unit, units[row])
    classes = []
    for pattern in np.unique(covered, axis=1).T:
        (positions,) = np.nonzero((covered == pattern[:, None]).all(0))
        rows = tuple(np.flatnonzero(pattern).tolist())
        if rows:
            sizes = tuple(tree[row].size for row in rows)
            cell = np.ravel_multi_index(tuple(units[row, positions] for row in rows), sizes)
            positions = positions[np.argsort(cell, kind="stable")]
            if (
                np.bincount(cell, minlength=math.prod(sizes)) * math.prod(sizes) != cell.size
            ).any():
                raise ValueError(
                    f"axis {axis} of leaf {leaf} holds more of some units than of others, where a "
                    "group meets those nested in it; give every unit a block of one size"
                )
        classes.append((rows, positions))
    return classes


def _rows(local: AxisSpec, leaf: Array, place: _Place) -> Float[Array, "units rest"]:
    """The weights of a place, one row for each unit of its last group in each of the one before."""
    tree, shape, axes = _tree(local), [], {}
    for axis, (positions, along) in enumerate(zip(place.positions, place.along, strict=True)):
        leaf = jnp.take(leaf, positions, axis=axis)
        for row in along:
            axes[row] = len(shape)
            shape.append(tree[row].size)
        shape.append(leaf.shape[axis] // math.prod(tree[row].size for row in along))
    order = [axes[row] for row in place.groups]
    order += [axis for axis in range(len(shape)) if axis not in order]
    units = math.prod(tree[row].size for row in place.groups)
    return leaf.reshape(shape).transpose(order).reshape(units, -1)


def _ordered(local: AxisSpec, leaf: Array) -> Array:
    tree = _tree(local)
    held = {tie.axis for group in tree for tie in group.ties}
    axes = sorted({t.axis for g in local.groups if g not in tree for t in g.ties} - held)
    if not axes:
        return leaf
    last = tuple(range(leaf.ndim - len(axes), leaf.ndim))
    leaf = jnp.moveaxis(leaf, axes, last)
    ordered = jnp.sort(leaf.reshape(*leaf.shape[: -len(axes)], -1), axis=-1)
    return jnp.moveaxis(ordered.reshape(leaf.shape), last, axes)


def _shares_axis(local: AxisSpec) -> bool:
    """Whether another group lies on an axis of the block's own: there, all of a row is sorted."""
    tree = _tree(local)
    held = {tie.axis for group in tree for tie in group.ties}
    return any(tie.axis in held for g in local.groups if g not in tree for tie in g.ties)


def _tree(local: AxisSpec) -> list[Group]:
    return [group for group in local.groups if _is_own(group.name)]


def _is_own(name: str) -> bool:
    return name.split("/")[0] == _OWN
