"""The contract of federated algorithms: what each may do on a client and on the server."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, PyTree


class LocalContext(NamedTuple):
    """What a client knows during its local steps besides its own parameters.

    Attributes:
      params: the global parameters the round began with.
      server: the algorithm's server state, broadcast.
      client: the algorithm's state of this client.
      learning_rate: of this round's local steps.
      steps: number of local steps.
    """

    params: PyTree
    server: PyTree
    client: PyTree
    learning_rate: Array
    steps: int


class ServerContext(NamedTuple):
    """What the server knows once the clients' updates are averaged.

    Attributes:
      params: the global parameters the round began with.
      update: weighted mean of the clients' updates, ``sum_i p_i (w_i - w) / sum_i p_i``.
      message: weighted mean of the clients' messages, a tree of the algorithm's choice.
      learning_rate: of this round's local steps.
      participants: number of clients that took part.
      clients: number of clients there are.
    """

    params: PyTree
    update: PyTree
    message: PyTree
    learning_rate: Array
    participants: int
    clients: int


class FederatedAlgorithm(NamedTuple):
    """One federated algorithm, as pure functions; stateless parts return empty tuples.

    Attributes:
      name: how tables and ledgers call it.
      init_server: ``params -> server state``.
      init_client: ``params -> state of one client``; the simulation stacks it over clients.
      correct: ``(gradient, local params, context) -> gradient``, at every local step, before
        weight scope regularization, clipping and weight decay.
      finish: ``(update, context) -> (client state, message)``, once after the local steps.
      apply: ``(server state, context) -> (params, server state)``, once a round.
    """

    name: str
    init_server: Callable[[PyTree], Any]
    init_client: Callable[[PyTree], Any]
    correct: Callable[[PyTree, PyTree, LocalContext], PyTree]
    finish: Callable[[PyTree, LocalContext], tuple[Any, Any]]
    apply: Callable[[Any, ServerContext], tuple[PyTree, Any]]
