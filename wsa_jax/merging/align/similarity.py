"""Similarity of two models' units as sums of products of their weights, made anew at every look."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, PyTree

from wsa_jax import checks
from wsa_jax.merging.align.assignment import moving_leaves, permuted
from wsa_jax.merging.align.blocks import Move, Orders, Products, moves, score, tree
from wsa_jax.merging.align.views import Matrices, View, lay, products, views_of
from wsa_jax.merging.symmetry.spec import AxisSpec, Group, check_spec, ties_by_leaf
from wsa_jax.merging.symmetry.unstack_layers import unstack_layers
from wsa_jax.types import Leaf

__all__ = ["Block", "WeightSimilarity", "compare", "lay_out", "prepare", "summed"]

# The score of two units is off by about this fraction of their norms: float32 products.
_ROUNDING = 4 * float(np.finfo(np.float32).eps)
_BUFFER = 2**13  # Values summed at once: below the size at which BLAS starts threads for a sum.


class Block(NamedTuple):
    """A group that lies in no other, those nested in it (parents first), and where they lie."""

    groups: tuple[Group, ...]
    views: tuple[View, ...]


class WeightSimilarity(NamedTuple):
    """Two models, ready to be compared group by group.

    Attributes:
      spec: which axes move together.
      first: leaves of the first model that move, on the host, by name; complex ones as real
        and imaginary parts.
      second: leaves of the second model, statistics among them.
      blocks: the blocks, in the spec's order.
      moves: the steps of a sweep over the blocks.
      pairs: both models' leaf of each view, in the view's layout; None for a view whose products no
        other group changes: those products are in `constants`.
      constants: the products of those views.
      norms: for each block, the product of both models' norms over its leaves, divided by the
        square root of its number of units; the rounding error of a sum over its units is
        proportional to it.
      unit: what the leaves in `pairs` were divided by: 1, unless products of the weights as they
        are leave the range of float32.
    """

    spec: AxisSpec
    first: dict[str, np.ndarray]
    second: dict[str, Array | np.ndarray]
    blocks: tuple[Block, ...]
    moves: tuple[Move, ...]
    pairs: list[list[tuple[Array, Array] | None]]
    constants: list[list[Any]]
    norms: list[float]
    unit: float

    def scores(self, block: int, permutations: Orders, *, ordered: bool = False) -> Products:
        """Products of a block's units, in float64, given the orders of all other groups.

        Args:
          block: index of the block.
          permutations: orders of all groups.
          ordered: the greatest products that other orders could give (`views.products`).
        """
        found = []
        for position, view in enumerate(self.blocks[block].views):
            pair, constant = self.pairs[block][position], self.constants[block][position]
            if pair is None:
                found.append(constant)
                continue
            others = {local: permutations[name] for local, name in view.others}
            found.append(products(view.local, view.layout, *pair, others, ordered=ordered))
        return summed(self.blocks[block], found)

    def gain(self, move: Move, scores: Products, now: Orders, proposal: Orders) -> float:
        """How much a step raises the sum of products, exactly where orders enter their own scores.

        A kernel with one group on both axes is quadratic in its order; its scores are linearised.
        """
        new = {**now, **proposal}
        if all(np.array_equal(now[name], order) for name, order in proposal.items()):
            return 0.0
        if move.coupled:
            return (compare(self, new)[0] - compare(self, now)[0]) / self.unit**2
        return score(move, scores, new) - score(move, scores, now)

    def rounding(self, move: Move) -> float:
        """A gain that is no more than rounding."""
        return _ROUNDING * self.norms[move.block]


def prepare(spec: AxisSpec, first: PyTree, second: PyTree) -> WeightSimilarity:
    """Check two models against each other and the spec, and lay their leaves out.

    Raises:
      ValueError: architectures differ, the spec is for another model, or a weight is not finite.
    """
    checks.same_structure(first, second)
    check_spec(spec, first)
    checks.finite(first, "the first model")
    checks.finite(second, "the second model")
    return lay_out(spec, first, second)


def lay_out(spec: AxisSpec, first: PyTree, second: PyTree) -> WeightSimilarity:
    """`prepare` without its checks, for models that have passed them."""
    ours, theirs = moving_leaves(spec, first), moving_leaves(spec, second)
    spec, (ours, theirs) = unstack_layers(spec, ours, theirs)
    shapes = tuple((name, np.shape(_real(leaf))) for name, leaf in ours.items())
    blocks, steps = _plan(spec, shapes)
    names = sorted({view.leaf for block in blocks for view in block.views})
    host = {name: np.asarray(_real(ours[name])) for name in names}
    pair = (host, {name: _real(theirs[name]) for name in names})
    squares = _squares(pair)
    # Far from 1, products overflow or vanish. A power of two changes no digit.
    unit = 1.0
    if squares and not 1e-20 < max(map(max, squares.values())) < 1e30:
        peak = max(float(np.max(np.abs(x), initial=0.0)) for model in pair for x in model.values())
        unit = 2.0 ** np.floor(np.log2(peak)) if peak > 0 else 1.0
        pair = tuple({n: np.asarray(x, np.float64) / unit for n, x in m.items()} for m in pair)
        squares = _squares(pair)
    pairs, constants = _lay_out(blocks, *pair)
    norms = []
    for block in blocks:
        leaves = {(view.leaf, view.tie): view.leaf for view in block.views}.values()
        total = np.sum([squares[leaf] for leaf in leaves], axis=0)
        norms.append(float(np.sqrt(np.prod(total) / block.groups[0].size)))
    return WeightSimilarity(spec, host, theirs, blocks, steps, pairs, constants, norms, unit)


def _real(leaf: Leaf) -> Leaf:
    """A leaf as real numbers: Re <a, b> of complex ones is the sum over both parts."""
    if not np.iscomplexobj(leaf):
        return leaf
    leaf = np.asarray(leaf)
    return np.stack([leaf.real, leaf.imag], axis=-1)


def _squares(pair: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """By leaf, both models' sums of squares."""
    squares: dict[str, list[float]] = {}
    with np.errstate(over="ignore", under="ignore"):
        for name in pair[0]:
            both = (np.asarray(model[name], np.float32).ravel() for model in pair)
            squares[name] = [float(np.dot(x, x)) for x in both]
    return squares


def compare(similarity: WeightSimilarity, permutations: Orders) -> tuple[float, float]:
    """Sum of products and Euclidean distance of all weights that move, each once, in float64."""
    moved = permuted(similarity.spec, similarity.second, permutations)
    # Through two small buffers: float64 copies of whole models cost more than the sums.
    ours, theirs = np.empty((2, _BUFFER))
    total = squares = 0.0
    for name, leaf in similarity.first.items():
        first, second = leaf.ravel(), np.asarray(_real(moved[name])).ravel()
        for start in range(0, first.size, _BUFFER):
            size = min(_BUFFER, first.size - start)
            x, y = ours[:size], theirs[:size]
            x[:], y[:] = first[start : start + size], second[start : start + size]
            total += float(x @ y)
            y -= x
            squares += float(y @ y)
    return total, float(np.sqrt(squares))


def summed(block: Block, matrices: Sequence[Matrices]) -> Products:
    """Sum the matrices of a block's views by signature, in float64."""
    sizes = {group.name: group.size for group in block.groups}
    totals: dict[tuple[str, ...], np.ndarray] = {}
    for view, found in zip(block.views, matrices, strict=True):
        for signature, matrix in zip(view.signatures, found, strict=True):
            if signature not in totals:
                totals[signature] = np.zeros(matrix.shape)
            totals[signature] += np.asarray(matrix)
    return {
        signature: total.reshape([sizes[name] for name in signature] * 2)
        for signature, total in totals.items()
    }


@functools.partial(jax.jit, static_argnames="blocks")
def _lay_out(
    blocks: tuple[Block, ...], first: Mapping[str, Array], second: Mapping[str, Array]
) -> tuple[list[list[Any]], list[list[Any]]]:
    """Both models' leaf of each view, in its layout and in float32, or its constant products."""
    pairs, constants = [], []
    for block in blocks:
        root = block.groups[0]
        laid = [
            (lay(root, view, first[view.leaf]), lay(root, view, second[view.leaf]))
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
def _plan(
    spec: AxisSpec, shapes: tuple[tuple[str, tuple[int, ...]], ...]
) -> tuple[tuple[Block, ...], tuple[Move, ...]]:
    by_leaf, shape_of = ties_by_leaf(spec), dict(shapes)
    blocks, steps = [], []
    for root in spec.groups:
        if root.parent is not None:
            continue
        groups = tree(spec, root)
        views = [
            view
            for tie in root.ties
            if tie.role != "statistic"
            for view in views_of(spec, groups, tie, by_leaf[tie.leaf], shape_of[tie.leaf])
        ]
        signatures = [signature for view in views for signature in view.signatures]
        others = dict.fromkeys(name for view in views for _, name in view.others)
        steps += moves(len(blocks), groups, signatures, tuple(others))
        blocks.append(Block(groups, tuple(views)))
    return tuple(blocks), tuple(steps)
