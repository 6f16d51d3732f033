"""The reference architectures: shapes, parameter counts, initial weights, errors."""

import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from wsa_jax.models import CNN, MLP, VGG, ResNet, layer_initializers

IMAGE = jnp.ones((1, 32, 32, 3))


def leaves_by_name(params):
    paths = jax.tree_util.tree_leaves_with_path(params["params"])
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in paths
    }


def fan_in(name, leaves):
    kernel = leaves[name.rsplit("/", 1)[0] + "/kernel"]
    return math.prod(kernel.shape[:-1])


@cache
def initial(name, initialization="reference", seed=0):
    """A model's first parameters by name; cached, since each compiles an initialiser."""
    if name == "cnn":
        model = CNN(num_classes=10, initialization=initialization)
    else:
        model = MLP(features=(300, 10), initialization=initialization)
    # This generator compiles many times faster than the default one.
    return leaves_by_name(jax.jit(model.init)(jax.random.key(seed, impl="rbg"), IMAGE))


models = pytest.mark.parametrize("model", ["cnn", "mlp"])


def test_cnn_has_the_reference_shapes_and_size():
    leaves = initial("cnn")
    assert {name: leaf.shape for name, leaf in leaves.items() if name.endswith("kernel")} == {
        "Conv_0/kernel": (5, 5, 3, 32),
        "Conv_1/kernel": (5, 5, 32, 64),
        "Dense_0/kernel": (1600, 384),
        "Dense_1/kernel": (384, 192),
        "Dense_2/kernel": (192, 10),
    }
    assert sum(leaf.size for leaf in leaves.values()) == 744_330


@pytest.mark.parametrize(("side", "kernel_size", "flat"), [(16, 3, 2), (16, 5, 1), (10, 3, 1)])
def test_cnn_of_other_sizes(side, kernel_size, flat):
    model = CNN(10, channels=(16, 32), units=(192, 96), kernel_size=kernel_size)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, side, side, 3)))
    kernels = {name: layer["kernel"].shape for name, layer in shapes["params"].items()}
    assert kernels == {
        "Conv_0": (kernel_size, kernel_size, 3, 16),
        "Conv_1": (kernel_size, kernel_size, 16, 32),
        "Dense_0": (32 * flat**2, 192),
        "Dense_1": (192, 96),
        "Dense_2": (96, 10),
    }


def test_cnn_equals_its_definition_with_flax_layers():
    params = jax.jit(CNN(num_classes=7).init)(jax.random.key(0, impl="rbg"), IMAGE)
    x = jax.random.normal(jax.random.key(1), (3, 32, 32, 3))

    def reference(params, x):
        layers = params["params"]
        for name, width in (("Conv_0", 32), ("Conv_1", 64)):
            x = nn.Conv(width, (5, 5), padding="VALID").apply({"params": layers[name]}, x)
            x = nn.max_pool(nn.relu(x), (2, 2), strides=(2, 2))
        x = x.reshape(len(x), -1)
        for name in ("Dense_0", "Dense_1", "Dense_2"):
            x = x @ layers[name]["kernel"] + layers[name]["bias"][None]
            x = nn.relu(x) if name != "Dense_2" else x
        return x

    def loss(apply, params):
        return jnp.sin(apply(params, x)).sum()

    apply = CNN(num_classes=7).apply

    @jax.jit
    def both(params):
        return [jax.value_and_grad(partial(loss, f))(params) for f in (apply, reference)]

    for a, b in zip(*map(jax.tree.leaves, both(params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@models
def test_reference_initialization_is_uniform_within_the_bound(model):
    leaves = initial(model)
    for name, leaf in leaves.items():
        bound = 1 / math.sqrt(fan_in(name, leaves))
        assert np.abs(leaf).max() <= bound
        if leaf.size >= 300:
            # Both moments of a uniform law, and its edges, within the sampling error.
            assert np.abs(leaf).max() > 0.95 * bound
            np.testing.assert_allclose(leaf.std(), bound / math.sqrt(3), rtol=0.1)
            assert abs(leaf.mean()) < 5 * bound / math.sqrt(leaf.size)


@models
def test_he_initialization(model):
    leaves = initial(model, "he")
    for name, leaf in leaves.items():
        if name.endswith("bias"):
            assert not leaf.any()
        elif leaf.size >= 300:
            np.testing.assert_allclose(leaf.std(), math.sqrt(2 / fan_in(name, leaves)), rtol=0.1)


@models
def test_torchvision_initialization(model):
    leaves = initial(model, "torchvision")
    for name, leaf in leaves.items():
        if name.endswith("bias"):
            assert not leaf.any()
        elif leaf.size >= 300:
            size, *_, out = leaf.shape
            std = math.sqrt(2 / (size * size * out)) if leaf.ndim == 4 else 0.01
            np.testing.assert_allclose(leaf.std(), std, rtol=0.1)
            assert abs(leaf.mean()) < 5 * std / math.sqrt(leaf.size)


@pytest.mark.parametrize(
    "model",
    [
        VGG(features=(8, "M", 16, "M"), dense=(), num_classes=3),
        ResNet(blocks=1, stem=6, widths=(6, 8, 10), num_classes=3),
    ],
    ids=["vgg", "resnet"],
)
def test_convolutions_of_other_networks_know_their_fan_out(model):
    model = model.clone(initialization="torchvision")
    leaves = leaves_by_name(jax.jit(model.init)(jax.random.key(0, impl="rbg"), IMAGE))
    kernels = [leaf for leaf in leaves.values() if leaf.ndim == 4 and leaf.size >= 300]
    assert kernels
    for leaf in kernels:
        expected = math.sqrt(2 / (leaf.shape[0] * leaf.shape[1] * leaf.shape[3]))
        # Five standard errors of a Gaussian's std.
        np.testing.assert_allclose(leaf.std(), expected, rtol=5 / math.sqrt(2 * leaf.size))


def test_equal_keys_give_equal_weights_and_layers_differ():
    one, again, other = initial("mlp"), initial.__wrapped__("mlp"), initial("mlp", seed=1)
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert all((one[name] != other[name]).any() for name in one)


@pytest.mark.parametrize("model_class", [lambda init: CNN(10, init), lambda init: MLP((10,), init)])
def test_unknown_initialization_is_refused(model_class):
    with pytest.raises(
        ValueError, match="must be 'reference', 'he' or 'torchvision', got 'xavier'"
    ):
        model_class("xavier").init(jax.random.key(0), IMAGE)


def test_sizes_that_make_no_model_are_refused():
    with pytest.raises(ValueError, match="at least 16x16, got 8x32"):
        CNN(num_classes=10).init(jax.random.key(0), jnp.ones((1, 8, 32, 3)))
    with pytest.raises(ValueError, match="at least 10x10, got 9x9"):
        CNN(10, kernel_size=3).init(jax.random.key(0), jnp.ones((1, 9, 9, 3)))
    with pytest.raises(ValueError, match="at least one layer"):
        MLP(features=()).init(jax.random.key(0), IMAGE)
    with pytest.raises(ValueError, match="fan_in must be at least 1, got 0"):
        layer_initializers("he", 0)
    with pytest.raises(ValueError, match="fan_out must be at least 1, got 0"):
        layer_initializers("torchvision", 9, 0)


def test_mlp_is_linear_with_one_layer_and_flattens():
    model = MLP(features=(4,))
    x = jax.random.normal(jax.random.key(1), (5, 3, 2))
    params = jax.jit(model.init)(jax.random.key(0), x)
    layer = jax.device_get(params["params"]["Dense_0"])
    expected = np.asarray(x).reshape(5, 6) @ layer["kernel"] + layer["bias"]
    np.testing.assert_allclose(jax.jit(model.apply)(params, x), expected, rtol=1e-5, atol=1e-6)
