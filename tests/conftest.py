"""A hostile environment: rank promotion raises, and warnings from wsa_jax are errors."""

import os
import sys
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks/ is beside the package, not in it

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def cifar10_dir() -> Path:
    """Where a prepared CIFAR-10 is; skips where it is not."""
    candidates = [os.environ.get("TFDS_DATA_DIR"), ROOT.parent / "shared" / "data" / "tfds"]
    for candidate in candidates:
        if candidate and (Path(candidate) / "cifar10").is_dir():
            return Path(candidate)
    pytest.skip("no prepared CIFAR-10: set TFDS_DATA_DIR")
