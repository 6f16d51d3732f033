"""Assign units to units: SciPy's solver over one matrix or a stack, and what a matching is."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Integer, PyTree
from scipy.optimize import linear_sum_assignment

from wsa_jax.merging.spec import AxisSpec
from wsa_jax.merging.units import Permutations, permute_units
from wsa_jax.select import key_path

_permute = jax.jit(permute_units, static_argnames="spec")


class Matching(NamedTuple):
    """Which unit of the second model answers to each unit of the first.

    Attributes:
      permutations: by group, ``[units]``; ``[parent's units, units]`` for a nested group. What
        `permute_units` takes.
      info: figures by name (objective, sweeps, seconds), plain values and arrays; never needed to
        go on.
    """

    permutations: dict[str, Integer[np.ndarray, "*parent units"]]
    info: dict[str, Any]


def move(spec: AxisSpec, params: PyTree, permutations: Permutations) -> PyTree:
    """`permute_units` under jit; leaves that do not move, arrays or not, stay."""
    moved = _permute(spec, moving_leaves(spec, params), permutations)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: moved.get(key_path(path), leaf), params
    )


def moving_leaves(spec: AxisSpec, params: PyTree) -> dict[str, Array | np.ndarray]:
    """Leaves that hold units of some group, statistics among them, by key path: a model itself."""
    names = {tie.leaf for group in spec.groups for tie in group.ties}
    leaves = {key_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    return {name: leaf for name, leaf in leaves.items() if name in names}


def assign(
    scores: Float[Array | np.ndarray, "*stack units units"],
) -> tuple[Integer[np.ndarray, "*stack units"], Float[np.ndarray, "*stack"]]:
    """Find the permutation of greatest total score, of one matrix or of each of a stack.

    On the host in float64: the solver is serial, and accelerators are slower at it.

    Returns:
      permutations, row u is given column ``permutation[u]``; and the totals.

    Raises:
      ValueError: a score is NaN or infinite.

    >>> assign(np.array([[1.0, 5.0], [4.0, 7.0]]))
    (array([1, 0]), array(9.))
    """
    scores = np.asarray(scores, np.float64)
    if not np.isfinite(scores).all():
        raise ValueError("scores between units hold NaN or infinity; give finite models")
    flat = scores.reshape(-1, *scores.shape[-2:])
    columns = np.stack([linear_sum_assignment(matrix, maximize=True)[1] for matrix in flat])
    permutations = columns.reshape(scores.shape[:-1])
    return permutations, score_of(scores, permutations)


def score_of(
    scores: Float[np.ndarray, "*stack units units"],
    permutations: Integer[np.ndarray, "*stack units"],
) -> Float[np.ndarray, "*stack"]:
    """Sum each matrix over the pairs that a permutation makes.

    >>> score_of(np.array([[1.0, 5.0], [4.0, 7.0]]), np.array([0, 1])).item()
    8.0
    """
    pairs = np.take_along_axis(scores, permutations[..., None], axis=-1)[..., 0]
    return np.asarray(pairs.sum(axis=-1))
