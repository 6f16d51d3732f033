"""BatchNorm statistics over calibration data, against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.trees import assert_close
from wsa_jax.merging.repair.batch_norm import reset_batch_norm, running_statistics
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
