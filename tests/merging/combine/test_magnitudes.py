"""Merges of two models in every dtype and at every magnitude, against float64 NumPy."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsa_jax.merging import average, fisher_merge, slerp

DTYPES = ("bfloat16", "float16", "float32", "float64")
# Below the least normal number, XLA on the CPU has 0.
LEAST = {"float16": 1e-6}
MOST = {"float16": 3e4}


# One compilation for each dtype.
SLERP = jax.jit(slerp)


def precision(dtype):
    return jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()


@st.composite
def pairs(draw):
    """A dtype, the magnitudes of two models, and a seed for their numbers."""
    dtype = draw(st.sampled_from(DTYPES))
    sizes = [
        min(max(10.0 ** draw(st.floats(-37, 38)), LEAST.get(dtype, 3e-37)), MOST.get(dtype, 1e38))
        for _ in range(2)
    ]
    return dtype, sizes, draw(st.integers(0, 2**31))


def drawn(dtype, sizes, seed):
    rng = np.random.default_rng(seed)
    values = [size * rng.choice([-1, 1], 9) * rng.uniform(0.3, 1, 9) for size in sizes]
    models = [{"w": jnp.asarray(value, dtype)} for value in values]
    return models, [np.asarray(model["w"], np.float64) for model in models], rng


def check(found, expected, dtype, scale):
    assert found.dtype == dtype
    tolerance = 8 * float(jnp.finfo(dtype).eps) * scale + (6e-8 if dtype == "float16" else 1.2e-38)
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=0, atol=tolerance)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(pairs(), st.floats(-300, 300))
def test_average(case, power):
    dtype, sizes, seed = case
    with precision(dtype):
        models, (first, second), rng = drawn(dtype, sizes, seed)
        shares = rng.uniform(0.1, 1, 2)
        found = average(models, weights=10.0**power * shares)["w"]
        expected = (shares[0] * first + shares[1] * second) / shares.sum()
        check(found, expected, dtype, max(sizes))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(pairs(), st.floats(0, 1))
def test_slerp(case, t):
    dtype, sizes, seed = case
    with precision(dtype):
        models, (first, second), _ = drawn(dtype, sizes, seed)
        found = SLERP(*models, t)["w"]
        units = [w / size / np.linalg.norm(w / size) for w, size in
                 zip((first, second), sizes, strict=True)]  # fmt: skip
        angle = 2 * np.arctan2(np.linalg.norm(units[0] - units[1]), np.linalg.norm(sum(units)))
        left, right = np.sin((1 - t) * angle) / np.sin(angle), np.sin(t * angle) / np.sin(angle)
        check(found, left * first + right * second, dtype, max(sizes) / np.sin(angle))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(pairs(), st.floats(-36, 38))
def test_fisher_merge(case, power):
    dtype, sizes, seed = case
    with precision(dtype):
        models, (first, second), rng = drawn(dtype, sizes, seed)
        information = 10.0**power * rng.uniform(0.1, 1, (2, 9))
        fishers = [{"w": jnp.asarray(one, jnp.float32)} for one in information]
        found = fisher_merge(models, fishers, floor=1e-37).params["w"]
        share = information / (10.0**power)
        expected = (share[0] * first + share[1] * second) / share.sum(0)
        # The information itself is rounded to float32.
        check(found, expected, dtype, max(sizes) * (1 + 1e8 * (dtype == "float64")))


def test_halves_near_the_end_of_their_range_keep_it():
    models = [{"w": jnp.array([60000.0, -60000.0], jnp.float16)}] * 3
    for found in (average(models), slerp(models[0], models[1], 0.5)):
        np.testing.assert_array_equal(found["w"], models[0]["w"])
    with pytest.raises(ValueError, match="leaf w of the models holds 1 NaN or infinite value of 3"):
        average([{"w": jnp.array([jnp.inf], jnp.float16)}, *[{"w": jnp.ones(1, jnp.float16)}] * 2])
