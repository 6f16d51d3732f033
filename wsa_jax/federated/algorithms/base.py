"""The contract of federated algorithms: what each may do on a client and on the server."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec

import jax
from jaxtyping import Array, PyTree

from wsa_jax.tree import wide
from wsa_jax.types import Examples, Scalar

Arguments = ParamSpec("Arguments")


class LocalContext(NamedTuple):
    """What a client knows during its local steps besides its own parameters.

    Attributes:
      params: the global parameters the round began with.
      server: what the algorithm broadcasts of its server state.
      client: the algorithm's state of this client.
      learning_rate: learning rate of this round's local steps.
      steps: number of local steps of this client, traced where it depends on its examples.
      key: this client's and this round's own, a different one at each local step, for ``send`` and
        for ``finish``; for algorithms that draw (noise, random coordinates).
      momentum: momentum of the local steps.
      number: which client this is, in ``[0, clients)``, for what differs from client to client.
    """

    params: PyTree
    server: PyTree
    client: PyTree
    learning_rate: Array
    steps: Array | int
    key: Array
    momentum: float | int = 0.0
    number: Array | int = 0


class ServerContext(NamedTuple):
    """What the server knows once the clients' updates are aggregated.

    Attributes:
      params: the global parameters the round began with.
      update: the clients' updates, aggregated: the weighted mean
        ``sum_i p_i (w_i - w) / sum_i p_i`` by default, or the result of the chosen robust rule; at
        least float32.
      message: the clients' messages, aggregated in the same way; a tree of the algorithm's choice.
      learning_rate: learning rate of this round's local steps.
      round: number of rounds done before this one.
      participants: number of clients whose updates were accepted.
      share: the share of all samples that these clients hold, in (0, 1]; the sum of their weights,
        if the algorithm weighs them.
    """

    params: PyTree
    update: PyTree
    message: PyTree
    learning_rate: Array
    round: Array
    participants: Array
    share: Array


def no_state(params: PyTree) -> tuple[()]:
    """Return an empty state."""
    del params
    return ()


def same_gradient(gradient: PyTree, params: PyTree, context: LocalContext) -> PyTree:
    """Return the gradient without a correction."""
    del params, context
    return gradient


def no_message(update: PyTree, context: LocalContext) -> Examples:
    """Return the client state as it was, and no message besides the update."""
    del update
    return context.client, ()


def same_weight(context: LocalContext) -> float:
    """Weigh a client by its number of samples alone."""
    del context
    return 1.0


def same_update(update: PyTree, context: LocalContext) -> PyTree:
    """Return the update as local training left it."""
    del context
    return update


def nothing(server: PyTree) -> PyTree:
    """Send clients nothing of the server state."""
    del server
    return ()


def current(server: PyTree, params: PyTree) -> PyTree:
    """Evaluate the parameters that training continues from."""
    del server
    return params


def add_update(params: PyTree, update: PyTree, scale: Scalar = 1.0) -> PyTree:
    """Return ``params + scale update``, computed in at least float32, in each leaf's own dtype."""

    def add(w: Array, d: Array) -> Array:
        return (wide(w) + scale * wide(d)).astype(w.dtype)

    return jax.tree.map(add, params, update)


class FederatedAlgorithm(NamedTuple):
    """A federated algorithm as pure functions, each of them FedAvg's by default.

    Make your own from these parts, or replace some parts of another algorithm:

    >>> def rounded(update: PyTree, context: LocalContext) -> PyTree:
    ...     return jax.tree.map(lambda d: jax.lax.reduce_precision(d, 5, 2), update)
    >>> from wsa_jax.federated import fed_avg
    >>> algorithm = fed_avg()._replace(name="fed_avg, 8 bits", send=rounded)
    >>> context = LocalContext({}, (), (), jax.numpy.float32(0.1), 20, jax.random.key(0))
    >>> algorithm.send({"w": jax.numpy.array([0.3])}, context)["w"].round(4).tolist()
    [0.3125]

    Attributes:
      name: its name in tables and ledgers.
      apply: ``(server state, context) -> (params, server state)``, once per round, in the structure
        and dtypes of ``context.params``, which `add_update` keeps. Its result is not used in a
        round in which no client's update was accepted.
      settings: its hyper-parameters, ``((name, value), ...)``; a run is resumed only with the
        same ones, and what is not named here is not checked.
      init_server: ``params -> server state``.
      init_client: ``params -> state of one client``; the simulation stacks it over clients.
      broadcast: ``server state -> the part clients receive``, besides the parameters.
      send: ``(update, context) -> update``, what is sent in place of the update (compressed, with
        noise), of the same structure and shapes; called once, after the local steps and clipping.
      correct: ``(gradient, local params, context) -> gradient``, at every local step, before
        weight scope regularization, clipping and weight decay.
      finish: ``(sent update, context) -> (client state, message)``, called once after ``send``.
      weigh: ``context -> factor`` on this client's share of the samples in all means by samples: of
        updates, messages and statistics.
      evaluated: ``(server state, params) -> params`` of the model to evaluate and to keep.
      needs_sgd: why its client part is only defined for local SGD, if it is.
    """

    name: str
    apply: Callable[[PyTree, ServerContext], tuple[PyTree, PyTree]]
    settings: tuple[tuple[str, float | int | str], ...] = ()
    init_server: Callable[[PyTree], PyTree] = no_state
    init_client: Callable[[PyTree], PyTree] = no_state
    broadcast: Callable[[PyTree], PyTree] = nothing
    send: Callable[[PyTree, LocalContext], PyTree] = same_update
    correct: Callable[[PyTree, PyTree, LocalContext], PyTree] = same_gradient
    finish: Callable[[PyTree, LocalContext], Examples] = no_message
    weigh: Callable[[LocalContext], Array | float] = same_weight
    evaluated: Callable[[PyTree, PyTree], PyTree] = current
    needs_sgd: str = ""


def one_object(
    make: Callable[Arguments, FederatedAlgorithm],
) -> Callable[Arguments, FederatedAlgorithm]:
    """Make a maker return one object for equal settings, however they are passed.

    Rounds are compiled once per object: ``fed_prox()`` and ``fed_prox(mu=0.1)`` share theirs.
    """
    signature = inspect.signature(make)
    cached: Callable[..., FederatedAlgorithm] = functools.cache(make)

    @functools.wraps(make)
    def maker(*args: Arguments.args, **kwargs: Arguments.kwargs) -> FederatedAlgorithm:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return cached(*_tuples(bound.args), **bound.kwargs)

    return maker


def _tuples(value: Any) -> Any:
    """Lists, at every depth, as tuples, which have a hash; named tuples stay what they are."""
    return tuple(map(_tuples, value)) if type(value) in (list, tuple) else value
