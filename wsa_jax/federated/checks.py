"""Checks of a simulation's arrays before the first round; each error is one line."""

import jax
from jaxtyping import PyTree

from wsa_jax.federated.alignment import WeightScopeAlignment
from wsa_jax.federated.partition import Partition
from wsa_jax.scope.layers import Rule, all_leaves, constant_layers, kernels, select_layers, without
from wsa_jax.tree import key_path


def check_partition(partition: Partition) -> None:
    """Raise a ValueError if a client's size or rows are out of range."""
    capacity = partition.indices.shape[1]
    if not 0 <= partition.sizes.min() <= partition.sizes.max() <= capacity:
        raise ValueError(
            f"sizes of the partition are {partition.sizes.min()} to {partition.sizes.max()}, but "
            f"its indices have room for {capacity}; give sizes within 0 .. {capacity}"
        )
    if partition.indices.min() < 0:
        raise ValueError(
            f"the partition points at example {partition.indices.min()}; rows count from 0"
        )


def diagnosed_layers(
    params: PyTree, wsa: WeightScopeAlignment | None
) -> tuple[Rule, tuple[str, ...]]:
    """Return the rule of the layers whose scope is tracked, and the constant layers it leaves out.

    A plain algorithm needs no scope: the model is diagnosed on its kernels, or on all leaves if it
    has none, and a layer without spread is left out only if there are others.
    """
    if wsa is None:
        named = jax.tree_util.tree_leaves_with_path(params)
        found = any(leaf.size and kernels(key_path(path), leaf) for path, leaf in named)
        select: Rule = kernels if found else all_leaves
    else:
        select = wsa.select
    left_out = constant_layers(params, select)
    if wsa is None and len(left_out) == len(
        {layer.leaf for layer in select_layers(params, select)}
    ):
        return select, ()
    return (without(select, left_out) if left_out else select), left_out
