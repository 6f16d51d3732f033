"""What one assignment moves: a group with the groups nested in it, and their best orders together.

Products of units come by *signature*: the groups of a block that meet in some place, parents before
nested groups. Their array is ``[units of each, units of each in the second model]``.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Integer

from wsa_jax.merging.align.assignment import assign
from wsa_jax.merging.symmetry.spec import AxisSpec, Group

Signature: TypeAlias = tuple[str, ...]
Products: TypeAlias = Mapping[Signature, Float[np.ndarray, "..."]]
Orders: TypeAlias = Mapping[str, Integer[np.ndarray, "..."]]

__all__ = ["Move", "Orders", "Products", "Signature", "best_orders", "moves", "score", "tree"]


class Move(NamedTuple):
    """One step of a sweep.

    Attributes:
      block: index of the block.
      groups: the block's groups, parents before nested ones.
      alone: the one group that this step moves; None where it moves the whole block.
      around: groups on whose orders the step depends.
      coupled: the block's own orders enter its products, which then hold for those orders only.
    """

    block: int
    groups: tuple[Group, ...]
    alone: str | None
    around: tuple[str, ...]
    coupled: bool


def tree(spec: AxisSpec, root: Group) -> tuple[Group, ...]:
    """A group and those nested in it: parents first; of siblings, which are cheaper so, small."""
    found, level = [root], [root]
    while level:
        names = {group.name for group in level}
        level = sorted((g for g in spec.groups if g.parent in names), key=lambda g: g.size)
        found += level
    return tuple(found)


def moves(
    block: int, groups: tuple[Group, ...], signatures: Sequence[Signature], others: Sequence[str]
) -> list[Move]:
    """The steps of a sweep that move a block, whose products depend on the orders of ``others``.

    The whole block is one step. It finds the best orders unless siblings meet in one place, groups
    are nested three deep, or the block is coupled: then each group is a step of its own, too.
    """
    own = tuple(group.name for group in groups)
    parents = {group.name: group.parent for group in groups}
    coupled = not set(own).isdisjoint(others)
    steps_down = {pair for signature in signatures for pair in itertools.pairwise(signature)}
    chains = all(parents[name] == before for before, name in steps_down)
    deep = any(parents[group.parent] is not None for group in groups[1:] if group.parent)
    steps = [Move(block, groups, None, tuple(others), coupled)]
    if len(groups) > 1 and (deep or coupled or not chains):
        around = (*others, *(name for name in own if name not in others))
        steps += [Move(block, groups, name, around, coupled) for name in own]
    return steps


def best_orders(move: Move, products: Products, permutations: Orders) -> dict[str, np.ndarray]:
    """The best orders of what a step moves: of one group, the others' given; or of a whole block.

    A block is ordered from its root down. Until a nested group has its turn, every pair of units
    counts with that group's best order for this pair, which other pairs need not share.
    """
    if move.alone is not None:
        given = {g.name: permutations[g.name] for g in move.groups if g.name != move.alone}
        return {move.alone: assign(_pair_scores(move.groups, products, given, move.alone))[0]}
    found: dict[str, np.ndarray] = {}
    for group in move.groups:
        found[group.name], _ = assign(_pair_scores(move.groups, products, found, group.name))
    return found


def score(move: Move, products: Products, permutations: Orders) -> float:
    """Sum of the products of the units that the orders pair."""
    placed = (_placed(move.groups, s, values, permutations) for s, values in products.items())
    return float(sum(values.sum() for values in placed))


def _pair_scores(
    groups: tuple[Group, ...], products: Products, orders: Orders, name: str
) -> Float[np.ndarray, "..."]:
    """Score all pairs of a group's units, given some orders, each other group at its best."""
    by_name = {group.name: group for group in groups}
    group = by_name[name]
    keys = () if group.parent is None else (by_name[group.parent].size,)
    total = np.zeros((*keys, group.size, group.size))
    for signature, values in products.items():
        if name not in signature:
            continue
        free = [other for other in signature if other == name or other not in orders]
        left = [*signature, *(f"{other}'" for other in free)]
        values = _placed(groups, signature, values, orders, free)
        # Groups without an order, inner ones first: the best that each pair of units can have.
        for other in reversed(free):
            if other != name:
                pair = (left.index(other), left.index(f"{other}'"))
                _, values = assign(np.moveaxis(values, pair, (-2, -1)))
                left = [axis for axis in left if axis not in (other, f"{other}'")]
        # What else has an order is summed; pairs are told apart by the parent's unit, if there is
        # one, as the second model counts it, since that is how orders of nested groups are kept.
        above = _above(by_name, group)
        kept = [*above, name, f"{name}'"]
        summed = tuple(i for i, axis in enumerate(left) if axis not in kept)
        values = values.sum(axis=summed)
        order = [axis for axis in left if axis in kept]
        values = values.transpose([order.index(axis) for axis in kept])
        if group.parent is None:
            total += values
        else:
            owner = _theirs(groups, tuple(above), orders)[group.parent]
            shape = tuple(by_name[other].size for other in above)
            owner = np.broadcast_to(owner, shape).ravel()
            np.add.at(total, owner, values.reshape(-1, group.size, group.size))
    return total


def _above(by_name: Mapping[str, Group], group: Group) -> list[str]:
    """Names of the groups that a group is nested in, the outermost first."""
    if group.parent is None:
        return []
    return [*_above(by_name, by_name[group.parent]), group.parent]


def _placed(
    groups: tuple[Group, ...],
    signature: Signature,
    values: np.ndarray,
    orders: Orders,
    free: Sequence[str] = (),
) -> np.ndarray:
    """Products of the units that the orders pair, ``[units of each, second's units of free]``."""
    if len(free) == len(signature):
        return values
    sizes = {group.name: group.size for group in groups}
    dims = len(signature) + len(free)
    ours = [_along(axis, sizes[name], dims) for axis, name in enumerate(signature)]
    theirs = _theirs(groups, signature, orders, free)
    return values[(*ours, *theirs.values())]


def _theirs(
    groups: tuple[Group, ...], signature: Signature, orders: Orders, free: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Units of the second model that lie where the first has each unit, as open grids."""
    by_name = {group.name: group for group in groups}
    dims = len(signature) + len(free)
    theirs: dict[str, np.ndarray] = {}
    for axis, name in enumerate(signature):
        group = by_name[name]
        ours = _along(axis, group.size, dims)
        if name in free:
            theirs[name] = _along(len(signature) + free.index(name), group.size, dims)
        elif group.parent is None:
            theirs[name] = orders[name][ours]
        else:
            theirs[name] = orders[name][theirs[group.parent], ours]
    return theirs


def _along(axis: int, size: int, dims: int) -> np.ndarray:
    return np.arange(size).reshape([size if dim == axis else 1 for dim in range(dims)])
