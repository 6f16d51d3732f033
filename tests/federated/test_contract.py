"""What every algorithm promises, plain and with each form of weight scope alignment.

A round takes seconds to compile, so the product of algorithms, forms and ways to run is covered,
not exhausted. All algorithms are under contract with WSA. What the forms do to a local step does
not depend on the server's part, and how clients are run meets an algorithm only in what its clients
do and what travels. SCAFFOLD's clients have all of it (corrections, states, messages) and FedAdam's
server an optimiser's state: these two stand for the others there, and each of the others is long.
"""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.federated.torch_federation import CLIP, DECAY, MU, NAMES, TorchFederation
from tests.trees import assert_bitwise, flat
from wsa_jax.federated import algorithms
from wsa_jax.federated.client import RoundSettings, draw_batches

OPTIMIZER = optax.nadam(0.05)
# One entry an algorithm: a function without arguments that makes it, with PyTorch's numbers.
ALGORITHMS = {
    "fed_avg": algorithms.fed_avg,
    "fed_prox": partial(algorithms.fed_prox, MU),
    "scaffold": algorithms.scaffold,
    "fed_exp": partial(algorithms.fed_exp, epsilon_decay=0.9),
    "fed_avg_m": partial(algorithms.fed_avg_m, 0.7, 0.9),
    "fed_adam": partial(algorithms.fed_adam, 0.02),
    "fed_yogi": partial(algorithms.fed_yogi, 0.02),
    "server_optimizer": lambda: algorithms.server_optimizer("server_optimizer", OPTIMIZER, ()),
}
# Their parts are those of the algorithms above (corrections, states of clients, messages): one
# compiled round of each is enough.
BRIEF = {"fed_dyn": algorithms.fed_dyn, "fed_nova": algorithms.fed_nova}
# The forms differ inside the local steps alone: all of them once, and one with every algorithm.
CASES = [(name, "gradient") for name in ALGORITHMS]
CASES += [("fed_avg", "penalty"), ("fed_avg", "proximal"), ("fed_avg", "other direction")]
CASES += [("fed_avg", "plain")]
# With a plain round to compare with; that of other algorithms is PyTorch's.
WITH_WSA = [case for case in CASES if case[0] == "fed_avg" and case[1] != "plain"]
# What the peer writes: the paper's loss term, and the algorithms with a name.
WITH_PEER = [
    (name, form)
    for name, form in CASES
    if form in ("plain", "gradient") and name != "server_optimizer"
]


def standing(*names, long=()):
    """Algorithms that stand for the rest, and those that repeat at length what they show."""
    return [*names, *(pytest.param(name, marks=pytest.mark.long) for name in long)]


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
def by_class(federation, tiny_data):
    """Clients of the same sizes, whose examples are of one class or two."""
    order, sizes = np.argsort(tiny_data[1], kind="stable"), np.asarray(federation.data.sizes)
    indices = np.zeros(federation.data.indices.shape, np.int32)
    for i, end in enumerate(np.cumsum(sizes)):
        indices[i, : sizes[i]] = order[end - sizes[i] : end]
    return federation.data._replace(indices=jnp.asarray(indices))


@pytest.fixture(scope="module")
def batches(federation, by_class):
    """The rows that each client with examples looks at in three rounds: round, client, step."""
    sizes, local = by_class.sizes, federation.local

    @jax.jit
    def drawn(number):
        train_key = jax.random.split(jax.random.fold_in(federation.key, number))[1]

        def of_client(client):
            data_key, _ = jax.random.split(jax.random.fold_in(train_key, client))
            return draw_batches(
                data_key, sizes[client], capacity=by_class.indices.shape[1], steps=local.steps,
                batch_size=local.batch_size, epochs=federation.epochs,
            )  # fmt: skip

        return jax.vmap(of_client)(jnp.arange(4))

    rounds, indices = [], np.asarray(by_class.indices)
    for number in range(3):
        places, masks = map(np.asarray, drawn(number))
        rounds.append(
            [
                [indices[i][row[mask > 0]] for row, mask in zip(places[i], masks[i], strict=True)]
                for i in np.flatnonzero(sizes)
            ]
        )
    return rounds


# At strength 0 the round with alignment is the plain algorithm.
@pytest.mark.parametrize("strength", [2.0, 0.0])
@pytest.mark.parametrize("case", WITH_PEER, indirect=True, ids="-".join)
def test_rounds_equal_pytorch(federation, case, cell, tiny_data, by_class, batches, strength):
    """Three rounds against PyTorch's autograd and optimisers in float64."""
    torch = pytest.importorskip("torch", reason="PyTorch is a peer: pip install -e '.[peers]'")
    (algorithm, form), (run, (key, state, _), _) = case, cell
    assert (federation.local.clip_norm, federation.local.weight_decay) == (CLIP, DECAY)
    rate, begin = 0.3, flat(state.params)
    sizes = np.asarray(by_class.sizes)
    peer = TorchFederation(
        torch, algorithm.name, state.params, *tiny_data, sizes[sizes > 0], rate,
        strength if form == "gradient" else 0.0,
    )  # fmt: skip
    for number, rows in enumerate(batches):
        state, _ = run(key, state, by_class, federation.settings(rate, strength))
        peer.round(number, rows)
        found = np.concatenate([np.ravel(state.params[a][b]) for a, b in NAMES])
        expected = np.concatenate([w.numpy().ravel() for w in peer.w])
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)
    assert np.abs(flat(state.params) - begin).max() > 0.05
    assert peer.clipped
    # Clients of different classes disagree, so FedExP must have extrapolated.
    assert (peer.largest_scale > 1.02) == (algorithm.name == "fed_exp")


@pytest.fixture(scope="module")
def wsa_cell(federation, algorithm):
    """A second round, with WSA, from client states that differ: map, and its outcome."""
    run = federation.round(algorithm, "gradient")
    first, _ = run(federation.key, federation.start(algorithm), federation.data, SETTINGS)
    arguments = (federation.key, first, federation.data, SETTINGS)
    return arguments, run(*arguments)


@pytest.mark.parametrize(
    "algorithm", standing("scaffold", long=("fed_prox", "fed_exp")), indirect=True
)
def test_map_equals_vmap(federation, algorithm, wsa_cell, assert_close):
    arguments, outcome = wsa_cell
    together = federation.round(algorithm, "gradient", clients="vmap")
    assert_close(together(*arguments), outcome, atol=1e-5)


# An optimiser's state is the server's, the same on all devices; SCAFFOLD goes over the meshes of
# test_mesh.
@pytest.mark.parametrize(
    "algorithm", standing("fed_adam", long=("scaffold", "fed_exp")), indirect=True
)
def test_map_equals_sharded(federation, algorithm, wsa_cell, assert_close):
    arguments, outcome = wsa_cell
    sharded = federation.round(algorithm, "gradient", devices=4)
    assert_close(sharded(*arguments), outcome, atol=1e-5)


# Long: PyTorch tells what the jitted rounds give, and each operation is a program here.
@pytest.mark.long
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


# Nothing, a state of clients, a message, an optimiser's state: the others' are of these kinds.
LOW = ("fed_avg", "scaffold", "fed_exp", "fed_adam")


@pytest.mark.parametrize(
    "algorithm",
    standing(*LOW, long=[n for n in ALGORITHMS if n not in LOW]),
    indirect=True,
)
def test_low_precision_state_keeps_its_dtypes(federation, algorithm):
    params = jax.tree.map(lambda w: w.astype(jnp.bfloat16), federation.start(algorithm).params)
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
