"""Assign units to units: SciPy's solver for one matrix or a stack, and the type of a matching."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Integer, PyTree
from scipy.optimize import linear_sum_assignment

from wsa_jax.merging.symmetry.spec import AxisSpec
from wsa_jax.merging.symmetry.units import Permutations, Scales, permute_units, scale_units
from wsa_jax.tree import key_path
from wsa_jax.types import Json

__all__ = ["Matching", "assign", "moving_leaves", "permuted", "rescaled", "score_of"]

_permute = jax.jit(permute_units, static_argnames="spec")
_scale = jax.jit(scale_units, static_argnames="spec")


class Matching(NamedTuple):
    """Which unit of the second model corresponds to each unit of the first.

    Attributes:
      permutations: by group, ``[units]``, or ``[parent's units, units]`` for a nested group, as
        `permute_units` takes them.
      info: diagnostics by name (objective, sweeps, seconds), plain values and arrays; not needed
        to apply the matching.
    """

    permutations: dict[str, Integer[np.ndarray, "*parent units"]]
    info: Json


def permuted(spec: AxisSpec, params: PyTree, permutations: Permutations) -> PyTree:
    """`permute_units` under jit; leaves that do not move, arrays or not, are kept."""
    return _moved(_permute, spec, params, permutations)


def rescaled(spec: AxisSpec, params: PyTree, scales: Scales) -> PyTree:
    """`scale_units` under jit, likewise."""
    return _moved(_scale, spec, params, scales)


def _moved(
    move: Callable[..., dict[str, Array]], spec: AxisSpec, params: PyTree, by_group: Any
) -> PyTree:
    leaves = moving_leaves(spec, params)
    moved: dict[str, Any] = {}
    wide = [name for name, leaf in leaves.items() if _is_wide(leaf)]
    if wide and not any(isinstance(one, jax.core.Tracer) for one in jax.tree.leaves(by_group)):
        # NumPy's leaves of double precision keep it, whatever JAX's own setting is.
        with jax.enable_x64(True):
            moved = move(spec, leaves, by_group)
        moved |= {name: np.asarray(moved[name]) for name in wide}
    else:
        moved = move(spec, leaves, by_group)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: moved.get(key_path(path), leaf), params
    )


def _is_wide(leaf: Any) -> bool:
    """Whether it is NumPy's and JAX would make it narrower: 64 bits, or complex numbers of 128."""
    if not isinstance(leaf, np.ndarray):
        return False
    return leaf.dtype != jax.dtypes.canonicalize_dtype(leaf.dtype)


def moving_leaves(spec: AxisSpec, params: PyTree) -> dict[str, Array | np.ndarray]:
    """Leaves that hold units of a group, statistics included, by key path: itself a model."""
    names = {tie.leaf for group in spec.groups for tie in group.ties}
    leaves = {key_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    return {name: leaf for name, leaf in leaves.items() if name in names}


def assign(
    scores: Float[Array | np.ndarray, "*stack units units"],
) -> tuple[Integer[np.ndarray, "*stack units"], Float[np.ndarray, "*stack"]]:
    """Find the permutation of greatest total score, for one matrix or for each of a stack.

    Runs on the host in float64: the solver is serial, and accelerators are slower at it. SciPy's is
    the fastest known on such scores: lapx's take 1.4 to 2.3 times as long on trained networks of
    512 to 4,096 units (``python -m benchmarks speed assignment``).

    Returns:
      The permutations, which assign column ``permutation[u]`` to row u, and the total scores.

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
    """Sum the scores of the pairs that a permutation makes, for each matrix.

    >>> score_of(np.array([[1.0, 5.0], [4.0, 7.0]]), np.array([0, 1])).item()
    8.0
    """
    pairs = np.take_along_axis(scores, permutations[..., None], axis=-1)[..., 0]
    return np.asarray(pairs.sum(axis=-1))
