"""Similarity of two models' units, as sums of products of their weights: static plan and products.

A *block* is what one assignment moves: a group and the groups nested in it. A *view* is one of
its ties, in a layout in which the product is a plain matrix product. Views of equal geometry share
a compilation.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from wsa_jax import checks
from wsa_jax.merging.align.assignment import move, moving_leaves
from wsa_jax.merging.symmetry.spec import AxisSpec, Group, Tie, check_spec, ties_by_leaf
from wsa_jax.merging.symmetry.units import permute_units, unit_rows

_OWN, _LEAF = "own", "leaf"
_BUFFER = 2**13  # Values summed at once: below the size at which BLAS starts threads for a sum.
_CHUNK = 16  # Units that `update_products` takes at once.


Products = tuple[Float[Array, "units units"], tuple[Float[Array, "outer outer inner inner"], ...]]


class View(NamedTuple):
    """One tie of a block's group.

    Attributes:
      leaf: key path of the leaf.
      tie: the tie of the block's group in that leaf.
      local: the leaf's symmetries under local names, so that equal geometries are equal static
        arguments; ``"own"`` is the block's group.
      others: groups that move the rest of the leaf, as ``(name in local, name in spec)``.
      nested: groups nested in the block's group that lie in the leaf, in the same form.
      layout: ``"pair"``: one other group moves the rest, ``[its units, rest, units]``; ``"flat"``:
        ``[..., units]``; ``"leaf"``: as in the model.
    """

    leaf: str
    tie: Tie
    local: AxisSpec
    others: tuple[tuple[str, str], ...]
    nested: tuple[tuple[str, str], ...]
    layout: Literal["pair", "flat", "leaf"]


class Block(NamedTuple):
    """What one assignment moves; `coupled` if its own order enters its scores."""

    group: Group
    nested: tuple[Group, ...]
    views: tuple[View, ...]
    coupled: bool


class Problem(NamedTuple):
    """Two models, ready to be compared group by group.

    Attributes:
      spec: which axes move together.
      first: leaves of the first model that move, on the host, by name.
      second: leaves of the second model, statistics among them.
      blocks: the blocks, in the spec's order.
      pairs: both models' leaf of each view, in the view's layout; None for a view whose products no
        other group changes: those products are in `constants`.
      constants: the products of those views.
      norms: for each block, the product of both models' norms over its leaves, divided by the
        square root of its number of units; the rounding error of a sum over its units is
        proportional to it.
    """

    spec: AxisSpec
    first: dict[str, np.ndarray]
    second: dict[str, Array | np.ndarray]
    blocks: tuple[Block, ...]
    pairs: list[list[tuple[Array, Array] | None]]
    constants: list[list[Products | None]]
    norms: list[float]


def prepare(spec: AxisSpec, first: PyTree, second: PyTree) -> Problem:
    """Check two models against each other and the spec, and lay their leaves out.

    Raises:
      ValueError: architectures differ, the spec is for another model, or a weight is not finite.
    """
    checks.same_structure(first, second)
    check_spec(spec, first)
    checks.finite(first, "the first model")
    checks.finite(second, "the second model")
    return lay_out(spec, first, second)


def lay_out(spec: AxisSpec, first: PyTree, second: PyTree) -> Problem:
    """`prepare` without its checks, for models that have passed them."""
    ours, theirs = moving_leaves(spec, first), moving_leaves(spec, second)
    blocks = _plan(spec, tuple((name, np.shape(leaf)) for name, leaf in ours.items()))
    names = sorted({view.leaf for block in blocks for view in block.views})
    host = {name: np.asarray(ours[name]) for name in names}
    pairs, constants = _lay_out(blocks, host, {name: theirs[name] for name in names})
    squares = {}
    for name in names:
        both = (np.asarray(model[name], np.float32).ravel() for model in (ours, theirs))
        squares[name] = [float(np.dot(x, x)) for x in both]
    norms = []
    for block in blocks:
        total = np.sum([squares[view.leaf] for view in block.views], axis=0)
        norms.append(float(np.sqrt(np.prod(total) / block.group.size)))
    return Problem(spec, host, theirs, blocks, pairs, constants, norms)


def compare(problem: Problem, permutations: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """Sum of products and Euclidean distance of all weights that move, each once, in float64."""
    moved = move(problem.spec, problem.second, permutations)
    # Through two small buffers: float64 copies of whole models cost more than the sums.
    ours, theirs = np.empty((2, _BUFFER))
    total = squares = 0.0
    for name, leaf in problem.first.items():
        first, second = leaf.ravel(), np.asarray(moved[name]).ravel()
        for start in range(0, first.size, _BUFFER):
            size = min(_BUFFER, first.size - start)
            x, y = ours[:size], theirs[:size]
            x[:], y[:] = first[start : start + size], second[start : start + size]
            total += float(x @ y)
            y -= x
            squares += float(y @ y)
    return total, float(np.sqrt(squares))


@functools.partial(jax.jit, static_argnames=("local", "layout", "ordered"))
def products(
    local: AxisSpec,
    layout: str,
    first: Array,
    second: Array,
    permutations: Mapping[str, Array],
    ordered: bool = False,
) -> Products:
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
      The products of units and, for each nested group, the products of its units within each pair
      of units. The former leave out what the latter count.
    """
    highest = jax.lax.Precision.HIGHEST
    if ordered and layout == "pair":
        first, second = jnp.sort(first, axis=0), jnp.sort(second, axis=0)
    elif ordered:
        first, second = _ordered(local, first), _ordered(local, second)
    elif layout == "pair":
        ((_, permutation),) = permutations.items()
        second = second[permutation]
    else:
        second = permute_units(local, {_LEAF: second}, permutations)[_LEAF]
    own = local[_OWN]
    if layout != "leaf":
        rows = (x.reshape(-1, own.size) for x in (first, second))
        return jnp.einsum("kn,km->nm", *rows, precision=highest), ()
    rest, inside = first, []
    for group in local.groups:
        if group.parent != _OWN:
            continue
        scores = jnp.zeros((own.size, own.size, group.size, group.size), jnp.float32)
        for tie in group.ties:
            rows_of = functools.partial(unit_rows, local, group=group, tie=tie)
            rows = (rows_of(first), rows_of(second))
            scores += jnp.einsum("unk,vmk->uvnm", *rows, precision=highest)
            # Rows only gather, so their transpose puts ones back where the rows came from.
            (covered,) = jax.linear_transpose(rows_of, first)(jnp.ones_like(rows[0]))
            rest = jnp.where(covered > 0, 0.0, rest)
        inside.append(scores)
    rows = (unit_rows(local, x, own, own.ties[0]) for x in (rest, second))
    return jnp.einsum("nk,mk->nm", *rows, precision=highest), tuple(inside)


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


def _ordered(local: AxisSpec, leaf: Array) -> Array:
    moved = {_OWN} | {group.name for group in local.groups if group.parent == _OWN}
    axes = sorted({t.axis for g in local.groups if g.name not in moved for t in g.ties})
    if not axes:
        return leaf
    last = tuple(range(leaf.ndim - len(axes), leaf.ndim))
    leaf = jnp.moveaxis(leaf, axes, last)
    ordered = jnp.sort(leaf.reshape(*leaf.shape[: -len(axes)], -1), axis=-1)
    return jnp.moveaxis(ordered.reshape(leaf.shape), last, axes)


@functools.partial(jax.jit, static_argnames="blocks")
def _lay_out(
    blocks: tuple[Block, ...], first: Mapping[str, Array], second: Mapping[str, Array]
) -> tuple[list, list]:
    """Both models' leaf of each view, in its layout and in float32, or its constant products."""

    def lay(block: Block, view: View, leaf: Array) -> Array:
        leaf = jnp.asarray(leaf, jnp.float32)
        if view.layout == "leaf":
            return leaf
        rows = unit_rows(AxisSpec(groups=(block.group,)), leaf, block.group, view.tie)
        others = [n for axis, n in enumerate(leaf.shape) if axis != view.tie.axis]
        flat = jnp.moveaxis(rows.reshape(block.group.size, -1, *others), 0, -1)
        if view.layout == "flat":
            return flat
        other = view.local.groups[1]
        rows = unit_rows(view.local, flat, other, other.ties[0])
        return rows.reshape(other.size, -1, block.group.size)

    pairs, constants = [], []
    for block in blocks:
        laid = [
            (lay(block, view, first[view.leaf]), lay(block, view, second[view.leaf]))
            for view in block.views
        ]
        fixed = [not view.others for view in block.views]
        pairs.append([None if fix else pair for fix, pair in zip(fixed, laid, strict=True)])
        constants.append(
            [
                products(view.local, view.layout, *pair, {}) if fix else None
                for fix, view, pair in zip(fixed, block.views, laid, strict=True)
            ]
        )
    return pairs, constants


@functools.lru_cache(maxsize=64)
def _plan(spec: AxisSpec, shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> tuple[Block, ...]:
    by_leaf = ties_by_leaf(spec)
    blocks = []
    for group in spec.groups:
        if group.parent is not None:
            continue
        nested = tuple(inner for inner in spec.groups if inner.parent == group.name)
        views = [
            _view(spec, group, tie, by_leaf[tie.leaf], dict(shapes)[tie.leaf])
            for tie in group.ties
            if tie.role != "statistic"
        ]
        own = {group.name, *(inner.name for inner in nested)}
        coupled = any(
            own & {name for _, name in view.others} or len(view.nested) > 1 for view in views
        )
        blocks.append(Block(group, nested, tuple(views), coupled))
    return tuple(blocks)


def _view(
    spec: AxisSpec,
    group: Group,
    tie: Tie,
    here: Sequence[tuple[Group, Tie]],
    shape: tuple[int, ...],
) -> View:
    nested = [
        (inner, t)
        for inner, t in here
        if inner.parent == group.name and spec.parent_tie(inner, t) == tie
    ]
    others = [
        (other, t)
        for other, t in here
        if (other, t) not in nested
        and t.axis != tie.axis
        and (other.parent is None or spec.parent_tie(other, t).axis != tie.axis)
    ]

    def placed(t: Tie) -> Tie:
        # Without nesting the leaf is laid out anew: repeats first, then other axes, units last.
        axis = t.axis if nested else t.axis + 1 - (t.axis > tie.axis)
        return dataclasses.replace(t, leaf=_LEAF, axis=axis, role="produced")

    own = placed(tie) if nested else Tie(leaf=_LEAF, axis=len(shape))
    groups = [Group(name=_OWN, size=group.size, ties=(own,))]
    inside: dict[str, str] = {}
    for inner, t in nested:
        name = inside.setdefault(inner.name, f"{_OWN}/{len(inside)}")
        groups = _with(groups, name, inner.size, placed(t), _OWN)
    outside: dict[str, str] = {}
    for other, t in sorted(others, key=lambda pair: pair[0].parent is not None):
        name = outside.setdefault(other.name, str(len(outside)))
        parent = None if other.parent is None else outside[other.parent]
        groups = _with(groups, name, other.size, placed(t), parent)
    layout = "leaf" if nested else "flat"
    if not nested and len(others) == 1 and others[0][0].parent is None:
        other, t = others[0]
        if t.offset == 0 and t.outer * other.size * t.inner == shape[t.axis]:
            layout = "pair"
    return View(
        leaf=tie.leaf,
        tie=tie,
        local=AxisSpec(groups=tuple(groups)),
        others=tuple((local, name) for name, local in outside.items()),
        nested=tuple((local, name) for name, local in inside.items()),
        layout=layout,
    )


def _with(groups: list[Group], name: str, size: int, tie: Tie, parent: str | None) -> list[Group]:
    """Add a tie to a group, which is created if it is new, and return all groups."""
    if all(group.name != name for group in groups):
        groups = [*groups, Group(name=name, size=size, ties=(), parent=parent)]
    return [
        dataclasses.replace(group, ties=(*group.ties, tie)) if group.name == name else group
        for group in groups
    ]
