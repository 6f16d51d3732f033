"""Each algorithm's identities, and its rounds against PyTorch's optimisers and autograd."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wsa_jax.federated import (
    Execution,
    LocalSettings,
    ServerState,
    fed_adam,
    fed_avg,
    fed_avg_m,
    fed_exp,
    fed_prox,
    fed_yogi,
    scaffold,
    server_optimizer,
)
from wsa_jax.federated.algorithms import ServerContext
from wsa_jax.federated.client import RoundSettings, ScopeForm
from wsa_jax.federated.round import make_round
from wsa_jax.training import Batch
from wsa_jax.tree import unstack

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


def flat(tree):
    return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)])


def context(params, update, message, **values):
    defaults = {"learning_rate": 0.1, "round": 5, "participants": 4, "share": 1.0}
    numbers = {name: jnp.asarray(value) for name, value in (defaults | values).items()}
    return ServerContext(params=params, update=update, message=message, **numbers)


class TestFedProx:
    def test_mu_0_is_fed_avg(self, federation, assert_close):
        assert_close(
            play(federation, fed_prox(0.0))[0][-1].params,
            play(federation, fed_avg())[0][-1].params,
        )

    def test_larger_mu_keeps_clients_nearer(self, federation):
        norms = [
            float(play(federation, fed_prox(mu), 1)[1][0].update_norm[0]) for mu in (0.0, 2.0, 8.0)
        ]
        assert norms == sorted(norms, reverse=True)
        assert norms[2] < 0.9 * norms[0]

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

    def test_evaluates_the_mean_of_the_last_two_iterates(self, federation):
        algorithm = fed_exp()
        states, _ = play(federation, algorithm)
        after_one = algorithm.evaluated(states[1].server, states[1].params)
        np.testing.assert_array_equal(flat(after_one), flat(states[1].params))
        for before, after in itertools.pairwise(states[1:]):
            found = flat(algorithm.evaluated(after.server, after.params))
            middle = (flat(before.params) + flat(after.params)) / 2
            np.testing.assert_allclose(found, middle, rtol=1e-5, atol=1e-7)

    def test_errors(self):
        with pytest.raises(ValueError, match="epsilon 0.0 must be positive"):
            fed_exp(0.0)


def test_equal_settings_are_one_object_however_spelled():
    assert fed_prox() is fed_prox(0.1) is fed_prox(mu=0.1)
    assert fed_exp() is fed_exp(1e-3, epsilon_form="code")
    assert fed_adam(b1=0.9) is fed_adam()
    assert fed_prox(0.2) is not fed_prox(0.1)


class TestServerOptimizer:
    def test_sgd_with_rate_1_is_fed_avg(self, federation, assert_close):
        algorithm = server_optimizer("fed_sgd", optax.sgd(1.0), (("learning_rate", 1.0),))
        assert_close(
            play(federation, algorithm)[0][-1].params, play(federation, fed_avg())[0][-1].params
        )

    @pytest.mark.parametrize(
        ("make", "message"),
        [
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

    def test_no_momentum_is_fed_avg(self, federation, assert_close):
        assert_close(
            play(federation, fed_avg_m(momentum=0.0))[0][-1].params,
            play(federation, fed_avg())[0][-1].params,
        )


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
        images=images, labels=labels, indices=jnp.arange(60)[None], sizes=jnp.array([60])
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


# --- PyTorch --------------------------------------------------------------------------------------

RATE, STEPS, CLIP, DECAY, MU, STRENGTH = 0.3, 3, 0.4, 0.01, 0.5, 2.0
NAMES = [(f"Dense_{i}", part) for i in (0, 1) for part in ("kernel", "bias")]
MAKERS = {
    "fed_avg": fed_avg,
    "fed_prox": functools.partial(fed_prox, MU),
    "scaffold": scaffold,
    "fed_exp": functools.partial(fed_exp, epsilon_decay=0.9),
    "fed_avg_m": functools.partial(fed_avg_m, 0.7, 0.9),
    "fed_adam": functools.partial(fed_adam, 0.02),
    "fed_yogi": functools.partial(fed_yogi, 0.02),
}


class TorchFederation:
    """The same rounds written with PyTorch: float64, loss terms by autograd, its own optimisers."""

    def __init__(self, torch, name, params, images, labels, parts, wsa):
        self.torch, self.name, self.wsa, self.parts = torch, name, wsa, parts
        self.w = [self.tensor(params[a][b]) for a, b in NAMES]
        pixels = (np.asarray(images, np.float64) / 16 - 0.5) / 0.25
        self.x = self.tensor(pixels.reshape(len(pixels), -1))
        self.y = torch.tensor(np.asarray(labels), dtype=torch.long)
        self.target = [self.moments(w) for w in self.w[::2]]
        zeros = [torch.zeros_like(w) for w in self.w]
        self.c, self.ci = zeros, [[z.clone() for z in zeros] for _ in parts]
        self.v = [z + 1e-6 for z in zeros]  # optax's initial accumulators of Yogi
        self.m = [z + 1e-6 for z in zeros]
        leaves = [w.clone().requires_grad_() for w in self.w]
        self.server = {
            "fed_avg_m": torch.optim.SGD(leaves, lr=0.7, momentum=0.9),
            "fed_adam": torch.optim.Adam(leaves, lr=0.02, betas=(0.9, 0.99), eps=1e-3),
        }.get(name)
        self.leaves = leaves
        self.largest_scale = 1.0

    def tensor(self, value):
        return self.torch.tensor(np.asarray(value), dtype=self.torch.float64)

    @staticmethod
    def moments(w):
        return w.mean(), w.std(correction=0)

    def loss(self, w, rows, i, start):
        torch = self.torch
        hidden = torch.relu(self.x[rows] @ w[0] + w[1])
        loss = torch.nn.functional.cross_entropy(hidden @ w[2] + w[3], self.y[rows])
        if self.name == "fed_prox":
            loss = loss + MU / 2 * sum(((a - b) ** 2).sum() for a, b in zip(w, start, strict=True))
        if self.name == "scaffold":
            terms = zip(w, self.c, self.ci[i], strict=True)
            loss = loss + sum((a * (c - ci)).sum() for a, c, ci in terms)
        if self.wsa:
            for kernel, (mean, std) in zip(w[::2], self.target, strict=True):
                ours = torch.distributions.Normal(*self.moments(kernel))
                held_to = torch.distributions.Normal(mean, std)
                loss = loss + STRENGTH * torch.distributions.kl_divergence(ours, held_to)
        return loss

    def client(self, i, start):
        torch = self.torch
        w = [v.clone().requires_grad_() for v in start]
        optimizer = torch.optim.SGD(w, lr=RATE, weight_decay=DECAY)
        for _ in range(STEPS):
            optimizer.zero_grad()
            self.loss(w, self.parts[i], i, start).backward()
            torch.nn.utils.clip_grad_norm_(w, CLIP)
            optimizer.step()
        return [v.detach() for v in w]

    def round(self, t):
        torch = self.torch
        start, models = self.w, [self.client(i, self.w) for i in range(len(self.parts))]
        p = self.tensor([len(rows) for rows in self.parts])
        p = p / p.sum()
        updates = [[a - b for a, b in zip(m, start, strict=True)] for m in models]
        mean = [sum(pi * u[j] for pi, u in zip(p, updates, strict=True)) for j in range(4)]
        if self.name == "scaffold":
            new = [
                [
                    ci - c - d / (STEPS * RATE)
                    for ci, c, d in zip(self.ci[i], self.c, u, strict=True)
                ]
                for i, u in enumerate(updates)
            ]
            self.ci = new
            self.c = [sum(pi * ci[j] for pi, ci in zip(p, new, strict=True)) for j in range(4)]
        scale = 1.0
        if self.name == "fed_exp":
            norms = sum(pi * sum((d**2).sum() for d in u) for pi, u in zip(p, updates, strict=True))
            epsilon = 1e-3 * 0.9 ** (2 * (t + 1)) * len(models)
            scale = max(1.0, float(norms / (2 * (sum((d**2).sum() for d in mean) + epsilon))))
        self.largest_scale = max(self.largest_scale, scale)
        self.w = [w + scale * d for w, d in zip(start, mean, strict=True)]
        if self.server is not None:
            for leaf, d in zip(self.leaves, mean, strict=True):
                leaf.grad = -d
            self.server.step()
            self.w = [leaf.detach().clone() for leaf in self.leaves]
        if self.name == "fed_yogi":
            grads = [-d for d in mean]
            self.m = [0.9 * m + 0.1 * g for m, g in zip(self.m, grads, strict=True)]
            self.v = [
                v - 0.01 * torch.sign(v - g**2) * g**2 for v, g in zip(self.v, grads, strict=True)
            ]
            self.w = [
                w - 0.02 * (m / (1 - 0.9 ** (t + 1)))
                / (torch.sqrt(v / (1 - 0.99 ** (t + 1))) + 1e-3)
                for w, m, v in zip(start, self.m, self.v, strict=True)
            ]  # fmt: skip
        scopes = [[self.moments(w) for w in m[::2]] for m in models]
        self.target = [
            (
                sum(s[j][0] for s in scopes) / len(scopes),
                torch.sqrt(sum(s[j][1] ** 2 for s in scopes) / len(scopes)),
            )
            for j in (0, 1)
        ]


@pytest.mark.parametrize("wsa", [False, True], ids=["plain", "wsa"])
@pytest.mark.parametrize("name", MAKERS)
def test_rounds_equal_pytorch(federation, tiny_data, name, wsa):
    torch = pytest.importorskip("torch", reason="PyTorch is a peer: pip install -e '.[peers]'")
    by_class = np.argsort(tiny_data[1], kind="stable")
    parts = [by_class[:25], by_class[25:35], by_class[35:]]
    indices = np.zeros((3, 25), np.int32)
    for i, rows in enumerate(parts):
        indices[i, : len(rows)] = rows
    data = federation.data._replace(
        images=jnp.asarray(tiny_data[0]),
        labels=jnp.asarray(tiny_data[1]),
        indices=jnp.asarray(indices),
        sizes=jnp.array([len(rows) for rows in parts]),
    )
    algorithm = MAKERS[name]()
    # A batch as large as the largest client: every step sees all of its examples, in any order.
    run = make_round(
        federation.task,
        algorithm,
        participants=3,
        epochs=STEPS,
        local=LocalSettings(steps=STEPS, batch_size=25, clip_norm=CLIP, weight_decay=DECAY),
        scope_form=ScopeForm() if wsa else None,
        execution=Execution(donate=False),
    )
    start = federation.start(algorithm)
    clients = jax.vmap(lambda _: algorithm.init_client(start.params))(jnp.arange(3))
    state: ServerState = dataclasses.replace(start, clients=clients)
    peer = TorchFederation(torch, name, start.params, *tiny_data, parts, wsa)
    settings = RoundSettings(jnp.float32(RATE), jnp.float32(STRENGTH))
    begin = flat(start.params)
    for t in range(ROUNDS):
        state, _ = run(federation.key, state, data, settings)
        peer.round(t)
        found = np.concatenate([np.ravel(state.params[a][b]) for a, b in NAMES])
        expected = np.concatenate([w.numpy().ravel() for w in peer.w])
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)
    assert np.abs(flat(state.params) - begin).max() > 0.05
    # Clients of different classes disagree, so FedExP must have extrapolated.
    assert (peer.largest_scale > 1.02) == (name == "fed_exp")
