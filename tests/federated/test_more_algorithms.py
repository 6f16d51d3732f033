"""FedDyn, FedNova, FedSAM, Krum and local epochs: closed forms, planted answers, identities."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wsa_jax import weight_scope
from wsa_jax.federated import (
    Aggregation,
    Execution,
    FederatedData,
    LocalSettings,
    fed_avg,
    fed_dyn,
    fed_nova,
    initial_state,
    sharpness_aware,
)
from wsa_jax.federated.aggregate import BySamples, Sent, aggregate, term
from wsa_jax.federated.algorithms import LocalContext, ServerContext
from wsa_jax.federated.client import RoundSettings
from wsa_jax.federated.krum import check_faulty, krum
from wsa_jax.federated.round import make_round
from wsa_jax.federated.train_clients import RoundPlan
from wsa_jax.training import Task

# Compiled whole: operation by operation the same tests spend several times as long compiling.
krum_jit = jax.jit(krum, static_argnums=2, static_argnames="many")
RATE = 0.1
SHARES = np.array([25, 10, 7]) / 42


def local_context(began, client=(), *, steps=4, momentum=0.0):
    rate = jnp.float32(RATE)
    return LocalContext(began, (), client, rate, steps, jax.random.key(0), momentum)


def server_context(params, update, message=(), share=1.0):
    number = jnp.float32
    return ServerContext(params, update, message, number(RATE), number(0), number(3), number(share))


class TestFedDyn:
    def test_alpha_0_is_fed_avg(self):
        assert fed_dyn(0)._replace(name="fed_avg", settings=()) == fed_avg()

    def test_parts_are_their_formulas(self):
        algorithm = fed_dyn(0.5)
        gradient, params, began, memory = ({"w": jnp.array([x])} for x in (2.0, 0.75, 0.5, 0.25))
        local = local_context(began, memory)
        expected = 2 - 0.25 + 0.5 * (0.75 - 0.5)
        assert algorithm.correct(gradient, params, local)["w"].tolist() == [expected]
        update = {"w": jnp.array([0.5])}
        assert algorithm.finish(update, local)[0]["w"].tolist() == [0.25 - 0.5 * 0.5]
        new, drift = algorithm.apply(memory, server_context(began, update, share=0.5))
        assert drift["w"].tolist() == [0.25 + 0.5 * 0.5]
        assert new["w"].tolist() == [0.5 + 0.5 + 0.5]

    def test_it_ends_in_the_minimum_of_the_weighted_loss(self):
        """Quadratic losses that differ in curvature and minimum, each solved exactly: the mean of
        the clients' minima, where FedAvg ends, is another point."""
        algorithm, alpha = fed_dyn(0.3), 0.3
        rng = np.random.default_rng(0)
        curvature, minimum = rng.uniform(0.2, 3, (3, 2)), rng.normal(size=(3, 2))
        params = jnp.zeros(2)
        server, clients = jnp.zeros(2), [jnp.zeros(2)] * 3
        for _ in range(80):
            updates = []
            for i, memory in enumerate(clients):
                solved = curvature[i] * minimum[i] + memory + alpha * params
                local = jnp.asarray(solved / (curvature[i] + alpha), jnp.float32)
                context = local_context(params, memory)
                left = algorithm.correct(curvature[i] * (local - minimum[i]), local, context)
                np.testing.assert_allclose(left, 0, atol=1e-5)
                updates.append(local - params)
                clients[i], _ = algorithm.finish(updates[-1], context)
            mean = jnp.asarray(SHARES @ np.stack(updates), jnp.float32)
            params, server = algorithm.apply(server, server_context(params, mean))
        weights = SHARES[:, None] * curvature
        np.testing.assert_allclose(params, (weights * minimum).sum(0) / weights.sum(0), atol=1e-3)
        assert np.abs(SHARES @ minimum - params).max() > 0.05

    def test_its_memory_is_wide(self):
        params = {"w": jnp.ones(2, jnp.bfloat16)}
        assert fed_dyn().init_client(params)["w"].dtype == jnp.float32
        assert fed_dyn().init_server(params)["w"].dtype == jnp.float32


class TestFedNova:
    def test_means_are_the_papers(self):
        """What is sent, summed and applied, for clients of 4, 2 and 1 steps of momentum 0.5."""
        updates = np.random.default_rng(0).normal(size=(3, 5))
        steps = (4, 2, 1)
        total = None
        for share, update, taken in zip(SHARES, updates, steps, strict=True):
            context = local_context((), steps=taken, momentum=0.5)
            sent = jnp.asarray(update, jnp.float32)
            _, message = fed_nova().finish(sent, context)
            weight = jnp.float32(share) * fed_nova().weigh(context)
            one = term(Sent((sent, message), (), weight, jnp.float32(1)))
            total = one if total is None else jax.tree.map(jnp.add, total, one)
        mean, message = aggregate(total, Aggregation()).by_samples
        found, _ = fed_nova().apply((), server_context(jnp.ones(5), mean, message))
        counted = np.array(
            [sum(sum(0.5**k for k in range(j)) for j in range(1, t + 1)) for t in steps]
        )
        effective = SHARES @ counted
        expected = 1 + effective * (SHARES / counted) @ updates
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.fixture(scope="module")
def wells():
    """Clients of 25, 10, 0 and 7 examples whose loss is a quadratic well at their own place."""

    def loss(key, params, model_state, batch):
        away = jnp.square(params["w"][None] - batch.inputs[:, None, None]).sum(axis=(1, 2)) / 2
        return jnp.sum(away * batch.mask) / jnp.maximum(batch.mask.sum(), 1.0), model_state

    places = np.array([1.0, -2.0, 9.0, 4.0], np.float32)
    sizes = np.array([25, 10, 0, 7], np.int32)
    owner = np.repeat(np.arange(4), 25)
    data = FederatedData(
        jnp.asarray(places[owner]),
        jnp.zeros(100, int),
        jnp.arange(100).reshape(4, 25),
        jnp.asarray(sizes),
    )
    params = {"w": jnp.array([[0.5, -0.5]])}

    def run(algorithm, clients="map", **local):
        round_fn = make_round(
            Task(lambda key: (params, {}), loss, lambda *given: None),
            algorithm,
            participants=4,
            epochs=1,
            local=LocalSettings(batch_size=8, clip_norm=None, weight_decay=0, **local),
            select=lambda name, leaf: True,
            execution=Execution(clients=clients, donate=False),
        )
        start = initial_state(
            algorithm,
            params,
            clients=4,
            target=weight_scope(params, select=lambda name, leaf: True),
        )
        settings = RoundSettings(jnp.float32(RATE), jnp.float32(0))
        state, info = round_fn(jax.random.key(0), start, data, settings)
        return np.asarray(state.params["w"], np.float64), info

    return run, np.asarray(params["w"], np.float64), places[[0, 1, 3]]


# Epochs and clients' own steps mask alike the steps that are not taken: one by map, one by vmap.
@pytest.mark.parametrize("clients", [pytest.param("map", marks=pytest.mark.long), "vmap"])
def test_local_epochs_are_as_many_steps_as_a_clients_examples_make(wells, clients):
    """Two epochs of 25, 10 and 7 examples by 8 are 8, 4 and 2 steps."""
    run, start, places = wells
    steps = 2 * np.array([4, 2, 1])
    moved = (places[:, None, None] - start) * (1 - (1 - RATE) ** steps)[:, None, None]
    found, info = run(fed_avg(), clients, epochs=2)
    np.testing.assert_allclose(found, start + np.einsum("c,cij->ij", SHARES, moved), rtol=1e-5)
    # Only steps that were taken count in the mean loss.
    begin = np.square(places[:, None, None] - start).sum(axis=(1, 2)) / 2
    means = [
        np.mean([b * (1 - RATE) ** (2 * k) for k in range(t)])
        for b, t in zip(begin, steps, strict=True)
    ]
    np.testing.assert_allclose(np.asarray(info.loss)[[0, 1, 3]], means, rtol=1e-5)


def test_fed_nova_gives_each_step_the_same_weight(wells):
    run, start, places = wells
    steps = np.array([4, 2, 1])
    moved = (places[:, None, None] - start) * (1 - (1 - RATE) ** steps)[:, None, None]
    expected = start + (SHARES @ steps) * np.einsum("c,cij->ij", SHARES / steps, moved)
    np.testing.assert_allclose(run(fed_nova(), epochs=1)[0], expected, rtol=1e-5)


def by_a_loop(start, place, steps, momentum):
    """A client's update in float64, one step after another, and its mean loss."""
    w, velocity, losses = start.copy(), np.zeros_like(start), []
    for _ in range(steps):
        losses.append(np.square(w - place).sum() / 2)
        velocity = momentum * velocity + (w - place)
        w = w - RATE * velocity
    return w - start, np.mean(losses)


class TestOwnSteps:
    """Clients that are given different numbers of steps; the third has no examples."""

    STEPS = (5, 1, 3, 2)

    def of_a_loop(self, start, places):
        steps = [self.STEPS[client] for client in (0, 1, 3)]
        pairs = [by_a_loop(start, place, k, 0.5) for place, k in zip(places, steps, strict=True)]
        updates, losses = zip(*pairs, strict=True)
        return np.array(updates), losses

    @pytest.mark.parametrize("clients", ["map", pytest.param("vmap", marks=pytest.mark.long)])
    def test_equal_a_loop(self, wells, clients):
        run, start, places = wells
        updates, losses = self.of_a_loop(start, places)
        found, info = run(fed_avg(), clients, steps=self.STEPS, momentum=0.5)
        np.testing.assert_allclose(found, start + np.einsum("c,cij", SHARES, updates), rtol=1e-5)
        np.testing.assert_allclose(np.asarray(info.loss)[[0, 1, 3]], losses, rtol=1e-5)

    def test_fed_nova_weighs_by_them(self, wells):
        run, start, places = wells
        updates, _ = self.of_a_loop(start, places)
        # How often gradients enter an update of 5, 1 and 2 steps of momentum 0.5.
        counted = np.array([1 + 1.5 + 1.75 + 1.875 + 1.9375, 1.0, 2.5])
        expected = start + (SHARES @ counted) * np.einsum("c,cij", SHARES / counted, updates)
        found, _ = run(fed_nova(), steps=self.STEPS, momentum=0.5)
        np.testing.assert_allclose(found, expected, rtol=1e-5)

    def test_another_number_of_clients_is_refused(self, wells, federate):
        run, _, _ = wells
        message = "steps are of 2 clients, but there are 4; give a number each"
        with pytest.raises(ValueError, match=message):
            run(fed_avg(), steps=(1, 2))
        with pytest.raises(ValueError, match=message):
            federate(local=LocalSettings(steps=(1, 2), batch_size=8))

    @pytest.mark.parametrize("steps", [(), (3, 0), (3, 1.5), [3, 2]])
    def test_what_are_no_steps(self, rejected, steps):
        message = "are a list; give a tuple" if isinstance(steps, list) else "must be a positive"
        with pytest.raises(ValueError, match=f"steps .*{message}"):
            rejected(LocalSettings(), steps=steps)


class TestSharpnessAware:
    def test_it_descends_by_the_gradient_of_the_worst_point_nearby(self):
        curvature = jnp.array([1.0, 4.0])
        optimizer = sharpness_aware(0.5)(RATE)
        params = jnp.array([2.0, -1.0])
        grad = curvature * params
        updates, _ = optimizer.update(
            grad, optimizer.init(params), params, grad=grad, grad_fn=lambda w, _: curvature * w
        )
        worst = np.array([2.0, -1.0]) + 0.5 * np.array([2.0, -4.0]) / np.sqrt(20)
        np.testing.assert_allclose(updates, -RATE * np.array([1.0, 4.0]) * worst, rtol=1e-6)

    @pytest.mark.parametrize("size", [0.0, 1e-25, 1e25])
    def test_gradients_of_every_size_climb_as_far(self, size):
        seen = []
        optimizer = sharpness_aware(0.5)(RATE)
        params, grad = {"w": jnp.zeros(2)}, {"w": size * jnp.array([3.0, 4.0])}
        optimizer.update(
            grad,
            optimizer.init(params),
            params,
            grad=grad,
            grad_fn=lambda w, _: seen.append(w) or w,
        )
        np.testing.assert_allclose(seen[0]["w"], [0.3, 0.4] if size else 0, rtol=1e-6)

    def test_radius_0_is_sgd_and_another_is_not(self, wells):
        run, start, places = wells
        updates = [by_a_loop(start, place, 3, 0.0)[0] for place in places]
        plain = start + np.einsum("c,cij", SHARES, updates)
        for radius, same in ((0.0, True), (0.5, False)):
            found, _ = run(fed_avg(), steps=3, optimizer=sharpness_aware(radius))
            assert np.allclose(found, plain, rtol=1e-6) == same

    def test_errors(self):
        with pytest.raises(ValueError, match=r"radius -1 is not in \[0, inf\); give 0 for SGD"):
            sharpness_aware(-1)


class TestKrum:
    @pytest.mark.parametrize("many", [False, True])
    def test_choice_equals_numpy(self, many):
        rng = np.random.default_rng(1)
        updates = {"a": rng.normal(size=(9, 4, 2)), "b": rng.normal(size=(9, 3))}
        keep = np.arange(9) != 4
        rows = np.concatenate([leaf.reshape(9, -1) for leaf in updates.values()], axis=1)[keep]
        distances = np.sort(np.square(rows[:, None] - rows[None]).sum(-1), axis=1)
        scores = distances[:, 1 : 1 + 8 - 2 - 2].sum(axis=1)
        best = np.flatnonzero(keep)[np.argsort(scores)[: 6 if many else 1]]
        found = krum_jit({name: np.float32(x) for name, x in updates.items()}, keep, 2, many=many)
        assert np.flatnonzero(found).tolist() == sorted(best)

    @pytest.mark.parametrize("lie", [3e18, -50.0, 0.0, 1.5])
    @pytest.mark.parametrize("many", [False, True])
    def test_bad_clients_are_not_chosen(self, lie, many):
        """Two of seven send one constant, far away or near zero, and agree with each other."""
        honest = 1 + 0.1 * np.random.default_rng(0).normal(size=(5, 20))
        updates = np.concatenate([honest, np.full((2, 20), lie)]).astype(np.float32)
        assert not np.any(krum_jit(updates, np.ones(7, bool), 2, many=many)[5:])

    def test_few_are_kept(self):
        updates = np.arange(4, dtype=np.float32)[:, None]
        for kept in ([], [2], [0, 3]):
            keep = np.isin(np.arange(4), kept)
            found = np.asarray(krum_jit(updates, keep, 1))
            assert found.sum() == min(len(kept), 1)
            assert not (found & ~keep).any()

    def test_too_many_faulty_are_refused(self, federation):
        check_faulty(1, 5)
        with pytest.raises(ValueError, match="at most 0 faulty of 4 participants, not 1; give"):
            federation.round(fed_avg(), aggregation=Aggregation(rule="krum"))
        with pytest.raises(ValueError, match="faulty -1 is no integer of 0 or more"):
            Aggregation(rule="krum", faulty=-1)

    def test_by_samples_and_by_client_are_of_the_chosen(self):
        """What comes with a chosen update is taken, and nothing of the others."""
        updates = jnp.array([[1.0], [1.1], [0.9], [1.2], [-50.0]])
        tags = jnp.arange(5.0)
        sent = Sent(BySamples(updates, tags, ()), tags * 10, jnp.full(5, 0.2), jnp.ones(5))
        chosen = jax.jit(aggregate, static_argnums=1)
        one = chosen(sent, Aggregation(rule="krum"))
        assert (one.by_samples.message.item(), one.by_client.item()) == (0.0, 0.0)
        many = chosen(sent, Aggregation(rule="multi_krum"))
        np.testing.assert_allclose(many.by_samples.update, [1.05], rtol=1e-6)
        np.testing.assert_allclose([many.by_samples.message, many.by_client / 10], 1.5, rtol=1e-6)


def test_fed_nova_is_defined_for_sgd_alone(federation):
    with pytest.raises(ValueError, match="fed_nova is not defined for another local optimizer"):
        RoundPlan(
            task=federation.task,
            algorithm=fed_nova(),
            participants=4,
            epochs=1,
            local=LocalSettings(optimizer=optax.adam),
            scope_form=None,
            select=lambda name, leaf: True,
            fuse_target=True,
            aggregation=Aggregation(),
            execution=Execution(),
        )
