"""Every architecture is found in a file by its names and shapes, and its units are those of it."""

import json
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsa_jax.cli import main
from wsa_jax.commands.architectures import architecture, found_architecture
from wsa_jax.files import (
    ModelFileError,
    open_model,
    resnet_names,
    save_model,
    text_encoder_names,
    vit_names,
)
from wsa_jax.merging import trace_spec
from wsa_jax.models import (
    CNN,
    GCN,
    MLP,
    VGG,
    GraphSAGE,
    ImageNetResNet,
    MobileNetV2,
    ResNet,
    TextEncoder,
    ViT,
    WideResNet,
    graph,
)

RNG = np.random.default_rng(0)
RING = graph(np.zeros((3, 4), np.float32), [0, 1, 2, 1, 2, 0], [1, 2, 0, 0, 1, 2])
VIT = ViT(2, 6, 1, 3, 5, 2)
TEXT = TextEncoder(9, 6, 1, 3, 5, 2, max_tokens=4)
LARGE = ImageNetResNet((2, 1), 2, widths=(2, 3), stem=2)


def image(side):
    return jnp.zeros((2, side, side, 3))


# A network, inputs, and what it is called.
OURS = {
    "mlp": (MLP((4, 3)), image(2), "mlp"),
    "vgg": (VGG((2, "M", 3), (4,), 2, norm="layer"), image(4), "vgg"),
    "cnn": (CNN(2, channels=(2, 3), units=(4, 5)), image(16), "cnn"),
    "option A": (ResNet(1, 2, (2, 3, 4), 2, norm="batch", shortcut="pad"), image(8), "resnet8"),
    "convolutions": (ResNet(1, 2, (2, 3, 4), 2), image(8), "resnet8"),
    "large": (LARGE, image(32), "resnet8"),
    "bottlenecks": (
        ImageNetResNet((1, 1), 2, bottleneck=True, widths=(2, 2), stem=3, norm="none"),
        image(32),
        "resnet8",
    ),
    "wide": (WideResNet(1, (3, 4), 2, stem=2), image(8), "wide-resnet"),
    "wide, no norm": (WideResNet(1, (3, 4), 2, stem=3, norm="none"), image(8), "wide-resnet"),
    "mobilenet": (
        MobileNetV2(((1, 3, 1, 1), (2, 4, 1, 2)), 3, 5, 2, stem_stride=2),
        image(16),
        "mobilenet",
    ),
    "vit": (VIT, image(4), "vit"),
    "text": (TEXT, jnp.ones((2, 3), int), "text-encoder"),
    "vectors of texts": (TEXT.copy(num_classes=None), jnp.ones((2, 3), int), "text-encoder"),
    "gcn": (GCN((3, 2)), RING, "gcn"),
    "sage": (GraphSAGE((3, 2)), RING, "graph-sage"),
}


@cache
def shapes_of(name):
    module, inputs, _ = OURS[name]
    return jax.eval_shape(module.init, jax.random.key(0), inputs)


def drawn(shapes):
    return jax.tree.map(lambda leaf: RNG.standard_normal(leaf.shape).astype(np.float32), shapes)


@pytest.mark.parametrize("name", OURS)
def test_found_by_our_names_and_shapes(tmp_path, name):
    module, inputs, kind = OURS[name]
    variables = drawn(shapes_of(name))
    save_model(tmp_path / "m.npz", variables)
    file = open_model(tmp_path / "m.npz")
    found = architecture(None, file)
    assert found.name == kind
    if found.module != module:
        # Pools and strides leave no trace in a file: the same units move together all the same.
        assert kind in ("vgg", "mobilenet")
        spec = trace_spec(module.apply, shapes_of(name), inputs)
        assert found.spec(file).canonical() == spec.canonical()
    assert jax.tree.all(jax.tree.map(np.array_equal, found.load(file), variables))


def hugging_face(name):
    module = {"vit": VIT, "text": TEXT}[name]
    names = vit_names(module) if name == "vit" else text_encoder_names(module, prefix="bert.")
    prefix = "vit." if name == "vit" else "bert."
    leaves = names.to_theirs(drawn(shapes_of(name)))
    pooler = {f"{prefix}pooler.dense.weight": np.ones((6, 6), np.float32)}
    return leaves, {**pooler, f"{prefix}pooler.dense.bias": np.ones(6, np.float32)}


@pytest.mark.parametrize("name", ["vit", "text"])
def test_found_by_hugging_face_s_names(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    leaves, pooler = hugging_face(name)
    save_model("a.safetensors", leaves)
    file = open_model("a.safetensors")
    with pytest.raises(ModelFileError, match=r"do not tell how many heads .* give --heads"):
        architecture(None, file)
    main(["inspect", "a.safetensors"])
    assert "architecture: a transformer; shapes do not tell" in capsys.readouterr().out
    module, _, kind = OURS[name]
    given = architecture(kind, file, heads=3)
    Path("config.json").write_text(json.dumps({"num_attention_heads": 3}))
    found = architecture(None, file)
    assert found.module == given.module == module.copy(epsilon=1e-12)
    assert found.names.to_theirs(found.load(file)).keys() == leaves.keys()
    # A pooler reads the residual stream and is no part of our network: the stream stays in order.
    save_model("pooled.safetensors", leaves | pooler)
    pooled = open_model("pooled.safetensors")
    left = architecture(None, pooled)
    assert left.beside(pooled) == sorted(pooler, reverse=True)
    if name == "text":  # traced once, for both
        kept = {group.name for group in left.spec(pooled).groups}
        groups = found.spec(file).groups
        stream = next(g for g in groups if "params/LayerNorm_0/scale" in {t.leaf for t in g.ties})
        assert kept == {group.name for group in groups} - {stream.name}
    back = left.stored(left.load(pooled), pooled)
    assert {n: v.tolist() for n, v in back.items()} == {n: v.tolist() for n, v in pooled.items()}


def test_torchvision_s_networks_are_found(tmp_path, capsys):
    theirs = resnet_names(LARGE).to_theirs(drawn(shapes_of("large")))
    save_model(tmp_path / "m.npz", theirs)
    file = open_model(tmp_path / "m.npz")
    found = architecture(None, file)
    assert (found.name, found.module) == ("resnet8", LARGE)
    with pytest.raises(ModelFileError, match="m.npz is no resnet18: it is resnet8"):
        architecture("resnet18", file)
    # Grouped convolutions have the same names.
    kernel = theirs["layer1.0.conv2.weight"]
    save_model(tmp_path / "grouped.npz", {**theirs, "layer1.0.conv2.weight": kernel[:, :1]})
    grouped = open_model(tmp_path / "grouped.npz")
    with pytest.raises(ModelFileError, match="its shapes differ: params.Block_0.Conv_1.kernel"):
        architecture("resnet", grouped)
    assert found_architecture(grouped) is None
    with pytest.raises(ModelFileError, match=r"grouped.npz fits no known architecture \(mlp, cnn"):
        architecture(None, grouped)
    main(["inspect", str(tmp_path / "grouped.npz")])
    assert capsys.readouterr().out.endswith("architecture: none that is known\n")
