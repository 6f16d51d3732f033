"""RegMean: Gram matrices of layers written by hand, and least squares by NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from wsa_jax.merging import Gram, NotAdmittedError, gram_matrices, reg_mean

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(13, 5, 5, 2)).astype(np.float32)


class Net(nn.Module):
    """A strided convolution, a dense layer and an attention-like pair of axes."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(3, (3, 2), strides=(2, 1))(x)).reshape(len(x), -1)
        x = nn.relu(nn.DenseGeneral((2, 3))(x))
        return nn.DenseGeneral(4, axis=(1, 2))(x)


@pytest.fixture(scope="module")
def models():
    init = jax.jit(Net().init)
    return [init(jax.random.key(seed), IMAGES[:1]) for seed in range(2)]


@pytest.fixture(scope="module")
def grams(models):
    return [gram_matrices(Net().apply, model, IMAGES, batch_size=5) for model in models]


def layers(variables):
    """Inputs of each layer as ``[samples, inputs]`` in the order of the kernel's own axes."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    # SAME with stride 2 and width 3 pads one row above and below; with width 2, one column after.
    x = np.pad(IMAGES.astype(np.float64), ((0, 0), (1, 1), (0, 1), (0, 0)))
    patches = np.stack(
        [x[:, r : r + 3, c : c + 2].reshape(len(x), -1) for r in (0, 2, 4) for c in range(5)], 1
    )
    conv = params["Conv_0"]
    hidden = np.maximum(patches @ conv["kernel"].reshape(-1, 3) + conv["bias"], 0)
    hidden = hidden.reshape(len(x), -1)
    dense = params["DenseGeneral_0"]
    pairs = np.maximum(np.einsum("ni,iab->nab", hidden, dense["kernel"]) + dense["bias"], 0)
    return {
        "params/Conv_0/kernel": patches.reshape(-1, patches.shape[-1]),
        "params/DenseGeneral_0/kernel": hidden,
        "params/DenseGeneral_1/kernel": pairs.reshape(len(x), -1),
    }


def in_kernel_order(gram, shape):
    """A Gram matrix over the kernel's axes in their own order, whatever order it is given in."""
    sizes = [shape[axis] for axis in gram.axes]
    order = np.argsort(gram.axes)
    both = gram.matrix.reshape(*sizes, *sizes)
    count = len(order)
    moved = both.transpose([*order, *(order + count)])
    return moved.reshape(np.prod(sizes), np.prod(sizes))


def leaf(model, name):
    for part in name.split("/"):
        model = model[part]
    return np.asarray(model, np.float64)


def test_gram_matrices_are_those_of_the_layers_inputs(models, grams):
    for model, own in zip(models, grams, strict=True):
        expected = layers(model)
        assert set(own) == set(expected)
        for name, rows in expected.items():
            found = in_kernel_order(own[name], leaf(model, name).shape)
            np.testing.assert_allclose(found, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shrink", [1.0, 0.9, 0.0])
def test_kernels_are_least_squares_and_the_rest_is_averaged(models, grams, shrink):
    found = reg_mean(models, grams, shrink=shrink)
    for name in layers(models[0]):
        kernels = [leaf(model, name) for model in models]
        # Squares are those of the test above: few examples leave directions to the ridge alone.
        squares = [in_kernel_order(own[name], kernels[0].shape) for own in grams]
        diagonal = np.mean([np.trace(gram) / len(gram) for gram in squares])
        roots, ridge = [], 1e-6 * diagonal * np.eye(len(squares[0]))
        for gram in squares:
            gram = shrink * gram + (1 - shrink) * np.diag(np.diag(gram)) + ridge
            roots.append(np.linalg.cholesky(gram).T)
        # By lstsq on roots of the matrices, so that no inverse is formed here.
        flat = [kernel.reshape(len(roots[0]), -1) for kernel in kernels]
        targets = [root @ kernel for root, kernel in zip(roots, flat, strict=True)]
        expected = np.linalg.lstsq(np.concatenate(roots), np.concatenate(targets), rcond=None)[0]
        found_kernel = leaf(found.params, name).reshape(expected.shape)
        np.testing.assert_allclose(found_kernel, expected, rtol=1e-4, atol=1e-5)
    biases = [f"params/{layer}/bias" for layer in ("Conv_0", "DenseGeneral_0", "DenseGeneral_1")]
    assert sorted(found.info["averaged"]) == biases
    for name in biases:
        mean = (leaf(models[0], name) + leaf(models[1], name)) / 2
        np.testing.assert_allclose(leaf(found.params, name), mean, rtol=1e-5, atol=1e-7)


def test_equal_matrices_give_the_average_and_equal_models_themselves(models, grams):
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *models)
    for given, expected in [
        ((models, [grams[0]] * 2), mean),
        (([models[0]] * 2, grams), models[0]),
    ]:
        found = reg_mean(*given).params
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_dead_inputs_and_few_samples_stay_finite():
    models = [{"w": np.float32([[1], [2], [3]])}, {"w": np.float32([[5], [6], [7]])}]
    # The second model's inputs are larger, but of the dead one neither knows more.
    dead = [{"w": Gram(scale * np.diag([1.0, 0.0, 2.0]), (0,))} for scale in (1, 100)]
    np.testing.assert_allclose(reg_mean(models, dead, shrink=1).params["w"][1], 4, rtol=1e-5)
    rank_one = [{"w": Gram(np.ones((3, 3)), (0,))}, {"w": Gram(np.zeros((3, 3)), (0,))}]
    assert np.isfinite(reg_mean(models, rank_one, shrink=1).params["w"]).all()


def test_kernels_as_pytorch_keeps_them_and_shared_ones():
    def apply(params, x):
        hidden = jnp.tanh(x @ params["w"].T)
        return jnp.tanh(hidden @ params["w"].T)

    params = {"w": RNG.normal(size=(3, 3)).astype(np.float32)}
    x = RNG.normal(size=(7, 3)).astype(np.float32)
    gram = gram_matrices(apply, params, x)["w"]
    hidden = np.tanh(x @ params["w"].T)
    expected = (x.T @ x + hidden.T @ hidden) / 14
    np.testing.assert_allclose(gram.matrix, expected, rtol=1e-5, atol=1e-6)
    assert gram.axes == (1,)


def test_a_kernel_used_as_it_is_and_transposed_is_left_out():
    def apply(params, x):
        return jnp.tanh(x @ params["w"]) @ params["w"].T @ params["v"]

    shapes = {"w": (3, 2), "v": (3, 4)}
    params = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    x = RNG.normal(size=(7, 3)).astype(np.float32)
    grams = gram_matrices(apply, params, x, batch_size=4)
    assert list(grams) == ["v"]
    rows = np.tanh(x @ params["w"]) @ params["w"].T
    np.testing.assert_allclose(grams["v"].matrix, rows.T @ rows / 7, rtol=1e-5, atol=1e-6)
    assert reg_mean([params, params], [grams, grams]).info["averaged"] == ["w"]


def test_products_whose_order_the_number_of_examples_decides():
    def apply(params, x):
        return jnp.einsum("bt,tc,th->bch", x, params["e"], params["m"])

    params = {"e": np.ones((3, 4), np.float32), "m": np.ones((3, 6), np.float32)}
    x = RNG.normal(size=(8, 3)).astype(np.float32)
    with pytest.raises(NotAdmittedError, match="no dense layer and no convolution of real"):
        gram_matrices(apply, params, x)  # both kernels are multiplied first


def test_errors(models, grams):
    with pytest.raises(ValueError, match="2 models and 1 Gram matrices; give one per model"):
        reg_mean(models, grams[:1])
    with pytest.raises(ValueError, match=r"shrink 1.5 is not in \[0, 1\]; 0.9 is the default"):
        reg_mean(models, grams, shrink=1.5)
    with pytest.raises(ValueError, match="Gram matrix other of model 2 belongs to no kernel"):
        reg_mean(models, [grams[0], {"other": grams[0]["params/Conv_0/kernel"]}])
    name = "params/Conv_0/kernel"
    narrow = grams[0] | {name: Gram(np.eye(2), grams[0][name].axes)}
    with pytest.raises(ValueError, match=r"has shape \(2, 2\) for 12 inputs of a kernel of shape"):
        reg_mean(models, [grams[0], narrow])
    with pytest.raises(ValueError, match="no calibration samples to read inputs of layers from"):
        gram_matrices(Net().apply, models[0], IMAGES[:0])
    with pytest.raises(NotAdmittedError, match="no dense layer and no convolution of real"):
        gram_matrices(lambda params, x: x * params["s"], {"s": jnp.ones((1, 2))}, jnp.ones((3, 2)))
