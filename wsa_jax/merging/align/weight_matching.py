"""Weight matching: permute one model's units so that its weights come closest to another's."""

import operator
import time
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Integer, Key, PyTree

from wsa_jax import checks
from wsa_jax.door import door
from wsa_jax.merging.align.assignment import Matching
from wsa_jax.merging.align.blocks import Move, Orders, Products, best_orders
from wsa_jax.merging.align.cached_scores import CachedScores
from wsa_jax.merging.align.similarity import WeightSimilarity, compare, prepare
from wsa_jax.merging.symmetry.spec import AxisSpec
from wsa_jax.merging.symmetry.units import Permutations, check_maps, identity_permutations

__all__ = ["Descent", "Scores", "descend", "generator", "weight_matching"]


@runtime_checkable
class Scores(Protocol):
    """What coordinate descent asks of a similarity of two models."""

    @property
    def moves(self) -> tuple[Move, ...]:
        """The steps of a sweep."""
        ...

    def scores(self, block: int, permutations: Orders, *, ordered: bool = False) -> Products:
        """Products of a block's units, given all other groups' orders, or whatever they are."""
        ...

    def gain(self, move: Move, scores: Products, now: Orders, proposal: Orders) -> float:
        """How much a step raises the objective."""
        ...

    def rounding(self, move: Move) -> float:
        """A gain that is no more than rounding."""
        ...


class Descent(NamedTuple):
    """Where a descent ended, and what it cost.

    Attributes:
      permutations: by group, as in `Matching`.
      sweeps: sweeps over all groups.
      converged: the last sweep found no group, alone or with those nested in it, that another order
        improves by more than rounding.
      assignments: how many times a group, with those nested in it, was assigned.
      solver_seconds: the time that took.
    """

    permutations: dict[str, Integer[np.ndarray, "*parent units"]]
    sweeps: int
    converged: bool
    assignments: int
    solver_seconds: float


@door
def weight_matching(
    key: Key[Array, ""],
    spec: AxisSpec,
    first: PyTree,
    second: PyTree,
    *,
    init: Permutations | str | None = None,
    restarts: int = 2,
    max_sweeps: int = 100,
) -> Matching:
    r"""Permute the second model's units so that its weights come closest to the first's.

    .. math:: \max_\pi \sum_\ell \langle W^1_\ell, \pi(W^2_\ell) \rangle
              \quad\Leftrightarrow\quad \min_\pi \lVert w^1 - \pi(w^2) \rVert^2

    Coordinate descent: one group after another gets its best order given the others', by linear
    assignment; sweeps over all groups, each in an order drawn anew, are repeated until no group
    improves. A group is assigned together with the groups nested in it: every pair of its units is
    scored at the best inner order of that pair. Where this is a bound only (siblings that meet in
    one leaf, as query heads and their dimensions; groups three deep), each of them is assigned
    alone, too.

    Args:
      key: draws the visiting orders and random starts: each start draws, sweep by sweep, from
        ``numpy.random.default_rng((*jax.random.key_data(key), start))``.
      spec: which axes move together; statistics move but enter no score.
      first: the model that stays fixed.
      second: the model to reorder to match ``first``.
      init: where the first start begins: permutations, ``"identity"`` (same as None, the published
        start), ``"sorted"`` or ``"random"``.
      restarts: number of starts; the best objective, in float64, is kept. The second begins
        ``"sorted"`` (unless the first did), the others at random. With 1 and the ``init`` of None,
        this is the published algorithm.
      max_sweeps: maximum number of sweeps per start.

    ``"sorted"`` scores two units by their weights sorted along every axis that other groups permute
    (no order of the others can give more: the Gilmore-Lawler bound). It finds planted
    permutations where the identity ends in a local optimum, as in residual networks, factors of
    low rank, and convolutions of one channel each.

    Returns:
      The permutations, and ``info`` with ``objective`` (the sum above over the weights that move),
      ``distance`` (root of the remaining squared distance), ``objectives`` and ``sweeps`` of each
      start, ``converged`` (the best start's last sweep found no group, alone or with those nested
      in it, that another order improves by more than rounding), ``assignments``, ``seconds`` and
      ``solver_seconds``.

    Complex weights are matched by the real part of their products, so that the distance is theirs.

    Guarantees: arguments are unchanged; equal keys give equal results; within a start the objective
    does not fall, except by rounding: gains below an estimate of the float32 rounding error are not
    taken. A group is not assigned again if none of its neighbours has moved since its last
    assignment, since it would not move.

    Raises:
      ValueError: architectures differ, the spec is for another model, a weight is not finite, a
        start is unknown or of the wrong shape, or ``restarts`` or ``max_sweeps`` is below 1.

    >>> from wsa_jax.merging.symmetry.spec import Tie, hand_written
    >>> first = {"a": np.array([[1.0, 2.0]]), "b": np.array([[1.0], [4.0]])}
    >>> second = {"a": np.array([[2.0, 1.0]]), "b": np.array([[4.0], [1.0]])}
    >>> ties = [Tie(leaf="a", axis=1), Tie(leaf="b", axis=0, role="consumed")]
    >>> spec = hand_written({"hidden": ties}, first)
    >>> matching = weight_matching(jax.random.key(0), spec, first, second)
    >>> matching.permutations["hidden"].tolist(), matching.info["distance"]
    ([1, 0], 0.0)

    Source: Ainsworth et al., Git Re-Basin, ICLR 2023, Algorithm 1. Starts other than the identity,
    nesting and the skipped assignments are added here.
    """
    begin = time.perf_counter()
    starts = _starts(spec, init, restarts)
    if max_sweeps < 1:
        raise ValueError(f"max_sweeps {max_sweeps} is below 1; give at least one sweep")
    similarity = prepare(spec, first, second)
    ends, compared, costs = [], [], []
    for index, start in enumerate(starts):
        rng = generator(key, index)
        given, assignments, seconds = _begin(rng, similarity, start)
        end = descend(rng, CachedScores(similarity), given, max_sweeps=max_sweeps)
        costs.append((assignments + end.assignments, seconds + end.solver_seconds))
        ends.append(end)
        # Scores are float32; the starts' ends are judged in float64.
        compared.append(compare(similarity, end.permutations))
    objectives = [objective for objective, _ in compared]
    best = objectives.index(max(objectives))
    info = {
        "objective": objectives[best],
        "distance": compared[best][1],
        "objectives": tuple(objectives),
        "sweeps": tuple(end.sweeps for end in ends),
        "converged": ends[best].converged,
        "assignments": sum(assignments for assignments, _ in costs),
        "seconds": time.perf_counter() - begin,
        "solver_seconds": sum(seconds for _, seconds in costs),
    }
    return Matching(ends[best].permutations, info)


def descend(
    rng: np.random.Generator, similarity: Scores, start: Permutations, *, max_sweeps: int
) -> Descent:
    """Git Re-Basin's Algorithm 1: each group in turn gets its best order, until none improves."""
    permutations = {name: np.array(order) for name, order in start.items()}
    looked: dict[int, list[np.ndarray]] = {}
    progress, sweeps, assignments, seconds = True, 0, 0, 0.0
    while progress and sweeps < max_sweeps:
        progress, sweeps = False, sweeps + 1
        for index in rng.permutation(len(similarity.moves)).tolist():
            move = similarity.moves[index]
            # A group whose neighbours have not moved since it was last assigned would stay, too.
            around = [permutations[name] for name in move.around]
            if index in looked and all(map(operator.is_, looked[index], around)):
                continue
            looked[index] = around
            scores = similarity.scores(move.block, permutations)
            begin = time.perf_counter()
            proposal = best_orders(move, scores, permutations)
            seconds, assignments = seconds + time.perf_counter() - begin, assignments + 1
            # Gains of the size of rounding are not taken: two orders could alternate for ever.
            gain = similarity.gain(move, scores, permutations, proposal)
            if gain > similarity.rounding(move):
                progress, permutations = True, permutations | proposal
    return Descent(permutations, sweeps, not progress, assignments, seconds)


def generator(key: Array, start: int = 0) -> np.random.Generator:
    """A host generator derived from a key, which draws orders without compiling anything."""
    return np.random.default_rng((*np.ravel(jax.random.key_data(key)).tolist(), start))


def _starts(
    spec: AxisSpec, init: Permutations | str | None, restarts: int
) -> list[Permutations | str]:
    if restarts < 1:
        raise ValueError(f"restarts {restarts} is below 1; give at least one start")
    checks.count("restarts", restarts)
    if init is None:
        init = "identity"
    if isinstance(init, str):
        if init not in ("identity", "sorted", "random"):
            raise ValueError(
                f"init {init!r} is unknown; give permutations, 'identity', 'sorted' or 'random'"
            )
    else:
        check_maps(spec, init)
        init = identity_permutations(spec) | {name: np.asarray(p) for name, p in init.items()}
        for name, given in init.items():
            if not np.array_equal(np.sort(given, axis=-1), np.sort(_identity(given), axis=-1)):
                raise ValueError(f"init of group {name} is not a permutation of its units")
    later: list[Permutations | str] = ["random"] * restarts
    if init != "sorted":
        later[0] = "sorted"
    return [init, *later][:restarts]


def _identity(like: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.arange(like.shape[-1]), like.shape)


def _begin(
    rng: np.random.Generator, similarity: WeightSimilarity, start: Permutations | str
) -> tuple[Permutations, int, float]:
    """Where a start begins, the assignments that this took, and their time."""
    identity = identity_permutations(similarity.spec)
    if not isinstance(start, str):
        return start, 0, 0.0
    if start == "identity":
        return identity, 0, 0.0
    if start == "random":
        return {name: rng.permuted(given, axis=-1) for name, given in identity.items()}, 0, 0.0
    return by_bounds(similarity, identity)


def by_bounds(similarity: Scores, identity: Orders) -> tuple[dict[str, np.ndarray], int, float]:
    """Each block's best orders by bounds on its scores that hold whatever the others' orders."""
    result, seconds = dict(identity), 0.0
    steps = [move for move in similarity.moves if move.alone is None]
    for move in steps:
        bounds = similarity.scores(move.block, identity, ordered=True)
        begin = time.perf_counter()
        result |= best_orders(move, bounds, identity)
        seconds += time.perf_counter() - begin
    return result, len(steps), seconds
