"""Server optimisers: any optax optimiser steps on the mean update as if it were a gradient."""

from collections.abc import Callable

import jax
import optax
from jaxtyping import PyTree

from wsa_jax.door import door
from wsa_jax.federated.algorithms.base import (
    FederatedAlgorithm,
    ServerContext,
    add_update,
    one_object,
)
from wsa_jax.tree import wide


@door
@one_object
def server_optimizer(
    name: str,
    optimizer: optax.GradientTransformation,
    settings: tuple[tuple[str, float | int | str], ...],
) -> FederatedAlgorithm:
    r"""Return an algorithm whose server steps with an optax optimiser on ``g = -mean update``.

    .. math:: w \leftarrow w + \mathrm{optimizer}(-\bar\Delta)

    Args:
      name: its name in tables and ledgers.
      optimizer: any optax optimiser; its state is the server state. Equal objects share a
        compilation.
      settings: its hyper-parameters, so that a run is resumed only with the same ones.

    Guarantees: sums over clients only. ``optax.sgd(1.0)`` is FedAvg. The optimiser sees gradients
    and parameters in at least float32, and keeps its state in that precision: half
    precision would lose the small terms of a running mean.

    >>> server_optimizer("fed_sgd", optax.sgd(1.0), (("learning_rate", 1.0),)).name
    'fed_sgd'

    Source: Reddi et al., 2021, Algorithm 1 (FedOpt).
    """

    def apply(server: PyTree, context: ServerContext) -> tuple[PyTree, PyTree]:
        gradient = jax.tree.map(lambda d: -wide(d), context.update)
        updates, server = optimizer.update(gradient, server, jax.tree.map(wide, context.params))
        return add_update(context.params, updates), server

    def init_server(params: PyTree) -> optax.OptState:
        return optimizer.init(jax.tree.map(wide, params))

    return FederatedAlgorithm(name, apply, settings, init_server=init_server)


@door
@one_object
def fed_avg_m(learning_rate: float | int = 1.0, momentum: float | int = 0.9) -> FederatedAlgorithm:
    """Return FedAvgM: server momentum.

    Raises:
      ValueError: learning_rate is not positive, or momentum not in [0, 1).

    >>> fed_avg_m(momentum=0.5).settings
    (('learning_rate', 1.0), ('momentum', 0.5))

    Source: Hsu et al., 2019, section 4.3.
    """
    return _named("fed_avg_m", optax.sgd, learning_rate=learning_rate, momentum=momentum)


def _adaptive(name: str, optimizer: Callable[..., optax.GradientTransformation], summary: str):
    """Make a maker: adaptive servers differ in the optimiser alone."""

    def make(
        learning_rate: float | int = 0.01,
        b1: float | int = 0.9,
        b2: float | int = 0.99,
        eps: float | int = 1e-3,
    ) -> FederatedAlgorithm:
        return _named(name, optimizer, learning_rate=learning_rate, b1=b1, b2=b2, eps=eps)

    make.__name__ = make.__qualname__ = name
    make.__doc__ = f"""{summary}

    Args:
      learning_rate: of the server.
      b1: decay of the mean of the updates.
      b2: decay of the mean of their squares.
      eps: added to the root of that mean; tau in the paper.

    Raises:
      ValueError: learning_rate or eps is not positive, or b1 or b2 not in [0, 1).

    >>> {name}(b1=0.5).settings
    (('learning_rate', 0.01), ('b1', 0.5), ('b2', 0.99), ('eps', 0.001))

    Source: Reddi et al., 2021, Algorithm 2.
    """
    return door(one_object(make))


fed_adam = _adaptive(
    "fed_adam",
    optax.adam,
    "Return FedAdam: Adam on the server, with optax's bias correction, which the paper leaves out.",
)
fed_yogi = _adaptive(
    "fed_yogi",
    optax.yogi,
    "Return FedYogi: Yogi on the server, with optax's bias correction and initial accumulator.",
)


def _named(
    name: str, make: Callable[..., optax.GradientTransformation], **settings: float | int
) -> FederatedAlgorithm:
    """Build one of optax's optimisers from its settings, which are checked and recorded."""
    for setting, value in settings.items():
        decay = setting in ("momentum", "b1", "b2")
        if not (0 <= value < 1 if decay else 0 < value < float("inf")):
            allowed = "in [0, 1)" if decay else "positive and finite"
            raise ValueError(f"{setting} {value} of the server optimiser must be {allowed}")
    return server_optimizer(name, make(**settings), tuple(settings.items()))
