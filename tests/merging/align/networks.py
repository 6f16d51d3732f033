"""Small networks as plain functions, whose specs are traced: what matching must cope with."""

import jax
import jax.numpy as jnp
import numpy as np

from wsa_jax.merging.symmetry.units import identity_permutations


def draw_weights(seed, shapes):
    """Weights of size 1 per output, so that no unit is weak."""
    rng = np.random.default_rng(seed)
    scaled = {n: rng.normal(size=s) * 2 / np.sqrt(np.prod(s[:-1])) for n, s in shapes.items()}
    return {name: jnp.asarray(values, jnp.float32) for name, values in scaled.items()}


def derangements(seed, spec):
    """A plan that leaves no unit of any group where it was."""
    rng = np.random.default_rng([seed, 2])
    plan = {}
    for name, order in identity_permutations(spec).items():
        rows = order.reshape(-1, order.shape[-1])
        # Along a random cycle through all units, each goes to the next one's place.
        cycles = rng.permuted(rows, axis=-1)
        moved = np.empty_like(rows)
        np.put_along_axis(moved, cycles, np.roll(cycles, 1, axis=-1), axis=-1)
        plan[name] = moved.reshape(order.shape)
    return plan


def along(bias, x):
    """A bias with as many axes as what it is added to: the tests promote no ranks."""
    return bias.reshape((1,) * (x.ndim - bias.ndim) + bias.shape)


def norm(x, eps=1e-5):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + eps)


def group_norm(x, groups):
    return norm(x.reshape(*x.shape[:-1], groups, -1)).reshape(x.shape)


def convolved(x, kernel, groups=1):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )  # fmt: skip


def mlp(p, x):
    h = jnp.tanh(x @ p["a"] + along(p["a/bias"], x))
    return jnp.tanh(h @ p["b"] + along(p["b/bias"], x)) @ p["c"]


def conv(p, x):
    h = jax.nn.gelu(convolved(x, p["c0"]))
    h = jax.nn.gelu(convolved(h, p["c1"]))[:, :2, :2]
    return jnp.tanh(h.reshape(len(h), -1) @ p["d0"]) @ p["d1"]


def residual(p, x):
    h = x @ p["in"]
    for block in "01":
        normed = norm(h) * along(p[f"norm{block}/scale"], h) + along(p[f"norm{block}/bias"], h)
        h = h + jnp.tanh(normed @ p[f"up{block}"]) @ p[f"down{block}"]
    return norm(h) @ p["out"]


def depthwise(p, x):
    h = jnp.tanh(convolved(x, p["expand"]) + along(p["bias"], x))
    h = jnp.tanh(convolved(h, p["depth"], groups=8))
    return convolved(h, p["project"]).sum((1, 2))


def attention(p, x):
    q = jnp.einsum("bti,ihd->bthd", x, p["q"])
    q = q + along(p["q/bias"], q)
    k, v = (jnp.einsum("bti,ihd->bthd", x, p[n]) for n in "kv")
    weights = jax.nn.softmax(jnp.einsum("bshd,bthd->bhst", q, k))
    mixed = jnp.einsum("bhst,bthd->bshd", weights, v)
    mixed = mixed * along(p["gate"][:, None], mixed)
    return mixed.reshape(*x.shape[:2], -1) @ p["o"]


def recurrent(p, x):
    h = jnp.zeros((len(x), 8))
    for step in range(3):
        h = jnp.tanh(x[:, step] @ p["in"] + h @ p["h"])
    return h @ p["out"]


def grouped_query(p, x):
    b, n, _ = x.shape
    q, k, v = (x @ p["q"]).reshape(b, n, 2, 3, 4), (x @ p["k"]).reshape(b, n, 2, 4), x @ p["v"]
    s = jax.nn.softmax(jnp.einsum("blgrk,bmgk->bgrlm", q, k))
    return jnp.einsum("bgrlm,bmgk->blgrk", s, v.reshape(b, n, 2, 4)).reshape(b, n, 24) @ p["o"]


def fused_query(p, x):
    """Queries, keys and values in one kernel, whose parts hold one another's groups on one axis."""
    b, n, _ = x.shape
    q, k, v = jnp.split(x @ p["qkv"], [24, 32], -1)
    q, k, v = q.reshape(b, n, 2, 3, 4), k.reshape(b, n, 2, 4), v.reshape(b, n, 2, 4)
    s = jax.nn.softmax(jnp.einsum("blgrk,bmgk->bgrlm", q, k))
    return jnp.einsum("bgrlm,bmgk->blgrk", s, v).reshape(b, n, 24) @ p["o"]


def three_deep(p, x):
    return jnp.tanh(group_norm(jnp.tanh(group_norm(x @ p["a"], 2)), 4)) @ p["o"]


def three_deep_residual(p, x):
    h = group_norm(x @ p["a"], 2)
    return group_norm(jnp.tanh(h + h @ p["s"]), 4) @ p["o"]


def rotary(p, x):
    """Heads, the halves of whose dimensions turn together."""
    angle = jnp.arange(5.0)[:, None, None] * jnp.array([[[1.0, 0.1]]])
    cos, sin = jnp.cos(angle)[None], jnp.sin(angle)[None]

    def turned(y):
        a, b = y[..., :2], y[..., 2:]
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    q, k, v = (jnp.einsum("bti,ihd->bthd", x, p[n]) for n in "qkv")
    weights = jax.nn.softmax(jnp.einsum("bshd,bthd->bhst", turned(q), turned(k)))
    return jnp.einsum("bhst,bthd,hdo->bso", weights, v, p["o"])


def mixer(p, x):
    h = x @ p["embed"]
    for block in "01":
        mixed = jnp.tanh(h.swapaxes(1, 2) @ p[f"tokens{block}/up"]) @ p[f"tokens{block}/down"]
        h = h + mixed.swapaxes(1, 2)
        h = h + jnp.tanh(norm(h) @ p[f"channels{block}/up"]) @ p[f"channels{block}/down"]
    return jnp.tanh(h) @ p["out"]


def grouped_norm(p, x):
    h = jnp.tanh(group_norm(convolved(x, p["a"]), 4) * along(p["scale"], x))
    return jnp.tanh(group_norm(convolved(h, p["b"]), 2)).mean((1, 2)) @ p["o"]


def both_hidden(p, x):
    """A head that reads two groups on one axis, each along the other."""
    h = jnp.tanh(x @ p["channels"])
    h = jnp.tanh(jnp.einsum("btc,tu->buc", h, p["tokens"]))
    return h.reshape(len(h), -1) @ p["out"]


def low_rank(p, x):
    h = x
    for layer in "012":
        h = jnp.tanh(h @ p[f"w{layer}"] + h @ p[f"a{layer}"] @ p[f"b{layer}"])
    return h @ p["out"]


def squeezed(p, x):
    """Inverted residual blocks with squeeze and excitation, as in EfficientNet."""
    h = convolved(x, p["stem"])
    for block in "01":
        inner = jax.nn.silu(convolved(h, p[f"expand{block}"]))
        inner = jax.nn.silu(convolved(inner, p[f"depth{block}"], groups=inner.shape[-1]))
        squeeze = jax.nn.silu(inner.mean((1, 2)) @ p[f"reduce{block}"])
        inner = inner * jax.nn.sigmoid(squeeze @ p[f"excite{block}"])[:, None, None]
        h = h + convolved(inner, p[f"project{block}"])
    return jnp.tanh(h).mean((1, 2)) @ p["out"]


def stacked(p, x):
    """All layers in one leaf: one order for all, of which each layer shows a part."""
    h = x @ p["in"]
    for layer in range(4):
        h = h + jnp.tanh(h @ p["up"][layer]) @ p["down"][layer]
    return h @ p["out"]


def core(p, x):
    """Four factors around a core whose every axis is hidden."""
    factors = [jnp.tanh(x @ p[n]) for n in "abcd"]
    return jnp.einsum("xa,xb,xc,xd,abcd->x", *factors, p["core"])[:, None]


_QUERIES = dict.fromkeys("qkv", (6, 3, 4)) | {"o": (3, 4, 6)}
_MIXER = {"embed": (3, 10), "out": (10, 2)}
_BLOCKS = {"stem": (3, 3, 3, 6), "out": (6, 3)}
for _block in "01":
    _MIXER |= {f"tokens{_block}/up": (4, 9), f"tokens{_block}/down": (9, 4)}
    _MIXER |= {f"channels{_block}/up": (10, 7), f"channels{_block}/down": (7, 10)}
    _BLOCKS |= {f"expand{_block}": (1, 1, 6, 9), f"depth{_block}": (3, 3, 1, 9)}
    _BLOCKS |= {f"reduce{_block}": (9, 4), f"excite{_block}": (4, 9)}
    _BLOCKS |= {f"project{_block}": (1, 1, 9, 6)}
_RESIDUAL = {"in": (4, 6), "out": (6, 3)}
_LOW_RANK = {"out": (12, 3)}
for _block in "01":
    _RESIDUAL |= {f"up{_block}": (6, 8), f"down{_block}": (8, 6)}
    _RESIDUAL |= {f"norm{_block}/scale": (6,), f"norm{_block}/bias": (6,)}
for _layer in "012":
    _width = 4 if _layer == "0" else 12
    _LOW_RANK |= {f"w{_layer}": (_width, 12), f"a{_layer}": (_width, 3), f"b{_layer}": (3, 12)}

# By name: the function, its leaves, and the shape of one example.
NETWORKS = {
    "mlp": (mlp, {"a": (4, 7), "a/bias": (7,), "b": (7, 6), "b/bias": (6,), "c": (6, 3)}, (4,)),
    "conv": (
        conv,
        {"c0": (3, 3, 3, 6), "c1": (3, 3, 6, 5), "d0": (20, 7), "d1": (7, 3)},
        (3, 3, 3),
    ),
    "residual": (residual, _RESIDUAL, (4,)),
    "depthwise": (
        depthwise,
        {"expand": (1, 1, 3, 8), "depth": (3, 3, 1, 8), "bias": (8,), "project": (1, 1, 8, 4)},
        (4, 4, 3),
    ),
    "attention": (
        attention,
        dict.fromkeys("qkv", (5, 3, 4)) | {"q/bias": (3, 4), "gate": (3,), "o": (12, 5)},
        (6, 5),
    ),
    "recurrent": (recurrent, {"in": (3, 8), "h": (8, 8), "out": (8, 2)}, (3, 3)),
    "grouped_query": (
        grouped_query,
        {"q": (7, 24), "k": (7, 8), "v": (7, 8), "o": (24, 5)},
        (6, 7),
    ),
    "fused_query": (fused_query, {"qkv": (7, 40), "o": (24, 5)}, (6, 7)),
    "three_deep": (three_deep, {"a": (3, 12), "o": (12, 2)}, (3,)),
    "three_deep_residual": (three_deep_residual, {"a": (3, 8), "s": (8, 8), "o": (8, 2)}, (3,)),
    "rotary": (rotary, _QUERIES, (5, 6)),
    "mixer": (mixer, _MIXER, (4, 3)),
    "grouped_norm": (
        grouped_norm,
        {"a": (3, 3, 3, 12), "scale": (12,), "b": (3, 3, 12, 8), "o": (8, 3)},
        (4, 4, 3),
    ),
    "both_hidden": (both_hidden, {"channels": (3, 6), "tokens": (4, 5), "out": (30, 2)}, (4, 3)),
    "low_rank": (low_rank, _LOW_RANK, (4,)),
    "squeezed": (squeezed, _BLOCKS, (4, 4, 3)),
    "stacked": (stacked, {"in": (4, 6), "up": (4, 6, 8), "down": (4, 8, 6), "out": (6, 3)}, (4,)),
    "core": (core, dict.fromkeys("abcd", (4, 5)) | {"core": (5, 5, 5, 5)}, (4,)),
}
