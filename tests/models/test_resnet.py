"""The residual networks: published sizes, their definition, norms, errors."""

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from wsa_jax.models import ResNet, cifar_resnet, resnet20
from wsa_jax.tree import key_path

IMAGE = jnp.ones((1, 32, 32, 3))


@cache
def shapes(model):
    params = jax.eval_shape(model.init, jax.random.key(0), IMAGE)["params"]
    return {key_path(p): leaf.shape for p, leaf in jax.tree_util.tree_leaves_with_path(params)}


def size(model, keep=lambda name: True):
    return sum(math.prod(shape) for name, shape in shapes(model).items() if keep(name))


def is_shortcut(name):
    return name.split("/")[1] in ("Conv_2", "BatchNorm_2", "LayerNorm_2")


def random_variables(model, x, seed=0):
    """Random leaves everywhere, so that no scale is 1 and no bias 0; kernels keep the signal."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if key_path(path).endswith("kernel"):
            return rng.normal(0, math.sqrt(2 / math.prod(leaf.shape[:-1])), leaf.shape)
        return rng.uniform(0.3, 1.2, leaf.shape)

    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    return jax.tree.map(jnp.float32, jax.tree_util.tree_map_with_path(draw, variables))


class TestSizes:
    @pytest.mark.parametrize("norm", ["batch", "layer"])
    def test_resnet20_is_the_published_one_but_for_its_shortcuts(self, norm):
        # 269,722 with shortcuts that have no parameters, 272,474 with 1x1 convolutions and norms.
        model = resnet20(10, norm=norm)
        assert size(model, lambda name: not is_shortcut(name)) == 269_722
        assert size(model.copy(shortcut=1)) == 272_474
        assert size(model.copy(shortcut="pad")) == 269_722
        assert size(model) == 292_954

    def test_option_a_has_the_published_size(self):
        assert size(cifar_resnet(32, 10, norm="batch", shortcut="pad")) == 464_154

    @pytest.mark.parametrize(
        ("depth", "width", "millions"), [(22, 8, 17.2), (16, 8, 11.0), (28, 10, 36.5)]
    )
    def test_wide_networks_have_the_published_millions(self, depth, width, millions):
        assert round(size(cifar_resnet(depth, 10, width=width, norm="batch")) / 1e6, 1) == millions

    @pytest.mark.parametrize("depth", [8, 14, 10, 22])
    def test_depth_counts_the_layers(self, depth):
        # A 6n+4 network counts the three shortcuts, a 6n+2 network none.
        model = cifar_resnet(depth, 10, width=2)
        kernels = [name for name in shapes(model) if name.endswith("kernel")]
        counted = kernels if depth % 6 == 4 else [n for n in kernels if not is_shortcut(n)]
        # The stem and the blocks are counted by both, the dense layer by 6n+2 networks only.
        assert len(counted) == depth + (depth % 6 == 4)
        assert model.stem == (16 if depth % 6 == 4 else 32)

    def test_leaves_are_named_as_documented(self):
        found = shapes(resnet20(10, width=0.5, norm="batch"))
        assert found["Conv_0/kernel"] == (3, 3, 3, 8)
        assert found["Block_3/Conv_0/kernel"] == (3, 3, 8, 16)
        assert found["Block_3/Conv_2/kernel"] == (3, 3, 8, 16)
        assert found["Block_8/BatchNorm_1/scale"] == (32,)
        assert found["Dense_0/kernel"] == (32, 10)
        assert {name.split("/")[0] for name in found} == {
            "Conv_0", "BatchNorm_0", "Dense_0", *(f"Block_{i}" for i in range(9)),
        }  # fmt: skip
        assert [n for n in found if is_shortcut(n) and n.endswith("kernel")] == [
            "Block_3/Conv_2/kernel",
            "Block_6/Conv_2/kernel",
        ]


MODELS = {
    "layer": ResNet(blocks=1, stem=6, widths=(6, 7, 8), num_classes=3),
    "batch": ResNet(blocks=1, stem=2, widths=(3, 4, 5), num_classes=3, norm="batch", shortcut=1),
    "pad": ResNet(blocks=1, stem=5, widths=(5, 6, 9), num_classes=3, shortcut="pad"),
}


def reference(model, variables, x, train):
    """The definition, by lax's convolution and moments written out."""
    params, running = variables["params"], variables.get("batch_stats", {})

    def conv(p, name, x, stride=1):
        side = p[name]["kernel"].shape[0] // 2
        pads = [(side, side)] * 2 if model.shortcut == "pad" else "SAME"
        return jax.lax.conv_general_dilated(
            x, p[name]["kernel"], (stride, stride), pads,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    def norm(p, stats, index, x):
        if model.norm == "layer":
            p, axes, epsilon = p[f"LayerNorm_{index}"], -1, 1e-6
        else:
            p, stats = p[f"BatchNorm_{index}"], stats[f"BatchNorm_{index}"]
            axes, epsilon = (0, 1, 2), 1e-5
        mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
        if model.norm == "batch" and not train:
            mean, var = (stats[name][None, None, None] for name in ("mean", "var"))
        scale, bias = (p[name][None, None, None] for name in ("scale", "bias"))
        return scale * (x - mean) / jnp.sqrt(var + epsilon) + bias

    x = nn.relu(norm(params, running, 0, conv(params, "Conv_0", x)))
    for index in range(3 * model.blocks):
        p, stats = params[f"Block_{index}"], running.get(f"Block_{index}", {})
        stride = 2 if index in (model.blocks, 2 * model.blocks) else 1
        y = nn.relu(norm(p, stats, 0, conv(p, "Conv_0", x, stride)))
        y = norm(p, stats, 1, conv(p, "Conv_1", y))
        if "Conv_2" in p:
            x = norm(p, stats, 2, conv(p, "Conv_2", x, stride))
        elif model.shortcut == "pad":
            missing = y.shape[-1] - x.shape[-1]
            zeros = [jnp.zeros((*y.shape[:-1], n)) for n in (missing // 2, missing - missing // 2)]
            x = jnp.concatenate([zeros[0], x[:, ::stride, ::stride], zeros[1]], -1)
        x = nn.relu(x + y)
    head = params["Dense_0"]
    return x.mean((1, 2)) @ head["kernel"] + head["bias"][None]


X = jnp.asarray(np.random.default_rng(1).normal(size=(3, 8, 8, 3)), jnp.float32)


@pytest.mark.parametrize("norm", ["layer", "batch", "pad"])
def test_equals_its_definition_with_gradients(norm):
    model = MODELS[norm]
    variables = random_variables(model, X)

    def ours(variables):
        logits, moved = model.apply(variables, X, train=True, mutable=["batch_stats"])
        return jnp.sin(logits).sum(), moved

    def theirs(variables):
        return jnp.sin(reference(model, variables, X, train=True)).sum()

    @jax.jit
    def both(variables):
        return jax.value_and_grad(ours, has_aux=True)(variables), jax.value_and_grad(theirs)(
            variables
        )

    ((value, moved), grads), (expected, expected_grads) = both(variables)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    pairs = zip(*map(jax.tree.leaves, (grads["params"], expected_grads["params"])), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())
    if norm == "batch":
        before = variables["batch_stats"]["BatchNorm_0"]["mean"]
        stem = {"params": variables["params"]["Conv_0"]}
        batch_mean = jax.jit(nn.Conv(2, (3, 3), use_bias=False).apply)(stem, X).mean((0, 1, 2))
        after = moved["batch_stats"]["BatchNorm_0"]["mean"]
        np.testing.assert_allclose(after, 0.9 * before + 0.1 * batch_mean, rtol=1e-4, atol=1e-6)


def test_batch_norm_evaluates_by_running_moments():
    model = MODELS["batch"]
    variables = random_variables(model, X)
    # One example alone: its logits do not depend on a batch.
    found = jax.jit(model.apply)(variables, X[:1])
    expected = jax.jit(lambda v: reference(model, v, X, train=False))(variables)
    np.testing.assert_allclose(found, expected[:1], rtol=1e-4, atol=1e-5)


def test_initial_kernels_have_hes_std():
    model = MODELS["layer"]
    init = jax.jit(lambda: model.init(jax.random.key(0, impl="rbg"), X)["params"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(init())):
        if key_path(path).endswith("kernel"):
            expected = math.sqrt(2 / math.prod(leaf.shape[:-1]))
            np.testing.assert_allclose(leaf.std(), expected, rtol=5 / math.sqrt(2 * leaf.size))


def test_equal_settings_are_equal_modules():
    assert resnet20(10) == cifar_resnet(20, 10) != cifar_resnet(20, 10, norm="batch")
    assert hash(resnet20(10)) == hash(cifar_resnet(20, 10))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cifar_resnet(18, 10), r"depth 18 is neither 6n\+2 .* nor 6n\+4"),
        (lambda: cifar_resnet(2, 10), "depth 2 is neither"),
        (lambda: cifar_resnet(4, 10), "depth 4 is neither"),
        (lambda: cifar_resnet(20, 10, width=-1), "width -1 is not positive"),
        (lambda: resnet20(10, norm="none"), "norm must be 'batch' or 'layer', got 'none'"),
        (lambda: MODELS["layer"].copy(blocks=0), "blocks 0 .* impossible"),
        (lambda: MODELS["layer"].copy(shortcut=2), "shortcut 2 is impossible"),
        (lambda: MODELS["layer"].copy(shortcut="crop"), "shortcut crop is impossible"),
        (
            lambda: MODELS["layer"].copy(shortcut="pad", widths=(6, 5, 8)),
            r"cannot narrow the stream, which has \(6, 6, 5, 8\) channels",
        ),
        (lambda: MODELS["layer"].copy(norm="group"), "got 'group'"),
        (lambda: resnet20(10, initialization="xavier"), "'reference', 'he' or 'torchvision'"),
    ],
)
def test_what_makes_no_model_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make().init(jax.random.key(0), IMAGE)
