"""Reductions over trees against float64 NumPy, in every dtype and at every magnitude."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsa_jax.reductions import clip_by_norm, norm, shares, sum_of_squares, weighted_mean

DTYPES = ("bfloat16", "float16", "float32", "float64")
MODES = ("jit", "vmap")
GRADIENT = jax.grad(norm)


@functools.cache
def compiled(fun, mode):
    """One compilation for all examples, which have one shape for each dtype."""
    if mode == "jit":
        return jax.jit(fun)
    many = jax.jit(jax.vmap(fun))
    return lambda *args: jax.tree.map(
        lambda x: x[0], many(*jax.tree.map(lambda x: jnp.asarray(x)[None], args))
    )


def precision(dtype):
    """float64 numbers are only there if JAX is asked for them."""
    return jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()


def least(dtype):
    # Below the least normal float32, numbers are 0 to XLA on the CPU.
    return 1.2e-38 if dtype != "float16" else 6e-8


@st.composite
def trees(draw):
    """A dtype and a tree of numbers around one magnitude, which the dtype can hold."""
    dtype = draw(st.sampled_from(DTYPES))
    top = 60000.0 if dtype == "float16" else 3e38
    magnitude = 10.0 ** draw(st.floats(-38, 38.47))
    magnitude = min(max(magnitude, least(dtype)), top)
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    with precision(dtype):
        leaves = []
        for size in (0, 1, 33):
            values = magnitude * rng.choice([-1, 1], size) * rng.uniform(0.3, 1, size)
            small = np.abs(values) < least(dtype)
            leaves.append(jnp.asarray(np.where(small, 0, values), dtype))
    return dtype, {f"leaf {i}": leaf for i, leaf in enumerate(leaves)}


def exact(tree):
    return np.concatenate([np.asarray(x).astype(np.float64).ravel() for x in tree.values()])


def exact_norm(tree):
    values = exact(tree)
    largest = np.abs(values).max(initial=0)
    return largest * np.linalg.norm(values / largest) if largest else 0.0


def rounding(dtype):
    return 1e-14 if dtype == "float64" else 1e-6


def in_range(value, dtype):
    """What a result of at least float32 holds of an exact one."""
    if dtype == "float64":
        return value
    with np.errstate(over="ignore"):
        return float(np.float32(value)) if value >= 1.2e-38 else 0.0


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(trees())
def test_norm_equals_numpy(mode, case):
    dtype, tree = case
    with precision(dtype):
        found = compiled(norm, mode)(tree)
        assert found.dtype == ("float64" if dtype == "float64" else "float32")
        expected = in_range(exact_norm(tree), dtype)
        np.testing.assert_allclose(float(found), expected, rtol=rounding(dtype), atol=1.2e-38)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(trees())
def test_sum_of_squares_equals_numpy(case):
    dtype, tree = case
    with precision(dtype):
        found, expected = (
            float(compiled(sum_of_squares, "jit")(tree)),
            in_range(exact_norm(tree) ** 2, dtype),
        )
    np.testing.assert_allclose(found, expected, rtol=4 * rounding(dtype), atol=1.2e-38)


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(trees(), st.floats(-10, 4))
def test_clip_equals_numpy(mode, case, power):
    dtype, tree = case
    limit = 10.0**power
    with precision(dtype):
        found = compiled(clip_by_norm, mode)(tree, jnp.asarray(limit))
        length = exact_norm(tree)
        assert all(found[name].dtype == leaf.dtype for name, leaf in tree.items())
        if length <= limit:
            assert all((found[name] == leaf).all() for name, leaf in tree.items())
            return
        eps = float(jnp.finfo(dtype).eps)
        least_kept = float(jnp.finfo(dtype).smallest_subnormal) if dtype == "float16" else 1.2e-38
        np.testing.assert_allclose(
            exact(found), exact(tree) / length * limit, rtol=8 * eps, atol=least_kept
        )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(1.2e-38, 3e38), min_size=3, max_size=3),
    st.booleans(),
    st.sampled_from(["float32", "float64"]),
)
def test_shares_equal_numpy(weights, traced, dtype):
    weights = np.asarray(weights, np.float32)
    with precision(dtype):
        given_weights = jnp.asarray(weights, dtype)
        found = compiled(shares, "jit")(given_weights) if traced else shares(given_weights)
    expected = weights.astype(np.float64) / weights.astype(np.float64).sum()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-37)
    np.testing.assert_allclose(np.sum(np.asarray(found, np.float64)), 1.0, rtol=1e-6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(trees(), st.floats(-37, 37), st.integers(0, 2**31))
def test_weighted_mean_equals_numpy(case, power, seed):
    dtype, tree = case
    rng = np.random.default_rng(seed)
    weights = (10.0**power * rng.uniform(0.1, 1, 3)).astype(np.float32)
    signs = rng.choice([-1.0, 1.0], 3)
    with precision(dtype):
        stacked = {
            name: jnp.stack([leaf * jnp.asarray(s, dtype) for s in signs])
            for name, leaf in tree.items()
        }
        found = compiled(weighted_mean, "jit")(stacked, weights)
        assert all(found[name].dtype == leaf.dtype for name, leaf in tree.items())
        share = weights.astype(np.float64) / weights.astype(np.float64).sum()
        scale = np.abs(exact(tree)).max(initial=0)
        tolerance = 4 * float(jnp.finfo(dtype).eps) * scale + least(dtype)
        np.testing.assert_allclose(
            exact(found), exact(tree) * np.sum(share * signs), rtol=0, atol=tolerance
        )


def test_float64_loses_no_digit_to_the_weights():
    with jax.enable_x64(True):
        models = {"w": jnp.array([1.0, 2.0])}
        assert float(weighted_mean(models, np.array([1.0, 2.0]))["w"]) == pytest.approx(
            5 / 3, rel=1e-15
        )


@pytest.mark.parametrize(
    "weights", [np.zeros(2), np.array([1e-300, 3e-300]), np.array([1e308, 1.5e308])]
)
def test_known_weights_are_shared_in_float64(weights):
    expected = weights / weights.max() if weights.any() else weights
    expected = expected / max(expected.sum(), 1e-9)
    np.testing.assert_allclose(shares(weights), expected, rtol=1e-15)


def test_norm_and_clip_let_nan_and_infinity_through():
    for value in (jnp.nan, jnp.inf, -jnp.inf):
        tree = {"a": jnp.array([1.0, value]), "b": jnp.ones(3)}
        assert not np.isfinite(norm(tree))
        for name, leaf in clip_by_norm(tree, 1.0).items():
            np.testing.assert_array_equal(leaf, tree[name])
    assert np.isnan(norm(jnp.array([jnp.inf, jnp.nan])))


def test_weighted_mean_lets_nan_through():
    models = {"w": jnp.array([1.0, jnp.nan, 3.0])}
    assert np.isnan(weighted_mean(models, jnp.ones(3))["w"])
    assert np.isnan(jax.jit(weighted_mean)({"w": jnp.ones(2)}, jnp.array([jnp.nan, 1.0]))["w"])
    assert np.isinf(weighted_mean({"w": jnp.array([1.0, jnp.inf])}, jnp.ones(2))["w"])


def test_complex_numbers_count_by_their_magnitude():
    tree = {"w": jnp.array([3.0 + 4.0j, 0.0])}
    assert float(norm(tree)) == pytest.approx(5.0)
    np.testing.assert_allclose(clip_by_norm(tree, 1.0)["w"], [0.6 + 0.8j, 0.0], rtol=1e-6)
    stacked = {"w": jnp.array([1.0 + 1.0j, 3.0 - 1.0j])}
    np.testing.assert_allclose(weighted_mean(stacked, jnp.ones(2))["w"], 2.0, atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-20, 1.0, 1e20, 1e30])
@pytest.mark.parametrize("many", [False, True])
def test_gradient_of_the_norm_is_the_unit_vector(scale, many):
    values = np.float32(scale) * np.array([3.0, 4.0], np.float32)
    found = compiled(GRADIENT, "vmap" if many else "jit")(values)
    np.testing.assert_allclose(found, [0.6, 0.8] if scale else [0.0, 0.0], rtol=1e-5)


@pytest.mark.parametrize("dtypes", [("float32", "float16"), ("float32", "float64")])
def test_gradients_keep_their_dtypes_where_64_bit_types_are_enabled(dtypes):
    with jax.enable_x64(True):
        tree = [jnp.asarray(value, dtype) for value, dtype in zip((3, 4), dtypes, strict=True)]
        for function, expected in ((norm, (0.6, 0.8)), (sum_of_squares, (6.0, 8.0))):
            found = jax.grad(function)(tree)
            assert [leaf.dtype for leaf in found] == list(dtypes)
            np.testing.assert_allclose([float(leaf) for leaf in found], expected, rtol=1e-3)


def test_in_the_ordinary_range_norm_and_clip_are_bitwise_those_of_optax():
    rng = np.random.default_rng(0)
    for scale in (1e-3, 1.0, 1e3):
        tree = {"a": jnp.asarray(scale * rng.normal(size=(30, 40)), jnp.float32), "b": jnp.ones(7)}
        assert jax.jit(norm)(tree) == jax.jit(optax.tree.norm)(tree)
        clip = optax.clip_by_global_norm(10.0)
        expected = jax.jit(lambda t, clip=clip: clip.update(t, optax.EmptyState())[0])(tree)
        found = jax.jit(lambda t: clip_by_norm(t, 10.0))(tree)
        assert all((found[name] == leaf).all() for name, leaf in expected.items())


@pytest.mark.parametrize("many", [False, True])
def test_an_ordinary_norm_reads_the_leaves_once(many):
    """The second pass is in a loop that is not entered, under vmap as well."""
    found = jax.vmap(norm) if many else norm
    jaxpr = jax.make_jaxpr(found)({"w": jnp.ones((2, 8))}).jaxpr
    assert (passes(jaxpr, inside=False), passes(jaxpr, inside=True)) == (1, 1)


def passes(jaxpr, *, inside):
    """How many reductions stand inside loops, or outside of them; there must be no branch."""
    count = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        assert name not in ("cond", "reduce_max")
        count += not inside and name == "reduce_sum"
        loop = name == "while"
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns") and (inside or not loop):
                count += passes(inner, inside=inside and not loop)
    return count


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: weighted_mean({"w": jnp.ones((3, 2))}, [1.0, 2.0]), "leading axis of 2 models"),
        (lambda: weighted_mean({"w": jnp.ones(3)}, "a"), "weights of weighted_mean is 'a'; give"),
        (
            lambda: weighted_mean({"w": jnp.ones(1)}, 1.0),
            "weights of weighted_mean is 1.0; give an arr",
        ),
        (lambda: weighted_mean({"w": "x"}, [1.0]), "leaf w of models of weighted_mean is 'x'"),
        (lambda: norm("x"), "tree of norm is 'x'"),
        (lambda: clip_by_norm({"w": jnp.ones(2)}, "1"), "limit of clip_by_norm is '1'"),
    ],
)
def test_errors(call, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as a user calls it
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
