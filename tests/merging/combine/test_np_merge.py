"""NP Merge of two models: exact ends, planted answers, resume, transformations, errors."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.trees import assert_bitwise, assert_close
from wsa_jax import fuse_scopes, scope_divergence, weight_scope
from wsa_jax.merging.combine.coefficients import (
    coefficient_shapes,
    interpolate,
)
from wsa_jax.merging.combine.examples import labelled_examples
from wsa_jax.merging.combine.fine_tuning import fine_tune
from wsa_jax.merging.combine.learning import LearningSettings
from wsa_jax.merging.combine.np_merge import np_merge
from wsa_jax.merging.combine.penalties import Strengths, active_penalties
from wsa_jax.runs.checkpoint import Checkpoints
from wsa_jax.training import classification
from wsa_jax.tree import stack

KEY = jax.random.key(7)
UNITS, INPUTS, OUTPUTS = 8, 3, 8


def network(params, x):
    hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
    return hidden @ params["out"]["kernel"]


def mse(key, params, model_state, batch):
    del key
    x, y = batch
    return jnp.mean((network(params, x) - y) ** 2), model_state


@jax.jit
def make_model(key):
    shapes = (INPUTS, UNITS), (UNITS,), (UNITS, OUTPUTS)
    # Half of a weight is common: models in correspondence, as alignment leaves them.
    hidden, bias, out = (
        jax.random.normal(common, shape) + jax.random.normal(own, shape)
        for common, own, shape in zip(
            jax.random.split(jax.random.key(0), 3), jax.random.split(key, 3), shapes, strict=True
        )
    )
    return {"hidden": {"kernel": hidden, "bias": bias}, "out": {"kernel": out}}


A, B = make_model(jax.random.key(1)), make_model(jax.random.key(2))
FROM_A = np.arange(UNITS) % 2 == 0
# Half of the hidden units, incoming and outgoing weights, are A's and half are B's.
OWNERS = {
    "hidden": {"kernel": np.tile(FROM_A, (INPUTS, 1)), "bias": FROM_A},
    "out": {"kernel": np.tile(FROM_A[:, None], (1, OUTPUTS))},
}
PLANTED = jax.tree.map(jnp.where, OWNERS, A, B)


@pytest.fixture(scope="module")
def examples():
    x = 1.5 * jax.random.normal(jax.random.key(3), (256, INPUTS))
    return x, network(PLANTED, x)


SHORT = LearningSettings(steps=6, batch_size=64)
# Five batches an epoch: the break comes within one.
HALF = LearningSettings(steps=4, batch_size=48, eval_every=2)


class TestPlanted:
    def test_recovers_which_units_are_whose(self, examples):
        settings = LearningSettings(steps=3000, batch_size=256)
        result = np_merge(KEY, mse, (A, B), examples, settings=settings, learning_rate=0.2)
        found = result.info["coefficients"]
        owners = {"/".join(k.key for k in p): x for p, x in jax.tree.leaves_with_path(OWNERS)}
        correct = [((np.asarray(found[name]) > 0.5) == owners[name]).ravel() for name in owners]
        assert np.concatenate(correct).mean() > 0.99
        assert result.info["loss"][-1] < 1e-3 * result.info["loss"][0]
        logits = {name: jax.scipy.special.logit(share) for name, share in found.items()}
        assert_close(result.params, interpolate(logits, (A, B)), atol=1e-3)

    def test_one_scalar_finds_the_point_of_the_line_that_least_squares_does(self):
        def line(key, params, model_state, batch):
            return jnp.mean((batch[:, :2] @ params["w"] - batch[:, 2]) ** 2), model_state

        rng = np.random.default_rng(0)
        data = rng.normal(size=(32, 3))
        a, b = np.array([1.0, -1.0]), np.array([-1.0, 2.0])
        along, rest = data[:, :2] @ (a - b), data[:, 2] - data[:, :2] @ b
        best = along @ rest / (along @ along)
        assert 0.05 < best < 0.95
        result = np_merge(
            KEY, line, [{"w": jnp.asarray(x, jnp.float32)} for x in (a, b)],
            jnp.asarray(data, jnp.float32), learning_rate=0.1,
            settings=LearningSettings(steps=200, batch_size=32, granularity="scalar"),
        )  # fmt: skip
        np.testing.assert_allclose(result.info["coefficients"]["all"], best, atol=1e-3)


@pytest.fixture(scope="module")
def held_out(examples):
    return tuple(part[:192] for part in examples)


@pytest.fixture(scope="module")
def whole(examples, held_out):
    settings = dataclasses.replace(HALF, steps=8)
    return np_merge(KEY, mse, (A, B), examples, settings=settings, held_out=held_out)


class TestLoop:
    def test_two_halves_equal_one_run_bitwise(self, examples, held_out, whole):
        first = np_merge(KEY, mse, (A, B), examples, settings=HALF, held_out=held_out)
        second = np_merge(
            KEY, mse, (A, B), examples, settings=HALF, held_out=held_out, state=first.info["state"]
        )
        assert_bitwise(second.params, whole.params)
        assert_bitwise(second.info["state"], whole.info["state"])
        losses = jnp.concatenate([first.info["loss"], second.info["loss"]])
        assert_bitwise(losses, whole.info["loss"])

    def test_under_a_progress_bar_it_is_bitwise_the_same(self, examples, held_out, whole, capsys):
        settings = dataclasses.replace(HALF, steps=8, progress=True)
        shown = np_merge(KEY, mse, (A, B), examples, settings=settings, held_out=held_out)
        assert "8/8" in capsys.readouterr().out
        assert_bitwise(shown.params, whole.params)
        for name, expected in whole.info.items():
            assert_bitwise(shown.info[name], expected)

    def test_a_state_from_a_checkpoint_continues_bitwise(self, examples, held_out, whole, tmp_path):
        def half(state):
            return np_merge(
                KEY, mse, (A, B), examples, settings=HALF, held_out=held_out, state=state
            )

        first = half(None).info["state"]
        saved = Checkpoints(tmp_path)
        saved.save(4, first)
        second = half(saved.restore(4, first))
        assert_bitwise(second.params, whole.params)
        assert_bitwise(second.info["state"], whole.info["state"])

    def test_returns_the_coefficients_of_the_lowest_held_out_loss(self, held_out, whole):
        curve = np.asarray(whole.info["held_out_loss"])
        assert np.flatnonzero(np.isfinite(curve)).tolist() == [0, 2, 4, 6, 8]
        assert whole.info["best_step"] == np.nanargmin(curve)
        loss, _ = mse(None, whole.params, {}, held_out)
        np.testing.assert_allclose(loss, np.nanmin(curve), rtol=1e-5)

    def test_a_harmful_rate_keeps_the_start(self, examples):
        # The held-out examples are those of the average itself: no step can improve on it.
        average = interpolate({"all": jnp.array(0.0)}, (A, B))
        held_out = (examples[0][:192], network(average, examples[0][:192]))
        result = np_merge(
            KEY, mse, (A, B), examples, settings=HALF, held_out=held_out, learning_rate=5.0
        )
        assert result.info["best_step"] == 0
        assert_bitwise(result.params, average)

    def test_every_held_out_example_counts_once(self):
        def loss_fn(key, params, model_state, batch):
            return 0 * params["w"] + batch.mean(), model_state

        data, model = jnp.arange(8.0) ** 2, {"w": jnp.array(1.0)}
        settings = LearningSettings(steps=1, batch_size=3)
        result = np_merge(KEY, loss_fn, (model, model), data, settings=settings, held_out=data)
        np.testing.assert_allclose(result.info["held_out_loss"], data.mean(), rtol=1e-6)

    def test_coefficients_stay_where_models_agree_and_at_the_ends(self, examples):
        same = {**B, "out": A["out"]}
        result = np_merge(KEY, mse, (A, same), examples, settings=SHORT)
        assert np.all(np.asarray(result.info["coefficients"]["out/kernel"]) == 0.5)
        assert np.all(np.asarray(result.info["coefficients"]["hidden/kernel"]) != 0.5)
        assert_bitwise(result.params["out"], A["out"])
        for share, end in ((1.0, A), (0.0, B)):
            assert_bitwise(
                np_merge(KEY, mse, (A, B), examples, settings=SHORT, init=share).params, end
            )

    def test_vmap_over_keys_and_jit_equal_single_merges(self, examples):
        def merge(key):
            return np_merge(key, mse, (A, B), examples, settings=SHORT, learning_rate=0.1)

        keys = jax.random.split(KEY, 2)
        many = jax.jit(jax.vmap(merge))(keys)
        for i, key in enumerate(keys):
            alone = merge(key)
            assert_close(jax.tree.map(lambda x, i=i: x[i], many.params), alone.params)
            assert_close(many.info["loss"][i], alone.info["loss"])
        assert not np.allclose(many.info["loss"][0], many.info["loss"][1])

    @pytest.mark.filterwarnings("error:Some donated buffers")
    def test_vmap_tells_nothing_of_donated_buffers(self, examples):
        def merge(key, rate):
            return np_merge(key, mse, (A, B), examples, settings=SHORT, learning_rate=rate).params

        jax.vmap(merge)(jax.random.split(KEY, 2), jnp.array([0.1, 0.2]))
        jax.vmap(merge, (None, 0))(KEY, jnp.array([0.1, 0.2]))

    def test_vmap_over_stacked_models_equals_single_merges(self, examples):
        pairs = ((A, B), (B, PLANTED))
        first, second = (stack(list(side)) for side in zip(*pairs, strict=True))

        def merge(a, b):
            return np_merge(KEY, mse, (a, b), examples, settings=SHORT, learning_rate=0.1).params

        many = jax.jit(jax.vmap(merge))(first, second)
        for i, pair in enumerate(pairs):
            assert_close(jax.tree.map(lambda x, i=i: x[i], many), merge(*pair))

    def test_sharded_batches_agree(self, examples):
        mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
        rows = NamedSharding(mesh, PartitionSpec("data"))
        settings = dataclasses.replace(SHORT, batch_sharding=rows)
        held_out = tuple(part[:128] for part in examples)
        alone = np_merge(KEY, mse, (A, B), examples, settings=SHORT, held_out=held_out)
        sharded = np_merge(
            KEY, mse, (A, B), jax.device_put(examples, rows), settings=settings, held_out=held_out
        )
        assert_close(sharded.params, alone.params)
        for curve in ("loss", "held_out_loss"):
            assert_close(sharded.info[curve], alone.info[curve])

    def test_half_precision_reaches_the_loss_alone(self, examples):
        seen = []

        def loss_fn(key, params, model_state, batch):
            seen.append(params["out"]["kernel"].dtype)
            return mse(key, params, model_state, batch)

        settings = LearningSettings(steps=2, batch_size=64, compute_dtype=jnp.bfloat16)

        def merge():
            result = np_merge(KEY, loss_fn, (A, B), examples, settings=settings)
            return result.params, result.info["state"].variables

        params, variables = jax.eval_shape(merge)
        assert set(seen) == {jnp.dtype(jnp.bfloat16)}
        assert params["out"]["kernel"].dtype == jnp.float32
        assert variables["out/kernel"].dtype == jnp.float32

    def test_rates_and_starts_share_one_compilation(self, examples):
        traces = []

        def loss_fn(key, params, model_state, batch):
            traces.append(1)
            return mse(key, params, model_state, batch)

        for rate in (0.1, 0.2):
            np_merge(KEY, loss_fn, (A, B), examples, settings=SHORT, learning_rate=rate, init=rate)
        count = len(traces)
        np_merge(KEY, loss_fn, (A, B), examples, settings=SHORT, learning_rate=0.3)
        assert len(traces) == count

    def test_optax_transformations_and_schedules_are_followed(self):
        # d loss / d share of the planted line is 1, so each step is the rate times s (1 - s).
        def loss_fn(key, params, model_state, batch):
            return params["w"] + 0 * batch[0], model_state

        def logits(**options):
            models = {"w": jnp.array(1.0)}, {"w": jnp.array(0.0)}
            result = np_merge(KEY, loss_fn, models, jnp.ones(2), **options)
            return result.info["state"].variables["w"]

        def expected(*rates):
            logit = 0.0
            for rate in rates:
                share = 1 / (1 + np.exp(-logit))
                logit -= rate * share * (1 - share)
            return logit

        settings = LearningSettings(steps=2, batch_size=1, optimizer=optax.sgd)
        halving = logits(settings=settings, learning_rate=lambda step: 0.5**step)
        np.testing.assert_allclose(halving, expected(1.0, 0.5), rtol=1e-5)
        as_it_is = dataclasses.replace(settings, optimizer=optax.sgd(2.0))
        np.testing.assert_allclose(logits(settings=as_it_is), expected(2.0, 2.0), rtol=1e-5)
        # This one keeps the rate it was made with in its state.
        injected = dataclasses.replace(settings, optimizer=optax.inject_hyperparams(optax.sgd))
        found = logits(settings=injected, learning_rate=2.0)
        np.testing.assert_allclose(found, expected(2.0, 2.0), rtol=1e-5)
        # A Polyak step is the loss over the squared gradient: (1/2) / (1/4)^2, cut off at 1.
        polyak = dataclasses.replace(settings, steps=1, optimizer=optax.polyak_sgd)
        np.testing.assert_allclose(logits(settings=polyak, learning_rate=1.0), expected(1.0))

    def test_weight_decay_leaves_shares_of_0_and_1_alone(self, examples):
        settings = dataclasses.replace(SHORT, optimizer=optax.adamw)
        result = np_merge(KEY, mse, (A, B), examples, settings=settings, init=1.0)
        assert not result.info["diverged"]
        assert_bitwise(result.params, A)


class TestDivergence:
    def test_a_held_out_loss_that_is_no_number_is_told(self, examples):
        held_out = (examples[0][:64], examples[1][:64] * jnp.nan)
        result = np_merge(KEY, mse, (A, B), examples, settings=SHORT, held_out=held_out)
        assert result.info["diverged"]
        assert result.info["diverged_step"] == 0
        assert_bitwise(result.params, interpolate({"all": jnp.array(0.0)}, (A, B)))

    def test_a_held_out_loss_that_is_no_number_after_the_last_step_is_told(self):
        def loss_fn(key, params, model_state, batch):
            # Held-out examples are 2, and lose their loss as soon as the weight moves.
            moved = params["w"] < 0.5
            return jnp.where(moved & (batch[0] > 1), jnp.nan, params["w"]) + 0 * batch[0], {}

        models = {"w": jnp.array(1.0)}, {"w": jnp.array(0.0)}
        result = np_merge(
            KEY, loss_fn, models, jnp.ones(2), held_out=jnp.full(2, 2.0),
            settings=LearningSettings(steps=1, batch_size=1),
        )  # fmt: skip
        assert np.isnan(result.info["held_out_loss"]).tolist() == [False, True]
        assert (bool(result.info["diverged"]), int(result.info["diverged_step"])) == (True, 1)
        assert (float(result.params["w"]), int(result.info["best_step"])) == (0.5, 0)

    def test_stops_and_returns_the_best_so_far(self):
        def loss_fn(key, params, model_state, batch):
            # Falls at first and is not a number once the weight is below 0.3.
            w = params["w"]
            return jnp.where(w < 0.3, jnp.nan, w) + 0 * batch[0], model_state

        models = {"w": jnp.array(1.0)}, {"w": jnp.array(0.0)}
        settings = LearningSettings(steps=12, batch_size=1)
        result = np_merge(KEY, loss_fn, models, jnp.ones(2), settings=settings, learning_rate=0.2)
        loss = np.asarray(result.info["loss"])
        assert bool(result.info["diverged"])
        step = int(result.info["diverged_step"])
        assert 2 < step < 8
        assert np.all(np.isfinite(loss[:step])) and np.all(np.isnan(loss[step:]))
        assert float(result.params["w"]) == np.nanmin(loss) >= 0.3
        assert result.info["best_step"] == step - 1

    def test_an_overflow_in_the_last_step_is_seen(self):
        def loss_fn(key, params, model_state, batch):
            return 10 * jnp.sum(params["w"]) + 0 * batch[0], model_state

        settings = LearningSettings(steps=1, batch_size=1, optimizer=optax.sgd)
        result = fine_tune(
            KEY, loss_fn, {"w": jnp.ones(2)}, jnp.ones(1), settings=settings, learning_rate=3e38
        )
        assert bool(result.info["diverged"])
        assert result.params["w"].tolist() == [1.0, 1.0]


class TestPenalties:
    def test_each_reduces_what_it_penalises_and_zero_is_off(self, examples):
        off = 1e-30  # so small that it changes nothing, and yet no 0 that would compile again

        def merge(distance=off, entropy=off, scope=off):
            return np_merge(
                KEY, mse, (A, B), examples, settings=dataclasses.replace(SHORT, steps=40),
                learning_rate=0.05, strengths=Strengths(distance, entropy, scope),
            )  # fmt: skip

        plain = merge()
        without = merge(0.0, 0, np.float32(0))
        assert_close(plain.params, without.params)

        def shares(result):
            parts = [np.ravel(share) for share in result.info["coefficients"].values()]
            return np.abs(np.concatenate(parts) - 0.5)

        assert shares(merge(distance=1e4)).max() < 0.2 * shares(plain).max()
        assert shares(merge(entropy=1e4)).mean() > 1.5 * shares(plain).mean()
        target = fuse_scopes([weight_scope(A), weight_scope(B)])

        def divergence(result):
            return float(scope_divergence(weight_scope(result.params), target).sum())

        assert divergence(merge(scope=10.0)) < 0.5 * divergence(plain)


def test_shares_by_leaf_are_the_start_and_what_distance_holds_to(examples):
    init = {
        "hidden/kernel": jnp.float32(0.9),
        "hidden/bias": jnp.full(UNITS, 0.2),
        "out/kernel": jnp.float32(0.6),
    }

    def shares(settings, rate, distance):
        return np_merge(
            KEY, mse, (A, B), examples, init=init, settings=settings, learning_rate=rate,
            strengths=Strengths(distance=distance),
        ).info["coefficients"]  # fmt: skip

    start = shares(SHORT, 0.0, 0.0)
    held = shares(dataclasses.replace(SHORT, steps=40), 0.05, 1e4)
    for name, share in init.items():
        np.testing.assert_allclose(start[name] - share, 0, atol=1e-6)
        assert np.abs(held[name] - share).max() < 0.05


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, *, train: bool):
        x = x.reshape(len(x), -1)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(nn.Dense(4)(x))
        return nn.Dense(3)(nn.relu(x))


class TestTask:
    def test_batch_norm_moves_and_repair_has_the_last_word(self, tiny_info, tiny_data):
        task = classification(Normed(), tiny_info)
        init = jax.jit(task.init)
        (first, state), (second, _) = (init(key) for key in jax.random.split(KEY))
        seen = {}

        def repair(params, model_state):
            seen.update(params=params, state=model_state)
            return {"batch_stats": "estimated"}

        result = np_merge(
            KEY, task.loss, (first, second), labelled_examples(*tiny_data, num_classes=3),
            settings=LearningSettings(steps=5, batch_size=20), model_state=state, repair=repair,
        )  # fmt: skip
        moved = seen["state"]["batch_stats"]["BatchNorm_0"]["mean"]
        assert np.all(np.asarray(moved) != 0)
        assert result.model_state == {"batch_stats": "estimated"}
        assert_bitwise(seen["params"], result.params)
        assert {"BatchNorm_0/scale", "BatchNorm_0/bias"} < set(result.info["coefficients"])


class TestFineTuning:
    def test_draws_the_batches_of_np_merge(self):
        def loss_fn(key, params, model_state, batch):
            return 0 * params["w"] + batch.sum() + jax.random.uniform(key), model_state

        data, model = jnp.arange(10.0) ** 2, {"w": jnp.array(1.0)}
        settings = LearningSettings(steps=7, batch_size=3)
        tuned = fine_tune(KEY, loss_fn, model, data, settings=settings)
        merged = np_merge(KEY, loss_fn, (model, model), data, settings=settings)
        assert_bitwise(tuned.info["loss"], merged.info["loss"])
        assert len(np.unique(tuned.info["loss"])) == 7

    def test_equals_gradient_descent_written_out(self, examples):
        settings = LearningSettings(steps=3, batch_size=256, optimizer=optax.sgd)
        tuned = fine_tune(KEY, mse, A, examples, settings=settings, learning_rate=0.1)
        expected = A
        gradient = jax.jit(jax.grad(lambda params: mse(None, params, {}, examples)[0]))
        for _ in range(3):
            grads = gradient(expected)
            expected = jax.tree.map(lambda w, g: w - 0.1 * g, expected, grads)
        assert_close(tuned.params, expected)


def test_a_stack_is_its_list(examples):
    pair = np_merge(KEY, mse, (A, B), examples, settings=SHORT)
    stacked = np_merge(KEY, mse, stack([A, B]), examples, settings=SHORT)
    assert_bitwise(stacked.params, pair.params)


class TestErrors:
    def merge(self, models=(A, B), examples=None, **options):
        if examples is None:
            examples = (np.ones((4, INPUTS)), np.ones((4, OUTPUTS)))
        options = {"settings": LearningSettings(steps=1, batch_size=2)} | options
        return np_merge(KEY, mse, models, examples, **options)

    def test_models(self):
        with pytest.raises(ValueError, match="takes two models, got 3; use np_merge_many"):
            self.merge((A, A, B))
        lost = {**B, "out": {"kernel": B["out"]["kernel"].at[0, 0].set(jnp.nan)}}
        with pytest.raises(ValueError, match="leaf out/kernel of model 2 holds 1 NaN"):
            self.merge((A, lost))
        wider = {**B, "out": {"kernel": jnp.ones((UNITS, 4))}}
        with pytest.raises(ValueError, match=r"leaf out/kernel has shape \(8, 8\) in the first"):
            self.merge((A, wider))

    def test_what_cannot_be_learnt(self):
        module = {"w": A, "activation": jax.nn.relu}
        with pytest.raises(ValueError, match="leaf activation of model 1 is the function relu; gi"):
            self.merge((module, module))
        wave = {**A, "phase": jnp.array([1j])}
        with pytest.raises(
            ValueError, match="leaf phase is of type complex64, and what is learnt is"
        ):
            self.merge((wave, wave))
        half = {**B, "out": {"kernel": B["out"]["kernel"].astype(jnp.float16)}}
        with pytest.raises(ValueError, match="leaf out/kernel is float32 in the first model and"):
            self.merge((A, half))

    def test_numbers_that_are_none(self):
        bad = (np.full((4, INPUTS), np.nan), np.ones((4, OUTPUTS)))
        with pytest.raises(ValueError, match="array 0 of examples holds 12 NaN or infinite values"):
            self.merge(examples=bad)
        lost = {**A, "out": {"kernel": A["out"]["kernel"].at[0, 0].set(jnp.inf)}}
        with pytest.raises(ValueError, match="leaf out/kernel of params holds 1 NaN or infinite"):
            fine_tune(
                KEY, mse, lost, (np.ones((4, INPUTS)), np.ones((4, OUTPUTS))),
                settings=LearningSettings(steps=1, batch_size=2),
            )  # fmt: skip

    def test_learning_rate(self):
        with pytest.raises(ValueError, match=r"learning_rate -1.0 is not a non-negative number"):
            self.merge(learning_rate=-1.0)
        with pytest.raises(
            ValueError, match="learning_rate is the function len, which gives no nu"
        ):
            self.merge(learning_rate=len)
        with pytest.raises(ValueError, match=r"which gives an? \w+ of float32.* of numbers"):
            self.merge(learning_rate=lambda step: jnp.ones(2) * step)

    def test_examples(self):
        with pytest.raises(ValueError, match="examples hold no samples"):
            self.merge(examples=(np.ones((0, 4)), np.ones((0, 3))))
        with pytest.raises(ValueError, match=r"have \[3, 4\] rows"):
            self.merge(examples=(np.ones((4, 4)), np.ones((3, 3))))
        with pytest.raises(ValueError, match="batch_size 2 does not fit 1 examples"):
            self.merge(examples=(np.ones((1, 4)), np.ones((1, 3))))
        with pytest.raises(ValueError, match="held_out hold no samples"):
            self.merge(held_out=())

    def test_inputs_in_a_pytree(self):
        inputs = {"x": np.ones((3, 2)), "y": np.ones(3)}
        made = labelled_examples(inputs, np.array([[0, 1], [1, 1], [2, 0]]), num_classes=3)
        assert made.inputs["y"].shape == (3,) and made.mask.shape == (3,)
        with pytest.raises(ValueError, match="examples has 3 rows of x and 2 labels; give one"):
            labelled_examples(inputs, np.array([0, 1]))

    def test_labels(self):
        images = np.ones((3, 2))
        with pytest.raises(
            ValueError, match=r"label 3 of examples is out of range; classes are 0 \.\. 2"
        ):
            labelled_examples(images, np.array([0, 1, 3]), num_classes=3)
        with pytest.raises(
            ValueError, match="label -1 of examples is out of range; classes count from 0"
        ):
            labelled_examples(images, np.array([0, -1, 3]))

    def test_options(self):
        with pytest.raises(ValueError, match="granularity 'row' is unknown; give one of 'param"):
            coefficient_shapes(A, "row")
        with pytest.raises(ValueError, match="granularity 'row' is unknown; give one of 'param"):
            LearningSettings(steps=1, granularity="row")
        with pytest.raises(ValueError, match="init of hidden/bias 2.0 is not a share"):
            self.merge(init=2.0)
        with pytest.raises(ValueError, match="do not both name hidden/bias"):
            self.merge(init={"hidden/kernel": jnp.ones(()), "out/kernel": jnp.ones(())})
        shares = {name: jnp.float32(0.5) for name in coefficient_shapes(A, "layer")}
        with pytest.raises(ValueError, match=r"init of out/kernel has shape \(3,\), its"):
            self.merge(init=shares | {"out/kernel": jnp.full(3, 0.5)})
        with pytest.raises(ValueError, match="strengths.entropy -1.0 is not a non-negative"):
            self.merge(strengths=Strengths(entropy=-1.0))
        with pytest.raises(ValueError, match="strengths.scope is a schedule, which this function"):
            inspect.unwrap(active_penalties)(Strengths(scope=optax.constant_schedule(1.0)))
        with pytest.raises(ValueError, match="steps 0 is below 1"):
            self.merge(settings=LearningSettings(steps=0))
        with pytest.raises(ValueError, match="no floating-point leaf"):
            coefficient_shapes({"n": jnp.array(1)}, "layer")


def test_earlier_keywords_are_the_fields_that_they_are_now():
    x = jax.random.normal(jax.random.key(1), (16, INPUTS))
    examples = (x, network(A, x))
    settings = LearningSettings(steps=2, batch_size=8)
    given = np_merge(KEY, mse, (A, B), examples, settings=settings, granularity="layer")
    asked = dataclasses.replace(settings, granularity="layer")
    assert_bitwise(given.params, np_merge(KEY, mse, (A, B), examples, settings=asked).params)
    with pytest.raises(ValueError, match="np_merge has no option 'granularty'; give one of"):
        np_merge(KEY, mse, (A, B), examples, settings=settings, granularty="layer")
