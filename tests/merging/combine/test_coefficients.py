"""Coefficients of NP Merge: exact ends, closed forms of mixtures and penalties."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.trees import assert_bitwise, assert_close
from wsa_jax.merging.combine.coefficients import (
    coefficient_shapes,
    distance_penalty,
    entropy_penalty,
    interpolate,
    log_shares,
    mixture,
)

ENDS = {"w": jnp.array([0.1, -3e7, 5e-9, 7.0])}, {"w": jnp.array([1e8, 2.3, -1e3, 7.0])}


def test_infinite_logits_give_the_ends_bitwise():
    first, second = ENDS
    assert_bitwise(interpolate({"w": jnp.full(4, jnp.inf)}, ENDS), first)
    assert_bitwise(interpolate({"w": jnp.full(4, -jnp.inf)}, ENDS), second)


def test_equals_the_formula_in_float64():
    logits = np.linspace(-4, 4, 4)
    a, b = (np.asarray(model["w"], np.float64) for model in ENDS)
    expected = b + (a - b) / (1 + np.exp(-logits))
    mixed = interpolate({"w": jnp.asarray(logits, jnp.float32)}, ENDS)["w"]
    np.testing.assert_allclose(mixed, expected, rtol=1e-5)


def test_gradient_equals_the_closed_form_and_is_zero_where_models_agree():
    a, b = (np.asarray(model["w"], np.float64) for model in ENDS)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(interpolate({"w": x}, ENDS)["w"])))
    for logit in (0.0, -1.5, 2.0):
        share = 1 / (1 + np.exp(-logit))
        found = np.asarray(gradient(jnp.full(4, logit)))
        np.testing.assert_allclose(found, (a - b) * share * (1 - share), rtol=1e-5)
        assert found[3] == 0


def test_mixture_is_exact_at_each_model_and_agrees_with_the_pair():
    models = (*ENDS, {"w": jnp.array([3.3, 4.4, 5.5, 7.0])})
    for m in range(3):
        logits = jnp.full((3, 4), -jnp.inf).at[m].set(0.0)
        assert_bitwise(mixture({"w": logits}, models), models[m])
    logits = jnp.linspace(-3, 3, 4)
    pair = mixture({"w": jnp.stack([logits, jnp.zeros(4)])}, ENDS)
    assert_close(pair, interpolate({"w": logits}, ENDS))
    random = jax.random.normal(jax.random.key(7), (3, 4))
    total, gradient = jax.value_and_grad(lambda x: jnp.sum(mixture({"w": x}, models)["w"]))(random)
    shares = np.exp(np.asarray(random, np.float64))
    shares /= shares.sum(0)
    expected = sum(p * np.asarray(m["w"], np.float64) for p, m in zip(shares, models, strict=True))
    np.testing.assert_allclose(total, expected.sum(), rtol=1e-5)
    assert np.all(np.asarray(gradient)[:, 3] == 0)


def test_keeps_dtypes_and_other_leaves_of_the_first():
    first = {"w": jnp.array([1.5], jnp.bfloat16), "count": jnp.array(3)}
    second = {"w": jnp.array([2.5], jnp.bfloat16), "count": jnp.array(5)}
    mixed = interpolate({"all": jnp.array(0.0)}, (first, second))
    assert mixed["w"].dtype == jnp.bfloat16
    assert (float(mixed["w"][0]), int(mixed["count"])) == (2.0, 3)


def test_shapes_of_each_granularity():
    params = {"kernel": jnp.ones((3, 3, 2, 5)), "scale": jnp.ones(())}
    assert coefficient_shapes(params, "parameter") == {"kernel": (3, 3, 2, 5), "scale": ()}
    assert coefficient_shapes(params, "channel") == {"kernel": (1, 1, 1, 5), "scale": ()}


def test_penalties_equal_closed_forms_and_are_finite_at_the_ends():
    share = np.array([0.2, 0.5, 0.9])
    logits = {"w": jnp.asarray(np.log(share / (1 - share)), jnp.float32)}
    logs = log_shares(logits, joint=False)
    center = {"w": jnp.array([0.5, 0.5]).reshape(2, 1)}
    expected = np.mean((2 * share - 1) ** 2)
    np.testing.assert_allclose(distance_penalty(logs, center), expected, rtol=1e-5)
    entropy = -np.mean(share * np.log(share) + (1 - share) * np.log(1 - share))
    np.testing.assert_allclose(entropy_penalty(logs), entropy, rtol=1e-5)

    def penalty(x):
        logs = log_shares({"w": x}, joint=x.ndim == 2)
        return entropy_penalty(logs) + distance_penalty(logs, center)

    ends = jnp.array([jnp.inf, -jnp.inf])
    for x in (ends, jnp.array([[0.0, -jnp.inf], [-jnp.inf, 0.0]])):
        assert np.all(np.isfinite(jax.jit(jax.grad(penalty))(x)))
