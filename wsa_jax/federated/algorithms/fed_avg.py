"""FedAvg: average what the clients learned."""

from jaxtyping import PyTree

from wsa_jax.door import door
from wsa_jax.federated.algorithms.base import (
    FederatedAlgorithm,
    ServerContext,
    add_update,
    one_object,
)


def apply_mean(server: PyTree, context: ServerContext) -> tuple[PyTree, PyTree]:
    """Add the mean update."""
    return add_update(context.params, context.update), server


@door
@one_object
def fed_avg() -> FederatedAlgorithm:
    r"""Return federated averaging.

    .. math:: w \leftarrow w + \frac{\sum_i p_i (w_i - w)}{\sum_i p_i}, \qquad p_i = n_i

    Guarantees: stateless on both sides; the server needs only sums over clients. With one
    participant it is plain local training.

    >>> fed_avg().name, fed_avg() is fed_avg()
    ('fed_avg', True)

    Source: McMahan et al., 2017, Algorithm 1; the averaging step of WSA's Algorithm 1.
    """
    return FederatedAlgorithm("fed_avg", apply_mean)
