"""Each algorithm's identities, and its own parts against their formulas."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.trees import assert_bitwise, flat
from wsa_jax.federated import (
    LocalSettings,
    fed_adam,
    fed_avg,
    fed_avg_m,
    fed_dyn,
    fed_exp,
    fed_nova,
    fed_prox,
    fed_yogi,
    scaffold,
    server_optimizer,
)
from wsa_jax.federated.algorithms import LocalContext, ServerContext
from wsa_jax.federated.round import make_round
from wsa_jax.training import Batch
from wsa_jax.tree import is_weight, unstack

SIZES = np.array([25, 10, 0, 7])
ROUNDS = 3


def play(federation, algorithm, rounds=ROUNDS, **options):
    """States and infos of some rounds, the start included."""
    run = federation.round(algorithm, **options)
    states, infos = [federation.start(algorithm)], []
    for _ in range(rounds):
        state, info = run(federation.key, states[-1], federation.data, federation.settings())
        states.append(state)
        infos.append(info)
    return states, infos


def context(params, update, message, **values):
    defaults = {"learning_rate": 0.1, "round": 5, "participants": 4, "share": 1.0}
    numbers = {name: jnp.asarray(value) for name, value in (defaults | values).items()}
    return ServerContext(params=params, update=update, message=message, **numbers)


def same_but(algorithm, *parts):
    """Whether an algorithm is FedAvg but for some of its parts."""
    return algorithm._replace(**{part: getattr(fed_avg(), part) for part in parts}) == fed_avg()


class TestFedProx:
    def test_mu_0_is_fed_avg(self):
        """The correction adds nothing, and all else is FedAvg's."""
        gradient, params, began = ({"w": jnp.array([x])} for x in (2.0, 0.75, 0.5))
        local = LocalContext(began, (), (), jnp.float32(0.1), 2, jax.random.key(0))
        for algorithm in (fed_prox(0.0), fed_avg()):
            assert_bitwise(algorithm.correct(gradient, params, local), gradient)
        assert same_but(fed_prox(0.0), "name", "settings", "correct")

    def test_larger_mu_keeps_clients_nearer(self, federation):
        algorithms = fed_avg(), fed_prox(8.0)
        norms = [float(play(federation, each, 1)[1][0].update_norm[0]) for each in algorithms]
        assert norms[1] < 0.9 * norms[0]

    @pytest.mark.parametrize("mu", [-0.1, float("nan"), float("inf")])
    def test_errors(self, mu):
        with pytest.raises(ValueError, match="mu .* is negative or not finite"):
            fed_prox(mu)


class TestScaffold:
    def test_the_servers_variate_is_the_weighted_mean_of_all_clients(self, federation):
        states, infos = play(federation, scaffold(), participants=2)
        assert {len(info.participants) for info in infos} == {2}
        for state in states:
            stacked = np.stack([flat(client) for client in unstack(state.clients)])
            expected = np.average(stacked, axis=0, weights=SIZES)
            np.testing.assert_allclose(flat(state.server), expected, rtol=1e-4, atol=1e-6)
        assert np.abs(flat(states[-1].server)).max() > 0.01

    def test_clients_that_do_not_take_part_keep_their_variates(self, federation):
        states, infos = play(federation, scaffold(), participants=2)
        for before, after, info in zip(states, states[1:], infos, strict=False):
            absent = sorted(set(range(4)) - set(np.asarray(info.participants).tolist()))
            old, new = (np.asarray(s.clients["Dense_0"]["kernel"])[absent] for s in (before, after))
            np.testing.assert_array_equal(old, new)

    def test_a_variate_is_the_mean_gradient_of_the_local_steps(self, federation):
        # c_i' = c_i - c + (w - w_i) / (K eta), and both begin at zero.
        states, _ = play(federation, scaffold(), 1)
        plain, _ = play(federation, fed_avg(), 1)
        np.testing.assert_allclose(
            flat(states[1].params), flat(plain[1].params), rtol=1e-5, atol=1e-7
        )
        moved = flat(states[0].params) - flat(states[1].params)
        steps, rate = federation.local.steps, 0.1
        np.testing.assert_allclose(
            flat(states[1].server), moved / (steps * rate), rtol=1e-4, atol=1e-6
        )


class TestFedExp:
    def test_equal_updates_extrapolate_by_exactly_one(self):
        params = {"w": jnp.array([1.0, 2.0])}
        update = {"w": jnp.array([0.25, -0.5])}
        message = jnp.asarray(optax.tree.norm(update, squared=True))
        for form in ("code", "paper"):
            found, _ = fed_exp(epsilon_form=form).apply(params, context(params, update, message))
            np.testing.assert_array_equal(found["w"], params["w"] + update["w"])

    @pytest.mark.parametrize(("form", "count"), [("paper", 1), ("code", 4)])
    def test_step_size(self, form, count):
        params = {"w": jnp.zeros(1)}
        found, _ = fed_exp(0.01, epsilon_form=form, epsilon_decay=0.9).apply(
            params, context(params, {"w": jnp.array([0.1])}, jnp.float32(0.5))
        )
        epsilon = 0.01 * 0.9 ** (2 * (5 + 1)) * count
        np.testing.assert_allclose(found["w"], 0.1 * 0.5 / (2 * (0.1**2 + epsilon)), rtol=1e-5)

    def test_evaluates_the_mean_of_the_last_two_iterates(self):
        """Of a simulation, it is in test_simulated_rounds."""
        algorithm, rng = fed_exp(), np.random.default_rng(0)
        params = {"w": jnp.array([1.0, 2.0])}
        server, iterates = algorithm.init_server(params), []
        for round_number, update in enumerate(rng.normal(size=(3, 2))):
            mean = {"w": jnp.asarray(update, jnp.float32)}
            message = jnp.float32(2 * np.square(update).sum())
            given = context(params, mean, message, round=round_number)
            params, server = algorithm.apply(server, given)
            found = algorithm.evaluated(server, params)["w"]
            iterates.append(params["w"])
            # After one round there are no two.
            np.testing.assert_allclose(found, np.mean(iterates[-2:], axis=0), rtol=1e-6)
        assert np.abs(found - iterates[-1]).max() > 0.01

    def test_errors(self):
        with pytest.raises(ValueError, match="epsilon 0.0 must be positive"):
            fed_exp(0.0)
        with pytest.raises(ValueError, match=r"epsilon_decay 1.5 in \(0, 1\]"):
            fed_exp(epsilon_decay=1.5)


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [(fed_prox(0.5), 2 + 0.5 * (0.75 - 0.5)), (scaffold(), 2 + 1 - 0.25), (fed_avg(), 2.0)],
    ids=["fed_prox", "scaffold", "fed_avg"],
)
def test_corrections_are_their_formulas(algorithm, expected):
    gradient, params, began, server, client = (
        {"w": jnp.array([x])} for x in (2, 0.75, 0.5, 1, 0.25)
    )
    local = LocalContext(began, server, client, jnp.float32(0.1), 2, jax.random.key(0))
    assert algorithm.correct(gradient, params, local)["w"].tolist() == [expected]


class TestOwnAlgorithms:
    def test_what_is_sent_replaces_the_update_in_everything(self, federation):
        halved = scaffold()._replace(
            name="halved", send=lambda update, context: jax.tree.map(lambda d: d / 2, update)
        )
        states, infos = play(federation, halved, 1)
        plain, expected = play(federation, scaffold(), 1)
        moved, whole = (flat(run[1].params) - flat(run[0].params) for run in (states, plain))
        np.testing.assert_allclose(moved, whole / 2, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(infos[0].update_norm, expected[0].update_norm / 2, rtol=1e-4)
        # A variate is reckoned from what was sent.
        np.testing.assert_allclose(
            flat(states[1].server), flat(plain[1].server) / 2, rtol=1e-4, atol=1e-6
        )

    def test_keys_are_of_client_round_and_step(self, federation):
        seen = []

        def note(value, context):
            bits = jax.random.key_data(context.key)
            jax.debug.callback(lambda bits: seen.append(tuple(bits.tolist())), bits)
            return value

        noting = fed_avg()._replace(
            name="noting",
            correct=lambda gradient, params, context: note(gradient, context),
            send=note,
            finish=lambda update, context: note(((), ()), context),
        )
        play(federation, noting, 2)
        jax.effects_barrier()
        # Of four clients in two rounds: one a local step, one to send and one to finish.
        assert len(seen) == len(set(seen)) == 2 * 4 * (federation.local.steps + 2)


def test_equal_settings_are_one_object_however_spelled():
    assert fed_prox() is fed_prox(0.1) is fed_prox(mu=0.1)
    assert fed_exp() is fed_exp(1e-3, epsilon_form="code")
    assert fed_adam(b1=0.9) is fed_adam()
    assert fed_prox(0.2) is not fed_prox(0.1)


class TestServerOptimizer:
    @pytest.mark.parametrize(
        "algorithm",
        [
            server_optimizer("fed_sgd", optax.sgd(1.0), (("learning_rate", 1.0),)),
            fed_avg_m(momentum=0.0),
        ],
        ids=lambda a: a.name,
    )
    def test_sgd_with_rate_1_is_fed_avg(self, algorithm):
        """Its step is FedAvg's, and all else as well."""
        params, update = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([0.3, -0.7])}
        server, plain = algorithm.init_server(params), params
        for _ in range(3):
            params, server = algorithm.apply(server, context(params, update, ()))
            plain, _ = fed_avg().apply((), context(plain, update, ()))
        np.testing.assert_allclose(params["w"], plain["w"], rtol=1e-6)
        assert same_but(algorithm, "name", "settings", "init_server", "apply")

    @pytest.mark.parametrize(
        "algorithm", [fed_avg_m(0.7, 0.9), fed_adam(0.02), fed_yogi(0.02)], ids=lambda a: a.name
    )
    def test_three_steps_equal_numpy(self, algorithm):
        name, rng = algorithm.name, np.random.default_rng(0)
        w = rng.normal(size=4)
        params = {"w": jnp.asarray(w, jnp.float32)}
        server = algorithm.init_server(params)
        m = v = np.full(4, 1e-6 if name == "fed_yogi" else 0.0)
        for t, update in enumerate(rng.normal(scale=0.1, size=(3, 4)), start=1):
            mean = {"w": jnp.asarray(update, jnp.float32)}
            params, server = algorithm.apply(server, context(params, mean, ()))
            g = -update
            if name == "fed_avg_m":
                m = 0.9 * m + g
                w = w - 0.7 * m
            else:
                m = 0.9 * m + 0.1 * g
                to_square = g**2 - v if name == "fed_adam" else np.sign(g**2 - v) * g**2
                v = v + 0.01 * to_square
                w = w - 0.02 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-3)
            np.testing.assert_allclose(params["w"], w, rtol=1e-5)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: fed_adam(eps=0.0), "eps 0.0 of the server optimiser must be positive"),
            (lambda: fed_adam(-1.0), "learning_rate -1.0 of the server optimiser must be positive"),
            (lambda: fed_yogi(b2=1.0), r"b2 1.0 of the server optimiser must be in \[0, 1\)"),
            (lambda: fed_avg_m(momentum=1.5), "momentum 1.5 of the server optimiser"),
        ],
    )
    def test_errors(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()

    def test_half_precision_loses_nothing_of_the_running_means(self):
        algorithm, params = fed_adam(), {"w": jnp.ones(3, jnp.bfloat16)}
        server = algorithm.init_server(params)
        none = jnp.float32(1.0)
        for step in range(200):
            update = {"w": jnp.full(3, 1e-3)}
            context = ServerContext(params, update, (), none, jnp.int32(step), none, none)
            params, server = algorithm.apply(server, context)
        assert params["w"].dtype == jnp.bfloat16
        # In bfloat16 the mean of squares would stop where 1 % of it is below half a bit.
        np.testing.assert_allclose(server[0].nu["w"], 1e-6 * (1 - 0.99**200), rtol=1e-4)


def test_one_client_is_centralised_sgd(federation, tiny_data, assert_close):
    """One client of all examples, full batches: K steps of clip, decay and SGD, plain optax."""
    images, labels = map(jnp.asarray, tiny_data)
    task = federation.task
    local = LocalSettings(steps=5, batch_size=60, clip_norm=0.5, weight_decay=0.01)
    algorithm = fed_avg()
    run = make_round(task, algorithm, participants=1, epochs=5, local=local)
    params = task.init(jax.random.key(3))[0]
    start = dataclasses.replace(federation.start(algorithm, params), clients=())
    data = federation.data._replace(
        inputs=images, labels=labels, indices=jnp.arange(60)[None], sizes=jnp.array([60])
    )
    expected = jax.tree.map(jnp.array, params)
    found, _ = run(federation.key, start, data, federation.settings(0.2))
    optimizer = optax.chain(
        optax.clip_by_global_norm(0.5), optax.add_decayed_weights(0.01), optax.sgd(0.2)
    )
    state = optimizer.init(expected)
    batch = Batch(images, labels, jnp.ones(60))
    gradient = jax.jit(jax.grad(lambda w: task.loss(federation.key, w, {}, batch)[0]))
    for _ in range(5):
        updates, state = optimizer.update(gradient(expected), state, expected)
        expected = optax.apply_updates(expected, updates)
    assert_close(found.params, expected, rtol=1e-4, atol=1e-6)


def test_settings_in_lists_are_those_in_tuples():
    optimizer = optax.sgd(1.0)
    found = server_optimizer("fed_sgd", optimizer, [["learning_rate", 1.0]])
    assert found is server_optimizer("fed_sgd", optimizer, settings=(("learning_rate", 1.0),))


@pytest.mark.parametrize(
    "make", [fed_avg, fed_avg_m, fed_yogi, fed_exp, fed_dyn, fed_nova, scaffold]
)
def test_64_bit_types_leave_a_float32_state_as_it_is(federation, make):
    """Another dtype after a round is another program, and what no directory resumes."""
    seen = []

    def widened(leaf):
        return leaf * np.float64(1) if is_weight(leaf) else leaf

    def apply(server, context):
        seen.extend(jax.tree.leaves((context.update, context.share)))
        params, server = make().apply(server, context)
        return params, jax.tree.map(widened, server)

    run = federation.round(make()._replace(apply=apply))
    with jax.enable_x64(True):
        state = federation.start(make())
        rest = (federation.data, federation.settings())
        after = jax.eval_shape(
            lambda state: jax.tree.leaves(run(federation.key, state, *rest)[0]), state
        )
    assert [leaf.dtype for leaf in after] == [leaf.dtype for leaf in jax.tree.leaves(state)]
    assert {leaf.dtype for leaf in seen} == {jnp.dtype("float32")}
