"""Words that stand for an object with its defaults, where a simulation takes one."""

from typing import Literal

from wsa_jax import checks
from wsa_jax.federated.aggregate import Aggregation
from wsa_jax.federated.algorithms import (
    FederatedAlgorithm,
    fed_adam,
    fed_avg,
    fed_avg_m,
    fed_dyn,
    fed_exp,
    fed_nova,
    fed_prox,
    fed_yogi,
    scaffold,
)
from wsa_jax.federated.train_clients import Execution

AlgorithmName = Literal[
    "fed_avg",
    "fed_prox",
    "scaffold",
    "fed_exp",
    "fed_avg_m",
    "fed_adam",
    "fed_yogi",
    "fed_dyn",
    "fed_nova",
]
RuleName = Literal["mean", "median", "trimmed_mean", "krum", "multi_krum"]
ClientsName = Literal["map", "vmap"]

_ALGORITHMS = {
    made.__name__: made
    for made in (
        fed_avg,
        fed_prox,
        scaffold,
        fed_exp,
        fed_avg_m,
        fed_adam,
        fed_yogi,
        fed_dyn,
        fed_nova,
    )
}


def algorithm_of(given: FederatedAlgorithm | str | None) -> FederatedAlgorithm:
    """The algorithm that is meant, with its default settings if it is named; FedAvg for None.

    Raises:
      ValueError: no algorithm has this name.

    >>> algorithm_of("scaffold").name, algorithm_of(None).name
    ('scaffold', 'fed_avg')
    """
    if given is None:
        return fed_avg()
    if not isinstance(given, str):
        return given
    checks.one_of("algorithm", given, _ALGORITHMS)
    return _ALGORITHMS[given]()


def aggregation_of(given: Aggregation | RuleName) -> Aggregation:
    """The aggregation that is meant.

    >>> aggregation_of("median").rule
    'median'
    """
    return Aggregation(rule=given) if isinstance(given, str) else given


def execution_of(given: Execution | ClientsName) -> Execution:
    """The execution that is meant.

    >>> execution_of("vmap").clients
    'vmap'
    """
    return Execution(clients=given) if isinstance(given, str) else given
