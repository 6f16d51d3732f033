"""Federated algorithms, one file each; weight scope alignment composes with all of them."""

from wsa_jax.federated.algorithms.base import FederatedAlgorithm, LocalContext, ServerContext
from wsa_jax.federated.algorithms.fed_avg import fed_avg
from wsa_jax.federated.algorithms.fed_dyn import fed_dyn
from wsa_jax.federated.algorithms.fed_exp import fed_exp
from wsa_jax.federated.algorithms.fed_nova import fed_nova
from wsa_jax.federated.algorithms.fed_prox import fed_prox
from wsa_jax.federated.algorithms.scaffold import scaffold
from wsa_jax.federated.algorithms.server_optimizer import (
    fed_adam,
    fed_avg_m,
    fed_yogi,
    server_optimizer,
)

__all__ = [
    "FederatedAlgorithm",
    "LocalContext",
    "ServerContext",
    "fed_adam",
    "fed_avg",
    "fed_avg_m",
    "fed_dyn",
    "fed_exp",
    "fed_nova",
    "fed_prox",
    "fed_yogi",
    "scaffold",
    "server_optimizer",
]
