"""Two processes of two devices each equal one process of one device."""

import json
import os
import socket
import subprocess
import sys
import time
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


def launch(directory, coordinator, environment):
    """Return codes and errors of two workers; where one fails, the one that waits is stopped."""
    files = [directory / f"stderr_{process}" for process in (0, 1)]
    workers = []
    for process, path in enumerate(files):
        with path.open("w") as file:
            command = [sys.executable, str(WORKER), str(directory), coordinator, "2", str(process)]
            workers.append(subprocess.Popen(command, env=environment, stderr=file))
    deadline = time.monotonic() + 300
    try:
        while any(worker.poll() is None for worker in workers) and time.monotonic() < deadline:
            if any(worker.poll() for worker in workers):
                break
            time.sleep(0.05)
    finally:
        for worker in workers:
            worker.kill()
    return [worker.wait() for worker in workers], "\n".join(path.read_text() for path in files)


def test_two_processes_equal_one(tmp_path):
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_NUM_CPU_DEVICES": "2",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    for attempt in range(2):
        codes, errors = launch(tmp_path, f"127.0.0.1:{free_port()}", environment)
        # Another program may take the port between the probe and the coordinator.
        if attempt or "address already in use" not in errors.lower():
            break
    assert codes == [0, 0], errors

    expected = federate(None, Execution())
    with np.load(tmp_path / "state.npz") as found:
        accuracy = found["accuracy"]
        leaves = [found[f"arr_{i}"] for i in range(len(found.files) - 1)]
    for ours, theirs in zip(leaves, jax.tree.leaves(expected.state), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(accuracy, [row["test_accuracy"] for row in expected.history])
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2, 3]
