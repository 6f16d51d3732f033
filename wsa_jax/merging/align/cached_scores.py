"""Scores that remember: views whose neighbours stayed are kept, the others brought up to date."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array

from wsa_jax.merging.align.blocks import Move, Orders, Products
from wsa_jax.merging.align.similarity import WeightSimilarity, summed
from wsa_jax.merging.align.views import Matrices, View, products, update_products

__all__ = ["CachedScores"]

_REFRESH = 16  # Updates after which products are made anew, so that rounding stays small.


class _Known(NamedTuple):
    """A view's products, the other groups' orders they belong to, and updates since made anew."""

    matrices: Matrices
    others: dict[str, np.ndarray]
    age: int


class CachedScores:
    """The scores of a `WeightSimilarity`, at the cost of what has changed since they were asked.

    Guarantees: equal to the plain scores, up to the rounding of at most 16 updates; orders are told
    apart by identity, so a changed order must be a new array.
    """

    def __init__(self, similarity: WeightSimilarity) -> None:
        self.similarity, self.moves = similarity, similarity.moves
        self._known: dict[tuple[int, int], _Known] = {}

    def scores(self, block: int, permutations: Orders, *, ordered: bool = False) -> Products:
        """As `WeightSimilarity.scores`."""
        if ordered:
            return self.similarity.scores(block, permutations, ordered=True)
        given, found = self.similarity.blocks[block], []
        for position, view in enumerate(given.views):
            pair = self.similarity.pairs[block][position]
            if pair is None:
                found.append(self.similarity.constants[block][position])
                continue
            others = {local: permutations[name] for local, name in view.others}
            known = _renewed(view, pair, others, self._known.get((block, position)))
            self._known[block, position] = known
            found.append(known.matrices)
        return summed(given, found)

    def gain(self, move: Move, scores: Products, now: Orders, proposal: Orders) -> float:
        """As `WeightSimilarity.gain`."""
        return self.similarity.gain(move, scores, now, proposal)

    def rounding(self, move: Move) -> float:
        """As `WeightSimilarity.rounding`."""
        return self.similarity.rounding(move)


def _renewed(
    view: View, pair: tuple[Array, Array], others: dict[str, np.ndarray], known: _Known | None
) -> _Known:
    """A view's products for the other groups' current orders, updated where few units moved."""
    if known is not None:
        if all(known.others[name] is order for name, order in others.items()):
            return known
        if view.layout == "pair" and known.age < _REFRESH:
            ((local, new),) = others.items()
            old = known.others[local]
            moved = np.flatnonzero(new != old)
            if 2 * len(moved) <= len(new):
                listed = np.resize(moved, len(new))
                matrix = update_products(*known.matrices, *pair, listed, len(moved), new, old)
                return _Known((matrix,), others, known.age + 1)
    return _Known(products(view.local, view.layout, *pair, others), others, 0)
