"""Runs with every kind of state, cut at every round and killed at random, end bitwise the same.

Long is the killing, a campaign of processes. A single training run is killed in
tests/training/test_fit_directory.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.federated.resume_worker import MAKERS, run

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("resume_worker.py")
KILLS = 2


def start(directory, cache, pause, *whole):
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    return subprocess.Popen(
        [sys.executable, str(WORKER), str(directory), str(pause), *map(str, whole)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def rounds_done(directory):
    """Rounds of all algorithms on disk."""
    return sum(len(path.read_text().splitlines()) for path in directory.glob("*/metrics.jsonl"))


def test_resumed_at_half_time_ends_bitwise_as_in_one_go(tmp_path):
    """Algorithms with every kind of state."""
    expected = run(tmp_path / "whole", 0.0, stride=2, last=2)
    assert len(expected) == len(MAKERS)
    assert run(tmp_path / "halves", 0.0, stride=1, last=2) == expected


@pytest.mark.long
def test_sigkill_at_random_rounds(tmp_path):
    directory = tmp_path / "killed"
    rng = np.random.default_rng(int.from_bytes(os.urandom(4)))
    reached = []
    for _ in range(KILLS):
        process = start(directory, tmp_path / "cache", 0.1)
        goal = rounds_done(directory) + rng.integers(1, 8)
        deadline = time.monotonic() + 120
        while rounds_done(directory) < goal:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        reached.append(rounds_done(directory))
    # All rounds in one go, against rounds that are each resumed from the directory.
    last = start(directory, tmp_path / "cache", 0.0, tmp_path / "whole")
    found, expected = map(json.loads, last.communicate(timeout=300)[0].splitlines()[-2:])
    assert len(expected) == len(MAKERS)
    assert found == expected, f"killed after {reached} rounds"
