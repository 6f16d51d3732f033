"""Specs read off jaxprs: any move of units that a spec allows keeps the function."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax import lax

from wsa_jax.conv import conv_general_dilated
from wsa_jax.merging.symmetry.equivalence import check_equivalence
from wsa_jax.merging.symmetry.tracing import trace_spec
from wsa_jax.merging.symmetry.units import permute_units, scale_units
from wsa_jax.tree import key_path

RNG = np.random.default_rng(0)


def _normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def _randomized(params):
    """Values of a model without symmetries of its own: no zero biases, no equal scales."""

    def draw(path, leaf):
        if jnp.issubdtype(getattr(leaf, "dtype", np.int32), jnp.floating):
            value = RNG.normal(size=leaf.shape)
            positive = key_path(path).rsplit("/", 1)[-1] in ("var", "scale")
            return np.asarray(np.exp(0.3 * value) if positive else 0.5 * value, leaf.dtype)
        return leaf

    return jax.tree_util.tree_map_with_path(draw, params)


def _moved(spec, params):
    """Every group in a random order, and scaled by random factors where it admits them."""
    permutations, scales = {}, {}
    for group in spec.groups:
        outer = 1 if group.parent is None else spec[group.parent].size
        orders = np.stack([RNG.permutation(group.size) for _ in range(outer)])
        factors = np.exp(RNG.normal(size=(outer, group.size))).astype(np.float32)
        permutations[group.name] = orders[0] if group.parent is None else orders
        if group.admits != "permutation":
            scales[group.name] = factors[0] if group.parent is None else factors
    return _move(spec, params, scales, permutations)


@functools.partial(jax.jit, static_argnums=0)
def _move(spec, params, scales, permutations):
    return permute_units(spec, scale_units(spec, params, scales), permutations)


def _checked(apply_fn, params, *inputs):
    apply_fn = jax.jit(apply_fn)
    spec = trace_spec(apply_fn, params, *inputs)
    for _ in range(2):
        check_equivalence(apply_fn, params, _moved(spec, params), *inputs, rtol=2e-4)
    return spec


def _linen(model, *inputs):
    variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    return model.apply, _randomized(variables)


def _summary(spec):
    return {group.name: (group.size, group.admits, group.parent) for group in spec.groups}


class _Convolutions(nn.Module):
    """Depthwise and grouped convolutions, each kind of norm, average pooling."""

    ours: bool = False

    @nn.compact
    def __call__(self, x):
        conv = nn.Conv
        if self.ours:
            conv = functools.partial(nn.Conv, conv_general_dilated=conv_general_dilated)
        x = nn.relu(conv(6, (3, 3))(x))
        x = conv(6, (3, 3), feature_group_count=6)(x)
        x = nn.BatchNorm(use_running_average=True)(x)
        x = conv(8, (1, 1))(nn.relu(x))
        x = nn.GroupNorm(num_groups=4)(x)
        x = conv(6, (3, 3), strides=(2, 2), feature_group_count=2)(jnp.tanh(x))
        x = nn.avg_pool(nn.LayerNorm()(x), (2, 2), (1, 1))
        return nn.Dense(3)(x.mean((1, 2)))


@pytest.mark.parametrize("ours", [False, True])
def test_depthwise_grouped_and_normalized_convolutions(ours):
    apply_fn, variables = _linen(_Convolutions(ours=ours), _normal(2, 5, 5, 3))
    spec = _checked(apply_fn, variables, _normal(2, 5, 5, 3))
    assert _summary(spec) == {
        "Conv_0": (6, "permutation", None),  # also the depthwise channels
        # Two of the four groups of the norm lie in each of the two of the convolution.
        "Conv_2": (2, "permutation", None),
        "Conv_2/inner": (2, "permutation", "Conv_2"),
        "Conv_2/inner_2": (2, "permutation", "Conv_2/inner"),
        "Conv_3/inner": (3, "permutation", "Conv_2"),
    }


class _Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(6)(x)
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=3, qkv_features=12)(h, h)
        h = nn.LayerNorm()(x)
        x = x + nn.Dense(6)(nn.gelu(nn.Dense(7)(h)))
        return nn.Dense(2)(nn.LayerNorm()(x)[:, 0])


def test_transformer_block():
    apply_fn, variables = _linen(_Attention(), _normal(2, 5, 4))
    spec = _checked(apply_fn, variables, _normal(2, 5, 4))
    attention = "MultiHeadDotProductAttention_0"
    assert _summary(spec) == {
        "Dense_0": (6, "permutation", None),
        f"{attention}/query": (3, "permutation", None),
        f"{attention}/query/inner": (4, "permutation", f"{attention}/query"),
        f"{attention}/value/inner": (4, "linear", f"{attention}/query"),
        "Dense_2": (7, "permutation", None),
    }


def _relu_chain(p, x):
    h = jax.nn.relu(x @ p["a"] + p["b"])
    return jax.nn.relu(h @ p["c"]) @ p["d"]


def _linear_chain(p, x):
    return (x @ p["a"] + p["b"]) @ p["c"] @ p["d"]


def _low_rank(p, x):
    return jnp.tanh(x @ (p["a"] @ p["b"])) @ p["c"]


def _residual(p, x):
    h = x @ p["in"]
    for name in "ab":
        h = h + jax.nn.relu(h @ p[name]["up"] + p[name]["bias"]) @ p[name]["down"]
    return jax.nn.leaky_relu(h) @ p["out"]


def _dense_net(p, x):
    """Concatenation of images and their flattening: blocks in each of four places."""
    h = jax.nn.relu(x @ p["a"])
    h = jnp.concatenate([h, jax.nn.relu(h @ p["b"]), x], axis=-1)
    return h.reshape(h.shape[0], -1) @ p["c"]


def _channels_first(p, x):
    h = jax.nn.relu(x @ p["a"])
    return jnp.moveaxis(h, -1, 1).reshape(h.shape[0], -1) @ p["b"]


def _padded_shortcut(p, x):
    """The parameter-free shortcut of residual nets: strided, zero channels on both sides."""
    h = jax.nn.relu(x @ p["a"])
    wide = jnp.pad(h[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (1, 2)))
    return jax.nn.relu(wide + h[:, ::2, ::2] @ p["b"]).mean((1, 2)) @ p["c"]


def _fused_attention(p, x):
    h = x @ p["in"]
    q, k, v = jnp.split(h @ p["qkv"] + p["bias"], 3, axis=-1)
    q, k, v = (a.reshape(*a.shape[:2], 2, 3) for a in (q, k, v))
    weights = jax.nn.softmax(jnp.einsum("bshd,bthd->bhst", q, k))
    mixed = jnp.einsum("bhst,bthd->bshd", weights, v).reshape(*h.shape[:2], -1)
    return jnp.tanh(h + mixed @ p["o"]) @ p["out"]


def _stacked_attention(p, x):
    """As above, cut by an index: one order inside the heads for all three."""
    h = x @ p["in"]
    qkv = (h @ p["qkv"] + p["bias"]).reshape(*x.shape[:2], 3, 2, 3)
    q, k, v = (qkv[:, :, i] for i in range(3))
    weights = jax.nn.softmax(jnp.einsum("bshd,bthd->bhst", q, k))
    mixed = jnp.einsum("bhst,bthd->bshd", weights, v).reshape(*h.shape[:2], -1)
    return jnp.tanh(h + mixed @ p["o"]) @ p["out"]


def _across_heads(p, x):
    """Each head's query meets every head's key: one order inside all heads."""
    q, k = jnp.einsum("bti,ihd->bthd", x, p["q"]), jnp.einsum("bti,ihd->bthd", x, p["k"])
    return jnp.tanh(jnp.einsum("bshd,btgd->bstgh", jnp.tanh(q), jnp.tanh(k))).sum((-1, -2))


def _gated(p, x):
    first, second = jnp.split(x @ p["up"], 2, axis=-1)
    return (jax.nn.silu(first) * second) @ p["down"]


def _scanned(p, x):
    def turn(h, layer):
        return h + jax.nn.relu(h @ layer["up"]) @ layer["down"], None

    return lax.scan(turn, x @ p["in"], p["layers"])[0] @ p["out"]


def _recurrent(p, x):
    start = jnp.zeros((x.shape[0], 4))
    turn = lambda h, x: (jnp.tanh(x @ p["in"] + h @ p["hidden"]), None)  # noqa: E731
    return lax.scan(turn, start, jnp.swapaxes(x, 0, 1))[0] @ p["out"]


def _branches(p, x):
    h = x @ p["a"]
    h = lax.cond(x.sum() > 0, jax.nn.relu, lambda h: 0.1 * h, h)
    return lax.fori_loop(0, 2, lambda _, h: jax.nn.relu(h @ p["b"]), h) @ p["c"]


def _embedded(p, x):
    h = p["embedding"][x]
    return jnp.tanh(h @ p["w"] + h) @ p["embedding"].T


def _maxout(p, x):
    h = (x @ p["a"]).reshape(x.shape[0], 4, 3).max(-1)
    return h @ p["b"]


def _rotated(p, x):
    h = jax.nn.relu(x @ p["a"])
    return (h + jnp.roll(h, 1, -1)) @ p["b"]


def _shuffled(p, x):
    first, second = jnp.split(jax.nn.relu(x @ p["a"]), 2, axis=-1)
    h = jnp.stack([first, jnp.tanh(second)], -1)
    return h.reshape(x.shape[0], -1) @ p["b"]


def _positioned(p, x):
    return jnp.tanh((x @ p["a"])[:, ::-1] * jnp.arange(5.0)[None]) @ p["b"]


def _prelu(p, x):
    h = x @ p["a"]
    return jnp.where(h > 0, h, p["slope"][None] * h) @ p["b"]


def _clipped(p, x):
    return jax.nn.relu6(x @ p["a"]) @ p["b"]


def _pairwise(p, x):
    """A square of sums over units keeps orders, not scales."""
    h = x @ p["a"]
    return (h / (1 + jnp.linalg.norm(h, axis=-1, keepdims=True))) @ p["b"]


def _block(*shapes):
    return dict(zip(("up", "bias", "down"), (_normal(*shape) for shape in shapes), strict=True))


def _cases():
    x, images, tokens = _normal(7, 3), _normal(2, 4, 4, 3), _normal(2, 4, 3)
    square = _normal(5, 5)
    yield (
        _relu_chain,
        {"a": _normal(3, 5), "b": _normal(1, 5), "c": square, "d": _normal(5, 2)},
        x,
        {"a": (5, "scaling", None), "c": (5, "scaling", None)},
    )
    yield (
        _linear_chain,
        {"a": _normal(3, 5), "b": _normal(1, 5), "c": square, "d": _normal(5, 2)},
        x,
        {"a": (5, "linear", None), "c": (5, "linear", None)},
    )
    yield (
        _low_rank,
        {"a": _normal(3, 2), "b": _normal(2, 4), "c": _normal(4, 1)},
        x,
        {"a": (2, "linear", None), "b": (4, "permutation", None)},
    )
    yield (
        _residual,
        {
            "in": _normal(3, 4),
            "out": _normal(4, 2),
            "a": _block((4, 5), (1, 5), (5, 4)),
            "b": _block((4, 6), (1, 6), (6, 4)),
        },
        x,
        {"in": (4, "scaling", None), "a": (5, "scaling", None), "b": (6, "scaling", None)},
    )
    yield (
        _dense_net,
        {"a": _normal(3, 4), "b": _normal(4, 2), "c": _normal(16 * 9, 2)},
        images,
        {"a": (4, "scaling", None), "b": (2, "scaling", None)},
    )
    yield (
        _channels_first,
        {"a": _normal(3, 4), "b": _normal(64, 2)},
        images,
        {"a": (4, "scaling", None)},
    )
    yield (
        _padded_shortcut,
        {"a": _normal(3, 3), "b": _normal(3, 6), "c": _normal(6, 2)},
        images,
        {
            # Zeros stand beside the last two units: nothing is guessed of their scale.
            "a": (3, "scaling", None),
            "b": (2, "permutation", None),
        },
    )
    attention = {
        "in": _normal(3, 4),
        "qkv": _normal(4, 18),
        "bias": _normal(1, 1, 18),
        "o": _normal(6, 4),
        "out": _normal(4, 2),
    }
    yield (
        _fused_attention,
        attention,
        tokens,
        {
            "in": (4, "permutation", None),
            "qkv": (2, "permutation", None),
            "qkv/inner": (3, "permutation", "qkv"),
            "qkv/inner_2": (3, "linear", "qkv"),
        },
    )
    yield (
        _stacked_attention,
        attention,
        tokens,
        {
            "in": (4, "permutation", None),
            "qkv": (2, "permutation", None),
            "qkv/inner": (3, "permutation", "qkv"),
        },
    )
    yield (
        _across_heads,
        {"q": _normal(3, 2, 4), "k": _normal(3, 2, 4)},
        tokens,
        {
            "q": (2, "permutation", None),
            "q_2": (4, "permutation", None),
            "k": (2, "permutation", None),
        },
    )
    yield _gated, {"up": _normal(3, 8), "down": _normal(4, 2)}, x, {"up": (4, "permutation", None)}
    layers = {"up": _normal(3, 4, 5), "down": _normal(3, 5, 4)}
    yield (
        _scanned,
        {"in": _normal(3, 4), "layers": layers, "out": _normal(4, 2)},
        x,
        {"in": (4, "linear", None)} | {f"layers[{i}]": (5, "scaling", None) for i in range(3)},
    )
    yield (
        _recurrent,
        {"in": _normal(3, 4), "hidden": _normal(4, 4), "out": _normal(4, 2)},
        tokens,
        {"in": (4, "permutation", None)},
    )
    yield (
        _branches,
        {"a": _normal(3, 4), "b": _normal(4, 4), "c": _normal(4, 2)},
        x,
        {"a": (4, "scaling", None)},
    )
    yield (
        _embedded,
        {"embedding": _normal(6, 4), "w": _normal(4, 4)},
        jnp.arange(5),
        {"w": (4, "permutation", None)},
    )
    yield (
        _maxout,
        {"a": _normal(3, 12), "b": _normal(4, 2)},
        x,
        {"a": (4, "scaling", None), "a/inner": (3, "permutation", "a")},
    )
    yield _shuffled, {"a": _normal(3, 8), "b": _normal(8, 2)}, x, {"a": (4, "permutation", None)}
    yield _rotated, {"a": _normal(3, 5), "b": _normal(5, 2)}, x, {}
    yield _positioned, {"a": _normal(3, 5), "b": _normal(5, 2)}, x, {}
    yield (
        _prelu,
        {"a": _normal(3, 5), "slope": _normal(5), "b": _normal(5, 2)},
        x,
        {"a": (5, "permutation", None)},
    )
    yield _clipped, {"a": _normal(3, 5), "b": _normal(5, 2)}, x, {"a": (5, "permutation", None)}
    yield _pairwise, {"a": _normal(3, 5), "b": _normal(5, 2)}, x, {"a": (5, "permutation", None)}


@pytest.mark.parametrize("case", list(_cases()), ids=lambda case: case[0].__name__)
def test_functions(case):
    function, params, x, expected = case
    assert _summary(_checked(function, params, x)) == expected


def test_nnx_model():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
            self.dense = nnx.Linear(4 * 9, 5, rngs=rngs)
            self.out = nnx.Linear(5, 2, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.norm(self.conv(x)))
            return self.out(nnx.relu(self.dense(x.reshape(x.shape[0], -1))))

    graph, state = nnx.split(Model(nnx.Rngs(0)))
    spec = _checked(
        lambda state, x: nnx.merge(graph, state)(x), _randomized(state), _normal(2, 3, 3, 3)
    )
    assert _summary(spec) == {"conv": (4, "permutation", None), "dense": (5, "scaling", None)}
    roles = {tie.leaf: tie.role for tie in spec["conv"].ties}
    assert roles["norm/mean"] == roles["norm/var"] == "statistic"
    assert roles["norm/scale"] == "produced" and roles["dense/kernel"] == "consumed"


def test_equinox_model():
    keys = jax.random.split(jax.random.key(0))
    model = eqx.nn.Sequential([
        eqx.nn.Conv2d(3, 4, 3, key=keys[0]),
        eqx.nn.Lambda(jax.nn.relu),
        eqx.nn.Lambda(jnp.ravel),
        eqx.nn.Linear(4 * 4, 2, key=keys[1]),
    ])  # fmt: skip

    def apply(model, images):
        return jax.vmap(model)(images)

    images = _normal(5, 3, 4, 4)
    spec = trace_spec(apply, model, images)
    assert _summary(spec) == {"layers/0": (4, "scaling", None)}
    consumed = spec["layers/0"].ties[-1]
    assert (consumed.leaf, consumed.axis, consumed.inner) == ("layers/3/weight", 1, 4)
    arrays, static = eqx.partition(model, eqx.is_array)
    moved = eqx.combine(_moved(spec, arrays), static)
    check_equivalence(apply, model, moved, images, rtol=2e-4)


def _reasons(function, params, *inputs):
    return {(p.leaf, p.axis): p.reason for p in trace_spec(function, params, *inputs).pinned}


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("sort", lambda h: jnp.sort(h, -1)),
        ("cumsum", lambda h: jnp.cumsum(h, -1)),
        ("argmax", lambda h: h + jnp.argmax(h, -1, keepdims=True)),
        ("fft", lambda h: jnp.abs(jnp.fft.fft(h))),  # no rule at all
        ("rev", lambda h: h[:, ::-1]),
        ("a constant array", lambda h: h * np.arange(5.0, dtype=np.float32)[None]),
    ],
)
def test_what_is_not_understood_is_pinned_with_a_reason(name, function):
    params = {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 2))}
    shape = jax.ShapeDtypeStruct((4, 3), jnp.float32)
    reasons = _reasons(lambda p, x: function(x @ p["a"]) @ p["b"], params, shape)
    assert set(reasons) == {("a", 1), ("b", 0)}
    assert all(reason.startswith(name) for reason in reasons.values())
    if "constant" not in name:
        assert "test_tracing.py:" in reasons["a", 1]


def test_parts_and_lonely_leaves_stay():
    params = {"a": jnp.ones((3, 5)), "b": jnp.ones((7, 2)), "unread": jnp.ones((4, 4))}

    def apply(p, x):
        return jnp.concatenate([x @ p["a"], x[:, :2]], -1) @ p["b"]

    reasons = _reasons(apply, params, jax.ShapeDtypeStruct((4, 3), jnp.float32))
    assert reasons["b", 0].startswith("slice") or reasons["b", 0] == "an input"
    assert reasons["unread", 0] == reasons["unread", 1] == "the function does not read it"


def test_nothing_is_compiled_and_shapes_suffice():
    model = _Convolutions()
    x = jax.ShapeDtypeStruct((2, 5, 5, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    assert trace_spec(model.apply, shapes, x) == trace_spec(model.apply, shapes, x)


def test_statistics_follow_a_rule():
    params = {"a": jnp.ones((3, 4)), "scale": jnp.ones((1, 4)), "b": jnp.ones((4, 2))}
    spec = trace_spec(
        lambda p, x: (x @ p["a"]) / p["scale"] @ p["b"],
        params,
        jnp.ones((2, 3)),
        statistics=lambda name, leaf: name == "scale",
    )
    assert [tie.role for tie in spec["a"].ties] == ["produced", "statistic", "consumed"]


def test_linear_groups_admit_any_invertible_matrix():
    rng = np.random.default_rng(3)
    params = {"a": _normal(3, 5), "bias": _normal(5), "b": _normal(5 * 2, 2)}

    def apply(p, x):
        h = x @ p["a"] + p["bias"][None]
        return jax.nn.relu(jnp.stack([h, 2 * h], 1).reshape(x.shape[0], -1) @ p["b"])

    x = _normal(4, 3)
    spec = trace_spec(apply, params, x)
    assert _summary(spec) == {"a": (5, "linear", None)}
    assert (spec["a"].ties[-1].outer, spec["a"].ties[-1].role) == (2, "consumed")
    matrix = rng.normal(size=(5, 5)).astype(np.float32)
    inverse = np.linalg.inv(matrix)
    moved = {
        "a": params["a"] @ matrix,
        "bias": params["bias"] @ matrix,
        "b": jnp.einsum("ij,rjo->rio", inverse, params["b"].reshape(2, 5, 2)).reshape(10, 2),
    }
    check_equivalence(apply, params, moved, x, rtol=1e-3)


def test_errors():
    with pytest.raises(ValueError, match="params holds no arrays"):
        trace_spec(lambda p, x: x, {}, jnp.ones(2))
