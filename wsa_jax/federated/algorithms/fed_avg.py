"""FedAvg: average what the clients learned."""

import functools
from typing import Any

import jax
from jaxtyping import PyTree

from wsa_jax.federated.algorithms.base import FederatedAlgorithm, LocalContext, ServerContext


def _stateless(params: PyTree) -> tuple[()]:
    del params
    return ()


def _correct(gradient: PyTree, params: PyTree, context: LocalContext) -> PyTree:
    del params, context
    return gradient


def _finish(update: PyTree, context: LocalContext) -> tuple[Any, Any]:
    del update
    return context.client, ()


def _apply(server: Any, context: ServerContext) -> tuple[PyTree, Any]:
    params = jax.tree.map(lambda w, d: w + d.astype(w.dtype), context.params, context.update)
    return params, server


@functools.cache
def fed_avg() -> FederatedAlgorithm:
    r"""Return federated averaging.

    .. math:: w \leftarrow w + \frac{\sum_i p_i (w_i - w)}{\sum_i p_i}, \qquad p_i = n_i

    Guarantees: stateless on both sides; the server needs only sums over clients. One client that
    takes part alone is plain local training.

    >>> fed_avg().name, fed_avg() is fed_avg()
    ('fed_avg', True)

    Source: McMahan et al., 2017, Algorithm 1; the averaging step of WSA's Algorithm 1.
    """
    return FederatedAlgorithm("fed_avg", _stateless, _stateless, _correct, _finish, _apply)
