"""The graph convolutional network of Kipf and Welling."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from wsa_jax.models.graph import Graph, degrees, sum_of_neighbors
from wsa_jax.models.graph_layers import graph_layers, layer_widths

__all__ = ["GCN"]


class GCN(nn.Module):
    """Graph convolutions with ReLUs in between, and dropout before each in training.

    h_v ← Σ_{u ∈ N(v) ∪ {v}} W · h_u / √((1 + d_u)(1 + d_v)) + b, d the number of neighbours

    Shapes: a `Graph` of n nodes -> [n, features[-1]] logits.
    Parameters: `Layer_0/kernel` [inputs, features[0]], `Layer_0/bias` and so on.

    Guarantees: neighbours are summed by `segment_sum`, so time and memory grow with the edges.
    23,063 parameters for Cora's 1,433 features, 16 units and 7 classes.

    Edge cases: a node without neighbours sees itself alone.

    Errors: `ValueError` for no features, or a dropout outside [0, 1).

    >>> import jax
    >>> from wsa_jax.models import graph
    >>> pair = graph([[1.0, 0.0], [0.0, 1.0]], senders=[0, 1], receivers=[1, 0])
    >>> model = GCN(features=(4, 3))
    >>> jax.eval_shape(model.init, jax.random.key(0), pair)["params"]["Layer_1"]["kernel"].shape
    (4, 3)

    Source: Kipf and Welling, ICLR 2017, Eq. 8, with Glorot's initial weights; their code has no
    biases, later ones do.
    """

    features: Sequence[int]
    dropout: float = 0.5

    def __post_init__(self):
        object.__setattr__(self, "features", layer_widths(self.features, self.dropout))
        super().__post_init__()

    @nn.compact
    def __call__(self, graph: Graph, train: bool = False) -> Float[Array, "nodes classes"]:
        x = jnp.asarray(graph.nodes)
        inverse_root = lax.rsqrt(1 + degrees(graph))[:, None].astype(x.dtype)

        def layer(x: Array, width: int, name: str) -> Array:
            return _Layer(width, name=name)(x, inverse_root, graph)

        return graph_layers(x, self.features, layer, dropout=self.dropout if train else 0.0)


class _Layer(nn.Module):
    width: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "nodes inputs"],
        inverse_root: Float[Array, "nodes 1"],
        graph: Graph,
    ) -> Float[Array, "nodes outputs"]:
        shape = (x.shape[-1], self.width)
        kernel = self.param("kernel", nn.initializers.glorot_uniform(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        # Narrow first, then sum: the two commute, and edges carry fewer numbers.
        sent = x @ kernel.astype(x.dtype) * inverse_root
        return (sum_of_neighbors(sent, graph) + sent) * inverse_root + bias.astype(x.dtype)[None]
