"""What the tests of the benchmarks share."""

import jax
import pytest


@pytest.fixture(scope="module")
def quick_compilation():
    """Compile without optimisation: here programs run for a moment and compile for long."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
