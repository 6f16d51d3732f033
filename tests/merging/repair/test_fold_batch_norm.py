"""Folded networks compute the same function, and have the symmetries that norms hid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from wsa_jax.merging import check_equivalence, fold_batch_norm, scale_units, trace_spec
from wsa_jax.models import resnet20, vgg16

RNG = np.random.default_rng(0)


def drawn(shapes):
    """Variables as training may leave them: no norm's parameter is that of its start."""

    def draw(path, leaf):
        name = path[-1].key
        if name in ("var", "scale"):
            return RNG.uniform(0.5, 2.0, leaf.shape).astype(np.float32)
        if name == "kernel":
            fan = np.prod(leaf.shape[:-1])
            return RNG.normal(0, np.sqrt(2 / fan), leaf.shape).astype(np.float32)
        return RNG.normal(0, 0.3, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.mark.parametrize(
    ("module", "side", "norms"),
    [(vgg16(3, width=1 / 32), 32, 13), (resnet20(3, width=1 / 8, norm="batch"), 8, 21)],
)
def test_vgg16_and_resnet20_are_equivalent(module, side, norms):
    images = RNG.normal(size=(2, side, side, 3)).astype(np.float32)
    variables = drawn(jax.eval_shape(module.init, jax.random.key(0), images))
    folded = fold_batch_norm(module.apply, variables, images)
    expected, found = (jax.jit(fn)(v, images) for fn, v in ((module.apply, variables), folded))
    assert np.std(expected) > 0.01  # or the comparison shows nothing
    check_equivalence(lambda out: out, expected, found, rtol=1e-4)
    lost = len(jax.tree.leaves(variables)) - len(jax.tree.leaves(folded.params))
    assert lost == 3 * norms  # scale, mean and variance


class Net(nn.Module):
    """Two normalised layers, one with a bias."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Dense(4)(x)))
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Dense(5, use_bias=False)(x)))
        return nn.Dense(2)(x)


X = RNG.normal(size=(6, 3)).astype(np.float32)


def test_equals_the_formula():
    variables = drawn(jax.eval_shape(Net().init, jax.random.key(0), X))
    params, statistics = variables["params"], variables["batch_stats"]
    folded = fold_batch_norm(Net().apply, variables, X).params["params"]
    for layer in range(2):
        norm, dense = params[f"BatchNorm_{layer}"], params[f"Dense_{layer}"]
        mean, var = (statistics[f"BatchNorm_{layer}"][name] for name in ("mean", "var"))
        scale = norm["scale"] / np.sqrt(var + 1e-5)
        np.testing.assert_allclose(
            folded[f"Dense_{layer}"]["kernel"], dense["kernel"] * scale, rtol=1e-5
        )
        np.testing.assert_allclose(
            folded[f"BatchNorm_{layer}"]["bias"], norm["bias"] - scale * mean, rtol=1e-4, atol=1e-6
        )
    np.testing.assert_allclose(
        folded["Dense_0"]["bias"],
        params["Dense_0"]["bias"] * params["BatchNorm_0"]["scale"]
        / np.sqrt(statistics["BatchNorm_0"]["var"] + 1e-5),
        rtol=1e-5,
    )  # fmt: skip


class OneNorm(nn.Module):
    """A normalised layer, with or without a scale and biases, hidden or not."""

    bias: bool = True
    scale: bool = True
    shift: bool = True
    hidden: bool = True

    @nn.compact
    def __call__(self, x):
        norm = nn.BatchNorm(use_running_average=True, use_scale=self.scale, use_bias=self.shift)
        x = norm(nn.Dense(4, use_bias=self.bias)(x))
        return nn.Dense(2)(nn.relu(x)) if self.hidden else x


@pytest.mark.parametrize("hidden", [True, False])
@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize(("bias", "shift"), [(True, True), (True, False), (False, True)])
def test_a_missing_scale_is_1_and_a_missing_bias_0(bias, scale, shift, hidden):
    module = OneNorm(bias, scale, shift, hidden)
    variables = drawn(jax.eval_shape(module.init, jax.random.key(0), X))
    folded = fold_batch_norm(module.apply, variables, X)
    check_equivalence(
        lambda out: out, module.apply(variables, X), folded.apply_fn(folded.params, X), rtol=1e-5
    )
    lost = len(jax.tree.leaves(variables)) - len(jax.tree.leaves(folded.params))
    assert lost == 2 + scale


@pytest.mark.parametrize("with_shift", [True, False])
def test_a_multiple_of_a_bias_is_scaled_but_takes_no_shift(with_shift):
    def apply(v, x):
        h = x @ v["w"] + 2 * v["b"][None]
        h = (h - v["running_mean"][None]) / jnp.sqrt(v["running_var"][None])
        return jax.nn.relu(h + v["shift"][None] if with_shift else h) @ v["out"]

    shapes = {"w": (3, 4), "out": (4, 2)} | dict.fromkeys(["b", "running_mean", "shift"], (4,))
    variables = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    variables["running_var"] = np.full(4, 4, np.float32)
    if with_shift:
        folded = fold_batch_norm(apply, variables, X)
        found = folded.apply_fn(folded.params, X)
        np.testing.assert_allclose(found, apply(variables, X), rtol=1e-5, atol=1e-6)
    else:
        with pytest.raises(ValueError, match="so nothing can take its shift"):
            fold_batch_norm(apply, variables, X)


def test_a_shift_that_nothing_can_take_is_refused():
    module = OneNorm(bias=False, shift=False)
    variables = module.init(jax.random.key(0), X)
    message = "BatchNorm_0/mean has no bias, and neither has the layer before it, so nothing can"
    with pytest.raises(ValueError, match=message):
        fold_batch_norm(module.apply, variables, X)


def test_scaling_symmetries_are_there_again():
    variables = drawn(jax.eval_shape(Net().init, jax.random.key(0), X))
    before = trace_spec(Net().apply, variables, X)
    assert {group.admits for group in before.groups} == {"permutation"}
    apply_fn, params = fold_batch_norm(Net().apply, variables, X)
    spec = trace_spec(apply_fn, params, X)
    assert {group.admits for group in spec.groups} == {"scaling"}
    scales = {group.name: RNG.uniform(0.5, 2, group.size) for group in spec.groups}
    check_equivalence(apply_fn, params, scale_units(spec, params, scales), X)


def test_norms_that_follow_no_layer_are_refused():
    class Before(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(use_running_average=True)(nn.relu(nn.Dense(4)(x)))
            return nn.Dense(2)(x)

    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.Dense(4)(x)
            return nn.Dense(2)(nn.relu(nn.BatchNorm(use_running_average=True)(y)) + y)

    class Shared(nn.Module):
        @nn.compact
        def __call__(self, x):
            x, scale = nn.Dense(4)(x), self.param("scale", nn.initializers.ones, (4,))
            x = nn.BatchNorm(use_running_average=True, use_scale=False, use_bias=False)(x)
            x = x * scale[None]
            return nn.Dense(2)(nn.relu(x) * scale[None])

    for module in (Before(), Twice(), Shared()):
        variables = module.init(jax.random.key(0), X)
        message = "norm of statistic batch_stats/BatchNorm_0/mean does not follow a layer alone"
        with pytest.raises(ValueError, match=message):
            fold_batch_norm(module.apply, variables, X)
    plain = {"w": jnp.ones((3, 2))}
    with pytest.raises(ValueError, match="the variables hold no running statistics, so there is"):
        fold_batch_norm(lambda params, x: x @ params["w"], plain, X)
