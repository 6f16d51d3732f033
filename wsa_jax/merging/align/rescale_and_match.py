"""Alternate a permutation align with rescaling."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Integer, PyTree

from wsa_jax import checks
from wsa_jax.door import door
from wsa_jax.merging.align.assignment import Matching
from wsa_jax.merging.align.rescaling import Rescaling, normalize_scales, rescale
from wsa_jax.merging.symmetry.spec import AxisSpec
from wsa_jax.merging.symmetry.units import Permutations, permute_units, scale_units
from wsa_jax.tree import is_weight, key_path
from wsa_jax.types import Json

__all__ = ["ScaledMatching", "rescale_and_match"]

Match = Callable[[Array, AxisSpec, PyTree, PyTree], Matching]
Rescale = Callable[[AxisSpec, PyTree, PyTree], Rescaling]


class ScaledMatching(NamedTuple):
    """Scales, then permutations: ``permute_units(spec, scale_units(spec, second, scales), perms)``.

    Attributes:
      permutations: by group, unit u of the result is unit ``permutation[u]`` of the second model.
      scales: by group, ``[units]``, in the *second model's own* order of units.
      info: ``objective`` (squared distance to the first model after each round), ``rounds``.
    """

    permutations: dict[str, Integer[np.ndarray, "*parent units"]]
    scales: dict[str, Float[np.ndarray, " units"]]
    info: Json


@door
def rescale_and_match(
    key: Array,
    spec: AxisSpec,
    first: PyTree,
    second: PyTree,
    *,
    match_fn: Match,
    rescale_fn: Rescale = rescale,
    rounds: int = 5,
) -> ScaledMatching:
    """Alternate between a permutation align and rescaling until they no longer help each other.

    The first matching sees both models in the balanced gauge (`normalize_scales`), where scales
    cannot mislead it. Each later one continues from the units matched and scaled so far.

    Args:
      key: for ``match_fn``, split once per round.
      spec: which axes move together.
      first: the model that stays fixed.
      second: the model that moves.
      match_fn: ``(key, spec, first, second) -> object with .permutations``.
      rescale_fn: `rescale`, or a ``functools.partial`` of it with other options.
      rounds: maximum number of rounds; stops after the first that does not reduce the distance.

    Returns:
      Scales and permutations of the round with the smallest squared distance between the models,
      which need not be the last. Apply the scales first.

    Raises:
      ValueError: fewer than one round, or as for `rescale` and ``match_fn``.

    >>> import jax.numpy as jnp
    >>> from types import SimpleNamespace
    >>> from wsa_jax.merging.symmetry.spec import Tie, hand_written
    >>> first = {"0": {"w": jnp.array([[1.0, 2.0]])}, "1": {"w": jnp.array([[1.0], [4.0]])}}
    >>> second = {"0": {"w": jnp.array([[8.0, 4.0]])}, "1": {"w": jnp.array([[1.0], [0.25]])}}
    >>> ties = [Tie(leaf="0/w", axis=1), Tie(leaf="1/w", axis=0, role="consumed")]
    >>> spec = hand_written({"hidden": ties}, first, admits="scaling")
    >>> swap = SimpleNamespace(permutations={"hidden": np.array([1, 0])})
    >>> found = rescale_and_match(
    ...     jax.random.key(0), spec, first, second, match_fn=lambda *models: swap, rounds=1
    ... )
    >>> found.permutations["hidden"].tolist(), found.scales["hidden"].tolist()
    ([1, 0], [0.25, 0.25])

    Source: new here; the alternation is coordinate descent over the two symmetries of a ReLU net.
    """
    if rounds < 1:
        raise ValueError(f"rounds {rounds} is below 1; give at least one round")
    checks.same_structure(first, second)
    balanced = [scale_units(spec, m, normalize_scales(spec, m).scales) for m in (first, second)]
    permutations: dict[str, np.ndarray] = {}
    log_scales: dict[str, np.ndarray] = {}
    best, trace = (np.inf, permutations, log_scales), []
    for round_key in jax.random.split(key, rounds):
        moved = _apply(spec, second, log_scales, permutations)
        pair = [first, moved] if trace else balanced
        found = match_fn(round_key, spec, *pair).permutations
        permutations = _compose(spec, permutations, found)
        moved = _apply(spec, second, log_scales, permutations)
        for name, scale in rescale_fn(spec, first, moved).scales.items():
            # Unit u of the moved model is unit permutation[u] of the second.
            order = permutations.get(name, np.arange(scale.size))
            steps = np.zeros(scale.size)
            steps[order] = np.log(scale.astype(np.float64))
            log_scales = log_scales | {name: log_scales.get(name, 0.0) + steps}
        distance = _squared_distance(spec, first, _apply(spec, second, log_scales, permutations))
        trace.append(distance)
        if not distance < best[0]:
            break
        best = (distance, permutations, log_scales)
    _, permutations, log_scales = best
    info = {"objective": np.asarray(trace), "rounds": len(trace)}
    scales = {name: np.exp(x).astype(np.float32) for name, x in log_scales.items()}
    return ScaledMatching(permutations, scales, info)


def _apply(
    spec: AxisSpec,
    params: PyTree,
    log_scales: dict[str, np.ndarray],
    permutations: dict[str, np.ndarray],
) -> PyTree:
    scales = {name: np.exp(x).astype(np.float32) for name, x in log_scales.items()}
    return permute_units(spec, scale_units(spec, params, scales), permutations)


def _compose(
    spec: AxisSpec, done: dict[str, np.ndarray], then: Permutations
) -> dict[str, np.ndarray]:
    """The permutations that move units as ``done`` followed by ``then``."""
    result = dict(done)
    for name, found in then.items():
        step = np.asarray(found)
        before = done.get(name)
        parent = spec[name].parent
        order = np.arange(len(step)) if parent is None else done.get(parent, np.arange(len(step)))
        if parent is None:
            result[name] = step if before is None else before[step]
            continue
        # Unit k of the parent, as `then` sees it, is unit order[k] of what `done` starts from.
        before = np.broadcast_to(np.arange(step.shape[1]), step.shape) if before is None else before
        result[name] = np.empty_like(step)
        result[name][order] = np.take_along_axis(before[order], step, axis=1)
    return result


def _squared_distance(spec: AxisSpec, first: PyTree, second: PyTree) -> float:
    """Sum over all weights; statistics move with the units and do not count."""
    statistics = {t.leaf for g in spec.groups for t in g.ties if t.role == "statistic"}
    total = 0.0
    named = jax.tree_util.tree_leaves_with_path(first)
    for (path, a), b in zip(named, jax.tree.leaves(second), strict=True):
        if is_weight(a) and key_path(path) not in statistics:
            difference = np.asarray(a).astype(np.float64) - np.asarray(b).astype(np.float64)
            total += float(np.sum(difference**2))
    return total
