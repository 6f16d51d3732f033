"""Parameter counts and initial weights of the architectures, as published, from shapes alone."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsa_jax.models import (
    GCN,
    Graph,
    GraphSAGE,
    ImageNetResNet,
    MobileNetV2,
    TextEncoder,
    ViT,
    imagenet_resnet,
    mobilenet_v2,
    vit,
    wide_resnet,
    wrn16_4,
)
from wsa_jax.tree import key_path


def image(side):
    return jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)


TEXT = jax.ShapeDtypeStruct((1, 8), jnp.int32)
EDGES = jax.ShapeDtypeStruct((10_556,), jnp.int32)
CORA = Graph(jax.ShapeDtypeStruct((2_708, 1_433), jnp.float32), EDGES, EDGES)

# The counts of the papers' own code, torchvision, timm and Hugging Face; MiniLM-L6 and BERT-base
# have 22,713,216 and 109,482,240 with their poolers of width² + width, which are left out here.
SIZES = {
    "WRN-16-4": (wrn16_4(10), image(32), 2_748_890),
    "WRN-28-10": (wide_resnet(28, 10, width=10), image(32), 36_479_194),
    "ResNet-18": (imagenet_resnet(18, 1000), image(64), 11_689_512),
    "ResNet-34": (imagenet_resnet(34, 1000), image(64), 21_797_672),
    "ResNet-50": (imagenet_resnet(50, 1000), image(64), 25_557_032),
    "MobileNet-v2": (mobilenet_v2(1000), image(224), 3_504_872),
    "ViT-Ti/16": (vit("Ti", 1000), image(224), 5_717_416),
    "ViT-B/16": (vit("B", 1000), image(224), 86_567_656),
    "MiniLM-L6": (TextEncoder(30_522, 384, 6, 12, 1_536), TEXT, 22_713_216 - 384 * 385),
    "BERT-base": (TextEncoder(30_522, 768, 12, 12, 3_072), TEXT, 109_482_240 - 768 * 769),
    "GCN": (GCN((16, 7)), CORA, 23_063),
    "GraphSAGE": (GraphSAGE((16, 7)), CORA, 46_103),
}


@pytest.mark.parametrize("name", SIZES)
def test_parameters_are_as_many_as_published(name):
    model, inputs, number = SIZES[name]
    params = jax.eval_shape(model.init, jax.random.key(0), inputs)["params"]
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == number


def expected_std(name, shape):
    """Of a kernel, by the architecture's reference code; None for what is not drawn."""
    kind, leaf = name.split(":")[0], name.replace(":", "/").rsplit("/", 1)[-1]
    if leaf not in ("kernel", "embedding"):
        return None
    fan_in, fan_out = math.prod(shape[:-1]), shape[-1]
    if kind == "mobile":
        return math.sqrt(2 / (shape[0] * shape[1] * fan_out)) if len(shape) == 4 else 0.01
    if kind == "gcn":
        return math.sqrt(2 / (fan_in + fan_out))
    return 0.02


INITIALS = {
    "mobile": (MobileNetV2(((6, 24, 1, 2),), 16, 64, 10), image(8)),
    "text": (TextEncoder(64, 48, 1, 3, 96, 10, max_tokens=16), TEXT),
    "gcn": (GCN((32, 32)), Graph(np.ones((3, 64), np.float32), np.int32([0, 1]), np.int32([1, 0]))),
}


@pytest.mark.parametrize("kind", INITIALS)
def test_initial_weights_are_the_reference_codes(kind):
    model, inputs = INITIALS[kind]
    like = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), inputs)
    # This generator compiles many times faster than the default one.
    params = jax.device_get(jax.jit(model.init)(jax.random.key(0, impl="rbg"), like)["params"])
    drawn = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        std = expected_std(f"{kind}:{key_path(path)}", leaf.shape)
        if std is None:
            assert np.unique(leaf).tolist() == [float(key_path(path).endswith("scale"))]
            continue
        drawn += 1
        # Six standard errors of the std, and of the mean.
        np.testing.assert_allclose(leaf.std(), std, rtol=6 / math.sqrt(2 * leaf.size))
        assert abs(leaf.mean()) < 6 * std / math.sqrt(leaf.size)
    assert drawn >= 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: wide_resnet(20, 10), r"depth 20 is not 6n\+4; give 10, 16"),
        (lambda: wide_resnet(4, 10), r"depth 4 is not 6n\+4"),
        (lambda: wide_resnet(16, 10, width=0), "width 0 is not positive"),
        (lambda: wide_resnet(16, 10, norm="group"), "got 'group'"),
        (lambda: imagenet_resnet(20, 10), "20"),
        (lambda: ImageNetResNet((1, 1), 10), r"blocks \(1, 1\) and widths \(64, 128, 256, 512\)"),
        (lambda: ImageNetResNet((), 10, widths=()), "blocks .* not of the same stages"),
        (lambda: imagenet_resnet(18, 10, norm="group"), "got 'group'"),
        (lambda: mobilenet_v2(10, width=-1), "width -1 is not positive"),
        (lambda: mobilenet_v2(10, stem="big"), "stem 'big' is unknown|stem of mobilenet_v2 is"),
        (lambda: MobileNetV2(((1, 4, 1),), 4, 8, 3), r"stages \(\(1, 4, 1\),\) are not"),
        (lambda: MobileNetV2((), 4, 8, 3), r"stages \(\) are not"),
        (lambda: vit("L", 10), "'L'"),
        (lambda: ViT(4, 10, 1, 3, 8, 2), "width 10 is no multiple of heads 3"),
        (
            lambda: vit("Ti", 10, patch=5).init(jax.random.key(0), jnp.ones((1, 8, 8, 3))),
            "images of 8x8 are no whole patches of 5x5",
        ),
        (lambda: TextEncoder(9, 4, 1, 2, 4, pooling="max"), "pooling 'max' is unknown; give"),
        (lambda: TextEncoder(9, 4, 1, 2, 4, num_classes=0), "num_classes must be a positive"),
        (
            lambda: TextEncoder(9, 4, 1, 2, 4, max_tokens=2).init(
                jax.random.key(0), jnp.ones((1, 3), int)
            ),
            "texts of 3 tokens are longer than max_tokens 2",
        ),
    ],
)
def test_what_makes_no_model_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
