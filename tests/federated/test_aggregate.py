"""Robust rules against NumPy and SciPy, and rounds in which a client sends nonsense."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests.trees import flat
from wsa_jax.federated import (
    Aggregation,
    coordinate_median,
    fed_adam,
    fed_avg,
    scaffold,
    trimmed_mean,
)
from wsa_jax.federated.aggregate import (
    Sent,
    aggregate,
    all_finite,
    clip_update,
    from_numbers,
    term,
    to_numbers,
)
from wsa_jax.federated.algorithms.base import add_update
from wsa_jax.tree import unstack

# Compiled whole: operation by operation the same tests spend several times as long compiling.
median = jax.jit(coordinate_median)
trimmed = jax.jit(trimmed_mean, static_argnums=2)
MEDIAN = Aggregation(rule="median")
MODELS = {"w": np.random.default_rng(0).normal(size=(11, 3, 2)), "b": np.arange(11.0)[::-1]}


@pytest.mark.parametrize("count", [1, 2, 3, 10, 11])
def test_rules_equal_scipy_over_the_kept(count):
    keep = np.zeros(11)
    keep[np.random.default_rng(count).permutation(11)[:count]] = 1
    # What is left out may hold anything.
    dirty = {name: np.float32(rows) for name, rows in MODELS.items()}
    for rows in dirty.values():
        rows[keep == 0] = np.nan
    for name, rows in MODELS.items():
        kept = rows[keep > 0]
        np.testing.assert_allclose(
            median(dirty, keep)[name], np.median(kept, axis=0), rtol=1e-5, atol=1e-6
        )
        for trim in (0.0, 0.1, 0.3, 0.45):
            np.testing.assert_allclose(
                trimmed(dirty, keep, trim)[name],
                stats.trim_mean(kept, trim, axis=0),
                rtol=1e-5,
                atol=1e-6,
            )


def test_none_kept_gives_zeros():
    models = {name: np.float32(rows) for name, rows in MODELS.items()}
    for found in (median(models, np.zeros(11)), trimmed(models, np.zeros(11), 0.1)):
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(found))


def test_clip():
    update = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    assert clip_update(update, None) is update
    np.testing.assert_allclose(clip_update(update, 10)["a"], 3.0)
    clipped = clip_update(update, 2.5)
    np.testing.assert_allclose([clipped["a"][0], clipped["b"][0]], [1.5, 2.0], rtol=1e-6)


def test_the_median_of_an_even_number_does_not_overflow():
    found = median({"w": jnp.full((4, 1), 3e38)}, jnp.ones(4))
    np.testing.assert_array_equal(found["w"], np.float32(3e38))


def test_a_trimmed_mean_does_not_overflow():
    found = trimmed({"w": jnp.full((5, 2), 3e38)}, jnp.ones(5), 0.1)
    np.testing.assert_allclose(found["w"], np.float32(3e38), rtol=1e-6)


def test_a_clip_does_not_hide_divergence():
    assert np.isinf(clip_update({"a": jnp.array([jnp.inf, 1.0])}, 1.0)["a"]).any()
    assert np.isnan(clip_update({"a": jnp.array([jnp.nan, 1.0])}, 1.0)["a"]).any()


@pytest.mark.parametrize("size", [2e19, 3e38])
def test_a_huge_update_is_clipped(size):
    """Its squares are infinite, and for the larger its norm is as well."""
    clipped = clip_update({"a": jnp.full(2, size)}, 1.0)["a"]
    np.testing.assert_allclose(clipped, np.sqrt(0.5), rtol=1e-6)


def test_float64_is_not_rounded():
    with jax.enable_x64():
        params = {"w": jnp.array([1.0 + 1e-12, 2.0])}
        one = jnp.ones(())
        total = term(Sent(params, params, one, one))
        found = aggregate(total, Aggregation())
        kept = add_update(found.by_samples, {"w": jnp.array([0.0, 1e-12])})
        np.testing.assert_array_equal(kept["w"], [1.0 + 1e-12, 2.0 + 1e-12])
        middle = median(jax.tree.map(lambda x: x[None], params), jnp.ones(1))
        np.testing.assert_array_equal(middle["w"], params["w"])


def test_leaves_that_are_no_floats():
    state = {
        "key": jax.random.key(1),
        "step": jnp.int32(2**24 + 1),
        "down": jnp.uint32(3),
        "flag": jnp.array(True),
        "mean": jnp.bfloat16(0.5),
    }
    new = {**state, "step": state["step"] + 4, "down": state["down"] - 2}
    assert bool(all_finite(state))
    sent = jax.tree.map(lambda x: x * 0.9999, to_numbers(new, state))
    back = from_numbers(sent, state)
    assert jax.tree.map(jnp.result_type, back) == jax.tree.map(jnp.result_type, state)
    # Beyond 2^24 a float32 does not hold every integer.
    assert (int(back["step"]), int(back["down"]), bool(back["flag"])) == (2**24 + 5, 1, True)
    assert jax.random.key_data(back["key"]).tolist() == jax.random.key_data(state["key"]).tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"rule": "bulyan"},
            "rule 'bulyan' is unknown; give 'mean', 'median', 'trimmed_mean'",
        ),
        ({"trim": 0.5}, r"trim 0.5 is not in \[0, 0.5\)"),
        ({"clip_norm": 0.0}, "clip_norm 0.0 is not positive; give None"),
    ],
)
def test_errors(rejected, change, message):
    with pytest.raises(ValueError, match=message):
        rejected(Aggregation(), **change)


# An example with this label makes the loss NaN, or its gradient about 1e25.
NAN, STEEP = 99, 98


@pytest.fixture(scope="module")
def fragile(federation):
    """The same federation, in which some labels break a client, as `NAN` and `STEEP` say."""
    task = federation.task

    def loss(key, params, model_state, batch):
        value, model_state = task.loss(key, params, model_state, batch)
        bad, steep = (jnp.any((batch.labels == x) & (batch.mask > 0)) for x in (NAN, STEEP))
        slope = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params))
        value = value * jnp.where(bad, jnp.nan, 1.0) + jnp.where(steep, 1e25, 0.0) * slope
        return value, model_state

    # A clip would bound the steep gradient; a second step would make it NaN.
    local = dataclasses.replace(federation.local, clip_norm=None, steps=1)
    return federation._replace(task=task._replace(loss=loss), local=local)


def poisoned(federation, clients, label=NAN):
    """The same data, but for a poisoned label on all examples of each of these clients."""
    indices, sizes = np.asarray(federation.data.indices), np.asarray(federation.data.sizes)
    rows = np.concatenate([indices[client][: sizes[client]] for client in clients])
    return federation.data._replace(labels=federation.data.labels.at[rows].set(label))


def broken_step(server, context):
    """SCAFFOLD's, which is infinite in round 1."""
    params, control = scaffold().apply(server, context)
    infinite = jax.tree.map(lambda c: c.at[0].set(jnp.inf), control)
    return params, jax.tree.map(
        lambda bad, good: jnp.where(context.round == 1, bad, good), infinite, control
    )


# What is tested of rounds below needs clients with states, and one program serves most of it.
BROKEN = scaffold()._replace(name="broken", apply=broken_step)


class TestNonFiniteClients:
    @pytest.fixture(scope="class")
    @classmethod
    def outcome(cls, fragile):
        start = fragile.start(BROKEN)
        run = fragile.round(BROKEN)
        return start, run(fragile.key, start, poisoned(fragile, [1]), fragile.settings())

    def test_is_dropped_and_counted(self, outcome):
        _, (state, info) = outcome
        assert int(info.dropped) == 1
        assert np.asarray(info.accepted).tolist() == [True, False, False, True]
        assert np.isnan(info.loss[1])
        for leaf in jax.tree.leaves((state, info.fused, info.client_divergence)):
            assert np.isfinite(leaf).all()

    def test_counts_as_if_it_had_no_examples(self, fragile, outcome, assert_close):
        start, (state, _) = outcome
        without = fragile.data._replace(sizes=fragile.data.sizes.at[1].set(0))
        expected, _ = fragile.round(BROKEN)(fragile.key, start, without, fragile.settings())
        assert_close(state.params, expected.params)
        assert_close(state.target, expected.target)

    def test_keeps_its_state(self, outcome):
        start, (state, _) = outcome
        for old, new in zip(
            jax.tree.leaves(start.clients), jax.tree.leaves(state.clients), strict=True
        ):
            np.testing.assert_array_equal(old[1], new[1])
            assert np.any(old[0] != new[0])

    def test_is_averaged_in_if_asked(self, fragile):
        run = fragile.round(fed_avg(), aggregation=Aggregation(drop_nonfinite=False))
        data = poisoned(fragile, [1])
        state, info = run(fragile.key, fragile.start(fed_avg()), data, fragile.settings())
        assert int(info.dropped) == 0
        assert np.isnan(state.params["Dense_0"]["kernel"]).any()

    @pytest.mark.parametrize("make", [lambda: BROKEN, fed_adam])
    def test_all_dropped_changes_nothing_but_the_round(self, fragile, make):
        start = fragile.start(make())
        run = fragile.round(make())
        state, info = run(fragile.key, start, poisoned(fragile, [0, 1, 3]), fragile.settings())
        assert int(info.dropped) == 3
        expected = dataclasses.replace(start, round=jnp.int32(1))
        for old, new in zip(jax.tree.leaves(expected), jax.tree.leaves(state), strict=True):
            np.testing.assert_array_equal(old, new)

    # Three devices do not divide four clients: some train a stand-in.
    @pytest.mark.parametrize(
        "options",
        [{"clients": "vmap"}, {"devices": 3}, {"devices": 3, "aggregation": MEDIAN}],
        ids=["vmap", "padded", "median"],
    )
    def test_is_dropped_however_the_round_runs(self, fragile, outcome, options, assert_close):
        start, (expected, _) = outcome
        data, settings = poisoned(fragile, [1]), fragile.settings()
        if "aggregation" in options:
            one = fragile.round(BROKEN, aggregation=options["aggregation"])
            expected, _ = one(fragile.key, start, data, settings)
        run = fragile.round(BROKEN, **options)
        state, info = run(fragile.key, start, data, settings)
        assert int(info.dropped) == 1
        assert_close(state, expected, atol=1e-5)

    def test_an_update_whose_variance_overflows_is_dropped_too(self, fragile):
        start = fragile.start(BROKEN)
        # Weight decay of a learning rate of 1e25 makes updates of 1e24, whose squares are infinite.
        state, info = fragile.round(BROKEN)(
            fragile.key, start, fragile.data, fragile.settings(1e25)
        )
        assert int(info.dropped) == 4
        for leaf in jax.tree.leaves(state):
            assert np.isfinite(leaf).all()


class TestHugeResults:
    """Finite numbers whose squares, sums or steps are not."""

    # A server that squares updates, and one that does not.
    @pytest.mark.parametrize("make", [fed_adam, lambda: BROKEN])
    def test_an_update_too_large_to_be_squared_is_dropped(self, fragile, make):
        start, settings = fragile.start(make()), fragile.settings()
        run = fragile.round(make())
        state, info = run(fragile.key, start, poisoned(fragile, [1], STEEP), settings)
        assert np.isfinite(info.update_norm[1])
        assert np.asarray(info.accepted).tolist() == [True, False, False, True]
        assert (int(info.dropped), bool(info.refused)) == (1, False)
        without = fragile.data._replace(sizes=fragile.data.sizes.at[1].set(0))
        expected, _ = run(fragile.key, start, without, settings)
        np.testing.assert_allclose(flat(state.params), flat(expected.params), rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize("devices", [None, 3])
    def test_a_server_step_that_is_not_finite_is_refused(self, fragile, devices):
        """Only the round number moves; clients keep their states as well."""

        def here(leaf):
            return jnp.asarray(np.asarray(leaf))

        run = fragile.round(BROKEN, devices=devices)
        data, settings = fragile.data, fragile.settings()
        first, info = run(fragile.key, fragile.start(BROKEN), data, settings)
        assert not info.refused
        # As given at first: a program is compiled for where its arguments lie.
        first = jax.tree.map(here, first)
        second, info = run(fragile.key, first, data, settings)
        assert info.refused
        assert int(info.dropped) == 0
        expected = dataclasses.replace(first, round=jnp.int32(2))
        for old, new in zip(jax.tree.leaves(expected), jax.tree.leaves(second), strict=True):
            np.testing.assert_array_equal(old, new)
        second = jax.tree.map(here, second)
        third, info = run(fragile.key, second, data, settings)
        assert not info.refused
        assert np.any(flat(third.params) != flat(second.params))

    def test_sums_that_overflow_are_refused_and_told_once(self, federate):
        # Each message is finite; their sum is not, since each weighs more than its share.
        algorithm = fed_avg()._replace(
            name="loud",
            finish=lambda update, context: ((), jnp.float32(3e38)),
            weigh=lambda context: 3.0,
        )
        with pytest.warns(UserWarning, match="round 1 was refused and changed nothing") as told:
            result = federate(algorithm=algorithm, rounds=4)
        assert len(told) == 1
        assert [row["refused"] for row in result.history] == [1, 1, 1, 1]
        assert result.state.round == 4


@pytest.mark.parametrize(
    "rule",
    # Trimming one of three at either end leaves the median; its arithmetic is SciPy's above.
    [
        MEDIAN,
        pytest.param(Aggregation(rule="trimmed_mean", trim=0.4), marks=pytest.mark.long),
    ],
    ids=["median", "trimmed_mean"],
)
def test_a_round_takes_the_rule_over_clients_with_examples(fragile, rule):
    start = fragile.start(BROKEN)
    # Each client alone gives its update; the median of the three that have examples is the oracle.
    alone = []
    for client in (0, 1, 3):
        data = fragile.data._replace(sizes=fragile.data.sizes * (np.arange(4) == client))
        state, _ = fragile.round(BROKEN)(fragile.key, start, data, fragile.settings())
        alone.append(flat(state.params) - flat(start.params))
    run = fragile.round(BROKEN, aggregation=rule)
    state, _ = run(fragile.key, start, fragile.data, fragile.settings())
    np.testing.assert_allclose(
        flat(state.params) - flat(start.params), np.median(alone, axis=0), rtol=1e-3, atol=1e-6
    )


def test_a_round_clips_each_update(federation):
    algorithm = scaffold()
    start = federation.start(algorithm)
    run = federation.round(algorithm, aggregation=Aggregation(clip_norm=0.05))
    state, info = run(federation.key, start, federation.data, federation.settings())
    busy = np.asarray(federation.data.sizes) > 0
    np.testing.assert_allclose(np.asarray(info.update_norm)[busy], 0.05, rtol=1e-4)
    assert info.mean_update_norm < 0.05
    # Variates begin at zero, so each is the clipped update over steps times learning rate.
    variates = np.stack([flat(client) for client in unstack(state.clients)])[busy]
    found = np.linalg.norm(variates, axis=1)
    np.testing.assert_allclose(found, 0.05 / (federation.local.steps * 0.1), rtol=1e-4)
