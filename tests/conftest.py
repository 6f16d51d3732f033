"""A hostile environment: rank promotion raises, and warnings from wsa_jax are errors."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tyro

from wsa_jax.data.registry import DatasetInfo
from wsa_jax.models import MLP
from wsa_jax.training import Task, classification

assert tyro  # loaded before doctests run: it fails where one has left a list in builtins._

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks/ is beside the package, not in it

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 4)  # for rounds over a mesh
# Most of the tests' time is compilation; results differ by rounding at most.
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def tiny_info() -> DatasetInfo:
    """Grey images of 3x3 pixels in three classes."""
    from tests.tiny import INFO  # found once the folder above is on the path

    return INFO


@pytest.fixture(scope="session")
def tiny_task(tiny_info) -> Task:
    """An MLP of 939 parameters on the tiny images."""
    return classification(MLP(features=(72, 3)), tiny_info)


@pytest.fixture(scope="session")
def tiny_data() -> tuple[np.ndarray, np.ndarray]:
    """60 images and labels; the class is the brightest row, so there is something to learn."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60).astype(np.int32)
    images = rng.integers(0, 12, (60, 3, 3, 1))
    images[np.arange(60), labels] += 4
    return images.astype(np.uint8), labels
