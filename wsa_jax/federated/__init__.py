"""Federated simulation: partitions, algorithms, rounds, and weight scope alignment on top."""

from wsa_jax.federated.add_on import WeightScopeAlignment as WeightScopeAlignment
from wsa_jax.federated.algorithms import FederatedAlgorithm as FederatedAlgorithm
from wsa_jax.federated.algorithms import fed_avg as fed_avg
from wsa_jax.federated.client import LocalSettings as LocalSettings
from wsa_jax.federated.partition import Partition as Partition
from wsa_jax.federated.partition import dirichlet_equal as dirichlet_equal
from wsa_jax.federated.partition import dirichlet_unequal as dirichlet_unequal
from wsa_jax.federated.partition import iid as iid
from wsa_jax.federated.partition import partition_table as partition_table
from wsa_jax.federated.partition import shards as shards
from wsa_jax.federated.round import Execution as Execution
from wsa_jax.federated.round import FederatedData as FederatedData
from wsa_jax.federated.round import RoundInfo as RoundInfo
from wsa_jax.federated.round import ServerState as ServerState
from wsa_jax.federated.round import make_round as make_round
from wsa_jax.federated.simulate import SimulationResult as SimulationResult
from wsa_jax.federated.simulate import reference_learning_rate as reference_learning_rate
from wsa_jax.federated.simulate import simulate as simulate
