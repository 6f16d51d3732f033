"""Stacked layers of a scan: an order for each, where nothing ties it to another layer's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.merging.symmetry.moves import checked_spec, summary
from wsa_jax.merging.align import align, weight_matching
from wsa_jax.merging.symmetry.spec import AxisSpec, Group, Tie, check_spec
from wsa_jax.merging.symmetry.tracing import trace_spec
from wsa_jax.merging.symmetry.units import identity_permutations, permute_units, unit_rows

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(7, 5)), jnp.float32)


def _draw(**shapes):
    return {n: jnp.asarray(RNG.normal(size=s), jnp.float32) for n, s in shapes.items()}


ENDS = _draw(start=(5, 8), end=(8, 2))
PAIR = ENDS | _draw(a=(3, 8, 6), b=(3, 6, 8))


def _residual(h, layer):
    return h + jnp.tanh(h @ layer[0]) @ layer[1], None


def _attend(h, layer):
    n = h / jnp.sqrt((h * h).mean(-1, keepdims=True) + 1e-5)
    q, k, v = (jnp.einsum("ti,ihd->thd", n, layer[name]) for name in "qkv")
    weights = jax.nn.softmax(jnp.einsum("shd,thd->hst", q, k))
    mixed = jnp.einsum("hst,thd->shd", weights, v).reshape(len(h), -1)
    h = h + mixed @ layer["o"]
    return h + jax.nn.relu(h @ layer["up"]) @ layer["down"], None


def _transformer(p, x):
    layers = {name: p[name] for name in ("q", "k", "v", "o", "up", "down")}
    return jax.lax.scan(_attend, x @ p["start"], layers)[0] @ p["end"]


def _handed_on(p, x):
    """What the first loop returns layer by layer is read by the second, backwards."""

    def first(h, layer):
        hidden = jnp.tanh(h @ layer[0])
        return h + hidden @ layer[1], hidden

    h, hidden = jax.lax.scan(first, x @ p["start"], (p["a"], p["b"]))
    second = lambda h, row: (h + row[0] @ row[1] + row[2], None)  # noqa: E731
    rows = (hidden, p["c"], jnp.arange(3.0))
    return jax.lax.scan(second, h, rows, reverse=True)[0] @ p["end"]


def _twice_nested(p, x):
    inner = lambda h, layers: (jax.lax.scan(_residual, h, layers)[0], None)  # noqa: E731
    return jax.lax.scan(inner, x @ p["start"], (p["a"], p["b"]))[0] @ p["end"]


def _backwards(p, x):
    """Layer i of one leaf meets layer 2 - i of another: one order for all."""
    h = jax.lax.scan(_residual, x @ p["start"], (p["a"], p["b"]))[0]
    return jax.lax.scan(_residual, h, (p["a"][::-1], p["b"]))[0] @ p["end"]


def _read_outside(p, x):
    h = jax.lax.scan(_residual, x @ p["start"], (p["a"], p["b"]))[0]
    return _residual(h, (p["a"][1], p["b"][1]))[0] @ p["end"]


def _shared(p, x):
    """Every layer's kernel meets one kernel for all."""
    turn = lambda h, up: (h + jnp.tanh(h @ up) @ p["down"], None)  # noqa: E731
    return jax.lax.scan(turn, x @ p["start"], p["a"])[0] @ p["end"]


def _carried(p, x):
    return (
        jax.lax.scan(lambda h, w: (jax.nn.relu(h @ w), None), x @ p["start"], p["w"])[0] @ p["end"]
    )


def _layers(name, count, *rest):
    return {f"{name}[{index}]": rest for index in range(count)}


STREAM = {"start": (8, "permutation", None)}
LINEAR = {"start": (8, "linear", None)}
HEADS = {"q": (3, 8, 2, 4), "k": (3, 8, 2, 4), "v": (3, 8, 2, 4), "o": (3, 8, 8)}
CASES = {
    _transformer: (
        ENDS | _draw(**HEADS, up=(3, 8, 6), down=(3, 6, 8)),
        STREAM
        | _layers("q", 3, 2, "permutation", None)
        | {f"q/inner[{i}]": (4, "permutation", f"q[{i}]") for i in range(3)}
        | {f"v/inner[{i}]": (4, "linear", f"q[{i}]") for i in range(3)}
        | _layers("up", 3, 6, "scaling", None),
    ),
    _handed_on: (PAIR | _draw(c=(3, 6, 8)), STREAM | _layers("a", 3, 6, "permutation", None)),
    _twice_nested: (
        ENDS | _draw(a=(2, 3, 8, 6), b=(2, 3, 6, 8)),
        LINEAR | {f"a[{i},{j}]": (6, "permutation", None) for i in range(3) for j in range(2)},
    ),
    _backwards: (PAIR, LINEAR | {"a": (6, "permutation", None)}),
    _read_outside: (PAIR, LINEAR | {"a": (6, "permutation", None)}),
    _shared: (
        ENDS | _draw(a=(3, 8, 6), down=(6, 8)),
        LINEAR | {"a": (6, "permutation", None)},
    ),
    _carried: (ENDS | _draw(w=(3, 8, 8)), {"start": (8, "scaling", None)}),
}


@pytest.mark.parametrize("function", CASES, ids=lambda function: function.__name__)
def test_layers_have_orders_of_their_own_where_they_may(function):
    params, expected = CASES[function]
    assert summary(checked_spec(function, params, X, rtol=1e-3)) == expected


def test_another_order_in_each_layer_is_matched_back():
    params, _ = CASES[_transformer]
    spec = trace_spec(_transformer, params, X)
    rng = np.random.default_rng(1)
    orders = {n: rng.permuted(o, axis=-1) for n, o in identity_permutations(spec).items()}
    assert not np.array_equal(orders["up[0]"], orders["up[1]"])
    moved = permute_units(spec, params, orders)
    matching = weight_matching(jax.random.key(0), spec, params, moved, restarts=2)
    back = align(spec, moved, matching)
    for name, leaf in params.items():
        np.testing.assert_array_equal(back[name], leaf, err_msg=name)


def test_a_layer_moves_alone():
    leaf = jnp.arange(24.0).reshape(2, 3, 4)
    layer = Group(name="layer", size=3, ties=(Tie(leaf="k", axis=1, at=((0, 1),)),))
    spec = AxisSpec(groups=(layer,))
    moved = permute_units(spec, {"k": leaf}, {"layer": [2, 0, 1]})["k"]
    np.testing.assert_array_equal(moved[0], leaf[0])
    np.testing.assert_array_equal(moved[1], leaf[1][jnp.array([2, 0, 1])])
    np.testing.assert_array_equal(unit_rows(spec, leaf, layer, layer.ties[0]), leaf[1])


def test_layers_that_do_not_exist_or_overlap_are_refused():
    tie = Tie(leaf="k", axis=1, at=((0, 2),))
    params = {"k": jnp.ones((2, 3, 4))}
    with pytest.raises(ValueError, match="no position 2 of another axis 0, at which group g lies"):
        check_spec(AxisSpec(groups=(Group(name="g", size=3, ties=(tie,)),)), params)
    tie = dataclasses.replace(tie, at=((0, 1),))
    whole = Group(name="whole", size=3, ties=(Tie(leaf="k", axis=1),))
    both = AxisSpec(groups=(whole, Group(name="layer", size=3, ties=(tie,))))
    with pytest.raises(ValueError, match="axis 1 of leaf k is given to groups whole and layer at"):
        check_spec(both, params)
    partly = AxisSpec(groups=(Group(name="layer", size=2, ties=(tie,)),))
    with pytest.raises(ValueError, match="has size 3, of which groups layer cover 2"):
        check_spec(partly, params)
