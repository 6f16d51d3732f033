"""How many bytes a round sends over the network."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from wsa_jax import checks
from wsa_jax.door import door
from wsa_jax.federated.algorithms.base import FederatedAlgorithm, LocalContext
from wsa_jax.federated.alignment import WeightScopeAlignment
from wsa_jax.federated.local_leaves import kept_leaves
from wsa_jax.scope.layers import Rule, select_layers
from wsa_jax.tree import wide


class RoundBytes(NamedTuple):
    """Bytes of one round for one participant.

    Attributes:
      down: from the server to a client.
      up: from a client to the server.
    """

    down: int
    up: int

    @property
    def total(self) -> int:
        """Both directions."""
        return self.down + self.up


@door
def bytes_per_round(
    algorithm: FederatedAlgorithm,
    params: PyTree,
    *,
    wsa: WeightScopeAlignment | None = None,
    model_state: PyTree = (),
    keep_local: Rule | None = None,
) -> RoundBytes:
    """Count the bytes one participant receives and sends in a round, uncompressed.

    Down: parameters, statistics, what the algorithm broadcasts, and with WSA the target, two
    float32 numbers for each layer. Up: the update, in at least float32, statistics, the algorithm's
    message, and with WSA the mean and variance of each layer. Nothing is computed, so shapes
    (`jax.ShapeDtypeStruct`) suffice. Multiply by the number of participants for the total.

    Args:
      algorithm: FedAvg or another.
      params: the model.
      wsa: weight scope alignment, None for the plain algorithm.
      model_state: non-parameter collections that travel with the parameters.
      keep_local: the leaves that do not travel (`simulate`), or None; what an algorithm sends
        besides is counted for all leaves.

    >>> from wsa_jax.federated import WeightScopeAlignment, fed_avg, scaffold
    >>> params = {"kernel": jnp.ones((10, 10)), "bias": jnp.ones(10)}
    >>> bytes_per_round(fed_avg(), params)
    RoundBytes(down=440, up=440)
    >>> bytes_per_round(fed_avg(), params, wsa=WeightScopeAlignment()).total - 880
    16
    >>> bytes_per_round(scaffold(), params)
    RoundBytes(down=880, up=880)
    >>> bytes_per_round(fed_avg(), params, keep_local=lambda name, leaf: name == "bias")
    RoundBytes(down=400, up=400)
    """
    checks.floating(params)
    params, model_state = jax.eval_shape(lambda *trees: trees, params, model_state)
    server = jax.eval_shape(algorithm.init_server, params)
    client = jax.eval_shape(algorithm.init_client, params)
    broadcast = jax.eval_shape(algorithm.broadcast, server)
    rate = jax.ShapeDtypeStruct((), jnp.float32)

    def sent(params: PyTree, broadcast: PyTree, client: PyTree, rate: jax.Array) -> PyTree:
        context = LocalContext(params, broadcast, client, rate, 1, jax.random.key(0))
        update = algorithm.send(jax.tree.map(wide, params), context)
        return update, algorithm.finish(update, context)[1]

    up = jax.eval_shape(sent, params, broadcast, client, rate)
    both = _bytes(model_state)
    if wsa is not None:
        both += 2 * 4 * len(select_layers(params, wsa.select))
    down, up = both + _bytes((params, broadcast)), both + _bytes(up)
    if keep_local is not None:
        update = jax.eval_shape(lambda tree: jax.tree.map(wide, tree), params)
        statistics = _bytes(kept_leaves(model_state, keep_local))
        down -= statistics + _bytes(kept_leaves(params, keep_local))
        up -= statistics + _bytes(kept_leaves(update, keep_local))
    return RoundBytes(down=down, up=up)


def _bytes(tree: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
