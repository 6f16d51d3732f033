"""SCAFFOLD: correct each client's drift by control variates."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from wsa_jax.door import door
from wsa_jax.federated.algorithms.base import (
    FederatedAlgorithm,
    LocalContext,
    ServerContext,
    add_update,
    one_object,
)
from wsa_jax.types import Examples


def _correct(gradient: PyTree, params: PyTree, context: LocalContext) -> PyTree:
    del params
    return jax.tree.map(lambda g, c, ci: g + c - ci, gradient, context.server, context.client)


def _finish(update: PyTree, context: LocalContext) -> Examples:
    scale = 1.0 / (context.steps * context.learning_rate)
    change = jax.tree.map(
        lambda c, d: (-c - scale * d).astype(c.dtype), context.server, update
    )  # c_i' - c_i
    return jax.tree.map(jnp.add, context.client, change), change


def _apply(server: PyTree, context: ServerContext) -> tuple[PyTree, PyTree]:
    control = add_update(server, context.message, context.share)
    return add_update(context.params, context.update), control


@door
@one_object
def scaffold() -> FederatedAlgorithm:
    r"""Return SCAFFOLD, option II, with partial participation; the server step is 1.

    .. math::
        g \leftarrow g + c - c_i, \qquad
        c_i' = c_i - c + \frac{w - w_i}{K \eta}, \qquad
        c \leftarrow c + \sum_{i \in S} \frac{n_i}{\sum_{j} n_j} (c_i' - c_i)

    Guarantees: with the mean as rule, ``c = sum_i n_i c_i / sum_i n_i`` over **all** clients after
    every round (up to rounding in low precision; a median does not preserve this sum); c is fixed
    within a round. Without local momentum a variate is the mean gradient of the steps, including
    all that a local step does: weight decay, clipping, and weight scope regularization. ``eta`` is
    the round's own learning rate, after decay.

    Errors: another local optimiser than SGD is refused, since a variate is then no gradient.

    Edge cases: a learning rate of 0 makes the variates infinite, so the client is dropped. The
    state is one copy of the parameters per client. With partial participation over a mesh it moves
    between devices, so a round is not a sum over clients alone.

    >>> scaffold().init_client({"w": jnp.ones(2)})["w"].tolist()
    [0.0, 0.0]

    Source: Karimireddy et al., 2020, Algorithm 1, option II; weighted by sample counts as in
    FedExP's public experiments.
    """
    return FederatedAlgorithm(
        "scaffold",
        _apply,
        init_server=optax.tree.zeros_like,
        init_client=optax.tree.zeros_like,
        broadcast=lambda server: server,
        correct=_correct,
        needs_sgd="its control variates are updates over learning rate and steps",
        finish=_finish,
    )
