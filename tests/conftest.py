"""A hostile environment: rank promotion raises, and warnings from wsa_jax are errors."""

import gc
import os
import signal
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
import tyro
from jaxlib.version import __version_info__ as jaxlib_version

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # tests/, benchmarks/

from tests import type_checks

assert tyro  # loaded before doctests run: it fails where one has left a list in builtins._
assert type_checks  # loaded before wsa_jax, which the hook wraps

# What is of wsa_jax is imported where it is used: the process that deals out the tests needs none.
ROOT = Path(__file__).resolve().parent.parent

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 4)  # for rounds over a mesh
# Most of the tests' time is compilation; results differ by rounding at most.
jax.config.update("jax_disable_most_optimizations", True)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # also in the processes that tests start
# XLA's former way to emit kernels compiles a round in a quarter of the time. Later versions have
# one way, and end the process at a flag they do not know. `XLA_FLAGS= pytest` tests what users run.
if jaxlib_version < (0, 11):
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
    )
# A shell's background jobs ignore Ctrl-C, and so would what the tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# The longest files, longest first: a worker that began one of them last would end alone.
LONG = (
    "tests/benchmarks/test_merging.py",
    "tests/merging/align/test_planted.py",
    "tests/federated/test_contract.py",
    "tests/models/test_everywhere.py",
    "tests/merging/test_table.py",
    "tests/merging/align/test_rescaling.py",
    "tests/benchmarks/test_paper_tables.py",
    "tests/federated/test_simulate.py",
    "tests/federated/test_aggregate.py",
    "tests/merging/symmetry/test_tracing_models.py",
    "tests/training/test_fit.py",
    "tests/benchmarks/test_workers.py",
    "tests/federated/test_mesh.py",
    "tests/federated/test_distributed.py",
    "tests/test_examples.py",
    "README.md",
    "tests/test_cli.py",
    "tests/merging/combine/test_np_merge.py",
    "tests/merging/symmetry/test_tracing_programs.py",
    "tests/robustness/test_bad_inputs.py",
    "tests/test_conv.py",
    "tests/models/test_resnet.py",
    "tests/merging/repair/test_batch_norm.py",
    "tests/merging/align/test_models.py",
    "tests/federated/test_algorithms.py",
    "tests/federated/test_simulate_many.py",
    "tests/benchmarks/test_speed.py",
    "tests/benchmarks/test_federated_round.py",
    "tests/merging/symmetry/test_tracing_scan.py",
    "tests/benchmarks/test_check_cells.py",
    "tests/benchmarks/test_standard_problem.py",
    "tests/federated/test_statistics.py",
    "tests/federated/test_round.py",
    "tests/training/test_fit_directory.py",
    "tests/federated/test_more_algorithms.py",
    "tests/federated/test_merge_rule.py",
    "tests/benchmarks/test_path.py",
    "tests/federated/test_resume.py",
)


def pytest_configure(config):
    """One folder of compiled programs for the workers of this run, unless there is one."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or hasattr(config, "workerinput"):
        return
    folder = tempfile.TemporaryDirectory(prefix="wsa_jax_compiled_")
    config.add_cleanup(folder.cleanup)
    # In the environment, where workers and the processes that tests start find it; what is imported
    # already has read it.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", folder.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def pytest_collection_modifyitems(items):
    """Deal out the longest files first, then pages, each one test; in a file the order stays."""
    rank = {ROOT / name: place for place, name in enumerate(LONG)}

    def place(item):
        return rank.get(item.path, len(LONG) + (item.path.suffix != ".md"))

    items.sort(key=place)


def pytest_collection_finish():
    """Let the garbage collector pass by what was imported: a twentieth of the tests' time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="module")
def frozen():
    """Nothing older than a file's tests is looked at when a failed restore collects garbage.

    That looks at all objects of a process, after some thousand tests for half a second.
    """
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_info():
    """Grey images of 3x3 pixels in three classes."""
    from tests.tiny import INFO  # found once the folder above is on the path

    return INFO


@pytest.fixture(scope="session")
def tiny_task(tiny_info):
    """An MLP of 939 parameters on the tiny images."""
    from wsa_jax.models import MLP
    from wsa_jax.training import classification

    return classification(MLP(features=(72, 3)), tiny_info)


@pytest.fixture(scope="session")
def tiny_data() -> tuple[np.ndarray, np.ndarray]:
    """60 images and labels; the class is the brightest row, so there is something to learn."""
    from tests.tiny import examples

    return examples(60)
