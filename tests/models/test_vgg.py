"""The VGG networks: shapes, parameter counts, their definition, initial scopes, errors."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from wsa_jax.models import VGG, vgg8, vgg11, vgg16
from wsa_jax.scope.scope import weight_scope

IMAGE = jnp.ones((1, 32, 32, 3))


def shapes(model):
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGE)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
    }


def parameters(features, dense, classes):
    """Closed form: 9·in·out + out for a convolution, in·out + out for a dense layer."""
    convolutions = [3, *(feature for feature in features if feature != "M")]
    side = 32 // 2 ** features.count("M")
    widths = [side * side * convolutions[-1], *dense, classes]
    return sum(9 * a * b + b for a, b in itertools.pairwise(convolutions)) + sum(
        a * b + b for a, b in itertools.pairwise(widths)
    )


def test_vgg8_has_the_stated_kernels():
    kernels = {name: shape for name, shape in shapes(vgg8(10)).items() if name.endswith("kernel")}
    assert kernels == {
        "Conv_0/kernel": (3, 3, 3, 64),
        "Conv_1/kernel": (3, 3, 64, 128),
        "Conv_2/kernel": (3, 3, 128, 256),
        "Conv_3/kernel": (3, 3, 256, 512),
        "Conv_4/kernel": (3, 3, 512, 512),
        "Dense_0/kernel": (512, 512),
        "Dense_1/kernel": (512, 512),
        "Dense_2/kernel": (512, 10),
    }


def vgg11_linear(classes, *, width):
    return vgg11(classes, width=width, dense=())


def vgg16_plain(classes, *, width):
    return vgg16(classes, width=width, norm="none")


@pytest.mark.parametrize("make", [vgg8, vgg11, vgg11_linear, vgg16_plain])
@pytest.mark.parametrize(("width", "classes"), [(1.0, 10), (0.25, 100)])
def test_parameter_count_follows_the_closed_form(make, width, classes):
    model = make(classes, width=width)
    total = sum(math.prod(shape) for shape in shapes(model).values())
    assert total == parameters(model.features, model.dense, classes)
    if (make, width) == (vgg8, 1.0):
        assert total == 4_441_226


def test_vgg11_is_configuration_a():
    assert vgg11(10).features == (
        64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M",
    )  # fmt: skip
    total = sum(math.prod(shape) for shape in shapes(vgg11_linear(10, width=1.0)).values())
    assert total == 9_220_480 + 5_130  # convolutions, and one dense layer from 512 units


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_vgg16_has_the_published_size_and_a_norm_a_convolution(norm):
    found = shapes(vgg16(10, norm=norm))
    assert sum(map(math.prod, found.values())) == 14_728_266
    norms = [name for name in found if name.endswith("scale")]
    assert sorted(norms) == sorted(f"{norm.title()}Norm_{i}/scale" for i in range(13))
    for name in norms:
        kernel = name.replace(f"{norm.title()}Norm", "Conv").replace("scale", "kernel")
        assert found[name] == found[kernel][-1:]
    assert found["Dense_0/kernel"] == (512, 10)


def test_no_norm_is_the_network_without_one_whatever_train():
    model = VGG(features=(4, "M"), dense=(), num_classes=3)
    x = np.random.default_rng(1).normal(size=(2, 4, 4, 3)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0, impl="rbg"), x)
    assert list(variables) == ["params"]
    assert sorted(variables["params"]) == ["Conv_0", "Dense_0"]
    apply = jax.jit(model.apply, static_argnames="train")
    np.testing.assert_array_equal(apply(variables, x), apply(variables, x, train=True))


@pytest.mark.parametrize(("norm", "axes"), [("batch", (0, 1, 2)), ("layer", (3,))])
def test_the_norm_stands_between_convolution_and_relu(norm, axes):
    model = VGG(features=(5, "M"), dense=(), num_classes=2, norm=norm)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4, 4, 3)), jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(0, impl="rbg"), x)
    scale, bias = (np.linspace(*ends, 5, dtype=np.float32) for ends in ((0.5, 2.0), (-0.3, 0.4)))
    layers = variables["params"] | {f"{norm.title()}Norm_0": {"scale": scale, "bias": bias}}

    @jax.jit
    def both(variables):
        convolved = nn.Conv(5, (3, 3)).apply({"params": variables["params"]["Conv_0"]}, x)
        return model.apply(variables, x, train=True, mutable=["batch_stats"])[0], convolved

    found, y = both({**variables, "params": layers})
    y = np.asarray(y, np.float64)
    y = (y - y.mean(axes, keepdims=True)) / np.sqrt(y.var(axes, keepdims=True) + 1e-5)
    y = np.maximum(np.asarray(scale) * y + np.asarray(bias), 0)
    y = y.reshape(3, 2, 2, 2, 2, 5).max((2, 4)).reshape(3, -1)
    expected = y @ np.asarray(layers["Dense_0"]["kernel"]) + np.asarray(layers["Dense_0"]["bias"])
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_vgg_equals_the_network_of_flax_layers_on_shared_weights():
    model = VGG(features=(4, 5, "M", 6, "M"), dense=(7,), num_classes=3)
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    variables = jax.jit(model.init)(jax.random.key(0, impl="rbg"), x)

    def reference(variables, x):
        layers = variables["params"]
        for name, channels in (("Conv_0", 4), ("Conv_1", 5), ("Conv_2", 6)):
            x = nn.relu(nn.Conv(channels, (3, 3)).apply({"params": layers[name]}, x))
            if name != "Conv_0":
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Dense(7).apply({"params": layers["Dense_0"]}, x.reshape(len(x), -1)))
        return nn.Dense(3).apply({"params": layers["Dense_1"]}, x)

    @jax.jit
    def both(variables):
        applies = model.apply, reference
        return [
            jax.value_and_grad(lambda v, f=f: jnp.sin(f(v, x)).sum())(variables) for f in applies
        ]

    for a, b in zip(*map(jax.tree.leaves, both(variables)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("initialization", "gain"), [("reference", 1 / 3), ("he", 2.0)])
def test_initial_scopes_are_those_of_the_initialization(initialization, gain):
    model = VGG(
        features=(16, "M", 24, "M"), dense=(32,), num_classes=10, initialization=initialization
    )

    @jax.jit
    def init():
        params = model.init(jax.random.key(0, impl="rbg"), IMAGE[:, :8, :8])["params"]
        return params, weight_scope(params)

    params, scope = jax.device_get(init())
    assert len(scope.names) == 4
    for name, mean, std in zip(scope.names, scope.mean, scope.std, strict=True):
        layer, leaf = name.split("/")
        kernel = params[layer][leaf]
        expected = math.sqrt(gain / math.prod(kernel.shape[:-1]))
        # Five standard errors; a Gaussian's are the widest of the two laws.
        np.testing.assert_allclose(std, expected, rtol=5 / math.sqrt(2 * kernel.size))
        assert abs(mean) < 5 * expected / math.sqrt(kernel.size)


def test_equal_settings_are_equal_modules():
    # What lets cells of one setting share a compilation.
    assert vgg8(10, width=0.5) == vgg8(10, width=0.5) != vgg8(10, width=0.25)
    assert hash(vgg8(10)) == hash(vgg8(10))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VGG(features=(), dense=(), num_classes=2), "at least one convolution"),
        (lambda: VGG(features=(4, "P"), dense=(), num_classes=2), "'P' is neither"),
        (lambda: VGG(features=("M",) * 6, dense=(), num_classes=2), "at least 64x64"),
        (lambda: vgg8(10, width=0.0), "width 0.0 is not positive"),
        (lambda: vgg16(10, norm="group"), "norm must be 'batch', 'layer' or 'none', got 'group'"),
        (lambda: VGG(features=(4,), dense=(), num_classes=2, norm="?"), "got '\\?'"),
        (lambda: vgg8(10, initialization="xavier"), "'reference', 'he' or 'torchvision'"),
    ],
)
def test_what_makes_no_model_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make().init(jax.random.key(0), IMAGE)
