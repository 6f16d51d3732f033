"""One round against NumPy: averaging, fusion, diagnostics, sizes and participation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsa_jax import constant_target
from wsa_jax.federated import Execution, WeightScopeAlignment, fed_avg
from wsa_jax.federated.client import draw_batches, train_client
from wsa_jax.federated.round import make_round
from wsa_jax.training import Batch

SIZES = np.array([25, 10, 0, 7])


@pytest.fixture(scope="module")
def federation(federation, deep_task):
    """The one of other tests, with two layers to tell apart."""
    return federation._replace(task=deep_task)


@pytest.fixture(scope="module")
def start(federation):
    return federation.start(fed_avg())


@pytest.fixture(scope="module")
def outcome(federation, start):
    """A plain FedAvg round: new state and info."""
    return federation.round(fed_avg())(
        federation.key, start, federation.data, federation.settings()
    )


@pytest.fixture(scope="module")
def trained(federation, start):
    """The oracle: each client's parameters after local training, one client at a time."""
    train_key = jax.random.split(jax.random.fold_in(federation.key, 0))[1]
    train = jax.jit(
        lambda key, i: train_client(
            key,
            federation.broadcast(start),
            federation.client(i),
            federation.settings(),
            task=federation.task,
            algorithm=fed_avg(),
            local=federation.local,
            epochs=federation.epochs,
        )
    )
    results = [train(jax.random.fold_in(train_key, i), i) for i in range(4)]
    return [
        jax.tree.map(lambda w, d: np.asarray(w, np.float64) + np.asarray(d), start.params, r.update)
        for r in results
    ]


def moments(models):
    """Mean and std of the two kernels of each model, float64, ``[models, layers]``."""
    kernels = [[np.asarray(m[f"Dense_{i}"]["kernel"], np.float64) for i in (0, 1)] for m in models]
    return (
        np.array([[k.mean() for k in row] for row in kernels]),
        np.array([[k.std() for k in row] for row in kernels]),
    )


def kl(mean, std, target_mean, target_std):
    ratio = std / target_std
    return 0.5 * (ratio**2 + ((mean - target_mean) / target_std) ** 2 - 1) - np.log(ratio)


def test_parameters_are_the_sample_weighted_mean(outcome, trained, assert_close):
    expected = jax.tree.map(lambda *ws: np.average(ws, axis=0, weights=SIZES), *trained)
    assert_close(outcome[0].params, expected, rtol=1e-5)


def test_target_is_the_uniform_fusion_of_clients_with_examples(outcome, trained):
    mean, std = (values[SIZES > 0] for values in moments(trained))
    np.testing.assert_allclose(outcome[0].target.mean, mean.mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(outcome[0].target.std, np.sqrt((std**2).mean(axis=0)), rtol=1e-5)
    np.testing.assert_array_equal(outcome[1].fused.std, outcome[0].target.std)


def test_divergences_equal_numpy(outcome, trained, start):
    mean, std = (values[SIZES > 0] for values in moments(trained))
    pairs = [kl(mean[i], std[i], mean[j], std[j]) for i in range(3) for j in range(3) if i != j]
    old_mean, old_std = moments([start.params])
    info = outcome[1]
    np.testing.assert_allclose(info.client_divergence, np.mean(pairs, axis=0), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(
        info.target_divergence, kl(mean, std, old_mean, old_std).mean(axis=0), rtol=1e-3, atol=1e-6
    )


def test_scopes_and_norms_equal_numpy(outcome, trained, start):
    info = outcome[1]
    mean, std = moments(trained)
    np.testing.assert_allclose(info.clients.mean, mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(info.clients.std, std, rtol=1e-5)
    _, average_std = moments([outcome[0].params])
    np.testing.assert_allclose(info.average.std, average_std[0], rtol=1e-5)

    def flat(params):
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])

    updates = np.stack([flat(w) - flat(start.params) for w in trained])
    np.testing.assert_allclose(info.update_norm, np.linalg.norm(updates, axis=1), rtol=1e-4)
    mean_update = np.average(updates, axis=0, weights=SIZES)
    np.testing.assert_allclose(info.mean_update_norm, np.linalg.norm(mean_update), rtol=1e-4)
    np.testing.assert_array_equal(info.stability, 0)


def test_loss_is_the_mean_over_the_local_steps(federation, start):
    data, local, client = federation.data, federation.local, 1
    settings = federation.settings(learning_rate=0.0)
    info = federation.round(fed_avg())(federation.key, start, data, settings)[1]
    train_key = jax.random.split(jax.random.fold_in(federation.key, 0))[1]
    data_key, _ = jax.random.split(jax.random.fold_in(train_key, client))
    positions, masks = draw_batches(
        data_key, data.sizes[client], capacity=data.indices.shape[1], steps=local.steps,
        batch_size=local.batch_size, epochs=federation.epochs,
    )  # fmt: skip
    # 8 + 2 examples, twice: the model stays what it is at learning rate 0.
    assert masks.sum(axis=1).tolist() == [8, 2, 8, 2]
    loss = jax.jit(lambda batch: federation.task.loss(federation.key, start.params, {}, batch)[0])
    rows = data.indices[client][positions]
    losses = [
        loss(Batch(data.inputs[row], data.labels[row], mask))
        for row, mask in zip(rows, masks, strict=True)
    ]
    np.testing.assert_allclose(info.loss[client], np.mean(losses), rtol=1e-5)
    assert info.loss[2] == 0


def test_memory_does_not_grow_with_the_clients(federation, start):
    def compiled(clients):
        many = federation.data._replace(
            indices=jnp.zeros((clients, 25), jnp.int32), sizes=jnp.full(clients, 25, jnp.int32)
        )
        # Flat arguments: what lowering puts in the place of arrays is no weight scope.
        leaves, structure = jax.tree.flatten((start, many, federation.settings()))
        run = federation.round(fed_avg())
        flat = jax.jit(lambda key, leaves: run(key, *jax.tree.unflatten(structure, leaves)))
        return flat.lower(federation.key, leaves).compile().memory_analysis().temp_size_in_bytes

    # A permutation of the clients is drawn: a few bytes for each, where a model has hundreds.
    assert compiled(1000) - compiled(10) < 20 * 1000


def test_a_client_without_examples_has_no_influence(federation, outcome, start):
    settings = federation.settings()
    corrupt = federation.data._replace(indices=federation.data.indices.at[2].set(59))
    state, _ = federation.round(fed_avg())(federation.key, start, corrupt, settings)
    for found, expected in ((state.params, outcome[0].params), (state.target, outcome[0].target)):
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(a, b)


def test_stability_reports_the_share_in_use(federation, start):
    info = federation.round(fed_avg(), "gradient")(
        federation.key, start, federation.data, federation.settings(0.1, 2.0)
    )[1]
    std, target_std = np.asarray(info.clients.std), np.asarray(start.target.std)
    used = 0.5 * 0.1 * 2 / np.array(start.target.sizes) * (std**-2.0 + target_std**-2.0)
    np.testing.assert_allclose(info.stability, used[SIZES > 0].max(axis=0), rtol=1e-5)


def test_a_fixed_target_stays(federation, start):
    fixed = constant_target(start.target, std=0.4)
    state = dataclasses.replace(start, target=fixed)
    settings = federation.settings()
    run = federation.round(fed_avg(), "proximal", fuse_target=False)
    for _ in range(2):
        state, info = run(federation.key, state, federation.data, settings)
    np.testing.assert_array_equal(state.target.std, fixed.std)
    assert not np.array_equal(info.fused.std, fixed.std)


class TestParticipation:
    @pytest.fixture(scope="class")
    @classmethod
    def run(cls, federation):
        return federation.round(fed_avg(), participants=2)

    def test_draws_without_replacement_and_all_in_time(self, federation, run, start):
        state, drawn = start, []
        for _ in range(12):
            state, info = run(federation.key, state, federation.data, federation.settings())
            drawn.append(tuple(np.asarray(info.participants).tolist()))
        assert all(a != b for a, b in drawn)
        assert set(sum(drawn, ())) == {0, 1, 2, 3}
        assert len(set(drawn)) > 3

    def test_a_clients_training_does_not_depend_on_who_else_takes_part(
        self, federation, run, start, outcome
    ):
        _, info = run(federation.key, start, federation.data, federation.settings())
        for place, client in enumerate(np.asarray(info.participants)):
            np.testing.assert_allclose(
                info.update_norm[place], outcome[1].update_norm[client], rtol=1e-5
            )

    def test_a_round_of_empty_clients_changes_nothing_but_its_number(self, federation, run, start):
        nobody = federation.data._replace(sizes=jnp.zeros(4, jnp.int32))
        state, _ = run(federation.key, start, nobody, federation.settings())
        expected = dataclasses.replace(start, round=jnp.int32(1))
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(a, b)


def test_more_participants_than_clients(federation, start):
    run = federation.round(fed_avg(), participants=5)
    with pytest.raises(ValueError, match="participants 5 of 4 clients; give 1 <= part"):
        run(federation.key, start, federation.data, federation.settings())


def test_a_round_takes_the_form_of_an_alignment_alone(federation):
    wsa = WeightScopeAlignment(strength=0.5, target=(0.0, 0.3))
    with pytest.raises(
        ValueError, match=r"scope_form is a WeightScopeAlignment, .*give its static"
    ):
        make_round(
            federation.task,
            fed_avg(),
            participants=4,
            epochs=1,
            local=federation.local,
            scope_form=wsa,
        )


def test_unknown_execution(rejected):
    with pytest.raises(ValueError, match="clients 'threads' is unknown"):
        rejected(Execution(), clients="threads")
