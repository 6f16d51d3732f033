"""The rounds of every algorithm written with PyTorch: its optimisers, and autograd."""

import numpy as np

CLIP, DECAY, MU = 1.0, 0.01, 0.5
NAMES = [("Dense_0", "kernel"), ("Dense_0", "bias")]


class TorchFederation:
    """The same rounds written with PyTorch: float64, loss terms by autograd, its own optimisers."""

    def __init__(self, torch, name, params, images, labels, sizes, rate, strength):
        self.torch, self.name, self.rate, self.strength = torch, name, rate, strength
        self.sizes = sizes
        self.w = [self.tensor(params[a][b]) for a, b in NAMES]
        pixels = (np.asarray(images, np.float64) / 16 - 0.5) / 0.25
        self.x = self.tensor(pixels.reshape(len(pixels), -1))
        self.y = torch.tensor(np.asarray(labels), dtype=torch.long)
        self.target = [self.moments(w) for w in self.w[::2]]
        zeros = [torch.zeros_like(w) for w in self.w]
        self.c, self.ci = zeros, [[z.clone() for z in zeros] for _ in sizes]
        self.v = [z + 1e-6 for z in zeros]  # optax's initial accumulators of Yogi
        self.m = [z + 1e-6 for z in zeros]
        leaves = [w.clone().requires_grad_() for w in self.w]
        self.server = {
            "fed_avg_m": torch.optim.SGD(leaves, lr=0.7, momentum=0.9),
            "fed_adam": torch.optim.Adam(leaves, lr=0.02, betas=(0.9, 0.99), eps=1e-3),
        }.get(name)
        self.leaves = leaves
        self.largest_scale, self.clipped = 1.0, False

    def tensor(self, value):
        return self.torch.tensor(np.asarray(value), dtype=self.torch.float64)

    @staticmethod
    def moments(w):
        return w.mean(), w.std(correction=0)

    def loss(self, w, rows, i, start):
        torch = self.torch
        loss = torch.nn.functional.cross_entropy(self.x[rows] @ w[0] + w[1], self.y[rows])
        if self.name == "fed_prox":
            loss = loss + MU / 2 * sum(((a - b) ** 2).sum() for a, b in zip(w, start, strict=True))
        if self.name == "scaffold":
            terms = zip(w, self.c, self.ci[i], strict=True)
            loss = loss + sum((a * (c - ci)).sum() for a, c, ci in terms)
        if self.strength:
            for kernel, (mean, std) in zip(w[::2], self.target, strict=True):
                ours = torch.distributions.Normal(*self.moments(kernel))
                held_to = torch.distributions.Normal(mean, std)
                loss = loss + self.strength * torch.distributions.kl_divergence(ours, held_to)
        return loss

    def client(self, i, start, batches):
        torch = self.torch
        w = [v.clone().requires_grad_() for v in start]
        optimizer = torch.optim.SGD(w, lr=self.rate, weight_decay=DECAY)
        for rows in batches:
            optimizer.zero_grad()
            self.loss(w, rows, i, start).backward()
            self.clipped |= bool(torch.nn.utils.clip_grad_norm_(w, CLIP) > CLIP)
            optimizer.step()
        return [v.detach() for v in w]

    def round(self, t, batches):
        """Round t, in which these rows are looked at: a list of steps for each client."""
        torch = self.torch
        start = self.w
        models = [self.client(i, start, steps) for i, steps in enumerate(batches)]
        p = self.tensor(self.sizes)
        p = p / p.sum()
        updates = [[a - b for a, b in zip(m, start, strict=True)] for m in models]
        mean = [sum(pi * u[j] for pi, u in zip(p, updates, strict=True)) for j in range(len(start))]
        if self.name == "scaffold":
            new = [
                [
                    ci - c - d / (len(batches[0]) * self.rate)
                    for ci, c, d in zip(self.ci[i], self.c, u, strict=True)
                ]
                for i, u in enumerate(updates)
            ]
            self.ci = new
            self.c = [
                sum(pi * ci[j] for pi, ci in zip(p, new, strict=True)) for j in range(len(start))
            ]
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
            for j in range(len(scopes[0]))
        ]
