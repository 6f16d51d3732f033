"""Checks of a simulation's arrays before the first round; each error is one line."""

import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from wsa_jax import checks
from wsa_jax.federated.aggregate import Aggregation
from wsa_jax.federated.alignment import WeightScopeAlignment
from wsa_jax.federated.partition import Partition, as_partition
from wsa_jax.scope.layers import Rule, all_leaves, constant_layers, kernels, select_layers, without
from wsa_jax.tree import is_traced, key_path
from wsa_jax.types import Examples


def check_partition(partition: Partition) -> None:
    """Raise a ValueError if sizes or rows do not fit; warn where clients share examples.

    Raises:
      ValueError: not one size for each client, sizes or rows out of range, or an example that one
        client holds twice.
    """
    clients, capacity = partition.indices.shape
    if partition.sizes.shape != (clients,):
        raise ValueError(
            f"the partition has indices of {clients} clients and sizes of {len(partition.sizes)}; "
            "give one size for each client"
        )
    if not 0 <= partition.sizes.min() <= partition.sizes.max() <= capacity:
        raise ValueError(
            f"sizes of the partition are {partition.sizes.min()} to {partition.sizes.max()}, but "
            f"its indices have room for {capacity}; give sizes within 0 .. {capacity}"
        )
    if partition.indices.min(initial=0) < 0:
        raise ValueError(
            f"the partition points at example {partition.indices.min()}; rows count from 0"
        )
    _check_shared(partition)


def check_call(key: Array, evidence: PyTree, aggregation: Aggregation) -> None:
    """Raise a ValueError where a simulation is traced, or nobody looks at its evidence."""
    if is_traced(key):
        raise ValueError(
            "key is traced, but simulate runs its rounds from the host: call it outside of jit and "
            "vmap, once for each key"
        )
    if evidence is not None and not callable(aggregation.rule):
        raise ValueError(
            f"evidence is given, but rule {aggregation.rule!r} of the aggregation does not look at "
            "any; give Aggregation(rule=function), or no evidence"
        )


def check_partition_of(
    partition: Partition, examples: int, rounds: int, what: str = "the partition"
) -> None:
    """Raise a ValueError unless there are rounds, and the partition is one of these examples."""
    if rounds < 1:
        raise ValueError(f"rounds {rounds} is below 1; give a positive number")
    checks.count("rounds", rounds)
    check_partition(partition)
    if not partition.sizes.any():
        raise ValueError(
            f"no client of {what} holds an example; make it from the {examples} labels, with some "
            "for one client at least"
        )
    if partition.indices.max() >= examples:
        raise ValueError(
            f"{what} points at example {partition.indices.max()} and holds "
            f"{partition.sizes.sum()} in all, but there are {examples} labels; make it from these"
        )


def tests_of_clients(
    options: Mapping[str, Any], clients: int, test: Examples | None, rounds: int
) -> Partition | None:
    """Return which held-out examples are each client's own, if it is told; refuse what misses.

    Raises:
      ValueError: no examples to test on, another number of clients, rows out of range; or leaves
        stay at the clients, so that the server has no model to test, and no client has a test.
    """
    given = options.get("test_partition")
    if given is None:
        if test is not None and options.get("keep_local") is not None:
            raise ValueError(
                "test is given with keep_local, but the server has no whole model to test; give "
                "test_partition, each client's own examples of it"
            )
        return None
    if test is None:
        raise ValueError("test_partition is given without test; give the examples it points at")
    own = as_partition(given)
    if own.clients != clients:
        raise ValueError(
            f"test_partition has {own.clients} clients and the partition {clients}; give each "
            "client its own, empty where it has none"
        )
    check_partition_of(own, len(test[1]), rounds, "test_partition")
    return own


def _check_shared(partition: Partition) -> None:
    """An example twice in one client would count twice; in two clients, it may be meant."""
    owner = np.repeat(np.arange(partition.clients), partition.sizes)
    rows = partition.indices[partition.mask]
    pairs, counts = np.unique(np.stack([owner, rows]), axis=1, return_counts=True)
    if counts.max(initial=0) > 1:
        client, row = pairs[:, counts.argmax()]
        raise ValueError(
            f"client {client} of the partition holds example {row} {counts.max()} times; give each "
            "of its examples once"
        )
    found, owners = np.unique(rows, return_counts=True)
    if owners.max(initial=0) > 1:
        warnings.warn(
            f"{(owners > 1).sum()} examples of the partition belong to several clients, example "
            f"{found[owners.argmax()]} to {owners.max()} of them",
            stacklevel=5,
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
