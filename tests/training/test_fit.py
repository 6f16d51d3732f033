"""Training one model and many, and what a task guarantees."""

import inspect
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.trees import assert_bitwise, assert_close, flat
from wsa_jax import constant_target, scope_divergence, scope_gradient, weight_scope
from wsa_jax.scope.layers import all_leaves
from wsa_jax.scope.stability import stability
from wsa_jax.training import Batch, FitSettings, classification, evaluate, fit
from wsa_jax.training.fit import _optimizer, _values

# Compiled whole: operation by operation the same tests spend several times as long compiling.
init = jax.jit(lambda task, key: task.init(key), static_argnums=0)
loss_of = jax.jit(lambda task, *arguments: task.loss(*arguments), static_argnums=0)
metrics_of = jax.jit(lambda task, *arguments: task.metrics(*arguments), static_argnums=0)
scope_jit = jax.jit(weight_scope, static_argnames="select")

SETTINGS = FitSettings(steps=60, batch_size=20)
KEYS = jax.random.split(jax.random.key(0), 2)


class Normed(nn.Module):
    """A BatchNorm and a dropout, so that training and evaluation differ."""

    @nn.compact
    def __call__(self, x, *, train: bool):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x.reshape(len(x), -1))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))


class Sloped(nn.Module):
    """A dense layer with what a run's identity must tell apart."""

    slope: float = 0.1
    activation: Callable = nn.relu
    inner: nn.Module | None = None

    @nn.compact
    def __call__(self, x):
        return self.activation(self.slope * nn.Dense(3)(x.reshape(len(x), -1)))


def test_settings_tell_modules_apart(tiny_info):
    modules = [
        Sloped(), Sloped(slope=0.2), Sloped(activation=nn.gelu), Sloped(inner=nn.Dense(2)),
        Sloped(inner=nn.Dense(3)), Sloped(activation=partial(nn.leaky_relu, negative_slope=0.2)),
    ]  # fmt: skip
    found = [dict(classification(module, tiny_info).settings)["module"] for module in modules]
    assert len(set(found)) == len(found)
    assert found[0] == "Sloped(slope=0.1, activation=relu, inner=None)"
    # An address would differ in the process that resumes.
    assert "0x" not in "".join(found)


@pytest.fixture(scope="module")
def normed_task(tiny_info):
    return classification(Normed(), tiny_info)


@pytest.fixture(scope="module")
def stacked_fit(tiny_task, tiny_data):
    return fit(KEYS, tiny_task, *tiny_data, settings=SETTINGS)


@pytest.fixture(scope="module")
def alone(tiny_task, tiny_data):
    return fit(KEYS[1], tiny_task, *tiny_data, settings=SETTINGS)


def test_a_progress_bar_changes_nothing(tiny_task, tiny_data, alone, capsys):
    shown = fit(KEYS[1], tiny_task, *tiny_data, settings=SETTINGS, progress=True)
    assert "60/60" in capsys.readouterr().out
    assert_bitwise(shown, alone)


def batch_of(data, rows, mask=None):
    images, labels = (jnp.asarray(part[rows]) for part in data)
    return Batch(images, labels, jnp.ones(len(labels)) if mask is None else jnp.asarray(mask))


def cross_entropy(params, images, labels, info):
    """The oracle: the tiny MLP and its loss in float64 NumPy; loss and correctness an example."""
    x = images.reshape(len(images), -1) / info.scale
    x = (x - info.mean[0]) / info.std[0]
    layers = [
        {k: np.asarray(v, np.float64) for k, v in params[f"Dense_{i}"].items()} for i in (0, 1)
    ]
    hidden = np.maximum(x @ layers[0]["kernel"] + layers[0]["bias"], 0)
    logits = hidden @ layers[1]["kernel"] + layers[1]["bias"]
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]
    return losses, logits.argmax(axis=1) == labels


class TestFit:
    def test_one_model_equals_the_same_model_in_a_stack(self, alone, stacked_fit):
        assert_close(alone, jax.tree.map(lambda leaf: leaf[1], stacked_fit), rtol=1e-3)

    def test_equal_keys_give_bitwise_equal_results(self, tiny_task, tiny_data, stacked_fit):
        again = fit(KEYS, tiny_task, *tiny_data, settings=SETTINGS)
        jax.tree.map(np.testing.assert_array_equal, again, stacked_fit)
        assert not np.array_equal(*stacked_fit.loss)

    def test_learns(self, tiny_task, tiny_data, alone):
        sums = evaluate(tiny_task, alone.params, {}, *tiny_data)
        assert sums.correct / sums.count > 0.8
        assert alone.loss[-10:].mean() < 0.7 * alone.loss[:3].mean()

    def test_equals_a_plain_loop(self, tiny_task, tiny_data):
        # One batch is the whole data set, so the order of the examples does not matter.
        settings = FitSettings(
            steps=4, batch_size=60, momentum=0.8, weight_decay=0.1, clip_norm=0.3, select=all_leaves
        )
        params = jax.device_get(init(tiny_task, jax.random.split(KEYS[0], 3)[0])[0])
        target = constant_target(scope_jit(params, select=all_leaves), mean=0.1, std=0.6)
        result = fit(
            KEYS[0], tiny_task, *tiny_data, settings=settings, learning_rate=lambda i: 1 / (i + 2),
            target=target, strength=lambda i: 0.003 * (i + 1),
        )  # fmt: skip
        pull = jax.jit(partial(scope_gradient, select=all_leaves))
        batch, velocity = batch_of(tiny_data, slice(None)), None
        grad_fn = jax.jit(jax.grad(lambda p: tiny_task.loss(KEYS[0], p, {}, batch)[0]))
        for i in range(4):
            grads, scope = jax.device_get((grad_fn(params), pull(params, target)))
            grads = jax.tree.map(lambda g, s, i=i: g + 0.003 * (i + 1) * s, grads, scope)
            norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads)))
            grads = jax.tree.map(lambda g, w, n=norm: g * min(1, 0.3 / n) + 0.1 * w, grads, params)
            velocity = (
                grads
                if velocity is None
                else jax.tree.map(lambda v, g: 0.8 * v + g, velocity, grads)
            )
            params = jax.tree.map(lambda w, v, i=i: w - v / (i + 2), params, velocity)
        assert_close(result.params, params)

    def test_target_pulls_the_scope(self, tiny_task, tiny_data):
        target = constant_target(scope_jit(init(tiny_task, KEYS[1])[0]), std=0.6)

        divergence = jax.jit(scope_divergence)

        def distance(strength):
            result = fit(
                KEYS[1], tiny_task, *tiny_data,
                settings=SETTINGS, target=target, strength=strength,
            )  # fmt: skip
            return divergence(scope_jit(result.params), target).sum()

        assert distance(0) > distance(0.5) > distance(2)

    def test_a_step_in_the_other_direction(self):
        params = {"kernel": jnp.arange(6.0).reshape(2, 3)}
        target = constant_target(scope_jit(params), mean=0.1, std=0.3)
        settings = FitSettings(steps=1, direction="target||weights")
        chain = _optimizer(settings, 0.1, 0.5, target)
        zeros = jax.tree.map(jnp.zeros_like, params)
        moved, slope = jax.jit(
            lambda params, target: (
                chain.update(zeros, chain.init(params), params, target=target)[0],
                scope_gradient(params, target, direction="target||weights"),
            )
        )(params, target)
        assert_close(moved, jax.tree.map(lambda g: -0.1 * 0.5 * g, slope), rtol=1e-5)

    def test_strength_0_equals_no_target(self, tiny_task, tiny_data, alone):
        target = scope_jit(init(tiny_task, KEYS[1])[0])
        found = fit(KEYS[1], tiny_task, *tiny_data, settings=SETTINGS, target=target, strength=0.0)
        assert_close(found, alone, rtol=1e-3)

    def test_a_stack_trained_at_once_equals_one_after_another(
        self, tiny_task, tiny_data, stacked_fit
    ):
        # The default is one after another on the CPU, where these tests run.
        found = fit(KEYS, tiny_task, *tiny_data, settings=SETTINGS, map_models=False)
        assert_close(found, stacked_fit, rtol=1e-3)

    def test_starts_from_given_models(self, tiny_task, tiny_data, stacked_fit):
        drawn = jax.jit(jax.vmap(lambda key: tiny_task.init(jax.random.split(key, 3)[0])[0]))(KEYS)
        drawn = jax.tree.map(np.asarray, drawn)
        found = fit(KEYS, tiny_task, *tiny_data, settings=SETTINGS, params=drawn)
        assert_close(found, stacked_fit, rtol=1e-3)
        kept = jax.tree.map(np.negative, drawn)
        found = fit(KEYS, tiny_task, *tiny_data, settings=SETTINGS, params=kept, learning_rate=0.0)
        jax.tree.map(np.testing.assert_array_equal, found.params, kept)

    def test_starts_from_given_statistics(self, normed_task, tiny_data):
        settings = FitSettings(steps=1, batch_size=60)
        _, state = init(normed_task, KEYS[0])
        found, moved = (
            fit(KEYS[0], normed_task, *tiny_data, settings=settings, model_state=given).model_state
            for given in (None, jax.tree.map(lambda leaf: leaf + 2, state))
        )
        # Half of the old moments stay, whatever they were: the momentum is 0.5.
        assert_close(moved, jax.tree.map(lambda leaf: leaf + 1, found))

    def test_models_that_do_not_fit_are_refused(self, tiny_task, tiny_data):
        params, _ = init(tiny_task, KEYS[0])
        bad = jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), params)
        for key, given, message in (
            (KEYS, params, r"leaf Dense_0/bias has shape \(72,\) .* and \(2, 72\)"),
            (KEYS[0], {"Dense_0": params["Dense_0"]}, "leaf Dense_1/bias is only in"),
            (KEYS[0], bad, "leaf Dense_0/bias of params holds 1 NaN"),
        ):
            with pytest.raises(ValueError, match=message):
                fit(key, tiny_task, *tiny_data, settings=SETTINGS, params=given)

    def test_schedules_are_those_of_optax_or_plain_python(self):
        steps = np.arange(30)
        schedule = optax.warmup_cosine_decay_schedule(0.0, 0.4, 10, 30)
        cosine = 0.2 * (1 + np.cos(np.pi * (steps - 10) / 20))
        expected = np.where(steps < 10, 0.04 * steps, cosine)
        np.testing.assert_allclose(_values(schedule, 30, "rate"), expected, rtol=1e-5, atol=1e-7)
        plain = _values(
            lambda i: 0.04 * i if i < 10 else np.interp(i, [10, 30], [0.4, 0.0]), 30, "rate"
        )
        linear = np.where(steps < 10, 0.04 * steps, 0.4 * (30 - steps) / 20)
        np.testing.assert_allclose(plain, linear, rtol=1e-5, atol=1e-7)
        for listed in (list(linear), tuple(linear)):
            found = _values(lambda i, listed=listed: listed[i], 30, "rate")
            np.testing.assert_array_equal(found, np.float32(linear))

    @pytest.mark.parametrize(
        "rate", [lambda i: jnp.ones(2), lambda i: [0.1, 0.2][i % 2 :], lambda i: np.ones((1, 1))]
    )
    def test_schedules_of_arrays(self, tiny_task, tiny_data, rate):
        match = r"^learning_rate of step 0 is an array of shape \(\d.*\); give one number"
        with pytest.raises(ValueError, match=match):
            fit(KEYS[0], tiny_task, *tiny_data, settings=SETTINGS, learning_rate=rate)

    @pytest.mark.parametrize("rate", [-0.1, float("nan"), lambda i: 0.5 - i])
    def test_learning_rates_below_0_or_nan(self, tiny_task, tiny_data, rate):
        with pytest.raises(ValueError, match="learning_rate"):
            fit(KEYS[0], tiny_task, *tiny_data, settings=SETTINGS, learning_rate=rate)

    def test_models_and_keys_that_no_step_can_use(self, tiny_task, tiny_data):
        counted = tiny_task._replace(init=lambda key: ({"count": jnp.arange(3)}, {}))
        with pytest.raises(ValueError, match="leaf count of params is of type int32"):
            fit(KEYS[0], counted, *tiny_data, settings=SETTINGS)
        params = jax.tree.map(lambda leaf: leaf.astype(int), init(tiny_task, KEYS[0])[0])
        with pytest.raises(ValueError, match="leaf Dense_0/bias of params is of type int32"):
            fit(KEYS[0], tiny_task, *tiny_data, settings=SETTINGS, params=params)
        with pytest.raises(ValueError, match="key is an array of uint32, not of keys"):
            inspect.unwrap(fit)(jax.random.PRNGKey(0), tiny_task, *tiny_data, settings=SETTINGS)
        with pytest.raises(ValueError, match=r"^key has shape \(1, 2\); give one key, or keys"):
            fit(KEYS[None], tiny_task, *tiny_data, settings=SETTINGS)

    def test_batch_size_that_does_not_fit(self, tiny_task, tiny_data):
        settings = FitSettings(steps=1, batch_size=61)
        with pytest.raises(ValueError, match="batch_size 61 does not fit 60 examples"):
            fit(KEYS[0], tiny_task, *tiny_data, settings=settings)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"steps": -1}, "steps must be a positive integer, got -1"),
            ({"batch_size": 0}, "batch_size must be a positive integer, got 0"),
            ({"momentum": -3}, r"momentum -3 is not in \[0, 1\)"),
            ({"weight_decay": -1}, r"weight_decay -1 is not in \[0, inf\)"),
            ({"clip_norm": -1}, "clip_norm -1 is not positive"),
        ],
    )
    def test_settings_out_of_range(self, change, message):
        with pytest.raises(ValueError, match=message):
            FitSettings(**({"steps": 1} | change))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda x, y: (x[:20], y), "the training data has 20 images and 60 labels"),
            (lambda x, y: (x, y + 1), r"label 3 of the training data is out of range; .* 0 \.\. 2"),
            (lambda x, y: (x, -y), "label -[12] of the training data is out of range"),
        ],
        ids=["images", "too large", "negative"],
    )
    def test_data_that_does_not_fit(self, tiny_task, tiny_data, change, message):
        with pytest.raises(ValueError, match=message):
            fit(KEYS, tiny_task, *change(*tiny_data), settings=SETTINGS)

    def test_regularization_outside_its_bound(self, tiny_task, tiny_data):
        target = scope_jit(init(tiny_task, KEYS[0])[0])
        with pytest.raises(ValueError, match=r"unstable in layer Dense_1/kernel: .* 1e\+06"):
            fit(KEYS, tiny_task, *tiny_data, settings=SETTINGS, target=target, strength=1e6)

    def test_a_target_of_several_models(self, tiny_task, tiny_data):
        target = scope_jit(init(tiny_task, KEYS[0])[0])
        several = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), target)
        with pytest.raises(ValueError, match=r"the target has mean of shape \(2, 2\)"):
            fit(KEYS, tiny_task, *tiny_data, settings=SETTINGS, target=several, strength=1e-3)

    def test_a_layer_that_starts_constant(self, tiny_task, tiny_data):
        params, _ = init(tiny_task, jax.random.key(0))
        params["Dense_0"]["bias"] = jnp.zeros_like(params["Dense_0"]["bias"])
        scope = scope_jit(params, select=all_leaves)
        settings = FitSettings(steps=2, select=all_leaves)
        for target, of in (
            (scope, "the target"),
            (constant_target(scope, std=0.5), "the initial model"),
        ):
            with pytest.raises(ValueError, match=f"^Dense_0/bias of {of} is constant .*without"):
                fit(
                    jax.random.key(0), tiny_task, *tiny_data, settings=settings, params=params,
                    target=target, strength=1e-3,
                )  # fmt: skip

    def test_a_target_that_is_itself_outside_the_bound(self, tiny_task, tiny_data):
        scope = scope_jit(init(tiny_task, KEYS[0])[0])
        narrow = constant_target(scope, mean=0.0, std=0.01)
        settings = {"learning_rate": 0.1, "strength": 0.3}
        at_start, at_target = (stability(x, narrow, **settings).max() for x in (scope, narrow))
        assert at_start < 1 < at_target
        with pytest.raises(ValueError, match="unstable in layer Dense_1/kernel"):
            fit(KEYS[0], tiny_task, *tiny_data, settings=SETTINGS, target=narrow, **settings)

    def test_models_without_their_statistics(self, normed_task, tiny_data):
        params, _ = init(normed_task, KEYS[0])
        with pytest.raises(ValueError, match="params are given and model_state is not"):
            fit(KEYS[0], normed_task, *tiny_data, settings=SETTINGS, params=params)

    def test_negative_strength(self, tiny_task, tiny_data):
        with pytest.raises(ValueError, match=r"strength -1.0 is not"):
            fit(KEYS[0], tiny_task, *tiny_data, settings=SETTINGS, strength=-1.0)


class TestEvaluate:
    @pytest.mark.parametrize("batch_size", [7, 60, 500])
    def test_equals_unpadded_numpy(self, tiny_task, tiny_data, tiny_info, batch_size):
        params, _ = init(tiny_task, KEYS[0])
        sums = evaluate(tiny_task, params, {}, *tiny_data, batch_size=batch_size)
        losses, correct = cross_entropy(params, *tiny_data, tiny_info)
        np.testing.assert_allclose(sums.loss, losses.sum(), rtol=1e-5)
        assert (sums.correct, sums.count) == (correct.sum(), 60)

    def test_no_examples_count_0(self, tiny_task, tiny_data):
        params, _ = init(tiny_task, KEYS[0])
        sums = evaluate(tiny_task, params, {}, *(part[:0] for part in tiny_data))
        assert (sums.loss, sums.correct, sums.count) == (0, 0, 0)


class TestClassification:
    def test_equal_arguments_give_the_same_task(self, tiny_info):
        assert classification(Normed(), tiny_info) is classification(Normed(), tiny_info)

    def test_loss_is_the_mean_over_the_mask(self, tiny_task, tiny_data, tiny_info):
        params, state = init(tiny_task, KEYS[0])
        mask = np.array([1, 0, 1, 1, 0], np.float32)
        loss, _ = loss_of(tiny_task, KEYS[0], params, state, batch_of(tiny_data, slice(5), mask))
        losses, _ = cross_entropy(params, *(part[:5] for part in tiny_data), tiny_info)
        np.testing.assert_allclose(loss, losses[mask == 1].mean(), rtol=1e-5)

    def test_half_precision_parameters_compute_in_half_precision(self, tiny_task, tiny_data):
        params, _ = init(tiny_task, jax.random.key(0))
        half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
        batch = Batch(*map(jnp.asarray, tiny_data), jnp.ones(60))
        logits = jax.eval_shape(tiny_task.logits, half, {}, batch.inputs)
        assert logits.dtype == jnp.bfloat16
        loss, _ = loss_of(tiny_task, jax.random.key(0), half, {}, batch)
        assert loss.dtype == jnp.float32
        whole, _ = loss_of(tiny_task, jax.random.key(0), params, {}, batch)
        np.testing.assert_allclose(loss, whole, rtol=2e-2)

    def test_an_empty_batch_has_loss_and_gradient_0(self, tiny_task, tiny_data):
        params, state = init(tiny_task, KEYS[0])
        batch = batch_of(tiny_data, slice(5), np.zeros(5, np.float32))
        both = jax.jit(jax.value_and_grad(tiny_task.loss, argnums=1, has_aux=True))
        (loss, _), grads = both(KEYS[0], params, state, batch)
        assert loss == 0
        assert not flat(grads).any()

    def test_statistics_move_in_training_only(self, normed_task, tiny_data):
        params, state = init(normed_task, KEYS[0])
        batch = batch_of(tiny_data, slice(20))
        before = jax.tree.map(np.asarray, state)
        _, after = loss_of(normed_task, KEYS[0], params, state, batch)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        assert not np.array_equal(
            *(s["batch_stats"]["BatchNorm_0"]["mean"] for s in (state, after))
        )
        first = metrics_of(normed_task, params, state, batch)
        assert metrics_of(normed_task, params, state, batch) == first
        jax.tree.map(np.testing.assert_array_equal, state, before)
        assert metrics_of(normed_task, params, after, batch).loss != first.loss

    def test_dropout_follows_the_key(self, normed_task, tiny_data):
        params, state = init(normed_task, KEYS[0])
        batch = batch_of(tiny_data, slice(20))
        keys = (KEYS[0], KEYS[0], KEYS[1])
        losses = [loss_of(normed_task, key, params, state, batch)[0] for key in keys]
        assert losses[0] == losses[1] != losses[2]

    def test_fit_carries_the_statistics(self, normed_task, tiny_data):
        result = fit(KEYS[0], normed_task, *tiny_data, settings=SETTINGS)
        assert np.abs(result.model_state["batch_stats"]["BatchNorm_0"]["mean"]).max() > 0
        assert np.isfinite(result.loss).all()
