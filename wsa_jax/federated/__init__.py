"""Federated simulation: partitions, algorithms, rounds, and weight scope alignment on top."""

from wsa_jax.federated.aggregate import Aggregation
from wsa_jax.federated.algorithms import (
    FederatedAlgorithm,
    LocalContext,
    ServerContext,
    fed_adam,
    fed_avg,
    fed_avg_m,
    fed_dyn,
    fed_exp,
    fed_nova,
    fed_prox,
    fed_yogi,
    scaffold,
    server_optimizer,
)
from wsa_jax.federated.algorithms.base import add_update
from wsa_jax.federated.alignment import ScopeForm, WeightScopeAlignment
from wsa_jax.federated.client import (
    Broadcast,
    ClientData,
    LocalSettings,
    RoundSettings,
    epochs_needed,
    train_client,
)
from wsa_jax.federated.communication import RoundBytes, bytes_per_round
from wsa_jax.federated.diagnostics import RoundInfo
from wsa_jax.federated.many_runs import runs_mesh
from wsa_jax.federated.mesh import clients_mesh
from wsa_jax.federated.partition import (
    Partition,
    as_partition,
    dirichlet_equal,
    dirichlet_unequal,
    iid,
    shards,
)
from wsa_jax.federated.partition_sizes import dirichlet_lognormal, split_clients
from wsa_jax.federated.partition_table import partition_table
from wsa_jax.federated.robust_rules import coordinate_median, trimmed_mean
from wsa_jax.federated.round import ServerState, initial_state, make_round
from wsa_jax.federated.run_loop import STOP
from wsa_jax.federated.sharpness import sharpness_aware
from wsa_jax.federated.simulate import SimulationResult, reference_learning_rate, simulate
from wsa_jax.federated.simulate_many import simulate_many
from wsa_jax.federated.train_clients import Execution, FederatedData

__all__ = [
    "STOP",
    "Aggregation",
    "Broadcast",
    "ClientData",
    "Execution",
    "FederatedAlgorithm",
    "FederatedData",
    "LocalContext",
    "LocalSettings",
    "Partition",
    "RoundBytes",
    "RoundInfo",
    "RoundSettings",
    "ScopeForm",
    "ServerContext",
    "ServerState",
    "SimulationResult",
    "WeightScopeAlignment",
    "add_update",
    "as_partition",
    "bytes_per_round",
    "clients_mesh",
    "coordinate_median",
    "dirichlet_equal",
    "dirichlet_lognormal",
    "dirichlet_unequal",
    "epochs_needed",
    "fed_adam",
    "fed_avg",
    "fed_avg_m",
    "fed_dyn",
    "fed_exp",
    "fed_nova",
    "fed_prox",
    "fed_yogi",
    "iid",
    "initial_state",
    "make_round",
    "partition_table",
    "reference_learning_rate",
    "runs_mesh",
    "scaffold",
    "server_optimizer",
    "shards",
    "sharpness_aware",
    "simulate",
    "simulate_many",
    "split_clients",
    "train_client",
    "trimmed_mean",
]
