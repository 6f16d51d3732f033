"""A graph as arrays, and sums over the neighbours of its nodes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from wsa_jax.door import door

__all__ = ["Graph", "graph"]


class Graph(NamedTuple):
    """Features of nodes, and edges from senders to receivers; `graph` makes one and checks it.

    An undirected edge is two, one in each direction; no node is its own neighbour. Several graphs
    are one with several components.
    """

    nodes: Float[Array | np.ndarray, "nodes features"]
    senders: Int[Array | np.ndarray, " edges"]
    receivers: Int[Array | np.ndarray, " edges"]


@door
def graph(nodes: Any, senders: Any, receivers: Any) -> Graph:
    """Make a graph, or refuse arrays that are none.

    Args:
      nodes: features ``[nodes, features]``, converted to float32 unless they are floating point.
      senders: ``[edges]``, the node that each edge leaves, counted from 0.
      receivers: ``[edges]``, the node that it reaches.

    Raises:
      ValueError: features that are no matrix, edges that are not pairs of integers, a node that is
        not there, or an edge from a node to itself.

    >>> path = graph([[1.0], [2.0], [4.0]], senders=[0, 1, 1, 2], receivers=[1, 0, 2, 1])
    >>> sum_of_neighbors(path.nodes, path).ravel().tolist()
    [2.0, 5.0, 2.0]
    >>> graph([[1.0]], senders=[0], receivers=[1])
    Traceback (most recent call last):
    ValueError: receivers names node 1, but there are 1; give numbers 0 .. 0
    """
    nodes, senders, receivers = map(np.asarray, (nodes, senders, receivers))
    if nodes.ndim != 2:
        raise ValueError(f"nodes has shape {nodes.shape}; give features [nodes, features]")
    if senders.shape != receivers.shape or senders.ndim != 1:
        raise ValueError(
            f"senders {senders.shape} and receivers {receivers.shape} are not edges; give two "
            "vectors of equal length"
        )
    for name, ends in (("senders", senders), ("receivers", receivers)):
        if ends.size and not np.issubdtype(ends.dtype, np.integer):
            raise ValueError(f"{name} are {ends.dtype}; give integers, the numbers of nodes")
        wrong = ends[(ends < 0) | (ends >= len(nodes))]
        if wrong.size:
            raise ValueError(
                f"{name} names node {wrong[0]}, but there are {len(nodes)}; give numbers "
                f"0 .. {len(nodes) - 1}"
            )
    loops = senders[senders == receivers]
    if loops.size:
        raise ValueError(
            f"node {loops[0]} is its own neighbour; leave such edges out: every layer sees a "
            "node's own features anyway"
        )
    floating = jnp.issubdtype(nodes.dtype, jnp.floating)
    return Graph(
        nodes if floating else nodes.astype(np.float32),
        senders.astype(np.int32),
        receivers.astype(np.int32),
    )


def sum_of_neighbors(
    values: Float[Array | np.ndarray, "nodes features"], graph: Graph
) -> Float[Array, "nodes features"]:
    """Sum of what each node's neighbours hold; 0 for a node without any."""
    return jax.ops.segment_sum(
        jnp.asarray(values)[jnp.asarray(graph.senders)],
        jnp.asarray(graph.receivers),
        num_segments=graph.nodes.shape[0],
    )


def degrees(graph: Graph) -> Float[Array, " nodes"]:
    """How many edges reach each node.

    >>> degrees(graph([[1.0], [2.0], [4.0]], [0, 1, 1, 2], [1, 0, 2, 1])).tolist()
    [1.0, 2.0, 1.0]
    """
    ones = jnp.ones(graph.receivers.shape, jnp.float32)
    return jax.ops.segment_sum(
        ones, jnp.asarray(graph.receivers), num_segments=graph.nodes.shape[0]
    )
