"""One of several processes that simulate the same federation, or the only one.

JAX_NUM_CPU_DEVICES=2 python distributed_worker.py OUTPUT COORDINATOR PROCESSES PROCESS
"""

import sys
from pathlib import Path

import jax
import numpy as np

from tests.federated.small_runs import simulate_small
from tests.tiny import examples
from wsa_jax.federated import Execution, WeightScopeAlignment, clients_mesh, scaffold
from wsa_jax.runs.processes import on_host


def federate(directory: Path | None, execution: Execution, rounds: int = 3):
    return simulate_small(
        clients=8,
        count=160,
        rounds=rounds,
        algorithm=scaffold(),
        participants=6,
        wsa=WeightScopeAlignment(strength=0.5),
        learning_rate=0.1,
        test=examples(160),
        evaluate_every=1,
        directory=directory,
        execution=execution,
    )


def main(output: Path, coordinator: str, processes: int, process: int) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, processes, process)
    assert jax.device_count() == 2 * processes
    execution = Execution(mesh=clients_mesh())
    federate(output / "run", execution, rounds=2)
    result = federate(output / "run", execution)  # resumes from round 2
    leaves = jax.tree.leaves(on_host(result.state))
    if process == 0:
        accuracy = [row["test_accuracy"] for row in result.history]
        np.savez(output / "state.npz", *map(np.asarray, leaves), accuracy=accuracy)
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
