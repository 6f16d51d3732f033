"""Leaves that stay at the clients: FedBN (normalisation), FedPer (a head)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from wsa_jax.federated.algorithms.base import FederatedAlgorithm
from wsa_jax.leaves import key_path
from wsa_jax.scope.layers import Rule
from wsa_jax.types import Leaf


class ClientMemory(NamedTuple):
    """What a client remembers where some leaves stay with it; by key path.

    Attributes:
      algorithm: the algorithm's state of this client.
      params: its own parameters.
      model_state: its own state that is not trained (BatchNorm statistics).
    """

    algorithm: PyTree
    params: dict[str, Leaf]
    model_state: dict[str, Leaf]


def kept_leaves(tree: PyTree, rule: Rule) -> dict[str, Leaf]:
    """The leaves that a rule keeps at the clients, by key path.

    >>> tree = {"BatchNorm_0": {"scale": 1.0}, "Dense_0": {"kernel": 2.0}}
    >>> kept_leaves(tree, lambda name, leaf: "BatchNorm" in name)
    {'BatchNorm_0/scale': 1.0}
    """
    named = jax.tree_util.tree_leaves_with_path(tree)
    return {key_path(path): leaf for path, leaf in named if rule(key_path(path), leaf)}


def with_leaves(tree: PyTree, kept: dict[str, Leaf]) -> PyTree:
    """A tree with some of its leaves replaced.

    >>> with_leaves({"a": 1, "b": {"c": 2}}, {"b/c": 5})
    {'a': 1, 'b': {'c': 5}}
    """
    return jax.tree_util.tree_map_with_path(lambda path, leaf: kept.get(key_path(path), leaf), tree)


def without_moves(update: PyTree, rule: Rule) -> PyTree:
    """An update that is 0 on the leaves that a rule keeps: the server never learns of them."""
    kept = kept_leaves(update, rule)
    return with_leaves(update, jax.tree.map(jnp.zeros_like, kept))


def first_memory(
    algorithm: FederatedAlgorithm, params: PyTree, model_state: PyTree, rule: Rule | None
) -> PyTree:
    """What a client remembers before its first round."""
    own = algorithm.init_client(params)
    if rule is None:
        return own
    return ClientMemory(own, kept_leaves(params, rule), kept_leaves(model_state, rule))


def check_kept(params: PyTree, model_state: PyTree, rule: Rule) -> tuple[str, ...]:
    """Return the names of parameters that stay; refuse a rule that keeps no leaf, or all.

    >>> check_kept({"w": jnp.ones(2)}, {}, lambda name, leaf: name == "v")
    Traceback (most recent call last):
    ValueError: keep_local keeps no leaf of the model, whose first is w; give a rule such as ...
    """
    named = jax.tree_util.tree_leaves_with_path(params)
    kept = kept_leaves(params, rule)
    if not kept and not kept_leaves(model_state, rule):
        raise ValueError(
            f"keep_local keeps no leaf of the model, whose first is {key_path(named[0][0])}; give "
            "a rule such as matching('.*BatchNorm.*')"
        )
    if len(kept) == len(named):
        raise ValueError(
            f"keep_local keeps all {len(kept)} leaves, so that nothing is learned together; give a "
            "rule that keeps some"
        )
    return tuple(kept)
