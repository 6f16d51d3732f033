"""Federated algorithms, one file each; weight scope alignment composes with all of them."""

from wsa_jax.federated.algorithms.base import FederatedAlgorithm as FederatedAlgorithm
from wsa_jax.federated.algorithms.base import LocalContext as LocalContext
from wsa_jax.federated.algorithms.base import ServerContext as ServerContext
from wsa_jax.federated.algorithms.fed_avg import fed_avg as fed_avg
