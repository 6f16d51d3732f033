"""REPAIR against its definition in float64 NumPy: means and stds of any number of models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from wsa_jax.merging import NotAdmittedError, repair_closed_form, repair_forward
from wsa_jax.merging.repair.site_moments import sites_of
from wsa_jax.tree import stack, weighted_mean

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(1.0, 2.0, (37, 4, 4, 2)).astype(np.float32)


class Net(nn.Module):
    """A convolution, then a normalised and a plain dense layer."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(3, (2, 2))(x)).reshape(len(x), -1)
        x = nn.relu(nn.LayerNorm()(nn.Dense(6, use_bias=False)(x)))
        x = nn.relu(nn.Dense(5)(x))
        return nn.Dense(2)(x)


NET = Net()
APPLY = NET.apply


def shifted(params, seed):
    """Biases and scales that are not those of the start, else nothing there is to be repaired."""
    draw = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: leaf + draw.normal(0, 0.2, leaf.shape).astype(np.float32), params
    )


@pytest.fixture(scope="module")
def models():
    init = jax.jit(NET.init)
    return [shifted(init(jax.random.key(seed), INPUTS[:1]), seed) for seed in range(3)]


def hidden(variables):
    """What each repaired layer puts out, as ``[samples, units]`` in float64, written by hand."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    x = np.pad(INPUTS.astype(np.float64), ((0, 0), (0, 1), (0, 1), (0, 0)))
    patches = np.stack([x[:, i : i + 4, j : j + 4] for i in (0, 1) for j in (0, 1)], axis=3)
    conv = params["Conv_0"]
    first = np.einsum("nhwkc,kco->nhwo", patches, conv["kernel"].reshape(4, 2, 3)) + conv["bias"]
    x = np.maximum(first, 0).reshape(len(x), -1) @ params["Dense_0"]["kernel"]
    norm = params["LayerNorm_0"]
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
    second = x * norm["scale"] + norm["bias"]
    dense = params["Dense_1"]
    third = np.maximum(second, 0) @ dense["kernel"] + dense["bias"]
    return [first.reshape(-1, 3), second, third]


def mean(models, weights=None):
    weights = np.ones(len(models)) if weights is None else np.asarray(weights)
    return weighted_mean(stack(models), weights)


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5]])
def test_forward_hits_the_mean_of_means_and_of_standard_deviations(models, weights):
    repaired = repair_forward(
        APPLY, mean(models, weights), models, INPUTS, weights=weights, batch_size=10
    )
    share = np.ones(3) / 3 if weights is None else np.array(weights) / sum(weights)
    own = [hidden(model) for model in models]
    for layer, found in enumerate(hidden(repaired)):
        means = np.array([each[layer].mean(0) for each in own])
        stds = np.array([each[layer].std(0) for each in own])
        np.testing.assert_allclose(found.mean(0), share @ means, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(found.std(0), share @ stds, rtol=1e-3, atol=1e-3)


def test_outputs_and_what_has_no_bias_of_its_own_stay(models):
    merged = mean(models)
    repaired = repair_forward(APPLY, merged, stack(models), INPUTS)
    changed = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, old), new in zip(
            jax.tree_util.tree_leaves_with_path(merged), jax.tree.leaves(repaired), strict=True
        )
        if not np.array_equal(old, new)
    }
    assert changed == {
        "params/Conv_0/kernel", "params/Conv_0/bias", "params/LayerNorm_0/scale",
        "params/LayerNorm_0/bias", "params/Dense_1/kernel", "params/Dense_1/bias",
    }  # fmt: skip
    assert [site.name for site in sites_of(APPLY, merged, INPUTS)] == [
        "params/Conv_0", "params/LayerNorm_0", "params/Dense_1"
    ]  # fmt: skip


@pytest.mark.parametrize("repair", [repair_forward, repair_closed_form])
def test_a_model_merged_with_itself_is_itself(models, repair):
    repaired = repair(APPLY, models[0], [models[0]] * 2, INPUTS)
    for old, new in zip(jax.tree.leaves(models[0]), jax.tree.leaves(repaired), strict=True):
        np.testing.assert_allclose(old, new, rtol=2e-4, atol=2e-5)


def test_closed_form_is_the_formula_with_correlations(models):
    repaired = repair_closed_form(APPLY, mean(models), models, INPUTS, batch_size=16)
    own = [hidden(model) for model in models]
    merged, after = (jax.tree.map(np.asarray, v["params"]) for v in (mean(models), repaired))
    for layer, (weight, name) in enumerate(
        [("kernel", "Conv_0"), ("scale", "LayerNorm_0"), ("kernel", "Dense_1")]
    ):
        values = np.array([each[layer] for each in own])
        stds = values.std(1)
        correlation = np.array(
            [[[np.corrcoef(a, b)[0, 1] for a, b in zip(x.T, y.T, strict=True)] for y in values]
             for x in values]
        )  # fmt: skip
        variance = np.einsum("mku,mu,ku->u", correlation, stds, stds) / 9
        factor = stds.mean(0) / np.sqrt(variance)
        average = values.mean((0, 1))
        np.testing.assert_allclose(after[name][weight], merged[name][weight] * factor, rtol=2e-4)
        expected = factor * (merged[name]["bias"] - average) + average
        np.testing.assert_allclose(after[name]["bias"], expected, rtol=1e-3, atol=1e-4)


def test_closed_form_is_exact_in_a_first_layer(models):
    pair, merged = models[:2], mean(models[:2])
    repairs = (repair_forward, repair_closed_form)
    found = [hidden(repair(APPLY, merged, pair, INPUTS))[0] for repair in repairs]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3, atol=1e-3)


def test_dead_units_stay_finite_and_get_the_mean(models):
    def dead(model):
        params = dict(model["params"])
        params["Conv_0"] = jax.tree.map(jnp.zeros_like, params["Conv_0"])
        return {"params": params}

    pair = [dead(models[0]), dead(models[1])]
    for repair in (repair_forward, repair_closed_form):
        repaired = repair(APPLY, mean(pair), pair, INPUTS)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(repaired))
        np.testing.assert_array_equal(repaired["params"]["Conv_0"]["kernel"], 0)


def test_errors(models):
    for repair in (repair_forward, repair_closed_form):
        with pytest.raises(NotAdmittedError, match="too few calibration samples: 1; give"):
            repair(APPLY, models[0], models, INPUTS[:1])
        with pytest.raises(ValueError, match=r"weights of shape \(2,\) for 3 models"):
            repair(APPLY, models[0], models, INPUTS, weights=[1, 1])
        with pytest.raises(ValueError, match="no models that were merged; give at least one"):
            repair(APPLY, models[0], [], INPUTS)

        def linear(params, x):
            return jnp.tanh(x @ params["a"]) @ params["b"]

        bare = {"a": np.ones((3, 4), np.float32), "b": np.ones((4, 2), np.float32)}
        with pytest.raises(NotAdmittedError, match="no hidden layer adds a bias of its own"):
            repair(linear, bare, [bare], np.ones((5, 3), np.float32))
