"""Leaves of a model state that move like running statistics and are not known as such."""

import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from wsa_jax.leaves import is_traced, is_weight, key_path
from wsa_jax.merging.repair.momentum import probe_size
from wsa_jax.merging.repair.statistics import Statistics

Step = Callable[[PyTree, PyTree, PyTree], PyTree]
"""``(params, model_state, data) -> model_state``, a step in training mode."""

_WAY_OUT = (
    "give select=lambda name, leaf: ... that is true for all statistics, each variance named like "
    "its mean with var for mean, or for none"
)


def check_rest(
    step: Step, params: PyTree, model_state: PyTree, data: PyTree, statistics: Statistics
) -> None:
    """Name what a step moves beside the statistics that are known.

    Raises:
      ValueError: no statistic is known, and a leaf moves like one; under a trace, moves at all.
      UserWarning: another leaf moves, and is left as it is.
    """
    named = jax.tree_util.tree_leaves_with_path(model_state)
    rest = [
        index
        for index, (_, leaf) in enumerate(named)
        if is_weight(leaf) and index not in statistics.leaves
    ]
    if not rest or not (moving := _moving(step, params, model_state, data, rest)):
        return
    names = [key_path(named[index][0]) for index in moving]
    if is_traced((params, model_state, data)):
        averages = [] if statistics.found else names
    else:
        averages = _averages(step, params, model_state, data, moving, names)
    if averages and not statistics.found:
        raise ValueError(
            f"leaf {averages[0]} of model_state moves in a training step, and no statistic is "
            f"known by its name; {_WAY_OUT}"
        )
    if averages or not statistics.found:
        warnings.warn(
            f"leaf {(averages or names)[0]} of model_state moves in a training step, and is left "
            f"as it is, since its name is not that of a statistic; {_WAY_OUT}",
            stacklevel=3,
        )


def _moving(
    step: Step, params: PyTree, model_state: PyTree, data: PyTree, rest: list[int]
) -> list[int]:
    """The leaves that a step does not hand on as they are."""
    traced = jax.make_jaxpr(lambda state: step(params, state, data))(model_state).jaxpr
    return [index for index in rest if traced.outvars[index] is not traced.invars[index]]


def _averages(
    step: Step,
    params: PyTree,
    model_state: PyTree,
    data: PyTree,
    moving: list[int],
    names: list[str],
) -> list[str]:
    """The names of leaves that keep a share of a large old value, between none and all of it."""
    leaves, structure = jax.tree.flatten(model_state)
    probes = [probe_size(leaves[index].dtype) for index in moving]
    for index, probe in zip(moving, probes, strict=True):
        leaves[index] = jnp.full_like(leaves[index], probe)
    after = jax.tree.leaves(jax.jit(step)(params, structure.unflatten(leaves), data))
    found = []
    for index, probe, name in zip(moving, probes, names, strict=True):
        kept = np.asarray(after[index], np.float64) / probe
        if kept.size and ((kept > 1e-3) & (kept < 1 - 1e-6)).all():
            found.append(name)
    return found
