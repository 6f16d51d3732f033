"""Name maps: what goes there and back is the same; errors list what has no place."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsa_jax.files import (
    CONV,
    DENSE,
    Entry,
    ModelFileError,
    NameMap,
    chained,
    flatten,
    flattened,
    heads_in,
    heads_out,
    load_model,
    mlp_names,
    open_model,
    resnet_names,
    save_model,
    transposed,
    vgg_names,
)
from wsa_jax.models import MLP, VGG, ResNet, cifar_resnet, vgg8

# A folder of published weights, resnet20_cifar10.safetensors and resnet32_cifar10.safetensors.
WEIGHTS = os.environ.get("WSA_JAX_WEIGHTS", "")

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (CONV, (4, 3, 2, 5)),
        (DENSE, (4, 3)),
        (transposed(1, 2, 0), (2, 3, 4)),
        (flattened(2, 3, 4), (5, 24)),
        (heads_out(3), (12, 5)),
        (heads_out(3), (12,)),
        (heads_in(3), (5, 12)),
        (chained([heads_in(3), transposed(1, 0, 2)]), (5, 12)),
    ],
)
def test_layouts_are_inverse(layout, shape):
    theirs = RNG.standard_normal(shape)
    ours = layout.to_ours(theirs)
    assert layout.to_theirs(ours).tolist() == theirs.tolist()
    assert layout.to_ours(layout.to_theirs(ours)).tolist() == ours.tolist()


def test_layouts_by_their_definition():
    # Sums over named axes, written twice: as PyTorch stores them and as we do.
    x, w = RNG.standard_normal((7, 2, 3, 4)), RNG.standard_normal((5, 24))
    ours = flattened(2, 3, 4).to_ours(w)
    np.testing.assert_allclose(
        x.transpose(0, 2, 3, 1).reshape(7, -1) @ ours, x.reshape(7, -1) @ w.T, rtol=1e-12
    )
    query, out = RNG.standard_normal((12, 5)), RNG.standard_normal((5, 12))
    tokens = RNG.standard_normal((7, 5))
    heads = np.einsum("ti,ihd->thd", tokens, heads_out(3).to_ours(query))
    np.testing.assert_allclose(heads.reshape(7, 12), tokens @ query.T, rtol=1e-12)
    np.testing.assert_allclose(
        np.einsum("thd,hdo->to", heads, heads_in(3).to_ours(out)),
        heads.reshape(7, 12) @ out.T,
        rtol=1e-12,
    )


ATTENTION = NameMap(
    "attention",
    (
        Entry(
            "layers.{i}.qkv.weight",
            tuple(f"block_{{i}}.{part}.kernel" for part in ("query", "key", "value")),
            heads_out(2),
        ),
        Entry(("layers.{i}.gate.weight", "layers.{i}.up.weight"), "block_{i}.mlp.kernel", DENSE),
        Entry("position_ids", None),
        Entry("scale", "scale", optional=True),
    ),
)


def attention(layers=2):
    leaves = {"position_ids": np.arange(3)}
    for i in range(layers):
        leaves[f"layers.{i}.qkv.weight"] = RNG.standard_normal((12, 5))
        leaves[f"layers.{i}.gate.weight"] = RNG.standard_normal((3, 5))
        leaves[f"layers.{i}.up.weight"] = RNG.standard_normal((3, 5))
    return leaves


def test_one_of_theirs_may_be_several_of_ours_and_the_reverse():
    theirs = attention()
    ours = ATTENTION.to_ours(theirs)
    assert ours["block_1"]["key"]["kernel"].shape == (5, 2, 2)
    assert ours["block_1"]["mlp"]["kernel"].shape == (5, 6)
    key = theirs["layers.1.qkv.weight"][4:8]
    assert ours["block_1"]["key"]["kernel"][:, 1, 0].tolist() == key[2].tolist()
    back = ATTENTION.to_theirs(ours)
    assert ATTENTION.left_out(list(theirs)) == ["position_ids"]
    assert set(back) == set(theirs) - {"position_ids"}
    assert all(back[name].tolist() == theirs[name].tolist() for name in back)


def test_a_map_lists_what_has_no_place():
    leaves = attention()
    assert ATTENTION.fits(list(leaves))
    many = {**leaves, **{f"head.{i}": np.ones(1) for i in range(12)}}
    with pytest.raises(ModelFileError, match=r"no entry for head.0, .*head.9 and 2 more; add one"):
        ATTENTION.to_ours(many)
    assert not ATTENTION.fits(list(many))
    with pytest.raises(ModelFileError, match="the tree lacks block_{i}.query.kernel, bl"):
        ATTENTION.to_theirs({"scale": np.ones(1)})
    del leaves["layers.1.up.weight"]
    with pytest.raises(ModelFileError, match=r"the file lacks layers.1.up.weight, which the"):
        ATTENTION.to_ours(leaves)
    with pytest.raises(ModelFileError, match=r"of shape \[13, 5\] cannot be divided into 3 equal"):
        ATTENTION.to_ours({**attention(), "layers.0.qkv.weight": np.ones((13, 5))})
    with pytest.raises(ModelFileError, match=r"of shape \[3\] does not have the axes"):
        NameMap("conv", (Entry("w", "w", CONV),)).to_ours({"w": np.ones(3)})


MODELS = [
    (MLP(features=(4, 3)), mlp_names),
    (VGG(features=(2, "M", 3, "M"), dense=(4,), num_classes=2), lambda m: vgg_names(m, side=8)),
    (
        VGG(features=(2, "M", 3, "M"), dense=(), num_classes=2, norm="batch"),
        lambda m: vgg_names(m, side=8),
    ),
    (ResNet(1, 2, (2, 4, 6), 3, norm="batch", shortcut="pad"), resnet_names),
    (ResNet(1, 2, (3, 4, 6), 3, norm="batch", shortcut=1, padding="symmetric"), resnet_names),
]


@pytest.mark.parametrize(("module", "names"), MODELS, ids=lambda m: type(m).__name__)
def test_every_leaf_of_a_model_has_a_name(module, names):
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    ours = jax.tree.map(lambda leaf: RNG.standard_normal(leaf.shape).astype(leaf.dtype), shapes)
    theirs = names(module).to_theirs(ours)
    assert len(theirs) == len(jax.tree.leaves(ours))
    again = flatten(names(module).to_ours(theirs))
    assert {k: v.tolist() for k, v in again.items()} == {
        k: v.tolist() for k, v in flatten(ours).items()
    }


def test_networks_whose_outputs_would_differ_are_refused():
    for model, message in [
        (cifar_resnet(8, 10), "norm 'layer' has no names"),
        (cifar_resnet(8, 10, norm="batch"), "padding 'SAME' is not PyTorch's"),
    ]:
        with pytest.raises(ValueError, match=message):
            resnet_names(model)
    with pytest.raises(ValueError, match="norm 'layer' has no names"):
        vgg_names(VGG(features=(2,), dense=(), num_classes=2, norm="layer"))
    assert vgg_names(vgg8(10)).entries[-1].theirs == "classifier.6.bias"


@pytest.mark.skipif(not WEIGHTS, reason="WSA_JAX_WEIGHTS names no folder of published weights")
@pytest.mark.parametrize("depth", [20, 32])
def test_published_weights_come_and_go_bit_for_bit(tmp_path, depth):
    path = Path(WEIGHTS) / f"resnet{depth}_cifar10.safetensors"
    module = cifar_resnet(depth, 10, norm="batch", shortcut="pad")
    names = resnet_names(module, head="linear")
    like = jax.eval_shape(module.init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))
    variables = load_model(path, names=names, like=like)
    save_model(tmp_path / "m.safetensors", variables, names=names)
    first, second = open_model(path), open_model(tmp_path / "m.safetensors")
    assert set(first) == set(second)
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)
