"""Leaves that stay at the clients, and each client's own test, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.trees import assert_bitwise
from wsa_jax import matching
from wsa_jax.federated import (
    Execution,
    LocalSettings,
    WeightScopeAlignment,
    as_partition,
    clients_mesh,
    fed_avg,
    scaffold,
    simulate,
)
from wsa_jax.federated.judging import over_clients
from wsa_jax.training import Metrics, Task

RATE, STEPS, ROUNDS = 0.1, 3, 2
PLACES = np.array([1.0, -2.0, 4.0, 3.0])
SIZES = np.array([4, 2, 1, 1])
SHARED, OWN = np.array([[0.5, -0.5]]), np.array([[0.2, 0.7]])
KEEP = matching("own.*")


def wells() -> Task:
    """Two leaves, each pulled to a client's place; the state is the mean place of the batch."""

    def errors(params, batch):
        away = [jnp.square(leaf - batch.inputs[:, None]).sum(axis=1) for leaf in params.values()]
        return sum(away) / 2

    def loss(key, params, model_state, batch):
        total = jnp.sum(errors(params, batch) * batch.mask)
        seen = jnp.sum(batch.inputs * batch.mask) / jnp.maximum(batch.mask.sum(), 1.0)
        return total / jnp.maximum(batch.mask.sum(), 1.0), {"own_mean": seen}

    def metrics(params, model_state, batch):
        close = jnp.abs(params["own"][0, 0] - batch.inputs) < 1.0
        return Metrics(
            jnp.sum(errors(params, batch) * batch.mask),
            jnp.sum(close * batch.mask),
            jnp.sum(batch.mask),
        )

    start = {"shared": jnp.asarray(SHARED, jnp.float32), "own": jnp.asarray(OWN, jnp.float32)}
    return Task(lambda key: (start, {"own_mean": jnp.zeros(())}), loss, metrics)


TASK = wells()
OWNER = np.repeat(np.arange(4), SIZES)
EXAMPLES = PLACES[OWNER].astype(np.float32), np.zeros(8, np.int32)
ROWS = as_partition([np.flatnonzero(client == OWNER) for client in range(4)])


def run(algorithm=None, task=TASK, **settings):
    local = LocalSettings(steps=STEPS, batch_size=4, clip_norm=None, weight_decay=0)
    defaults = {"rounds": ROUNDS, "learning_rate": RATE, "local": local, "evaluate_every": 1}
    return simulate(
        jax.random.key(0), task, EXAMPLES, ROWS, algorithm=algorithm, **(defaults | settings)
    )


@pytest.fixture(scope="module")
def kept():
    return run(keep_local=KEEP, test=EXAMPLES, test_partition=ROWS)


def expected_shared(rounds=ROUNDS):
    mean = (SIZES / 8) @ PLACES
    return mean + (SHARED - mean) * (1 - RATE) ** (STEPS * rounds)


def expected_own(rounds=ROUNDS):
    return PLACES[:, None, None] + (OWN - PLACES[:, None, None]) * (1 - RATE) ** (STEPS * rounds)


def test_each_client_learns_its_own_and_all_learn_what_is_shared(kept):
    memory = kept.state.clients
    assert list(memory.params) == ["own"]
    np.testing.assert_allclose(memory.params["own"], expected_own(), rtol=1e-5)
    np.testing.assert_allclose(memory.model_state["own_mean"], PLACES, rtol=1e-6)
    np.testing.assert_allclose(kept.params["shared"], expected_shared(), rtol=1e-5)


def test_the_server_never_sees_what_stays(kept):
    np.testing.assert_array_equal(kept.params["own"], np.float32(OWN))
    assert kept.state.model_state["own_mean"] == 0
    # Nor is a scope tracked of it, or its move part of an update's norm.
    assert kept.history[0]["layers"] == ["shared"]
    moved = (PLACES[:, None] - SHARED) * (1 - (1 - RATE) ** STEPS)
    norms = np.linalg.norm(moved, axis=1)
    assert kept.history[0]["update_norm"] == pytest.approx(norms.mean(), rel=1e-5)


def test_clients_are_judged_by_their_own_models(kept):
    shared, own = expected_shared(), expected_own()
    losses = np.square(PLACES[:, None] - shared).sum(1) / 2
    losses += np.square(PLACES[:, None] - own[:, 0]).sum(1) / 2
    close = (np.abs(PLACES - own[:, 0, 0]) < 1).astype(float)
    row = kept.history[-1]
    assert 0 < close.mean() < 1
    assert row["test_client_loss"] == pytest.approx(losses.mean(), rel=1e-4)
    assert row["test_client_loss_worst"] == pytest.approx(losses.max(), rel=1e-4)
    assert row["test_client_accuracy"] == pytest.approx(close.mean())
    assert row["test_client_accuracy_worst"] == 0.0
    assert "test_loss" not in row


def test_over_a_mesh_and_with_variates_it_is_the_same(kept):
    mesh = Execution(mesh=clients_mesh(jax.devices()[:2]))
    spread = run(
        scaffold(), keep_local=KEEP, test=EXAMPLES, test_partition=ROWS, execution=mesh, rounds=1
    )
    memory = spread.state.clients
    np.testing.assert_allclose(memory.params["own"], expected_own(1), rtol=1e-5)
    assert not np.any(memory.algorithm["own"])
    np.testing.assert_allclose(spread.params["shared"], expected_shared(1), rtol=1e-5)
    first = kept.history[0]
    for name in ("test_client_loss", "test_client_accuracy_worst"):
        assert spread.history[0][name] == pytest.approx(first[name], rel=1e-4)


def test_keys_and_flags_stay_at_their_clients_over_a_mesh():
    """They come back from the client's device as they are."""
    start, _ = TASK.init(jax.random.key(0))
    others = {"own_key": jax.random.key(3), "own_flag": jnp.array(True)}

    def loss(key, params, model_state, batch):
        value, own = TASK.loss(key, params, model_state, batch)
        return value, model_state | own

    task = TASK._replace(
        init=lambda key: (start, {"own_mean": jnp.zeros(())} | others), loss=loss, metrics=None
    )
    memories = []
    for mesh in (None, clients_mesh(jax.devices()[:2])):
        found = run(task=task, keep_local=KEEP, participants=2, execution=Execution(mesh=mesh))
        kept = found.state.clients.model_state
        assert kept["own_flag"].dtype == bool
        kept["own_key"] = jax.random.key_data(kept["own_key"])
        memories.append(kept)
    assert_bitwise(*memories)


def test_alignment_holds_what_is_shared_alone(kept, tmp_path):
    aligned = run(
        keep_local=KEEP, wsa=WeightScopeAlignment(select=matching(".*"), strength=0.1), rounds=1
    )
    assert aligned.history[0]["layers"] == ["shared"]
    np.testing.assert_allclose(aligned.state.clients.params["own"], expected_own(1), rtol=1e-5)
    assert np.abs(aligned.params["shared"] - expected_shared(1)).max() > 1e-4


def test_a_directory_knows_what_stays(tmp_path):
    run(keep_local=KEEP, rounds=1, directory=tmp_path)
    again = run(keep_local=KEEP, directory=tmp_path)
    np.testing.assert_allclose(again.state.clients.params["own"], expected_own(), rtol=1e-5)
    with pytest.raises(ValueError, match=r"holds a run with keep_local = \['own', 'own_mean'\]"):
        run(keep_local=matching("own"), directory=tmp_path)


def test_worst_tenth_of_clients_by_numpy():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 5, 43).astype(float)
    sums = Metrics(
        counts * rng.normal(size=43) ** 2, np.floor(counts * rng.uniform(size=43)), counts
    )
    tested = counts > 0
    losses = np.sort(sums.loss[tested] / counts[tested])
    accuracies = np.sort(sums.correct[tested] / counts[tested])
    tenth = tested.sum() // 10
    found = over_clients(jax.tree.map(jnp.asarray, sums))
    assert found["client_loss_worst"] == pytest.approx(losses[-tenth:].mean(), rel=1e-5)
    assert found["client_accuracy_worst"] == pytest.approx(accuracies[:tenth].mean(), abs=1e-6)
    assert found["client_accuracy"] == pytest.approx(accuracies.mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep_local": matching("head")}, "keep_local keeps no leaf of the model, whose first is"),
        ({"keep_local": matching(".*")}, "keep_local keeps all 2 leaves, so that nothing"),
        ({"keep_local": KEEP, "test": EXAMPLES}, "no whole model to test; give test_partition"),
        ({"test_partition": ROWS}, "test_partition is given without test; give the examples"),
        (
            {"test": EXAMPLES, "test_partition": [[0], [1]]},
            "test_partition has 2 clients and the partition 4; give each",
        ),
        (
            {"test": EXAMPLES, "test_partition": [[0], [1], [2], [99]]},
            "points at example 99",
        ),
    ],
)
def test_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        run(**settings)


def test_without_a_rule_clients_judge_the_servers_model():
    result = run(fed_avg(), rounds=1, test=EXAMPLES, test_partition=ROWS)
    row = result.history[0]
    # Clients of 4, 2, 1 and 1 examples count alike here, and by their examples there.
    assert row["test_client_loss"] != pytest.approx(row["test_loss"], rel=1e-3)
    assert {"test_accuracy", "test_client_accuracy"} <= set(row)
