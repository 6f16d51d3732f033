"""Taps against activations written out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsa_jax.merging.symmetry.spec import AxisSpec, Group, Tie
from wsa_jax.merging.symmetry.taps import taps
from wsa_jax.merging.symmetry.tracing import trace_spec

RNG = np.random.default_rng(0)


def _normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


@pytest.fixture(scope="module")
def convolution():
    params = {
        "conv": _normal(3, 3, 3, 4),
        "bias": _normal(4),
        "dense": _normal(16 + 5, 6),
        "side": _normal(3, 5),
        "out": _normal(6, 2),
    }

    def apply(p, x, parts=None):
        before = jax.lax.conv_general_dilated(
            x, p["conv"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        before = before + p["bias"].reshape(1, 1, 1, 4)
        side = x.mean((1, 2)) @ p["side"]
        image = jax.nn.relu(before)
        flat = jnp.concatenate([jnp.tanh(side), image.reshape(x.shape[0], -1)], -1)
        hidden = flat @ p["dense"]
        if parts is not None:
            parts |= {"before": before, "image": image, "side": side, "hidden": hidden}
        return jax.nn.relu(hidden) @ p["out"]

    return apply, params, _normal(2, 4, 4, 3)


def test_both_places_of_each_group(convolution):
    apply, params, x = convolution
    spec = trace_spec(apply, params, x)
    parts: dict[str, jax.Array] = {}
    apply(params, x, parts)
    consumed = jax.jit(taps(apply, spec))(params, x)
    produced = jax.jit(taps(apply, spec, where="produced"))(params, x)
    expected = {
        "conv": (parts["image"], parts["before"]),
        "side": (jnp.tanh(parts["side"]), parts["side"]),
        "dense": (jax.nn.relu(parts["hidden"]), parts["hidden"]),
    }
    assert set(consumed) == set(produced) == set(expected)
    for name, (after, before) in expected.items():
        np.testing.assert_allclose(consumed[name], after, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(produced[name], before, rtol=1e-5, atol=1e-5)


def test_a_residual_stream_is_read_at_its_end():
    params = {"in": _normal(3, 4), "up": _normal(4, 5), "down": _normal(5, 4), "out": _normal(4, 2)}

    def stream(p, x):
        h = x @ p["in"]
        return h + jax.nn.relu(h @ p["up"]) @ p["down"]

    def apply(p, x):
        return stream(p, x) @ p["out"]

    x = _normal(6, 3)
    spec = trace_spec(apply, params, x)
    np.testing.assert_allclose(
        taps(apply, spec)(params, x)["in"], stream(params, x), rtol=1e-5, atol=1e-5
    )


def test_nested_units_stand_behind_their_parents():
    params = {n: _normal(3, 2, 4) for n in "qkv"} | {"o": _normal(8, 3)}

    def parts(p, x):
        q, k, v = (jnp.einsum("bti,ihd->bthd", x, p[n]) for n in "qkv")
        weights = jax.nn.softmax(jnp.einsum("bshd,bthd->bhst", q, k))
        return q, k, jnp.einsum("bhst,bthd->bshd", weights, v)

    def apply(p, x):
        mixed = parts(p, x)[2]
        return mixed.reshape(*mixed.shape[:2], -1) @ p["o"]

    x = _normal(2, 5, 3)
    spec = trace_spec(apply, params, x)
    q, k, mixed = parts(params, x)
    seen = taps(apply, spec)(params, x)
    np.testing.assert_allclose(seen["v/inner"], mixed, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(seen["q"], jnp.moveaxis(mixed, 2, 3), rtol=1e-5, atol=1e-5)
    # Summed over with each other: either is an answer.
    assert any(np.allclose(seen["q/inner"], a, atol=1e-5) for a in (q, k))


def test_hand_written_specs_and_errors(convolution):
    apply, params, x = convolution
    group = Group(name="mine", size=4, ties=(Tie(leaf="conv", axis=3), Tie(leaf="bias", axis=0)))
    seen = taps(apply, AxisSpec(groups=(group,)))(params, x)["mine"]
    assert seen.shape == (2, 2, 2, 4)
    wrong = Group(name="wrong", size=3, ties=(Tie(leaf="conv", axis=2, role="consumed"),))
    with pytest.raises(ValueError, match=r"group wrong \(axis 2 of leaf conv\) is not one of"):
        taps(apply, AxisSpec(groups=(wrong,)))(params, x)
    with pytest.raises(ValueError, match="where 'here' is unknown"):
        taps(apply, AxisSpec(groups=()), where="here")


def test_units_inside_a_loop_have_no_tap():
    params = {"up": _normal(3, 3, 5), "down": _normal(3, 5, 3)}

    def apply(p, x):
        turn = lambda h, w: (h + jax.nn.relu(h @ w["up"]) @ w["down"], None)  # noqa: E731
        return jax.lax.scan(turn, x, p)[0]

    x = _normal(2, 3)
    spec = trace_spec(apply, params, x)
    assert spec.names == ("up[0]", "up[1]", "up[2]")
    with pytest.warns(UserWarning, match=r"groups up\[0\], up\[1\], up\[2\] have no activations"):
        assert taps(apply, spec)(params, x) == {}


def test_groups_that_can_be_reached_have_taps_beside_one_that_cannot():
    params = {"in": _normal(3, 4), "out": _normal(4, 2)}
    params |= {"up": _normal(2, 4, 5), "down": _normal(2, 5, 4)}

    def apply(p, x):
        turn = lambda h, w: (h + jnp.tanh(h @ w[0]) @ w[1], None)  # noqa: E731
        return jax.lax.scan(turn, x @ p["in"], (p["up"], p["down"]))[0] @ p["out"]

    x = _normal(7, 3)
    spec = trace_spec(apply, params, x)
    assert spec.names == ("in", "up[0]", "up[1]")
    with pytest.warns(UserWarning, match=r"groups up\[0\], up\[1\] have no activations"):
        seen = taps(apply, spec)(params, x)
    np.testing.assert_allclose(seen["in"] @ params["out"], apply(params, x), rtol=1e-5, atol=1e-5)
    assert seen["in"].shape == (7, 4) and set(seen) == {"in"}
