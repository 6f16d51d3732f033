"""BatchNorm statistics and dropout keys through federated rounds."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from wsa_jax import weight_scope
from wsa_jax.federated import LocalSettings, fed_avg, initial_state, simulate
from wsa_jax.federated.client import RoundSettings, train_client
from wsa_jax.federated.round import make_round
from wsa_jax.training import classification

SIZES = np.array([25, 10, 0, 7])


class Normed(nn.Module):
    """Dense, BatchNorm, dropout."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(3)(x.reshape(x.shape[0], -1))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        return nn.Dropout(0.3, deterministic=not train)(x)


@pytest.fixture(scope="module")
def task(tiny_info):
    return classification(Normed(), tiny_info)


@pytest.fixture(scope="module")
def start(task):
    params, model_state = jax.jit(task.init)(jax.random.key(7))
    return initial_state(
        fed_avg(), params, clients=4, target=weight_scope(params), model_state=model_state
    )


LOCAL = LocalSettings(steps=3, batch_size=5)
SETTINGS = RoundSettings(jnp.float32(0.1), jnp.float32(0.0))


def test_statistics_are_averaged_by_sample_count(federation, task, start):
    run = make_round(task, fed_avg(), participants=4, epochs=3, local=LOCAL)
    train_key = jax.random.split(jax.random.fold_in(federation.key, 0))[1]
    data = federation.data
    train = jax.jit(
        lambda i: (
            train_client(
                jax.random.fold_in(train_key, i),
                federation.broadcast(start),
                federation.client(i),
                SETTINGS,
                task=task,
                algorithm=fed_avg(),
                local=LOCAL,
                epochs=3,
            ).model_state
        )
    )
    alone = [train(i) for i in range(4)]
    expected = jax.tree.map(
        lambda *states: np.average(np.float64(states), axis=0, weights=SIZES), *alone
    )
    # Rounds may donate their state: give them a copy.
    found, _ = run(federation.key, jax.tree.map(jnp.array, start), data, SETTINGS)
    for a, b in zip(jax.tree.leaves(found.model_state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    moved = jax.tree.map(
        lambda a, b: float(jnp.abs(a - b).max()), found.model_state, start.model_state
    )
    assert min(jax.tree.leaves(moved)) > 0.01


@pytest.mark.parametrize("batch_size", [7, 14])
def test_statistics_are_those_of_the_clients_own_examples(federation, task, start, batch_size):
    data, client = federation.data, 3  # of 7 examples: one batch, or twice each
    train = functools.partial(
        train_client,
        task=task,
        algorithm=fed_avg(),
        local=LocalSettings(steps=1, batch_size=batch_size),
        epochs=1,
    )
    given = federation.broadcast(start), federation.client(client), SETTINGS
    trained = jax.jit(train)(jax.random.key(0), *given)
    found = trained.model_state["batch_stats"]["BatchNorm_0"]
    images = np.float64(data.inputs[data.indices[client][:7]]).reshape(7, -1)
    dense = jax.tree.map(np.float64, start.params["Dense_0"])
    hidden = ((images / 16 - 0.5) / 0.25) @ dense["kernel"] + dense["bias"]
    # Momentum 0.5, from mean 0 and variance 1.
    np.testing.assert_allclose(found["mean"], hidden.mean(axis=0) / 2, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["var"], (1 + hidden.var(axis=0)) / 2, rtol=1e-4)


def test_counters_and_keys_survive(federation, task, start):
    drawn = []

    def loss(key, params, model_state, batch):
        value, statistics = task.loss(key, params, model_state["own"], batch)
        own, following = jax.random.split(model_state["key"])
        jax.debug.callback(lambda noise: drawn.append(float(noise)), jax.random.uniform(own))
        carried = {"own": statistics, "steps": model_state["steps"] + 1, "key": following}
        return value, carried

    copied = jax.tree.map(jnp.array, start)  # a round may donate its state
    extra = {"own": copied.model_state, "steps": jnp.int32(100), "key": jax.random.key(3)}
    state = dataclasses.replace(copied, model_state=extra)
    counting = task._replace(loss=loss)
    run = make_round(counting, fed_avg(), participants=4, epochs=3, local=LOCAL)
    found, _ = run(federation.key, state, federation.data, SETTINGS)
    assert found.model_state["steps"].dtype == jnp.int32
    assert int(found.model_state["steps"]) == 103
    found, _ = run(federation.key, found, federation.data, SETTINGS)
    jax.effects_barrier()
    # Four clients, three steps, two rounds: no noise is drawn twice.
    assert len(set(drawn)) == len(drawn) == 24
    expected = jax.random.key_data(jax.random.key(3))
    np.testing.assert_array_equal(jax.random.key_data(found.model_state["key"]), expected)


def test_keys_and_counters_are_checkpointed(tmp_path, federation, task, tiny_data):
    def init(key):
        params, statistics = task.init(key)
        return params, {"own": statistics, "steps": jnp.int32(0), "key": jax.random.key(3)}

    def loss(key, params, model_state, batch):
        value, statistics = task.loss(key, params, model_state["own"], batch)
        return value, {**model_state, "own": statistics, "steps": model_state["steps"] + 1}

    counting = task._replace(init=init, loss=loss, logits=None)

    def run(rounds):
        return simulate(
            jax.random.key(1), counting, tiny_data, federation.partition, rounds=rounds,
            local=LOCAL, directory=tmp_path,
        ).state.model_state  # fmt: skip

    run(1)
    found = run(2)
    assert int(found["steps"]) == 6
    np.testing.assert_array_equal(
        jax.random.key_data(found["key"]), jax.random.key_data(jax.random.key(3))
    )


def test_dropout_follows_the_key_and_evaluation_uses_the_statistics(
    task, start, tiny_data, federation
):
    params, model_state = start.params, start.model_state

    def accuracy(seed):
        result = simulate(
            jax.random.key(seed), task, tiny_data, federation.partition, rounds=6, local=LOCAL,
            learning_rate=0.3, test=tiny_data, evaluate_every=6,
            params=params, model_state=model_state,
        )  # fmt: skip
        return result.history[-1]["test_accuracy"], result.history[-1]["test_loss"]

    first = accuracy(0)
    assert first == accuracy(0)
    assert first[1] != accuracy(1)[1]
    assert first[0] > 0.5
