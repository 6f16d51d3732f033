"""Scaling one layer by hand."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsa_jax.merging.symmetry.scaling import scale_layer
from wsa_jax.merging.symmetry.spec import AxisSpec, Group, Tie, hand_written
from wsa_jax.scope.scope import weight_scope

RNG = np.random.default_rng(0)
TIES = (
    Tie(leaf="0/kernel", axis=1),
    Tie(leaf="0/bias", axis=0),
    Tie(leaf="1/kernel", axis=0, role="consumed"),
)


def _normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


@pytest.fixture(scope="module")
def model():
    params = {
        "0": {"kernel": _normal(3, 4), "bias": _normal(4)},
        "1": {"kernel": _normal(4, 2), "bias": _normal(2)},
    }
    return params, hand_written({"hidden": TIES}, params, admits="scaling")


def _apply(params, x):
    hidden = jax.nn.relu(x @ params["0"]["kernel"] + params["0"]["bias"][None])
    return hidden @ params["1"]["kernel"] + params["1"]["bias"][None]


@pytest.mark.parametrize("factor", [0.5, 2, 4.0, 0.3])
def test_scopes_move_and_the_function_does_not(model, factor):
    params, spec = model
    scaled = scale_layer(spec, params, "hidden", factor)
    x = _normal(5, 3)
    np.testing.assert_allclose(_apply(scaled, x), _apply(params, x), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(scaled["1"]["bias"], params["1"]["bias"])
    np.testing.assert_allclose(
        scaled["0"]["bias"], params["0"]["bias"] * np.float32(factor), rtol=1e-6
    )
    before, after = weight_scope(params), weight_scope(scaled)
    np.testing.assert_allclose(after.std / before.std, [factor, 1 / factor], rtol=1e-5)


def test_a_sweep_over_factors_traces_once(model):
    params, spec = model
    swept = jax.jit(jax.vmap(lambda factor: scale_layer(spec, params, "hidden", factor)))
    kernels = swept(jnp.array([0.5, 2.0]))["0"]["kernel"]
    expected = np.stack([0.5 * params["0"]["kernel"], 2.0 * params["0"]["kernel"]])
    np.testing.assert_array_equal(kernels, expected)


def test_what_is_refused(model):
    params, spec = model
    for factor in (0.0, -2, float("nan"), float("inf"), jnp.array(-1.0)):
        with pytest.raises(ValueError, match=r"factor .* of group hidden is not positive and fini"):
            scale_layer(spec, params, "hidden", factor)
    with pytest.raises(ValueError, match="group other is not in the spec; it has hidden"):
        scale_layer(spec, params, "other", 2.0)
    normed = hand_written({"hidden": TIES}, params)
    with pytest.raises(ValueError, match="group hidden admits permutations only: .* a norm"):
        scale_layer(normed, params, "hidden", 2.0)
    inner = Group(
        name="inner",
        size=2,
        ties=(Tie(leaf="1/kernel", axis=1),),
        parent="hidden",
        admits="linear",
    )
    nested = AxisSpec(groups=(*spec.groups, inner))
    with pytest.raises(ValueError, match="group inner lies inside the units of hidden and is not"):
        scale_layer(nested, params, "inner", 2.0)


@pytest.mark.parametrize("factor", [1e38, 1e-46, 1e-39])
def test_factors_outside_the_range_of_the_weights_are_refused(model, factor):
    params, spec = model
    message = re.escape(f"scale {factor:g} of group hidden or its inverse is outside the range")
    with pytest.raises(ValueError, match=message):
        scale_layer(spec, params, "hidden", factor)
