"""One function for each newer rule: what is found, and that moving it keeps the function."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.merging.symmetry.moves import checked_spec, summary
from wsa_jax.merging.symmetry.tracing import trace_spec

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(7, 5)), jnp.float32)
ROTATION = jnp.arange(7.0)[:, None, None] * jnp.array([[[1.0, 0.4]]])


def _draw(**shapes):
    return {n: jnp.asarray(RNG.normal(size=s), jnp.float32) for n, s in shapes.items()}


def _attention(q, k, v):
    weights = jax.nn.softmax(jnp.einsum("shd,thd->hst", q, k))
    return jnp.einsum("hst,thd->shd", weights, v).reshape(len(q), -1)


def _heads(p, x):
    return [(x @ p[name]).reshape(len(x), 3, -1) for name in "qkv"]


def _rotated(t):
    """Rotary embeddings of the first half turned by the second, of the first four dimensions."""
    a, b, rest = t[..., :2], t[..., 2:4], t[..., 4:]
    cos, sin = jnp.cos(ROTATION), jnp.sin(ROTATION)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], -1)


def _rotary(p, x):
    q, k, v = _heads(p, x)
    return _attention(_rotated(q), _rotated(k), v) @ p["o"]


def _fused_heads(p, x):
    """Query, key and value of each head side by side, as in BLOOM and NeoX."""
    q, k, v = jnp.split((x @ p["qkv"]).reshape(len(x), 3, 12), 3, -1)
    return _attention(q, k, v) @ p["o"]


def _unpacked(p, x):
    q, k, v = (x @ p["qkv"]).reshape(len(x), 3, 2, 4).transpose(1, 0, 2, 3)
    return _attention(q, k, v) @ p["o"]


def _first_token(p, x):
    return jax.nn.relu((x @ p["a"]).at[0].set(p["token"])) @ p["o"]


def _messages(p, x):
    sender, receiver = jnp.array([0, 1, 1, 3]), jnp.array([1, 0, 2, 2])
    h = jax.nn.relu(x @ p["a"])
    summed = jax.ops.segment_sum(h[sender], receiver, len(x))
    largest = jnp.zeros_like(h).at[receiver].max(h[sender])
    return (summed + largest) @ p["o"]


def _ragged(p, x):
    expert = jnp.argmax(x @ p["router"], -1)
    order, sizes = jnp.argsort(expert), jnp.bincount(expert, length=3)
    h = jax.nn.relu(jax.lax.ragged_dot(x[order], p["a"], sizes))
    return jax.lax.ragged_dot(h, p["b"], sizes)[jnp.argsort(order)] @ p["o"]


def _empty_part(p, x):
    nothing, gate, h = jnp.split(x @ p["a"], [0, 4], -1)
    return jnp.concatenate([nothing, h * jax.nn.silu(gate)], -1) @ p["o"]


def _along_time(p, x):
    h = jnp.fft.ifft(2 * jnp.fft.fft(jax.nn.relu(x @ p["a"]), axis=0), axis=0)
    return jnp.real(h) @ p["o"]


def _gram(p, x):
    h = (x @ p["a"]).T[:, :, None]
    return jnp.linalg.cholesky(h * h.swapaxes(1, 2) + 9 * jnp.eye(len(x))[None]).sum(0)


def _elements(p, x):
    h = x @ p["a"]
    return (jnp.log2(1 + h * h) + jax.scipy.special.zeta(2 + h * h, 1.5)) @ p["o"]


def _network(p, x):
    return (jnp.tanh(jnp.tanh(x @ p["a"] + p["bias"]) @ p["b"]) @ p["o"])[0]


def _laplacian(p, x):
    return jax.vmap(lambda x: jnp.trace(jax.hessian(_network, 1)(p, x)))(x)


def _sorted_by_another(p, x):
    keys, values = jnp.broadcast_to(x[:, :1], (7, 6)), x @ p["a"]
    return jnp.tanh(jax.lax.sort((keys, values), dimension=0, num_keys=1)[1]).sum(-1)


@functools.cache
def _cases():
    heads = _draw(q=(5, 18), k=(5, 18), v=(5, 18), o=(18, 2))
    experts = _draw(router=(5, 3), a=(3, 5, 6), b=(3, 6, 4), o=(4, 2))
    plain = _draw(a=(5, 6), o=(6, 2))
    permuted = {"a": (6, "permutation", None)}
    return {
        _rotary: (heads, {"q": (3, "permutation", None), "v/inner": (6, "linear", "q")}),
        _fused_heads: (_draw(qkv=(5, 36), o=(12, 2)), {"qkv": (3, "permutation", None)}),
        _unpacked: (
            _draw(qkv=(5, 24), o=(8, 2)),
            {"qkv": (2, "permutation", None), "qkv/inner": (4, "permutation", "qkv")},
        ),
        _first_token: (plain | _draw(token=(6,)), {"a": (6, "scaling", None)}),
        _messages: (plain, {"a": (6, "scaling", None)}),
        _ragged: (experts, {"a": (6, "scaling", None), "b": (4, "linear", None)}),
        _empty_part: (_draw(a=(5, 8), o=(4, 2)), {"a": (4, "permutation", None)}),
        _along_time: (plain, {"a": (6, "scaling", None)}),
        _gram: (_draw(a=(5, 6)), permuted),
        _elements: (plain, permuted),
        _laplacian: (
            _draw(a=(5, 6), bias=(6,), b=(6, 4), o=(4, 1)),
            {"a": (6, "permutation", None), "b": (4, "permutation", None)},
        ),
        _sorted_by_another: (_draw(a=(5, 6)), permuted),
    }


@pytest.mark.parametrize("function", _cases(), ids=lambda function: function.__name__)
def test_rules(function):
    params, expected = _cases()[function]
    with jax.numpy_rank_promotion("allow"):
        assert summary(checked_spec(function, params, X, rtol=1e-3)) == expected


@pytest.mark.parametrize("function", [_rotary, _fused_heads])
def test_dimensions_lost_inside_heads_are_named(function):
    params, _ = _cases()[function]
    with jax.numpy_rank_promotion("allow"):
        pinned = {(pin.leaf, pin.axis) for pin in trace_spec(function, params, X).pinned}
    assert {("q", 1), ("k", 1)} <= pinned if function is _rotary else ("qkv", 1) in pinned


def test_four_heads_of_rotary_embeddings_move_as_wholes():
    params, _ = _cases()[_rotary]
    spec = trace_spec(_rotary, params, X)
    ties = {tie.leaf: (tie.axis, tie.role, tie.outer, tie.inner) for tie in spec["q"].ties}
    assert ties == dict.fromkeys("qkv", (1, "produced", 1, 6)) | {"o": (0, "consumed", 1, 6)}
