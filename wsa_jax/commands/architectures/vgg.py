"""VGGs, under our names or torchvision's."""

import math
import re

from wsa_jax.commands.architectures.known import (
    Architecture,
    Asked,
    images,
    lacking,
    norm_of,
    numbered,
    prefix_of,
)
from wsa_jax.files import vgg_names
from wsa_jax.files.model_file import Shapes
from wsa_jax.models import VGG


def read_vgg(shapes: Shapes, asked: Asked) -> Architecture:
    """Convolutions and dense layers; where max-pools stand, PyTorch's numbers tell."""
    del asked
    theirs = numbered(shapes, r"features\.(\d+)\.weight", rank=4)
    if not theirs:
        return _ours(shapes)
    places = list(theirs)
    norm = "batch" if f"features.{places[0] + 1}.running_mean" in shapes else "none"
    plain = 3 if norm == "batch" else 2
    features: list[int | str] = []
    for place, following in zip(places, [*places[1:], places[-1] + plain], strict=True):
        features += [theirs[place][0], *["M"] * (following - place - plain)]
    dense = numbered(shapes, r"classifier\.(\d+)\.weight", rank=2)
    heads = list(dense.values()) or [tuple(shapes["classifier.weight"].shape)]
    # Max-pools behind the last convolution leave no name: the pixels that are left tell enough.
    side = math.isqrt(heads[0][1] // theirs[places[-1]][0]) * 2 ** features.count("M")
    module = VGG(
        features=tuple(features),
        dense=tuple(head[0] for head in heads[:-1]),
        num_classes=heads[-1][0],
        norm=norm,
    )
    inputs = images(side, side, theirs[places[0]][1])
    return Architecture(
        name="vgg", module=module, inputs=inputs, names=vgg_names(module, side=side)
    )


def _ours(shapes: Shapes) -> Architecture:
    prefix = re.escape(prefix_of(shapes))
    kernels = list(numbered(shapes, rf"{prefix}Conv_(\d+)\.kernel", rank=4).values())
    dense = list(numbered(shapes, rf"{prefix}Dense_(\d+)\.kernel", rank=2).values())
    lacking(f"{prefix_of(shapes)}Conv_0.kernel", kernels)
    lacking(f"{prefix_of(shapes)}Dense_0.kernel", dense)
    # Without max-pools, on an image of as many pixels as are flattened: the same units are tied.
    side = math.isqrt(dense[0][0] // kernels[-1][-1])
    module = VGG(
        features=tuple(kernel[-1] for kernel in kernels),
        dense=tuple(kernel[-1] for kernel in dense[:-1]),
        num_classes=dense[-1][-1],
        norm=norm_of(shapes),
    )
    return Architecture(name="vgg", module=module, inputs=images(side, side, kernels[0][2]))
