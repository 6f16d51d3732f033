"""MergeMany: bring many models into a common order, each matched to the mean of the others."""

import time
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree

from wsa_jax.door import door
from wsa_jax.merging.align.assignment import Matching, moving_leaves, permuted
from wsa_jax.merging.align.cached_scores import CachedScores
from wsa_jax.merging.align.similarity import compare, lay_out, prepare
from wsa_jax.merging.align.weight_matching import descend, generator
from wsa_jax.merging.symmetry.spec import AxisSpec
from wsa_jax.merging.symmetry.units import identity_permutations
from wsa_jax.tree import as_list, stack, weighted_mean
from wsa_jax.types import Json

__all__ = ["weight_matching_many"]


@door
def weight_matching_many(
    key: Key[Array, ""],
    spec: AxisSpec,
    models: PyTree,
    *,
    max_rounds: int = 100,
    max_sweeps: int = 100,
) -> tuple[Matching, ...]:
    r"""Permute the units of many models so that the models come closest to one another.

    .. math:: \min_{\pi_1, \dots, \pi_m} \sum_{i < j} \lVert \pi_i(w^i) - \pi_j(w^j) \rVert^2

    In a random order, each model is matched to the mean of the others as they then are, starting
    from its current permutation; rounds are repeated until one improves nothing.

    Args:
      key: draws the orders of models and groups.
      spec: which axes move together.
      models: at least two, of one architecture, a list or a stack ``[models, ...]``.
      max_rounds: maximum number of rounds over all models.
      max_sweeps: maximum number of sweeps per matching.

    Returns:
      One matching per model, in the order given. Each ``info`` holds ``objective`` (the sum of
      products with the mean of the others) and, equal in all of them, ``spread`` (root of the
      summed squared distances to the mean, over the weights that move: at the start and after every
      round), ``rounds``, ``converged`` and ``seconds``.

    Guarantees: arguments are unchanged; equal keys give equal results; the spread, in float64 on
    the host, never grows. Averaging is not done here: average the aligned models.

    Raises:
      ValueError: fewer than two models, fewer than one round or sweep, or as for `weight_matching`.

    >>> from wsa_jax.merging.symmetry.spec import Tie, hand_written
    >>> models = [{"a": np.array([[x, 3.0 - x]])} for x in (1.0, 2.0, 1.0)]
    >>> spec = hand_written({"hidden": [Tie(leaf="a", axis=1)]}, models[0])
    >>> matchings = weight_matching_many(jax.random.key(0), spec, models)
    >>> matchings[0].info["spread"][-1]
    0.0

    Source: Ainsworth et al., Git Re-Basin, ICLR 2023, Algorithm 2 (MergeMany).
    """
    begin = time.perf_counter()
    models = as_list(models)
    if len(models) < 2:
        raise ValueError(f"{len(models)} models were given; give at least two")
    if min(max_rounds, max_sweeps) < 1:
        raise ValueError(
            f"max_rounds {max_rounds} and max_sweeps {max_sweeps} must both be at least 1"
        )
    # Checked once, here: later rounds compare means of the same models.
    for other in models[1:]:
        prepare(spec, models[0], other)
    ties = [tie for group in spec.groups for tie in group.ties if tie.role != "statistic"]
    names = tuple(dict.fromkeys(tie.leaf for tie in ties))
    rng = generator(key)
    permutations = [identity_permutations(spec) for _ in models]
    leaves = [moving_leaves(spec, model) for model in models]
    moved = list(leaves)
    spread, rounds, converged = [_spread(moved, names)], 0, False
    objectives = [0.0] * len(models)
    while rounds < max_rounds and not converged:
        converged = True
        # A model's own weights are left out of the mean: it would be pulled to where it is.
        for index in rng.permutation(len(models)).tolist():
            others = [model for position, model in enumerate(moved) if position != index]
            similarity = lay_out(spec, _mean(stack(others), np.ones(len(others))), leaves[index])
            before, _ = compare(similarity, permutations[index])
            found = descend(
                rng, CachedScores(similarity), permutations[index], max_sweeps=max_sweeps
            ).permutations
            after, _ = compare(similarity, found)
            objectives[index] = max(before, after)
            # Float32 gains may be rounding; only the exact objective decides.
            if after > before:
                converged, permutations[index] = False, found
                moved[index] = permuted(spec, leaves[index], found)
        rounds += 1
        spread.append(_spread(moved, names))
    shared = {
        "spread": tuple(spread),
        "rounds": rounds,
        "converged": converged,
        "seconds": time.perf_counter() - begin,
    }
    return tuple(
        Matching(found, {"objective": value} | shared)
        for found, value in zip(permutations, objectives, strict=True)
    )


_mean = jax.jit(weighted_mean)


def _spread(models: Sequence[Json], names: Sequence[str]) -> float:
    """Root of the summed squared distances to the mean, over the leaves that move, in float64."""
    total = 0.0
    for name in names:
        values = np.stack([np.asarray(model[name], np.float64) for model in models])
        total += float(np.sum(np.square(values - values.mean(0))))
    return float(np.sqrt(total))
