"""Small networks with BatchNorm, and a task of three linear classes, shared by merging's tests."""

import jax
import pytest
from flax import linen as nn

from wsa_jax.conv import conv_general_dilated
from wsa_jax.training import Task, classification


class NormedCNN(nn.Module):
    """The library's convolution and two BatchNorms of different momentum."""

    @nn.compact
    def __call__(self, x, *, train: bool):
        x = nn.Conv(2, (2, 2), padding="VALID", conv_general_dilated=conv_general_dilated)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.999)(x)
        x = nn.Dense(4)(nn.relu(x).reshape(len(x), -1))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.6)(x)
        return nn.Dense(3)(x)


@pytest.fixture(scope="session")
def normed_task(tiny_info) -> Task:
    return classification(NormedCNN(), tiny_info)


@pytest.fixture(scope="session")
def normed_models(normed_task):
    """Two models' parameters and one state, with statistics as no data would give them."""
    init = jax.jit(normed_task.init)
    (first, state), (second, _) = (init(jax.random.key(seed)) for seed in (0, 1))
    return first, second, jax.tree.map(lambda leaf: leaf + 3.0, state)
