"""Two processes of two devices each equal one process of one device."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from tests.federated.distributed_worker import federate
from wsa_jax.federated import Execution

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("distributed_worker.py")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_processes_equal_one(tmp_path):
    coordinator = f"127.0.0.1:{free_port()}"
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_NUM_CPU_DEVICES": "2",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(tmp_path), coordinator, "2", str(process)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in (0, 1)
    ]
    try:
        errors = [worker.communicate(timeout=300)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(errors)

    expected = federate(None, Execution())
    with np.load(tmp_path / "state.npz") as found:
        accuracy = found["accuracy"]
        leaves = [found[f"arr_{i}"] for i in range(len(found.files) - 1)]
    for ours, theirs in zip(leaves, jax.tree.leaves(expected.state), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(accuracy, [row["test_accuracy"] for row in expected.history])
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2, 3]
