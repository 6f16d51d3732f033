"""One tiny federation, and its rounds, shared by the tests of this folder."""

import copy
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsa_jax import weight_scope
from wsa_jax.federated import (
    Aggregation,
    Execution,
    FederatedData,
    LocalSettings,
    Partition,
    ServerState,
    clients_mesh,
    initial_state,
    simulate,
)
from wsa_jax.federated.client import (
    Broadcast,
    ClientData,
    RoundSettings,
    ScopeForm,
    epochs_needed,
)
from wsa_jax.federated.round import make_round
from wsa_jax.models import MLP
from wsa_jax.training import Task, classification

FORMS = {
    "plain": None,
    "gradient": ScopeForm(form="gradient"),
    "penalty": ScopeForm(form="penalty"),
    "proximal": ScopeForm(form="proximal"),
    "other direction": ScopeForm(direction="target||weights"),
}


class Federation(NamedTuple):
    """Four clients of 25, 10, 0 and 7 examples, two local epochs and a bit for the largest."""

    task: object
    partition: Partition
    data: FederatedData
    local: LocalSettings
    epochs: int
    key: jax.Array

    def start(self, algorithm, params=None) -> ServerState:
        params = jax.jit(self.task.init)(jax.random.key(7))[0] if params is None else params
        target = jax.jit(weight_scope)(params)
        return initial_state(algorithm, params, clients=4, target=target)

    @staticmethod
    def broadcast(state) -> Broadcast:
        """What a server without a state of its own sends."""
        return Broadcast(state.params, state.model_state, state.target)

    def client(self, index) -> ClientData:
        """The data of one client that remembers nothing."""
        data = self.data
        return ClientData(data.inputs, data.labels, data.indices[index], data.sizes[index])

    @staticmethod
    def settings(learning_rate=0.1, strength=1.0) -> RoundSettings:
        return RoundSettings(jnp.float32(learning_rate), jnp.float32(strength))

    def round(
        self,
        algorithm,
        form=None,
        *,
        clients="map",
        devices=None,
        participants=4,
        fuse_target=True,
        aggregation=Aggregation(),
    ):
        """The jitted round; equal arguments share it, so tests share compilations."""
        mesh = None if devices is None else clients_mesh(jax.devices()[:devices])
        return make_round(
            self.task,
            algorithm,
            participants=participants,
            epochs=self.epochs,
            local=self.local,
            scope_form=FORMS[form or "plain"],
            fuse_target=fuse_target,
            aggregation=aggregation,
            execution=Execution(clients=clients, mesh=mesh, donate=False),
        )


@pytest.fixture(scope="session")
def tiny_task(tiny_info) -> Task:
    """A linear model instead of the MLP of other tests: its rounds compile in two thirds."""
    return classification(MLP(features=(3,)), tiny_info)


@pytest.fixture(scope="session")
def deep_task(tiny_info) -> Task:
    """Two layers, for what there is to see between layers."""
    return classification(MLP(features=(8, 3)), tiny_info)


@pytest.fixture(scope="session")
def tiny_partition() -> Partition:
    sizes = np.array([25, 10, 0, 7], np.int32)
    order = np.random.default_rng(3).permutation(60)
    indices = np.zeros((4, 25), np.int32)
    for i, (size, start) in enumerate(zip(sizes, np.cumsum(sizes) - sizes, strict=True)):
        indices[i, :size] = np.sort(order[start : start + size])
    return Partition(indices, sizes)


@pytest.fixture(scope="session")
def federation(tiny_task, tiny_data, tiny_partition) -> Federation:
    images, labels = tiny_data
    local = LocalSettings(steps=4, batch_size=8, clip_norm=1, weight_decay=0.01)
    arrays = (images, labels, tiny_partition.indices, tiny_partition.sizes)
    return Federation(
        task=tiny_task,
        partition=tiny_partition,
        data=FederatedData(*map(jnp.asarray, arrays)),
        local=local,
        epochs=epochs_needed(7, steps=local.steps, batch_size=local.batch_size),
        key=jax.random.key(11),
    )


@pytest.fixture(scope="session")
def assert_close():
    def compare(tree, other, rtol=1e-4, atol=1e-6):
        close = functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol)
        assert jax.tree.structure(tree) == jax.tree.structure(other)
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
            close(np.asarray(a, np.float64), np.asarray(b, np.float64))

    return compare


@pytest.fixture(scope="session")
def rejected():
    """Run a dataclass's own check on a value that the tests' type checker would stop before it."""

    def check(settings, **change):
        changed = copy.copy(settings)
        for name, value in change.items():
            object.__setattr__(changed, name, value)
        changed.__post_init__()

    return check


@pytest.fixture(scope="session")
def federate(tiny_task, tiny_data, tiny_partition):
    """Simulate the tiny federation; arguments replace the defaults."""

    def start(task=tiny_task, **settings):
        defaults = {
            "rounds": 5,
            "learning_rate": 0.1,
            "local": LocalSettings(steps=2, batch_size=8),
            "evaluate_every": 2,
        }
        return simulate(jax.random.key(0), task, tiny_data, tiny_partition, **(defaults | settings))

    return start
