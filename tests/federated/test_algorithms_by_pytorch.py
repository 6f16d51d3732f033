"""Rounds of every algorithm against PyTorch's optimisers and autograd."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.trees import flat
from wsa_jax import weight_scope
from wsa_jax.federated import (
    Execution,
    LocalSettings,
    fed_adam,
    fed_avg,
    fed_avg_m,
    fed_exp,
    fed_prox,
    fed_yogi,
    initial_state,
    scaffold,
)
from wsa_jax.federated.client import RoundSettings, ScopeForm
from wsa_jax.federated.round import make_round

ROUNDS = 3
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
        inputs=jnp.asarray(tiny_data[0]),
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
    params, _ = federation.task.init(jax.random.key(7))
    state = initial_state(algorithm, params, clients=3, target=weight_scope(params))
    peer = TorchFederation(torch, name, params, *tiny_data, parts, wsa)
    settings = RoundSettings(jnp.float32(RATE), jnp.float32(STRENGTH))
    begin = flat(params)
    for t in range(ROUNDS):
        state, _ = run(federation.key, state, data, settings)
        peer.round(t)
        found = np.concatenate([np.ravel(state.params[a][b]) for a, b in NAMES])
        expected = np.concatenate([w.numpy().ravel() for w in peer.w])
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)
    assert np.abs(flat(state.params) - begin).max() > 0.05
    # Clients of different classes disagree, so FedExP must have extrapolated.
    assert (peer.largest_scale > 1.02) == (name == "fed_exp")
