"""What every algorithm promises, plain and with each form of weight scope alignment.

A round takes seconds to compile, so the product of algorithms, forms and ways to run is covered,
not exhausted. All algorithms are under contract with WSA. What the forms do to a local step does
not depend on the server's part, and how clients are run meets an algorithm only in what its clients
do: so one algorithm of each kind of client stands for the others there.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.trees import assert_bitwise, flat
from wsa_jax.federated import algorithms
from wsa_jax.federated.client import RoundSettings

OPTIMIZER = optax.nadam(0.05)
# One entry an algorithm: a function without arguments that makes it.
ALGORITHMS = {
    "fed_avg": algorithms.fed_avg,
    "fed_prox": algorithms.fed_prox,
    "scaffold": algorithms.scaffold,
    "fed_exp": algorithms.fed_exp,
    "fed_avg_m": algorithms.fed_avg_m,
    "fed_adam": algorithms.fed_adam,
    "fed_yogi": algorithms.fed_yogi,
    "server_optimizer": lambda: algorithms.server_optimizer("server_optimizer", OPTIMIZER, ()),
}
# Their parts are those of the algorithms above (corrections, states of clients, messages): one
# compiled round of each is enough.
BRIEF = {"fed_dyn": algorithms.fed_dyn, "fed_nova": algorithms.fed_nova}
# The forms differ inside the local steps alone: all of them once, and one with every algorithm.
CASES = [(name, "gradient") for name in ALGORITHMS]
CASES += [("fed_avg", "penalty"), ("fed_avg", "proximal"), ("fed_avg", "other direction")]
CASES += [("fed_avg", "plain"), ("scaffold", "plain")]
# With a plain round to compare with.
WITH_WSA = [case for case in CASES if case[0] in ("fed_avg", "scaffold") and case[1] != "plain"]


SETTINGS = RoundSettings(jnp.float32(0.1), jnp.float32(1.0))


@pytest.fixture(scope="module")
def algorithm(request):
    return ALGORITHMS[request.param]()


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request):
    name, form = request.param
    return ALGORITHMS[name](), form


@pytest.fixture(scope="module")
def cell(federation, case):
    """The arguments and the outcome of one jitted round, clients by map."""
    algorithm, form = case
    run = federation.round(algorithm, form)
    arguments = (federation.key, federation.start(algorithm), federation.data)
    return run, arguments, run(*arguments, federation.settings())


def test_every_algorithm_is_under_contract():
    makers = {
        name
        for name, value in vars(algorithms).items()
        if callable(value) and not inspect.isclass(value)
    }
    assert makers == set(ALGORITHMS) | set(BRIEF)


def test_names_are_unique_and_makers_return_the_same_object():
    assert [maker().name for maker in ALGORITHMS.values()] == list(ALGORITHMS)
    assert all(maker() is maker() for maker in ALGORITHMS.values())


def test_structure_shapes_and_dtypes_are_kept(cell):
    _, (_, start, _), (state, _) = cell
    assert jax.tree.structure(state) == jax.tree.structure(start)
    for new, old in zip(jax.tree.leaves(state), jax.tree.leaves(start), strict=True):
        assert (new.shape, new.dtype) == (old.shape, old.dtype)
    assert state.round == 1


def test_parameters_move_and_all_is_finite(cell):
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


@pytest.fixture(scope="module")
def wsa_cell(federation, algorithm):
    """A second round, with WSA, from client states that differ: map, and its outcome."""
    run = federation.round(algorithm, "gradient")
    first, _ = run(federation.key, federation.start(algorithm), federation.data, SETTINGS)
    arguments = (federation.key, first, federation.data, SETTINGS)
    return arguments, run(*arguments)


# FedProx corrects gradients, SCAFFOLD has states besides, FedExP a message.
@pytest.mark.parametrize("algorithm", ["fed_prox", "scaffold", "fed_exp"], indirect=True)
def test_map_equals_vmap(federation, algorithm, wsa_cell, assert_close):
    arguments, outcome = wsa_cell
    together = federation.round(algorithm, "gradient", clients="vmap")
    assert_close(together(*arguments), outcome, atol=1e-5)


# An optimiser's state is the server's, the same on all devices.
@pytest.mark.parametrize("algorithm", ["scaffold", "fed_exp", "fed_adam"], indirect=True)
def test_map_equals_sharded(federation, algorithm, wsa_cell, assert_close):
    arguments, outcome = wsa_cell
    sharded = federation.round(algorithm, "gradient", devices=4)
    assert_close(sharded(*arguments), outcome, atol=1e-5)


@pytest.mark.parametrize("algorithm", ["scaffold", "fed_yogi"], indirect=True)
def test_jit_equals_no_jit(federation, algorithm, assert_close):
    run = federation.round(algorithm, "gradient")
    arguments = (federation.key, federation.start(algorithm), federation.data)
    found = run.__wrapped__(*arguments, federation.settings())
    assert_close(found, run(*arguments, federation.settings()), atol=1e-5)


@pytest.mark.parametrize("case", WITH_WSA, indirect=True, ids="-".join)
def test_strength_0_equals_the_plain_algorithm(federation, case, cell, assert_close):
    run, arguments, _ = cell
    algorithm, _ = case
    plain = federation.round(algorithm, "plain")(*arguments, federation.settings())
    found = run(*arguments, federation.settings(strength=0.0))
    assert_close(found[0], plain[0], atol=1e-6)


def test_strength_pulls_the_clients_to_the_target_and_is_ignored_without_wsa(
    federation, case, cell
):
    run, arguments, _ = cell
    found = [run(*arguments, federation.settings(strength=s)) for s in (0.0, 3.0)]
    if case[1] == "plain":
        assert_bitwise(*found)
    else:
        distances = [info.target_divergence.sum() for _, info in found]
        assert distances[1] < distances[0]


def test_gradient_equals_penalty(federation, assert_close):
    algorithm = algorithms.fed_avg()
    arguments = (federation.key, federation.start(algorithm), federation.data)
    outcomes = [
        federation.round(algorithm, form)(*arguments, federation.settings(strength=3.0))
        for form in ("gradient", "penalty")
    ]
    assert_close(*outcomes, atol=1e-5)


@pytest.mark.parametrize("algorithm", ALGORITHMS, indirect=True)
def test_low_precision_state_keeps_its_dtypes(federation, algorithm):
    params = jax.tree.map(
        lambda w: w.astype(jnp.bfloat16), federation.task.init(jax.random.key(0))[0]
    )
    start = federation.start(algorithm, params)
    run = federation.round(algorithm, "gradient")
    arguments = (federation.key, start, federation.data, federation.settings())
    found = jax.eval_shape(lambda *a: jax.tree.leaves(run(*a)[0]), *arguments)
    assert [leaf.dtype for leaf in found] == [leaf.dtype for leaf in jax.tree.leaves(start)]
    assert jnp.dtype(jnp.bfloat16) in {leaf.dtype for leaf in found}


@pytest.mark.parametrize("name", BRIEF)
def test_one_round_with_alignment(federation, assert_close, name):
    """The contract, as far as one compiled round tells."""
    algorithm = BRIEF[name]()
    assert algorithm is BRIEF[name]()
    assert algorithm.name == name
    run = federation.round(algorithm, "gradient")
    start = federation.start(algorithm)
    state, info = run(federation.key, start, federation.data, federation.settings())
    again = run(federation.key, start, federation.data, federation.settings())
    assert_bitwise(again, (state, info))
    for new, old in zip(jax.tree.leaves(state), jax.tree.leaves(start), strict=True):
        assert (new.shape, new.dtype) == (old.shape, old.dtype)
    assert np.isfinite(flat((state.params, info.fused))).all()
    near = run(federation.key, start, federation.data, federation.settings(strength=3.0))[1]
    far = run(federation.key, start, federation.data, federation.settings(strength=0.0))[1]
    assert near.target_divergence.sum() < far.target_divergence.sum()
    if name == "fed_nova":
        # All clients take as many steps here.
        plain = federation.round(algorithms.fed_avg(), "gradient")
        args = (federation.start(algorithms.fed_avg()), federation.data, federation.settings())
        assert_close(plain(federation.key, *args)[0].params, state.params)
    else:
        # Clients that are not accepted remember nothing.
        assert not np.any(flat(jax.tree.map(lambda leaf: leaf[2], state.clients)))
        assert np.any(flat(jax.tree.map(lambda leaf: leaf[0], state.clients)))


def test_clients_know_their_numbers(federation):
    def remembered(update, context):
        return 1.0 + context.number, ()

    algorithm = algorithms.fed_avg()._replace(
        name="numbered", init_client=lambda params: jnp.float32(0), finish=remembered
    )
    run = federation.round(algorithm)
    state, _ = run(
        federation.key, federation.start(algorithm), federation.data, federation.settings()
    )
    # The third client has no examples, is not accepted, and remembers nothing.
    assert state.clients.tolist() == [1, 2, 0, 4]
