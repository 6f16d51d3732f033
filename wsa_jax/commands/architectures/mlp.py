"""Networks without blocks: MLPs, and the CNN of the federated experiments."""

import math
import re

from wsa_jax.commands.architectures.known import (
    Architecture,
    Asked,
    images,
    lacking,
    numbered,
    prefix_of,
)
from wsa_jax.files import mlp_names
from wsa_jax.files.model_file import Shapes
from wsa_jax.models import CNN, MLP


def read_mlp(shapes: Shapes, asked: Asked) -> Architecture:
    """Dense layers under our names, or linear layers that PyTorch numbers."""
    del asked
    prefix = prefix_of(shapes)
    ours = numbered(shapes, rf"{re.escape(prefix)}Dense_(\d+)\.kernel", rank=2)
    if ours:
        kernels = list(ours.values())
        module = MLP(features=tuple(kernel[1] for kernel in kernels))
        return Architecture(name="mlp", module=module, inputs=images(1, 1, kernels[0][0]))
    before = next((m[1] for n in shapes if (m := re.fullmatch(r"(.*?)\d+\.weight", n))), "")
    theirs = numbered(shapes, rf"{re.escape(before)}(\d+)\.weight", rank=2)
    lacking("Dense_0.kernel, or 0.weight of PyTorch", theirs)
    places, kernels = list(theirs), list(theirs.values())
    module = MLP(features=tuple(kernel[0] for kernel in kernels))
    every = places[1] - places[0] if len(places) > 1 else 1
    names = mlp_names(module, prefix=before, every=every)
    inputs = images(1, 1, kernels[0][1])
    return Architecture(name="mlp", module=module, inputs=inputs, names=names)


def read_cnn(shapes: Shapes, asked: Asked) -> Architecture:
    """Two convolutions and three dense layers."""
    del asked
    prefix = re.escape(prefix_of(shapes))
    kernels = list(numbered(shapes, rf"{prefix}Conv_(\d+)\.kernel", rank=4).values())
    dense = list(numbered(shapes, rf"{prefix}Dense_(\d+)\.kernel", rank=2).values())
    if len(kernels) != 2 or len(dense) != 3:
        raise KeyError("Conv_0 and Conv_1 alone, or Dense_0 to Dense_2")
    size, channels = kernels[0][0], (kernels[0][-1], kernels[1][-1])
    module = CNN(
        num_classes=dense[-1][-1],
        channels=channels,
        units=(dense[0][-1], dense[1][-1]),
        kernel_size=size,
    )
    # Before two convolutions without padding, each with a max-pool behind it.
    side = math.isqrt(dense[0][0] // channels[1])
    for _ in range(2):
        side = 2 * side + size - 1
    return Architecture(name="cnn", module=module, inputs=images(side, side, kernels[0][2]))
