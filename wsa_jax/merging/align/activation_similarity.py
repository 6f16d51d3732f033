"""Similarity of two models' units by their activations on the same inputs.

The axes of an activation are a group's units, units of other groups (tokens or channels that a
layer does not mix), and samples. Which is which is found by moving the units of the first model.
"""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from wsa_jax.merging.align.assignment import permuted
from wsa_jax.merging.align.blocks import Move, Orders, Products, moves, score, tree
from wsa_jax.merging.result import NotAdmittedError
from wsa_jax.merging.symmetry.spec import AxisSpec, Group, Tie
from wsa_jax.merging.symmetry.units import identity_permutations, permute_units
from wsa_jax.types import Inputs

Activations: TypeAlias = Callable[[PyTree, Inputs], Mapping[str, Float[Array, "..."]]]

__all__ = ["ActivationSimilarity", "Activations", "TapView", "count_examples", "tap_views"]

_TAP = "tap"
_PROBES = 16  # Examples on which the axes of activations are told apart.
_CHANGED = 0.03  # Share of its deviation by which an array must differ to count as another one.
# The score of two units is off by about this fraction of their norms: float32 products.
_ROUNDING = 4 * float(np.finfo(np.float32).eps)


class Moments(NamedTuple):
    """Means, sums of squared deviations, and sums of products of deviations, of two models' units.

    ``units`` counts those of a view's first group, in each those of its second, and so on. Complex
    activations have two ``parts``, whose products add up.
    """

    count: Array
    first_mean: Float[Array, "parts units"]
    second_mean: Float[Array, "parts units"]
    first_square: Float[Array, " units"]
    second_square: Float[Array, " units"]
    cross: Float[Array, "units units"]


class TapView(NamedTuple):
    """One group's activations.

    Attributes:
      tap: the group whose activations they are.
      signature: groups of its block that have an axis, parents first.
      axes: those axes.
      local: all groups that have an axis, as a spec of the array.
      others: those that are not the block's.
    """

    tap: str
    signature: tuple[str, ...]
    axes: tuple[int, ...]
    local: AxisSpec
    others: tuple[str, ...]


class ActivationSimilarity:
    """Two models and inputs, ready to be compared group by group, as `descend` asks it.

    Attributes:
      groups: each block's groups, parents first.
      moves: the steps of a sweep.
    """

    def __init__(
        self,
        spec: AxisSpec,
        first: PyTree,
        second: PyTree,
        activations: Activations,
        inputs: Inputs,
        *,
        measure: str,
        batch_size: int,
    ) -> None:
        self.groups = [tree(spec, root) for root in spec.groups if root.parent is None]
        views = tap_views(spec, activations, first, inputs)
        names = [[group.name for group in groups] for groups in self.groups]
        self._views = [[view for view in views if view.tap in own] for own in names]
        self._run = functools.partial(_moments, activations, batch_size)
        self._data, self._measure = (first, second, inputs), measure
        self.moves: tuple[Move, ...] = ()
        for block, (groups, there) in enumerate(zip(self.groups, self._views, strict=True)):
            others = tuple(dict.fromkeys(name for view in there for name in view.others))
            steps = moves(block, groups, [view.signature for view in there], others)
            self.moves += tuple(steps) if there else ()
        # One pass reads what no order changes, and bounds of the rest.
        self._bounds = self._read(views, {}, ordered=True)
        self._moving = tuple(view for view in views if view.others)
        self._known: dict[str, tuple[list[np.ndarray], Moments]] = {}
        self._norms = [0.0] * len(self.groups)

    def _read(
        self, views: tuple[TapView, ...], orders: Orders, *, ordered: bool
    ) -> dict[str, Moments]:
        if not views:
            return {}
        needed = {name: orders[name] for view in views for name in view.others if not ordered}
        found = self._run(views, ordered)(*self._data, needed)
        return dict(zip((view.tap for view in views), found, strict=True))

    def _now(self, view: TapView, orders: Orders) -> Moments:
        """A view's moments for the other groups' current orders."""
        if not view.others:
            return self._bounds[view.tap]
        around, known = self._known.get(view.tap, ([], self._bounds[view.tap]))
        if not around or not all(map(operator.is_, around, [orders[n] for n in view.others])):
            # A pass over the data costs more than what it sums, so it serves all views.
            for tap, moments in self._read(self._moving, orders, ordered=False).items():
                others = next(view.others for view in self._moving if view.tap == tap)
                self._known[tap] = ([orders[name] for name in others], moments)
            _, known = self._known[view.tap]
        return known

    def scores(self, block: int, permutations: Orders, *, ordered: bool = False) -> Products:
        """Mean products (or correlations) of a block's units, other groups' axes brought in order.

        With ``ordered``, those axes are sorted in both models: the greatest value that mean
        products can take, whatever the other groups' orders.
        """
        sizes = {group.name: group.size for group in self.groups[block]}
        products: dict[tuple[str, ...], np.ndarray] = {}
        self._norms[block] = 0.0
        for view in self._views[block]:
            moments = self._bounds[view.tap] if ordered else self._now(view, permutations)
            matrix, norm = _scored(moments, self._measure)
            matrix = matrix.reshape([sizes[name] for name in view.signature] * 2)
            products[view.signature] = products.get(view.signature, 0.0) + matrix
            self._norms[block] += norm / np.sqrt(self.groups[block][0].size)
        return products

    def gain(self, move: Move, scores: Products, now: Orders, proposal: Orders) -> float:
        """How much a step raises the sum of its block's scores."""
        return score(move, scores, {**now, **proposal}) - score(move, scores, now)

    def rounding(self, move: Move) -> float:
        """A gain that is no more than rounding."""
        return _ROUNDING * self._norms[move.block]

    def objectives(self, permutations: Orders) -> dict[str, float]:
        """Each block's score, by the name of its root."""
        return {
            move.groups[0].name: score(move, self.scores(move.block, permutations), permutations)
            for move in self.moves
            if move.alone is None
        }


def _scored(moments: Moments, measure: str) -> tuple[np.ndarray, float]:
    """Scores ``[units, units]`` in float64, and the product of both models' norms."""
    count, mean_a, mean_b, square_a, square_b, cross = (
        np.asarray(value, np.float64) for value in moments
    )
    if measure == "product":
        both = ((square_a, mean_a), (square_b, mean_b))
        powers = [np.sum(square) / count + np.sum(mean**2) for square, mean in both]
        return cross / count + mean_a.T @ mean_b, float(np.sqrt(np.prod(powers)))
    norm = np.sqrt(np.outer(square_a, square_b))
    return np.divide(cross, norm, out=np.zeros_like(cross), where=norm > 0), float(len(cross))


def count_examples(inputs: Inputs) -> int:
    """The number of examples that all arrays of calibration data have.

    Raises:
      ValueError: there are none, or arrays differ in their number.
    """
    lengths = {len(leaf) if np.ndim(leaf) else -1 for leaf in jax.tree.leaves(inputs)}
    if len(lengths) != 1 or -1 in lengths:
        raise ValueError(
            "inputs are no examples; give an array [examples, ...], or a pytree of arrays of one "
            "length"
        )
    (examples,) = lengths
    if examples == 0:
        raise ValueError("no calibration data: inputs are empty; give at least one example")
    return examples


def tap_views(
    spec: AxisSpec, activations: Activations, params: PyTree, inputs: Inputs
) -> tuple[TapView, ...]:
    """Find out which axes of each group's activations hold which groups' units."""
    examples = jax.eval_shape(activations, params, inputs)
    if not isinstance(examples, Mapping):
        raise ValueError(
            f"activations return {type(examples).__name__}; return a dictionary {{group: array}}, "
            "as a function from taps does"
        )
    held = {name: _own_axes(spec, name, value.shape) for name, value in examples.items()}
    # Shapes of all examples are for messages; a few examples tell the axes apart.
    inputs = jax.tree.map(lambda leaf: leaf[:_PROBES], inputs)
    shapes = {n: v.shape for n, v in jax.eval_shape(activations, params, inputs).items()}
    run, identity = jax.jit(activations), identity_permutations(spec)
    before: Mapping[str, Array] = {}
    for group in sorted(spec.groups, key=lambda group: group.parent is not None):
        # Only an axis of the group's size can be the group's: most networks have none to try.
        asked = {
            name: [axis for axis, size in enumerate(shape) if size == group.size > 1]
            for name, shape in shapes.items()
            if group.name not in held[name].values()
        }
        asked = {name: [a for a in axes if a not in held[name]] for name, axes in asked.items()}
        if not any(asked.values()):
            continue
        before = before or run(params, inputs)
        order = np.roll(identity[group.name], 1, axis=-1)
        after = run(permuted(spec, params, {group.name: order}), inputs)
        for name in (name for name, axes in asked.items() if axes):
            one, other = np.asarray(before[name]), np.asarray(after[name])
            for axis in _moved_axes(one, other, asked[name], name, group.name):
                held[name][axis] = group.name
    return tuple(_view(spec, name, axes) for name, axes in held.items())


def _own_axes(spec: AxisSpec, name: str, shape: tuple[int, ...]) -> dict[int, str]:
    """The axes that a group's activations must have: the last, and the parent's before it."""
    group = spec[name]
    units = [group] if group.parent is None else [spec[group.parent], group]
    expected = tuple(group.size for group in units)
    if shape[-len(expected) :] != expected:
        raise ValueError(
            f"activations of group {name} have shape {shape}; expected them to end in {expected}"
        )
    return {len(shape) - len(units) + i: group.name for i, group in enumerate(units)}


def _moved_axes(
    before: np.ndarray, after: np.ndarray, axes: Sequence[int], tap: str, group: str
) -> Sequence[int]:
    """The axes along which a group's units went round by one; none if the array is the same."""
    wide = np.complex128 if np.iscomplexobj(before) else np.float64
    before, after = before.astype(wide), after.astype(wide)
    least = _CHANGED * np.std(before)
    if _distance(before, after) <= least:
        return ()
    for moved in [*([axis] for axis in axes), list(axes)]:
        if _distance(np.roll(before, [1] * len(moved), moved), after) <= least:
            return moved
    raise NotAdmittedError(
        f"activations of group {tap} change with the order of group {group}, which has no axis of "
        "its own there; return its units as an axis, or leave the activations out"
    )


def _distance(before: np.ndarray, after: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.abs(after - before) ** 2)))


def _view(spec: AxisSpec, tap: str, axes: Mapping[int, str]) -> TapView:
    root = spec[tap]
    while root.parent is not None:
        root = spec[root.parent]
    own = [group.name for group in tree(spec, root)]
    signature = tuple(name for name in own if name in axes.values())
    present = [group for name in dict.fromkeys(axes.values()) for group in [spec[name]]]
    for group in present:
        if group.parent is not None and group.parent not in axes.values():
            raise NotAdmittedError(
                f"activations of group {tap} hold units of group {group.name} but none of its "
                f"parent {group.parent}; return the parent's units as an axis, too"
            )
    local = tuple(
        Group(
            name=group.name,
            size=group.size,
            parent=group.parent,
            ties=tuple(Tie(leaf=_TAP, axis=axis) for axis, n in axes.items() if n == group.name),
        )
        for group in present
    )
    where = {name: axis for axis, name in axes.items()}
    others = tuple(group.name for group in local if group.name not in own)
    placed = tuple(where[name] for name in signature)
    return TapView(tap, signature, placed, AxisSpec(groups=local), others)


@functools.lru_cache(maxsize=64)
def _moments(
    activations: Activations, batch_size: int, views: tuple[TapView, ...], ordered: bool
) -> Callable[[PyTree, PyTree, Inputs, Orders], tuple[Moments, ...]]:
    @jax.jit
    def run(
        first: PyTree, second: PyTree, inputs: Inputs, orders: Mapping[str, Array]
    ) -> tuple[Moments, ...]:
        def batch(rows: Inputs) -> tuple[Moments, ...]:
            ours, theirs = activations(first, rows), activations(second, rows)
            return tuple(
                _of_batch(
                    _rows(view, ours[view.tap], {}, ordered),
                    _rows(view, theirs[view.tap], orders, ordered),
                )
                for view in views
            )

        examples = count_examples(inputs)
        size = min(batch_size, examples)
        whole = examples // size * size
        total = batch(jax.tree.map(lambda leaf: leaf[:size], inputs))
        if whole > size:

            def body(total: tuple, rows: Inputs) -> tuple[tuple, None]:
                return _joined(total, batch(rows)), None

            batches = jax.tree.map(
                lambda leaf: leaf[size:whole].reshape(-1, size, *leaf.shape[1:]), inputs
            )
            total, _ = jax.lax.scan(body, total, batches)
        if whole < examples:
            total = _joined(total, batch(jax.tree.map(lambda leaf: leaf[whole:], inputs)))
        return total

    return run


def _rows(
    view: TapView, value: Array, orders: Mapping[str, Array], ordered: bool
) -> Float[Array, "samples parts units"]:
    """Samples of a view's units, other groups' axes in the given orders, or sorted."""
    if jnp.iscomplexobj(value):
        parts = [_rows(view, part, orders, ordered) for part in (value.real, value.imag)]
        return jnp.concatenate(parts, axis=1)
    value = jnp.asarray(value, jnp.float32)
    others = [t.axis for g in view.local.groups if g.name in view.others for t in g.ties]
    if ordered:
        last = tuple(range(value.ndim - len(others), value.ndim))
        moved = jnp.moveaxis(value, others, last)
        flat = jnp.sort(moved.reshape(*moved.shape[: value.ndim - len(others)], -1), axis=-1)
        value = jnp.moveaxis(flat.reshape(moved.shape), last, others)
    elif view.others and orders:
        given = {name: orders[name] for name in view.others}
        value = permute_units(view.local, {_TAP: value}, given)[_TAP]
    last = tuple(range(value.ndim - len(view.axes), value.ndim))
    value = jnp.moveaxis(value, view.axes, last)
    return value.reshape(-1, 1, int(np.prod(value.shape[value.ndim - len(view.axes) :])))


def _of_batch(ours: Array, theirs: Array) -> Moments:
    mean_a, mean_b = ours.mean(0), theirs.mean(0)
    ours, theirs = ours - mean_a[None], theirs - mean_b[None]
    cross = jnp.einsum("spn,spm->nm", ours, theirs, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.square(ours).sum((0, 1)), jnp.square(theirs).sum((0, 1))
    return Moments(jnp.float32(ours.shape[0]), mean_a, mean_b, *squares, cross)


def _joined(total: tuple[Moments, ...], more: tuple[Moments, ...]) -> tuple[Moments, ...]:
    """Combine the moments of two samples (Chan, Golub and LeVeque, 1983)."""

    def join(a: Moments, b: Moments) -> Moments:
        count = a.count + b.count
        share, weight = b.count / count, a.count * b.count / count
        ours, theirs = b.first_mean - a.first_mean, b.second_mean - a.second_mean
        return Moments(
            count,
            a.first_mean + share * ours,
            a.second_mean + share * theirs,
            a.first_square + b.first_square + weight * jnp.square(ours).sum(0),
            a.second_square + b.second_square + weight * jnp.square(theirs).sum(0),
            a.cross + b.cross + weight * (ours[:, :, None] * theirs[:, None]).sum(0),
        )

    return tuple(join(a, b) for a, b in zip(total, more, strict=True))
