"""Clients whose local training differs: their rates, weight decays, optimisers or steps."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from wsa_jax.federated import FederatedAlgorithm, LocalContext
from wsa_jax.reductions import norm

# From the first client to the last, evenly in logarithms: a factor of thirty about the shared one.
RATES = (0.18, 5.5)
DECAYS = (1e-4, 3e-2)
# Of the shared number of steps; ten clients take as many in all as they would if all took it.
STEPS = (0.1, 3.3)
# Every other client divides by the gradient's norm, as normalised SGD does.
NORMALISED = 0.5


@functools.cache
def clients_that_differ(
    algorithm: FederatedAlgorithm, what: Literal["rates", "decays", "optimizers"], clients: int
) -> FederatedAlgorithm:
    """The algorithm with a local step of its own on each client.

    ``rates``: the loss gradient is multiplied by a factor from `RATES`. ``decays``: a weight decay
    from `DECAYS` is added to the shared one. ``optimizers``: every other client steps along its
    gradient of norm `NORMALISED`, whatever its length. WSA acts on all of them alike, and the
    server does not know.
    """
    low, high = RATES if what == "rates" else DECAYS
    values = jnp.asarray(np.geomspace(low, high, clients), jnp.float32)

    def correct(gradient: PyTree, params: PyTree, context: LocalContext) -> PyTree:
        gradient = algorithm.correct(gradient, params, context)
        own = values[context.number]
        if what == "rates":
            return jax.tree.map(lambda g: own.astype(g.dtype) * g, gradient)
        if what == "decays":
            return jax.tree.map(lambda g, w: g + own.astype(g.dtype) * w, gradient, params)
        scale = _normalised(gradient, context)
        return jax.tree.map(lambda g: scale.astype(g.dtype) * g, gradient)

    settings = (*algorithm.settings, ("differ", what))
    return algorithm._replace(correct=correct, settings=settings)


def steps_that_differ(steps: int, clients: int) -> tuple[int, ...]:
    """Local steps of each client, evenly in logarithms between `STEPS` times the shared number.

    >>> sum(steps_that_differ(20, 10)), steps_that_differ(20, 3)
    (200, (2, 11, 66))
    """
    return tuple(max(1, round(steps * factor)) for factor in np.geomspace(*STEPS, clients))


def _normalised(gradient: PyTree, context: LocalContext) -> Array:
    """The factor of a client's gradient: 1 where it is taken as it is."""
    length = jnp.maximum(norm(gradient), 1e-8)
    return jnp.where(context.number % 2 == 1, NORMALISED / length, 1.0)
