"""FedNova: average what clients learned in a step, not what they learned in all of theirs."""

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
from wsa_jax.types import Examples


def accumulated_steps(context: LocalContext) -> Array:
    r"""Count how often a gradient enters an update of SGD with momentum: the paper's ``|a_i|_1``.

    >>> from wsa_jax.federated.algorithms.base import LocalContext
    >>> context = LocalContext({}, (), (), jnp.float32(0.1), 3, None, momentum=0.5)
    >>> accumulated_steps(context).item() == 1 + 1.5 + 1.75
    True
    """
    steps, kept = jnp.asarray(context.steps, jnp.float32), context.momentum
    return (steps - kept * (1 - kept**steps) / (1 - kept)) / (1 - kept)


def _finish(update: PyTree, context: LocalContext) -> Examples:
    del update
    taken = accumulated_steps(context)
    return context.client, (taken, jnp.square(taken))


def _apply(server: PyTree, context: ServerContext) -> tuple[PyTree, PyTree]:
    # Means with weights p / a: of a, it is sum(p) / sum(p / a), and of a^2, sum(p a) / sum(p / a).
    taken, squared = context.message
    return add_update(context.params, context.update, squared / jnp.square(taken)), server


@door
@one_object
def fed_nova() -> FederatedAlgorithm:
    r"""Return FedNova: normalized averaging, for clients that take different numbers of steps.

    .. math::
        w \leftarrow w + \Bigl( \sum_i p_i a_i \Bigr) \sum_i p_i \frac{\Delta_i}{a_i}, \qquad
        \sum_i p_i = 1

    where ``a_i`` is the client's number of steps, or with momentum how often its gradients enter
    the update. Give ``LocalSettings(epochs=...)``, or each client its own number of ``steps``: with
    one for all, they take as many.

    Guarantees: stateless; sums over clients only; equal numbers of steps are FedAvg. A client sends
    its update and two numbers. Clients weigh ``p_i / a_i`` in all means, those of BatchNorm
    statistics as well, and the mean update is scaled by the server, so another rule of aggregation
    takes the place of the mean.

    Errors: another local optimiser than SGD is refused, since ``a_i`` is not known for it.

    >>> fed_nova().name, fed_nova() is fed_nova()
    ('fed_nova', True)

    Source: Wang et al., 2020 (FedNova), Eq. 6 and 7, with the accumulation vectors of SGD and
    momentum SGD; weight decay and proximal terms change none here.
    """
    return FederatedAlgorithm(
        "fed_nova",
        _apply,
        finish=_finish,
        weigh=lambda context: 1 / accumulated_steps(context),
        needs_sgd="it counts the gradients in an update",
    )
