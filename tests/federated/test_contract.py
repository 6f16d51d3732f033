"""What every algorithm promises, plain and with each form of weight scope alignment."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsa_jax.federated import algorithms

# One entry an algorithm: a function without arguments that makes it.
ALGORITHMS = {"fed_avg": algorithms.fed_avg}
FORMS = ["plain", "gradient", "penalty", "proximal"]


@pytest.fixture(scope="module", params=ALGORITHMS)
def algorithm(request):
    return ALGORITHMS[request.param]()


@pytest.fixture(scope="module", params=FORMS)
def form(request):
    return request.param


@pytest.fixture(scope="module")
def cell(federation, algorithm, form):
    """The arguments and the outcome of one jitted round, clients by map."""
    run = federation.round(algorithm, form)
    arguments = (federation.key, federation.start(algorithm), federation.data)
    return run, arguments, run(*arguments, federation.settings())


def assert_bitwise(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_every_algorithm_is_under_contract():
    makers = {
        name
        for name, value in vars(algorithms).items()
        if callable(value) and not inspect.isclass(value)
    }
    assert makers == set(ALGORITHMS)


def test_names_are_unique_and_makers_return_the_same_object():
    assert [maker().name for maker in ALGORITHMS.values()] == list(ALGORITHMS)
    assert all(maker() is maker() for maker in ALGORITHMS.values())


def test_structure_shapes_and_dtypes_are_kept(cell):
    _, (_, start, _), (state, _) = cell
    assert jax.tree.structure(state) == jax.tree.structure(start)
    for new, old in zip(jax.tree.leaves(state), jax.tree.leaves(start), strict=True):
        assert (new.shape, new.dtype) == (old.shape, old.dtype)
    assert state.round == 1


def test_something_is_learned_and_all_is_finite(cell):
    _, (_, start, _), (state, info) = cell
    for leaf in jax.tree.leaves((state, info)):
        assert np.isfinite(leaf).all()
    assert not np.array_equal(state.params["Dense_0"]["kernel"], start.params["Dense_0"]["kernel"])


def test_equal_keys_give_bitwise_equal_results(federation, cell):
    run, arguments, outcome = cell
    assert_bitwise(run(*arguments, federation.settings()), outcome)


def test_other_numbers_and_keys_need_no_second_compilation(federation, cell):
    run, (_, start, data), (state, _) = cell
    before = run._cache_size()
    run(jax.random.key(99), start, data, federation.settings(0.02, 5.0))
    run(federation.key, state, data, federation.settings(0.0, 0.0))
    assert run._cache_size() == before


def test_map_equals_vmap(federation, algorithm, form, cell, assert_close):
    _, arguments, outcome = cell
    together = federation.round(algorithm, form, clients="vmap")
    assert_close(together(*arguments, federation.settings()), outcome, atol=1e-5)


def test_jit_equals_no_jit(federation, algorithm, assert_close):
    # One form: the three differ inside the local steps, which are one compiled scan either way.
    run = federation.round(algorithm, "gradient")
    arguments = (federation.key, federation.start(algorithm), federation.data)
    found = run.__wrapped__(*arguments, federation.settings())
    assert_close(found, run(*arguments, federation.settings()), atol=1e-5)


def test_strength_0_equals_the_plain_algorithm(federation, algorithm, cell, assert_close):
    run, arguments, _ = cell
    plain = federation.round(algorithm, "plain")(*arguments, federation.settings())
    found = run(*arguments, federation.settings(strength=0.0))
    assert_close(found[0], plain[0], atol=1e-6)


def test_strength_pulls_the_clients_to_the_target(federation, form, cell):
    run, arguments, _ = cell
    distances = [
        run(*arguments, federation.settings(strength=s))[1].target_divergence.sum()
        for s in (0.0, 3.0)
    ]
    if form == "plain":
        assert distances[0] == distances[1]
    else:
        assert distances[1] < distances[0]


def test_gradient_equals_penalty(federation, algorithm, assert_close):
    arguments = (federation.key, federation.start(algorithm), federation.data)
    outcomes = [
        federation.round(algorithm, form)(*arguments, federation.settings(strength=3.0))
        for form in ("gradient", "penalty")
    ]
    assert_close(*outcomes, atol=1e-5)


def test_low_precision_parameters_keep_their_dtype(federation, algorithm):
    params = jax.tree.map(
        lambda w: w.astype(jnp.bfloat16), federation.task.init(jax.random.key(0))[0]
    )
    arguments = (federation.key, federation.start(algorithm, params), federation.data)
    run = federation.round(algorithm, "gradient")
    found = jax.eval_shape(lambda *a: run(*a)[0].params, *arguments, federation.settings())
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.bfloat16)}
