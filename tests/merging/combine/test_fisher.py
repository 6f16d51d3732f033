"""Fisher-weighted averaging against logistic regression in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsa_jax.merging.combine.examples import labelled_examples
from wsa_jax.merging.combine.fisher import diagonal_fisher, fisher_merge, task_log_likelihood
from wsa_jax.training import evaluate

RNG = np.random.default_rng(0)
X = RNG.normal(size=(11, 3))
Y = RNG.integers(0, 2, 11)
W = RNG.normal(size=3)


def log_likelihood(params, model_state, example):
    """Logistic regression of labels 0 and 1, written for one example."""
    x, y = example
    logit = x[0] @ params["w"] + params["b"]
    return y[0] * logit - jax.nn.softplus(logit)


@pytest.fixture(scope="module")
def fisher():
    params = {"w": jnp.asarray(W, jnp.float32), "b": jnp.array(0.5), "count": jnp.array(4)}
    examples = (jnp.asarray(X, jnp.float32), jnp.asarray(Y))
    # Batches of 4 do not divide 11 examples.
    return [diagonal_fisher(log_likelihood, params, examples, batch_size=n) for n in (1, 4)]


def test_equals_the_closed_form_of_logistic_regression(fisher):
    residual = Y - 1 / (1 + np.exp(-(X @ W + 0.5)))
    for found in fisher:
        np.testing.assert_allclose(found["w"], np.mean((residual[:, None] * X) ** 2, 0), rtol=1e-5)
        np.testing.assert_allclose(found["b"], np.mean(residual**2), rtol=1e-5)
        assert int(found["count"]) == 4


def test_a_tasks_likelihood_is_that_of_its_metrics(tiny_task, tiny_data):
    images, labels = tiny_data
    params, state = tiny_task.init(jax.random.key(0))
    function = task_log_likelihood(tiny_task)
    assert function is task_log_likelihood(tiny_task)
    examples = labelled_examples(images[:6], labels[:6], num_classes=3)
    total = sum(
        function(params, state, jax.tree.map(lambda x, i=i: x[i : i + 1], examples))
        for i in range(6)
    )
    expected = evaluate(tiny_task, params, state, images[:6], labels[:6]).loss
    np.testing.assert_allclose(total, -expected, rtol=1e-5)
    fisher = diagonal_fisher(function, params, examples, model_state=state, batch_size=3)
    assert jax.tree.structure(fisher) == jax.tree.structure(params)
    # A unit's bias of the last layer: the mean square of (softmax - one-hot), at most 1.
    bias = np.asarray(fisher["Dense_1"]["bias"])
    assert np.all((bias > 0) & (bias < 1))


def test_merges_by_precision_with_weights_and_floor():
    values, fishers = RNG.normal(size=(3, 4)), RNG.uniform(0, 2, (3, 4))
    fishers[:, 3] = 0.0
    models = [{"w": jnp.asarray(v, jnp.float32), "n": jnp.array(i)} for i, v in enumerate(values)]
    information = [{"w": jnp.asarray(f, jnp.float32), "n": jnp.array(0)} for f in fishers]
    weights = np.array([1.0, 0.5, 2.0])
    precision = weights[:, None] * np.maximum(fishers, 0.25)
    expected = (precision * values).sum(0) / precision.sum(0)
    result = fisher_merge(models, information, weights=weights, floor=0.25)
    np.testing.assert_allclose(result.params["w"], expected, rtol=1e-5)
    np.testing.assert_allclose(
        result.params["w"][3], np.average(values[:, 3], weights=weights), rtol=1e-5
    )
    assert int(result.params["n"]) == 0
    np.testing.assert_allclose(result.info["shares"]["w"].sum(0), 1, rtol=1e-6)
    same = fisher_merge([models[0]] * 3, information)
    np.testing.assert_array_equal(same.params["w"], models[0]["w"])


def test_merge_of_gaussian_posteriors_is_exact():
    """Quadratic likelihoods: the merge by true precisions is the optimum of their sum."""
    curvature, centre = RNG.uniform(0.5, 3, (2, 5)), RNG.normal(size=(2, 5))
    optimum = (curvature * centre).sum(0) / curvature.sum(0)
    result = fisher_merge(
        [{"w": jnp.asarray(c, jnp.float32)} for c in centre],
        [{"w": jnp.asarray(f, jnp.float32)} for f in curvature],
    )
    np.testing.assert_allclose(result.params["w"], optimum, rtol=1e-5)


def test_errors():
    model = {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match="2 models and 1 fishers"):
        fisher_merge([model] * 2, [model])
    with pytest.raises(ValueError, match=r"leaf w has shape \(2,\) in the first model and \(3,\)"):
        fisher_merge([model], [{"w": jnp.ones(3)}])
    with pytest.raises(ValueError, match=r"weights of shape \(3,\) for 1 models"):
        fisher_merge([model], [model], weights=[1.0, 1.0, 1.0])
    for weights in ([-1.0, 2.0], [0.0, 0.0]):
        with pytest.raises(ValueError, match="are not shares; give finite numbers >= 0"):
            fisher_merge([model] * 2, [model] * 2, weights=weights)
    with pytest.raises(ValueError, match=r"floor 0.0 is not positive"):
        fisher_merge([model], [model], floor=0.0)
    with pytest.raises(ValueError, match="leaf w of fisher 2 holds 1 NaN"):
        fisher_merge([model] * 2, [model, {"w": jnp.array([1.0, jnp.nan])}], weights=[1.0, 0.0])
    with pytest.raises(ValueError, match="leaf w of fisher 2 holds -0.5; Fisher information is a"):
        fisher_merge([model] * 2, [model, {"w": jnp.array([1.0, -0.5])}])
    # Under a trace no value is looked at, and a model of weight 0 is left out all the same.
    merged = jax.jit(
        lambda fishers, weights: fisher_merge([model] * 2, fishers, weights=weights).params
    )([model, {"w": jnp.array([1.0, jnp.nan])}], jnp.array([1.0, 0.0]))
    np.testing.assert_array_equal(merged["w"], model["w"])
    with pytest.raises(ValueError, match="examples hold no samples"):
        diagonal_fisher(log_likelihood, model, jnp.ones((0, 2)))
