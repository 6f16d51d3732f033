"""Weight matching: permute one model's units so that its weights come closest to another's."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Integer, Key, PyTree

from wsa_jax.merging.align.assignment import Matching, assign, score_of
from wsa_jax.merging.align.similarity import (
    Block,
    Problem,
    Products,
    View,
    compare,
    prepare,
    products,
    update_products,
)
from wsa_jax.merging.symmetry.spec import AxisSpec
from wsa_jax.merging.symmetry.units import Permutations, check_maps, identity_permutations

# The score of two units is off by about this fraction of their norms: float32 products.
_ROUNDING = 4 * float(np.finfo(np.float32).eps)
_REFRESH = 16  # Updates after which products are computed anew, so that rounding stays small.


def weight_matching(
    key: Key[Array, ""],
    spec: AxisSpec,
    first: PyTree,
    second: PyTree,
    *,
    init: Permutations | str | None = None,
    restarts: int = 1,
    max_sweeps: int = 100,
) -> Matching:
    r"""Permute the second model's units so that its weights come closest to the first's.

    .. math:: \max_\pi \sum_\ell \langle W^1_\ell, \pi(W^2_\ell) \rangle
              \quad\Leftrightarrow\quad \min_\pi \lVert w^1 - \pi(w^2) \rVert^2

    Coordinate descent: one group after another gets its best order given the others', by linear
    assignment; sweeps over all groups, each in an order drawn anew, are repeated until no group
    improves. A group is assigned together with the groups nested in it: every pair of its units is
    scored at the best inner order of that pair.

    Args:
      key: draws the visiting orders and random starts: each start draws, sweep by sweep, from
        ``numpy.random.default_rng((*jax.random.key_data(key), start))``.
      spec: which axes move together; statistics move but enter no score.
      first: the model that stays fixed.
      second: the model to reorder to match ``first``.
      init: where the first start begins: permutations, ``"identity"`` (same as None: the
        published algorithm), ``"sorted"`` or ``"random"``.
      restarts: number of starts; the best objective is kept. The second begins ``"sorted"``
        (unless the first did), the others at random.
      max_sweeps: maximum number of sweeps per start.

    ``"sorted"`` scores two units by their weights sorted along every axis that other groups permute
    (no order of the others can give more: the Gilmore-Lawler bound). It finds planted
    permutations where the identity ends in a local optimum, as in residual networks.

    Returns:
      The permutations, and ``info`` with ``objective`` (the sum above over the weights that move),
      ``distance`` (root of the remaining squared distance), ``objectives`` and ``sweeps`` of each
      start, ``converged`` (whether the best start stopped before ``max_sweeps``), ``assignments``,
      ``seconds`` and ``solver_seconds``.

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
    problem = prepare(spec, first, second)
    ends, clock = [], _Clock()
    for index, start in enumerate(starts):
        rng = generator(key, index)
        permutations = _begin(rng, problem, start, clock)
        end = descend(rng, problem, permutations, max_sweeps=max_sweeps, clock=clock)
        ends.append((*compare(problem, end[0]), *end))
    best, distance, permutations, _, converged = max(ends, key=lambda end: end[0])
    info = {
        "objective": best,
        "distance": distance,
        "objectives": tuple(end[0] for end in ends),
        "sweeps": tuple(end[3] for end in ends),
        "converged": converged,
        "assignments": clock.assignments,
        "seconds": time.perf_counter() - begin,
        "solver_seconds": clock.seconds,
    }
    return Matching(permutations, info)


class _Known(NamedTuple):
    """Products of a view, the orders they belong to, and updates since they were computed anew."""

    versions: tuple[int, ...]
    others: dict[str, np.ndarray]
    scores: Products
    age: int


@dataclass
class _Clock:
    """The solver's cost so far."""

    seconds: float = 0.0
    assignments: int = 0

    def assign(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        begin = time.perf_counter()
        answer = assign(scores)
        self.seconds += time.perf_counter() - begin
        self.assignments += 1
        return answer


def generator(key: Array, start: int = 0) -> np.random.Generator:
    """A host generator derived from a key, which draws orders without compiling anything."""
    return np.random.default_rng((*np.ravel(jax.random.key_data(key)).tolist(), start))


def descend(
    rng: np.random.Generator,
    problem: Problem,
    start: Permutations,
    *,
    max_sweeps: int,
    clock: _Clock | None = None,
) -> tuple[dict[str, Integer[np.ndarray, "*parent units"]], int, bool]:
    """Sweep from one start until no group improves: permutations, sweeps, whether it converged."""
    clock = _Clock() if clock is None else clock
    permutations = {name: np.array(value) for name, value in start.items()}
    versions = dict.fromkeys(permutations, 0)
    seen: dict[int, tuple[int, ...]] = {}
    cache: dict[tuple[int, int], _Known] = {}
    for sweep in range(max_sweeps):
        progress = False
        for index in rng.permutation(len(problem.blocks)).tolist():
            block = problem.blocks[index]
            now = tuple(versions[name] for view in block.views for _, name in view.others)
            if seen.get(index) == now:
                continue
            seen[index] = now
            plain, inside = _scores(problem, index, permutations, versions, cache)
            proposal, gain = _propose(block, plain, inside, permutations, clock)
            if all(np.array_equal(permutations[name], new) for name, new in proposal.items()):
                continue
            if block.coupled:  # Its scores hold only for the current order of its other axes.
                proposed = permutations | proposal
                gain = compare(problem, proposed)[0] - compare(problem, permutations)[0]
            if gain > _ROUNDING * problem.norms[index]:
                progress = True
                for name, new in proposal.items():
                    permutations[name] = new
                    versions[name] += 1
        if not progress:
            return permutations, sweep + 1, True
    return permutations, max_sweeps, False


def _scores(
    problem: Problem,
    index: int,
    permutations: Mapping[str, np.ndarray],
    versions: Mapping[str, int],
    cache: dict[tuple[int, int], _Known],
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Scores of a block's units and of each nested group's, in float64; reuses unchanged views."""
    block, parts = problem.blocks[index], []
    for position, (view, pair) in enumerate(zip(block.views, problem.pairs[index], strict=True)):
        if pair is None:
            parts.append((view, problem.constants[index][position]))
            continue
        now = tuple(versions[name] for _, name in view.others)
        known = cache.get((index, position))
        if known is None or known.versions != now:
            known = _renewed(view, pair, permutations, now, known)
            cache[index, position] = known
        parts.append((view, known.scores))
    return _summed(block, parts)


def _renewed(
    view: View,
    pair: tuple[Array, Array],
    permutations: Mapping[str, np.ndarray],
    versions: tuple[int, ...],
    known: _Known | None,
) -> _Known:
    """A view's products for the other groups' current orders, updated where few units moved."""
    others = {local: permutations[name] for local, name in view.others}
    if view.layout == "pair" and known is not None and known.age < _REFRESH:
        ((local, new),) = others.items()
        old = known.others[local]
        moved = np.flatnonzero(new != old)
        if 2 * len(moved) <= len(new):
            listed = np.resize(moved, len(new))
            rest = update_products(known.scores[0], *pair, listed, len(moved), new, old)
            return _Known(versions, others, (rest, ()), known.age + 1)
    return _Known(versions, others, products(view.local, view.layout, *pair, others), 0)


def _summed(
    block: Block, parts: list[tuple[View, Any]]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    units = block.group.size
    plain = np.zeros((units, units))
    inside = {g.name: np.zeros((units, units, g.size, g.size)) for g in block.nested}
    for view, (rest, nested) in parts:
        plain += np.asarray(rest)
        for (_, name), scores in zip(view.nested, nested, strict=True):
            inside[name] += np.asarray(scores)
    return plain, inside


def _propose(
    block: Block,
    plain: np.ndarray,
    inside: Mapping[str, np.ndarray],
    permutations: Mapping[str, np.ndarray],
    clock: _Clock,
) -> tuple[dict[str, np.ndarray], float]:
    """The best orders of a block's group and of those nested in it, and their gain."""
    total, current = plain, permutations[block.group.name]
    before = score_of(plain, current).item()
    best: dict[str, np.ndarray] = {}
    units = np.arange(block.group.size)
    for name, scores in inside.items():
        best[name], values = clock.assign(scores)
        total = total + values
        matched = scores[units, current]
        before += score_of(matched, permutations[name][current]).sum().item()
    chosen, after = clock.assign(total)
    proposal = {block.group.name: chosen}
    for name, orders in best.items():
        # Counted in the second model's own units, before these move.
        proposal[name] = np.empty_like(permutations[name])
        proposal[name][chosen] = orders[units, chosen]
    return proposal, after.item() - before


def _starts(
    spec: AxisSpec, init: Permutations | str | None, restarts: int
) -> list[Permutations | str]:
    if restarts < 1:
        raise ValueError(f"restarts {restarts} is below 1; give at least one start")
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
    rng: np.random.Generator, problem: Problem, start: Permutations | str, clock: _Clock
) -> Permutations:
    identity = identity_permutations(problem.spec)
    if not isinstance(start, str):
        return start
    if start == "identity":
        return identity
    if start == "random":
        return {name: rng.permuted(given, axis=-1) for name, given in identity.items()}
    result = dict(identity)
    for index, block in enumerate(problem.blocks):
        parts = []
        for position, view in enumerate(block.views):
            pair, scores = problem.pairs[index][position], problem.constants[index][position]
            if pair is not None:
                others = {local: identity[name] for local, name in view.others}
                scores = products(view.local, view.layout, *pair, others, ordered=True)
            parts.append((view, scores))
        proposal, _ = _propose(block, *_summed(block, parts), identity, clock)
        result |= proposal
    return result
