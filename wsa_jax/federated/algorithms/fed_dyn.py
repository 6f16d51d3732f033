"""FedDyn: a linear and a quadratic term that make local minima agree with the global one."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from wsa_jax.door import door
from wsa_jax.federated.algorithms.base import (
    FederatedAlgorithm,
    LocalContext,
    ServerContext,
    add_update,
    one_object,
)
from wsa_jax.federated.algorithms.fed_avg import apply_mean
from wsa_jax.tree import wide
from wsa_jax.types import Examples


def _zeros(params: PyTree) -> PyTree:
    # Sums over many rounds: in half precision the small terms would be lost.
    return jax.tree.map(lambda w: jnp.zeros_like(wide(w)), params)


def _apply(server: PyTree, context: ServerContext) -> tuple[PyTree, PyTree]:
    drift = jax.tree.map(lambda c, d: c + context.share * d, server, context.update)
    step = jax.tree.map(jnp.add, context.update, drift)
    return add_update(context.params, step), drift


@door
@one_object
def fed_dyn(alpha: float | int = 0.01) -> FederatedAlgorithm:
    r"""Return FedDyn: dynamic regularization of the clients' losses.

    .. math::
        g \leftarrow g - h_i + \alpha (w_i - w), \qquad
        h_i' = h_i - \alpha \Delta_i, \qquad
        c \leftarrow c + \sum_{i \in S} \frac{n_i}{\sum_j n_j} \Delta_i, \qquad
        w \leftarrow w + \bar\Delta + c

    ``c`` is the paper's ``-h / alpha``, weighted by samples, where the paper weighs clients alike.

    Args:
      alpha: strength of the pull to the global parameters; the paper uses 0.01 and 0.1. 0 is
        FedAvg, by definition: ``c`` does not depend on alpha, so the formula has another limit.

    Guarantees: where local training ends in exact minima, a point that a round does not move is a
    stationary point of the weighted loss, however the clients' data differ. The terms are part of
    the gradient that is clipped. The memory is kept in at least float32.

    Edge cases: the state is one copy of the parameters per client; a client that is not accepted
    keeps its own.

    Raises:
      ValueError: alpha is negative or not finite.

    >>> fed_dyn(0.1).settings, fed_dyn().init_client({"w": jnp.ones(2)})["w"].tolist()
    ((('alpha', 0.1),), [0.0, 0.0])

    Source: Acar et al., 2021, Algorithm 1.
    """
    if not 0 <= alpha < float("inf"):
        raise ValueError(f"alpha {alpha} is negative or not finite; give 0 (FedAvg) or more")
    settings = (("alpha", alpha),)
    if alpha == 0:
        return FederatedAlgorithm("fed_dyn", apply_mean, settings)

    def correct(gradient: PyTree, params: PyTree, context: LocalContext) -> PyTree:
        def add(g: Array, w: Array, v: Array, h: Array) -> Array:
            return (wide(g) - h + alpha * (wide(w) - wide(v))).astype(g.dtype)

        return jax.tree.map(add, gradient, params, context.params, context.client)

    def finish(update: PyTree, context: LocalContext) -> Examples:
        return jax.tree.map(lambda h, d: h - alpha * d, context.client, update), ()

    return FederatedAlgorithm(
        "fed_dyn",
        _apply,
        settings,
        init_server=_zeros,
        init_client=_zeros,
        correct=correct,
        finish=finish,
    )
