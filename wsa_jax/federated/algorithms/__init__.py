"""Federated algorithms, one file each; weight scope alignment composes with all of them."""

from wsa_jax.federated.algorithms.base import FederatedAlgorithm as FederatedAlgorithm
from wsa_jax.federated.algorithms.base import LocalContext as LocalContext
from wsa_jax.federated.algorithms.base import ServerContext as ServerContext
from wsa_jax.federated.algorithms.fed_avg import fed_avg as fed_avg
from wsa_jax.federated.algorithms.fed_exp import fed_exp as fed_exp
from wsa_jax.federated.algorithms.fed_prox import fed_prox as fed_prox
from wsa_jax.federated.algorithms.scaffold import scaffold as scaffold
from wsa_jax.federated.algorithms.server_optimizer import fed_adam as fed_adam
from wsa_jax.federated.algorithms.server_optimizer import fed_avg_m as fed_avg_m
from wsa_jax.federated.algorithms.server_optimizer import fed_yogi as fed_yogi
from wsa_jax.federated.algorithms.server_optimizer import server_optimizer as server_optimizer
