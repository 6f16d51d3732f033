"""BatchNorm statistics over calibration data, against float64 NumPy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.trees import assert_close
from wsa_jax.merging.repair import reset_batch_norm, running_statistics
from wsa_jax.training import Task
from wsa_jax.tree import stack


def float64(params):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


def oracle(params, images, info, sizes):
    """Pooled moments of both BatchNorms' inputs, the second behind batch-wise normalisation."""
    params = float64(params)
    x = (images / info.scale - info.mean[0]) / info.std[0]
    kernel, bias = params["Conv_0"]["kernel"], params["Conv_0"]["bias"]
    patches = np.stack(
        [x[:, i : i + 2, j : j + 2].reshape(len(x), -1) for i in range(2) for j in range(2)], 1
    )
    first = patches @ kernel.reshape(-1, 2) + bias
    second = []
    for part in np.split(first, np.cumsum(sizes)[:-1]):
        moments = part.mean((0, 1)), part.var((0, 1))
        scaled = (part - moments[0]) / np.sqrt(moments[1] + 1e-5)
        norm = params["BatchNorm_0"]
        hidden = np.maximum(scaled * norm["scale"] + norm["bias"], 0).reshape(len(part), -1)
        second.append(hidden @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"])
    second = np.concatenate(second)
    return {
        "BatchNorm_0": {"mean": first.mean((0, 1)), "var": first.var((0, 1))},
        "BatchNorm_1": {"mean": second.mean(0), "var": second.var(0)},
    }


# Of 60 images: 60 in one batch; 30 + 30; batches of at most 9 are four of 9 and three of 8.
@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(500, [60]), (30, [30, 30]), (9, [9] * 4 + [8] * 3)]
)
def test_equals_pooled_moments(normed_task, normed_models, tiny_data, tiny_info, batch_size, sizes):
    params, _, state = normed_models
    reset = reset_batch_norm(normed_task, params, state, tiny_data[0], batch_size=batch_size)
    expected = oracle(params, tiny_data[0], tiny_info, sizes)
    assert_close(reset["batch_stats"], expected, rtol=2e-6, atol=2e-6)


def test_maps_over_a_stack(normed_task, normed_models, tiny_data, tiny_info):
    first, second, state = normed_models
    images = jnp.asarray(tiny_data[0])
    reset = jax.vmap(lambda p, s: reset_batch_norm(normed_task, p, s, images))(
        stack([first, second]), stack([state, state])
    )
    expected = [oracle(params, tiny_data[0], tiny_info, [60]) for params in (first, second)]
    jax.tree.map(
        lambda got, *want: np.testing.assert_allclose(got, np.stack(want), rtol=2e-6, atol=2e-6),
        reset["batch_stats"], *expected,
    )  # fmt: skip


def mean_step(momentum):
    """One BatchNorm in plain NumPy style, and leaves that are no statistics."""

    def step(params, state, images):
        batch = {"mean": images.mean(0), "var": images.var(0)}
        new = {k: momentum * state[k] + (1 - momentum) * batch[k] for k in batch}
        return new | {"count": state["count"] + 1, "spectral": state["spectral"] * 2}

    return step


STATE = {
    "mean": jnp.full(2, 5.0, jnp.bfloat16),
    "var": jnp.full(2, 5.0),
    "count": jnp.int32(7),
    "spectral": jnp.ones(2),
}


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.997, 0.9999])
def test_any_step_and_momentum(momentum):
    # A mean a hundred times the spread: pooled squares would lose the variance.
    images = np.random.default_rng(0).normal(100.0, 1.0, (41, 2)).astype(np.float32)
    reset = reset_batch_norm(mean_step(momentum), {}, STATE, images, batch_size=10)
    exact = images.astype(np.float64)
    np.testing.assert_allclose(reset["var"], exact.var(0), rtol=1e-5)
    assert reset["mean"].dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(reset["mean"]), exact.mean(0), rtol=2**-8)
    assert int(reset["count"]) == 7
    np.testing.assert_array_equal(reset["spectral"], STATE["spectral"])


def test_nnx_which_stops_gradients():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(3, 4, rngs=rngs)
            self.norm = nnx.BatchNorm(4, momentum=0.99, rngs=rngs)

        def __call__(self, x):
            return self.norm(self.dense(x))

    graph, params, state = nnx.split(Net(nnx.Rngs(0)), nnx.Param, ...)

    def step(params, state, images):
        net = nnx.merge(graph, params, state)
        net.train()
        net(images)
        return nnx.split(net, nnx.Param, ...)[2]

    images = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)
    reset = nnx.merge(graph, params, reset_batch_norm(step, params, state, images, batch_size=4))
    kernel = np.asarray(reset.dense.kernel[...], np.float64)
    np.testing.assert_allclose(reset.norm.mean[...], (images @ kernel).mean(0), atol=2e-6)
    np.testing.assert_allclose(reset.norm.var[...], (images @ kernel).var(0), rtol=2e-5)


def test_frozen_statistics_stay():
    images = np.ones((6, 2), np.float32)
    reset = reset_batch_norm(mean_step(1.0), {}, STATE, images, batch_size=4)
    np.testing.assert_array_equal(reset["var"], STATE["var"])


def test_layers_behind_a_frozen_one_see_what_it_gives():
    def step(params, state, images):
        hidden = (images - state["a"]["mean"]) / jnp.sqrt(state["a"]["var"])
        norm = {
            "mean": 0.9 * state["b"]["mean"] + 0.1 * jax.lax.stop_gradient(hidden.mean(0)),
            "var": state["b"]["var"] + 0.1 * (hidden.var(0) - state["b"]["var"]),
        }
        return {"a": state["a"], "b": norm}

    moments = {"mean": jnp.float32(2.0), "var": jnp.float32(4.0)}
    images = np.random.default_rng(0).normal(size=9).astype(np.float32)
    reset = reset_batch_norm(step, {}, {"a": moments, "b": moments}, images, batch_size=3)
    hidden = (images - 2) / 2
    assert reset["a"] == moments
    np.testing.assert_allclose(reset["b"]["mean"], hidden.mean(), rtol=1e-6)
    np.testing.assert_allclose(reset["b"]["var"], hidden.var(), rtol=1e-6)


def test_model_without_statistics(tiny_task, tiny_data):
    state = {"cache": {"index": jnp.int32(1), "mean": jnp.int32(3)}}
    assert reset_batch_norm(tiny_task, {}, state, tiny_data[0]) is state


class TestErrors:
    def test_no_images(self, tiny_task, tiny_data):
        with pytest.raises(ValueError, match="no calibration images"):
            reset_batch_norm(tiny_task, {}, {}, tiny_data[0][:0])

    def test_batch_size(self, tiny_task, tiny_data):
        with pytest.raises(ValueError, match="batch_size 0 is below 1"):
            reset_batch_norm(tiny_task, {}, {}, tiny_data[0], batch_size=0)

    def test_variance_without_mean(self):
        state = {"norm": {"var": jnp.ones(2)}}
        with pytest.raises(ValueError, match="variance norm/var has no norm/mean beside it"):
            reset_batch_norm(lambda p, s, x: s, {}, state, jnp.ones((2, 2)))

    def test_other_structure(self):
        with pytest.raises(ValueError, match="must have the same structure"):
            reset_batch_norm(lambda p, s, x: {}, {}, STATE, jnp.ones((2, 2)))


def test_default_rule():
    assert running_statistics("bn/running_var", jnp.ones(1))
    assert not running_statistics("bn/variant", jnp.ones(1))


IMAGES = np.random.default_rng(1).normal(2.0, 3.0, (120, 3)).astype(np.float32)


def average_step(names, momentum, dtype=jnp.float32):
    """A BatchNorm that keeps its statistics under any names, in any dtype."""

    def step(params, state, images):
        moments = dict(zip(names, (images.mean(0), images.var(0)), strict=True))
        share, rest = jnp.asarray(momentum, dtype), jnp.asarray(1 - momentum, dtype)
        return {
            k: share * state[k].astype(dtype) + rest * m.astype(dtype) for k, m in moments.items()
        }

    return step


class TestOtherModuleSystems:
    @pytest.mark.parametrize(
        "names",
        [
            ("moving_mean", "moving_variance"),
            ("bn1.running_mean", "bn1.running_var"),
            ("layer/running_mean", "layer/running_variance"),
        ],
    )
    def test_names_of_keras_and_pytorch(self, names):
        state = dict(zip(names, (jnp.zeros(3), jnp.ones(3)), strict=True))
        reset = reset_batch_norm(average_step(names, 0.99), {}, state, IMAGES, batch_size=50)
        np.testing.assert_allclose(reset[names[0]], IMAGES.mean(0), rtol=1e-5)
        np.testing.assert_allclose(reset[names[1]], IMAGES.var(0), rtol=1e-5)

    @pytest.mark.parametrize("batches", [0, 3])
    def test_haiku_whose_averages_are_debiased(self, batches):
        hk = pytest.importorskip("haiku")
        network = hk.transform_with_state(
            lambda x, training: hk.BatchNorm(True, True, 0.9)(hk.Linear(4)(x), is_training=training)
        )
        params, state = network.init(jax.random.key(0), IMAGES[:2], True)

        def step(params, state, images):
            return network.apply(params, state, None, images, True)[1]

        for _ in range(batches):
            state = step(params, state, 2 * IMAGES + 1)
        reset = reset_batch_norm(step, params, state, IMAGES, batch_size=50)
        kernel, bias = (np.asarray(params["linear"][k], np.float64) for k in ("w", "b"))
        hidden = IMAGES @ kernel + bias
        expected = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5)
        found, _ = network.apply(params, reset, None, IMAGES, False)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
        # The next step in training mode moves the statistics by the batch's share and no more.
        again = step(params, reset, IMAGES)["batch_norm/~/mean_ema"]["average"][0]
        np.testing.assert_allclose(again, hidden.mean(0), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("mode", ["ema", "batch"])
    @pytest.mark.parametrize("batches", [0, 2])
    def test_equinox(self, mode, batches):
        class Net(eqx.Module):
            first: eqx.nn.BatchNorm
            linear: eqx.nn.Linear
            second: eqx.nn.BatchNorm

            def __init__(self):
                self.first = eqx.nn.BatchNorm(3, "batch", momentum=0.9, mode=mode)
                self.linear = eqx.nn.Linear(3, 4, key=jax.random.key(0))
                self.second = eqx.nn.BatchNorm(4, "batch", momentum=0.99, mode=mode)

            def __call__(self, x, state):
                x, state = self.first(x, state)
                return self.second(self.linear(x), state)

        net, state = eqx.nn.make_with_state(Net)()
        params, rest = eqx.partition(net, eqx.is_inexact_array)

        def call(net, images, state):
            run = jax.vmap(net, (0, None), (0, None), axis_name="batch")
            return run(images, state)

        def step(params, state, images):
            return call(eqx.combine(params, rest), images, state)[1]

        for _ in range(batches):
            state = step(params, state, 2 * IMAGES + 1)
        reset = reset_batch_norm(step, params, state, IMAGES, batch_size=500)
        first = (IMAGES - IMAGES.mean(0)) / np.sqrt(IMAGES.var(0) + 1e-5)
        hidden = first @ np.asarray(net.linear.weight).T + np.asarray(net.linear.bias)
        expected = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5)
        found, _ = call(eqx.nn.inference_mode(net), IMAGES, reset)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)

    def test_a_stack_of_equinox_states(self):
        norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, "batch", mode="batch")
        call = jax.vmap(norm, (0, None), (0, None), axis_name="batch")

        def reset(state, images):
            return reset_batch_norm(lambda _, s, x: call(x, s)[1], {}, state, images)

        both = jax.vmap(reset)(stack([state, state]), jnp.stack([IMAGES, 2 * IMAGES]))
        single = [reset(clone(state), images) for images in (IMAGES, 2 * IMAGES)]
        for stacked, *each in zip(*map(jax.tree.leaves, (both, *single)), strict=True):
            np.testing.assert_allclose(stacked, np.stack(each), rtol=1e-5, atol=1e-6)


def clone(state):
    """Equinox states are used once."""
    leaves, structure = jax.tree.flatten(state)
    return jax.tree.unflatten(structure, leaves)


class TestHalfPrecision:
    @pytest.mark.parametrize(
        ("dtype", "momentum"),
        [(jnp.float16, 0.9), (jnp.float16, 0.99), (jnp.bfloat16, 0.5), (jnp.bfloat16, 0.9)],
    )
    def test_a_step_that_keeps_half_precision(self, dtype, momentum):
        state = {"mean": jnp.zeros(3, dtype), "var": jnp.ones(3, dtype)}
        step = average_step(("mean", "var"), momentum, dtype)
        reset = reset_batch_norm(step, {}, state, IMAGES, batch_size=40)
        rtol = 6 * float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(np.float32(reset["mean"]), IMAGES.mean(0), rtol=rtol)
        np.testing.assert_allclose(np.float32(reset["var"]), IMAGES.var(0), rtol=rtol)

    @pytest.mark.parametrize(
        ("dtype", "momentum"), [(jnp.float16, 0.999), (jnp.bfloat16, 0.99), (jnp.bfloat16, 0.9999)]
    )
    def test_a_momentum_that_the_dtype_cannot_tell_is_refused(self, dtype, momentum):
        state = {"norm_mean": jnp.zeros(3), "mean": jnp.zeros(3), "var": jnp.ones(3)}
        step = average_step(("mean", "var"), momentum, dtype)
        with pytest.raises(ValueError, match=r"statistic mean .*float32"):
            reset_batch_norm(lambda p, s, x: s | step(p, s, x), {}, state, IMAGES, batch_size=40)

    def test_an_overflow_inside_the_step_is_refused(self):
        def step(params, state, images):
            half = {k: v.astype(jnp.float16) for k, v in state.items()}
            batch = {"mean": images.mean(0), "var": images.var(0)}
            return {k: 0.9 * half[k].astype(jnp.float32) + 0.1 * batch[k] for k in batch}

        state = {"mean": jnp.zeros(3), "var": jnp.ones(3)}
        with pytest.raises(ValueError, match="statistic mean is not finite after a step"):
            reset_batch_norm(step, {}, state, IMAGES)


class TestUnknownStatistics:
    STATE = {"m": jnp.zeros(3), "v": jnp.ones(3)}

    def test_unknown_names_are_refused_and_a_rule_finds_them(self):
        step = average_step(("m", "v"), 0.9)
        with pytest.raises(ValueError, match="leaf m of model_state moves in a training step, and"):
            reset_batch_norm(step, {}, self.STATE, IMAGES)
        with pytest.raises(ValueError, match="leaf m of model_state moves"):
            jax.vmap(lambda p: reset_batch_norm(step, p, self.STATE, IMAGES))(jnp.ones(2))
        kept = reset_batch_norm(step, {}, self.STATE, IMAGES, select=lambda name, leaf: False)
        assert kept is self.STATE
        state = {"mean_1": jnp.zeros(3), "var_1": jnp.ones(3)}
        step = average_step(("mean_1", "var_1"), 0.9)
        reset = reset_batch_norm(step, {}, state, IMAGES, select=lambda name, leaf: True)
        np.testing.assert_allclose(reset["var_1"], IMAGES.var(0), rtol=1e-5)

    def test_what_is_left_beside_known_ones_is_named(self):
        own, other = average_step(("mean", "var"), 0.9), average_step(("m", "v"), 0.9)
        state = {"mean": jnp.zeros(3), "var": jnp.ones(3)} | self.STATE

        def step(params, state, images):
            return own(params, state, images) | other(params, state, images)

        with pytest.warns(UserWarning, match="leaf m of model_state moves .* left as it is"):
            reset = reset_batch_norm(step, {}, state, IMAGES)
        np.testing.assert_allclose(reset["mean"], IMAGES.mean(0), rtol=1e-5)
        np.testing.assert_array_equal(reset["m"], 0)

    def test_what_moves_otherwise_is_named_where_nothing_is_known(self):
        def step(params, state, images):
            return {"u": state["u"] / jnp.linalg.norm(state["u"])}

        with pytest.warns(UserWarning, match="leaf u of model_state moves"):
            reset = reset_batch_norm(step, {}, {"u": jnp.ones(3)}, IMAGES)
        np.testing.assert_array_equal(reset["u"], 1)

    def test_what_is_no_average_is_refused(self):
        def step(params, state, images):
            return {"mean": 2 * state["mean"]}

        with pytest.raises(ValueError, match="statistic mean is no running average"):
            reset_batch_norm(step, {}, {"mean": jnp.ones(3)}, IMAGES)


def test_inputs_in_a_pytree_and_labels_of_a_tasks_own_shape():
    def init(key):
        return {"w": jnp.ones(())}, {"mean": jnp.zeros(3), "var": jnp.ones(3)}

    def loss(key, params, state, batch):
        x = params["w"] * (batch.inputs["a"] + batch.inputs["b"])
        state = average_step(("mean", "var"), 0.9)(params, state, x)
        return jnp.mean((x @ jnp.ones((3, 2)) - batch.labels) ** 2), state

    task = Task(init, loss, lambda params, state, batch: None)
    params, state = task.init(jax.random.key(0))
    inputs = {"a": IMAGES, "b": 2 * IMAGES}
    reset = reset_batch_norm(task, params, state, inputs, labels=np.zeros((120, 2)), batch_size=50)
    np.testing.assert_allclose(reset["mean"], 3 * IMAGES.mean(0), rtol=1e-5)
    with pytest.raises(ValueError, match="calibration data has 120 rows of a and 7 labels"):
        reset_batch_norm(task, params, state, inputs, labels=np.zeros((7, 2)))
