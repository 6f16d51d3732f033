"""Trees of models against NumPy."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsa_jax import checks
from wsa_jax.merging import average, slerp
from wsa_jax.tree import lerp, stack, unstack, weighted_mean


def model(seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return {
        "dense": {"kernel": jnp.asarray(rng.normal(size=(3, 2)), dtype), "bias": jnp.ones(2)},
        "count": jnp.int32(seed),
    }


def test_unstack_inverts_stack():
    models = [model(0), model(1), model(2)]
    for found, expected in zip(unstack(stack(models)), models, strict=True):
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_tree_without_arrays_is_split_by_a_count():
    assert unstack({"act": jax.nn.relu}, 2) == [{"act": jax.nn.relu}] * 2
    for models, count in (({}, None), ({"w": jnp.ones((3, 2))}, 2), ({"w": jnp.ones(())}, None)):
        with pytest.raises(ValueError, match="the leading axes of a stack are") as error:
            unstack(models, count)
        assert "\n" not in str(error.value)


def test_stack_of_nothing():
    with pytest.raises(ValueError, match="no model"):
        stack([])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dense": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(2)}}, r"dense/kernel has shape"),
        ({"dense": {"kernel": jnp.ones((3, 2))}}, "dense/bias is only in the first model"),
        ({"extra": jnp.ones(1)}, "extra is only in the second model"),
    ],
)
def test_another_structure_names_the_leaf(change, message):
    other = model(1) | change
    for call in (lambda: stack([model(0), other]), lambda: lerp(model(0), other, 0.5)):
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


def test_the_first_of_several_differing_leaves_is_named():
    with pytest.raises(ValueError, match="leaf a is only"):
        checks.same_structure({"a": 1.0, "b": 1.0, "c": 1.0}, {"d": 1.0, "e": 1.0})


@pytest.mark.parametrize("t", [0, 1, 0.25, -0.5, 1.5, np.float32(0.75), jnp.float32(0.1), 10**12])
def test_lerp_equals_numpy(t):
    found = lerp(model(0), model(1), t)
    w, v = (np.asarray(m["dense"]["kernel"], np.float64) for m in (model(0), model(1)))
    np.testing.assert_allclose(
        found["dense"]["kernel"], (1 - float(t)) * w + float(t) * v, rtol=1e-5, atol=1e-6
    )
    assert found["count"] == 0


def test_lerp_is_exact_at_its_ends():
    first, second = model(0), model(1)
    for t, end in ((0.0, first), (1.0, second)):
        found = lerp(first, second, t)
        np.testing.assert_array_equal(found["dense"]["kernel"], end["dense"]["kernel"])


def test_lerp_lets_infinity_through_at_a_share_of_0():
    found = lerp({"w": jnp.ones(2)}, {"w": jnp.array([jnp.inf, 3.0])}, 0.0)
    np.testing.assert_array_equal(found["w"], [np.nan, 1.0])


def test_lerp_keeps_low_precision_under_jit():
    first, second = model(0, jnp.bfloat16), model(1, jnp.bfloat16)
    assert jax.jit(lerp)(first, second, 0.5)["dense"]["kernel"].dtype == jnp.bfloat16


def test_lerp_rounds_once():
    first, second = (
        {"w": jax.random.normal(jax.random.key(seed), (999,), jnp.bfloat16)} for seed in (0, 1)
    )
    exact = 0.7 * np.asarray(first["w"], np.float64) + 0.3 * np.asarray(second["w"], np.float64)
    # Rounded after each operation, four in ten differ; ties alone may.
    assert np.mean(lerp(first, second, 0.3)["w"] != exact.astype(jnp.bfloat16)) < 0.01


def test_stack_and_unstack_leave_functions_of_a_module_alone():
    modules = [eqx.nn.MLP(2, 2, 2, 1, key=jax.random.key(i)) for i in range(2)]
    both = stack(modules)
    assert both.activation is modules[0].activation
    assert both.layers[0].weight.shape == (2, 2, 2)
    np.testing.assert_array_equal(unstack(both)[1].layers[0].weight, modules[1].layers[0].weight)


def test_lerp_leaves_functions_of_a_module_alone():
    modules = [eqx.nn.MLP(2, 2, 2, 1, key=jax.random.key(i)) for i in range(2)]
    found = lerp(*modules, 1.0)
    assert found.activation is modules[0].activation
    np.testing.assert_array_equal(found.layers[0].weight, modules[1].layers[0].weight)


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [3.0, 0.0, 1.0], [10.0, 20.0, 5.0]])
def test_weighted_mean_equals_numpy(weights):
    models = [model(i) for i in range(3)]
    found = weighted_mean(stack(models), np.asarray(weights))
    kernels = [np.asarray(m["dense"]["kernel"], np.float64) for m in models]
    expected = np.average(kernels, axis=0, weights=weights)
    np.testing.assert_allclose(found["dense"]["kernel"], expected, rtol=1e-5, atol=1e-6)


def test_weighted_mean_accumulates_in_float32():
    leaf = jnp.ones((4096, 1), jnp.bfloat16).at[0].set(3)
    found = weighted_mean({"w": leaf}, jnp.ones(4096))["w"]
    assert found.dtype == jnp.bfloat16
    assert found == 1.0


def test_weight_0_leaves_out_nan():
    models = {"w": jnp.array([1.0, jnp.nan, 3.0])}
    assert weighted_mean(models, jnp.array([1.0, 0.0, 1.0]))["w"] == 2.0
    assert weighted_mean(models, jnp.zeros(3))["w"] == 0.0


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
def test_check_finite_names_the_leaf(value):
    bad = model(0)
    bad["dense"]["kernel"] = bad["dense"]["kernel"].at[:, 0].set(value).astype(jnp.bfloat16)
    checks.finite(model(0))
    with pytest.raises(ValueError, match=r"leaf dense/kernel of params holds 3 .*values of 6"):
        checks.finite(bad)


@pytest.mark.parametrize("value", [jnp.nan + 1j, 1 + 1j * jnp.inf])
def test_check_finite_names_a_complex_leaf(value):
    phase = jnp.ones(3, jnp.complex64)
    checks.finite({"phase": phase})
    with pytest.raises(ValueError, match="leaf phase of params holds 1 NaN or infinite value of 3"):
        checks.finite({"phase": phase.at[1].set(value)})


def test_numbers_of_python_stay_the_first_models():
    """Flags and rates of a module are asked by `if` under jit."""

    class Net(eqx.Module):
        linear: eqx.nn.Linear
        dropout: eqx.nn.Dropout
        depth: int = 3

    def net(seed):
        linear = eqx.nn.Linear(4, 3, key=jax.random.key(seed))
        return Net(linear, eqx.nn.Dropout(0.5, inference=True))

    models = [net(0), net(1)]
    both = stack(models)
    for found in (both, unstack(both)[1], lerp(*models, 0.5), average(models), slerp(*models, 0.5)):
        assert found.dropout.inference is True
        assert found.dropout.p == 0.5
        assert type(found.dropout.p) is float
        assert found.depth == 3
    x = jnp.ones(4)
    run = eqx.filter_jit(lambda model: model.dropout(model.linear(x)))
    expected = (run(models[0]) + run(models[1])) / 2
    np.testing.assert_allclose(run(average(models)), expected, rtol=1e-6)
    np.testing.assert_allclose(run(unstack(both)[1]), run(models[1]), rtol=1e-6)


@pytest.mark.filterwarnings("default:::wsa_jax")
@pytest.mark.parametrize(
    "combine", [lambda *m: average(m), lambda *m: lerp(*m, 0.5), lambda *m: slerp(*m, 0.5)]
)
def test_one_rule_for_numbers_of_python_that_differ(combine):
    first, second = {"s": 1.5, "w": jnp.ones(2)}, {"s": 2.5, "w": jnp.ones(2)}
    with pytest.warns(UserWarning, match=r"leaf s is a number of Python, 1.5 .* 2.5"):
        assert combine(first, second)["s"] == 1.5


@pytest.mark.parametrize(
    "combine", [stack, average, lambda m: lerp(*m, 0.5), lambda m: slerp(*m, 0.5)]
)
def test_dtypes_that_differ_are_refused_by_name(combine):
    pairs = [
        (jnp.ones(2), jnp.ones(2, jnp.float16), "float32 in the first model and float16"),
        (jnp.ones(()), 1.0, "float32 in the first model and a number of Python"),
    ]
    for a, b, message in pairs:
        with pytest.raises(ValueError, match=f"^leaf w is {message} in the second; "):
            combine([{"w": a}, {"w": b}])


@pytest.mark.parametrize("combine", [average, lambda m: lerp(*m, 0.5)])
def test_numpy_and_complex_leaves_are_combined_without_a_word(combine):
    models = [{"w": np.array([1.0, 2.0]), "c": np.array([1j])}, {"w": np.zeros(2), "c": np.ones(1)}]
    models[1]["c"] = models[1]["c"].astype(complex)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = combine(models)
    np.testing.assert_allclose(found["w"], [0.5, 1.0])
    np.testing.assert_allclose(found["c"], [0.5 + 0.5j])


def test_leaves_of_other_libraries_are_refused_by_name():
    torch = pytest.importorskip("torch")
    model = {"layer": {"w": torch.ones(2)}}
    for call in (lambda: lerp(model, model, 0.5), lambda: unstack(model)):
        with pytest.raises(ValueError, match=r"leaf layer/w of .* is a torch tensor; give .*numpy"):
            call()
