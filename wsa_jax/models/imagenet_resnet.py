"""Residual networks for large images: ResNet-18, -34, -50, -101, -152."""

from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from wsa_jax import checks
from wsa_jax.conv import max_pool
from wsa_jax.door import door
from wsa_jax.models.convolutions import convolution, symmetric
from wsa_jax.models.dense import dense_layers
from wsa_jax.models.fields import counts_of
from wsa_jax.models.norms import check_norm, normalize_channels

__all__ = ["ImageNetResNet", "imagenet_resnet"]

# Blocks of the four stages, and whether they are bottlenecks.
_DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}

_EXPANSION = 4


class ImageNetResNet(nn.Module):
    """A stem that quarters the side, and stages of residual blocks, each of half the last's side.

    stem:       conv 7x7 with stride 2, norm, ReLU, max-pool 3x3 with stride 2
    block:      ReLU(shortcut(x) + norm(conv 3x3(ReLU(norm(conv 3x3(x))))))
    bottleneck: conv 1x1, conv 3x3 and conv 1x1 to four times the channels, norms and ReLUs likewise
    head:       mean over pixels -> one dense layer

    The first block of each stage but the first has stride 2, a bottleneck in its 3x3 convolution.
    The shortcut is conv 1x1 + norm with the same stride where side or width changes, and x itself
    elsewhere. Everything pads the same on each side, as PyTorch does; convolutions have no bias.

    Shapes: [batch, height, width, channels] -> [batch, num_classes] logits.
    Parameters: `Conv_0` and `BatchNorm_0` of the stem; `Block_0`, `Block_1` and so on through all
    stages, each with `Conv_0`, `Conv_1` (and `Conv_2` of a bottleneck), then the shortcut's
    convolution under the next number, and norms under the same numbers; `Dense_0`. Running moments
    are in the collection `batch_stats`.

    Guarantees: weights of torchvision's networks give the same logits (`resnet_names`). The blocks
    of a stage share one residual stream, which the stem shares where their widths are equal.

    Errors: `ValueError` for no stages, counts below 1, or an unknown norm or initialization.

    >>> import jax, jax.numpy as jnp
    >>> model = ImageNetResNet(blocks=(1, 1), widths=(4, 8), num_classes=3, stem=4, bottleneck=True)
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))
    >>> variables["params"]["Block_1"]["Conv_3"]["kernel"].shape
    (1, 1, 16, 32)

    Source: He et al., CVPR 2016, Table 1, with the stride of torchvision's bottlenecks; initial
    weights as torchvision's.
    """

    blocks: Sequence[int]
    num_classes: int
    bottleneck: bool = False
    widths: Sequence[int] = (64, 128, 256, 512)
    stem: int = 64
    norm: str = "batch"
    # Not `init`: the name would hide the module's own method.
    initialization: str = "torchvision"

    def __post_init__(self):
        checks.count("num_classes", self.num_classes)
        checks.count("stem", self.stem)
        for name in ("blocks", "widths"):
            object.__setattr__(self, name, counts_of(name, getattr(self, name)))
        if not self.blocks or len(self.blocks) != len(self.widths):
            raise ValueError(
                f"blocks {self.blocks} and widths {self.widths} are not of the same stages; give a "
                "count of blocks and a width for each"
            )
        check_norm(self.norm)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        x = convolution(x, self.stem, 7, 2, 0, self.initialization, symmetric(7))
        x = nn.relu(normalize_channels(x, self.norm, 0, train=train))
        # Behind a ReLU, zeros around the image are never the maximum of a window alone.
        x = max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), (2, 2))
        for index, (channels, stride) in enumerate(self.shapes_of_blocks()):
            x = _Block(
                channels=channels,
                stride=stride,
                bottleneck=self.bottleneck,
                norm=self.norm,
                initialization=self.initialization,
                name=f"Block_{index}",
            )(x, train)
        x = x.mean(axis=(1, 2))
        # Torchvision leaves the head as PyTorch makes it.
        head = "reference" if self.initialization == "torchvision" else self.initialization
        return dense_layers(x, (self.num_classes,), head)

    def shapes_of_blocks(self) -> list[tuple[int, int]]:
        """Channels and stride of each block, through all stages."""
        return [
            (channels, 1 if position or not stage else 2)
            for stage, (count, channels) in enumerate(zip(self.blocks, self.widths, strict=True))
            for position in range(count)
        ]


class _Block(nn.Module):
    channels: int
    stride: int
    bottleneck: bool
    norm: str
    initialization: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch new_height new_width new_channels"]:
        # Kernel, channels, stride of each convolution.
        layers = [(3, self.channels, self.stride), (3, self.channels, 1)]
        if self.bottleneck:
            wide = _EXPANSION * self.channels
            layers = [(1, self.channels, 1), layers[0], (1, wide, 1)]
        y = x
        for index, (size, channels, stride) in enumerate(layers):
            y = nn.relu(y) if index else y
            y = convolution(y, channels, size, stride, index, self.initialization, symmetric(size))
            y = normalize_channels(y, self.norm, index, train=train)
        if self.stride != 1 or x.shape[-1] != y.shape[-1]:
            beside = len(layers)
            x = convolution(x, y.shape[-1], 1, self.stride, beside, self.initialization)
            x = normalize_channels(x, self.norm, beside, train=train)
        return nn.relu(x + y)


@door
def imagenet_resnet(
    depth: Literal[18, 34, 50, 101, 152],
    num_classes: int,
    *,
    norm: str = "batch",
    initialization: str = "torchvision",
) -> ImageNetResNet:
    """ResNet-18 or -34 of two convolutions a block, or -50, -101 or -152 of bottlenecks.

    Parameters, for RGB images and 1,000 classes: 11,689,512 (18), 21,797,672 (34), 25,557,032 (50),
    44,549,160 (101), 60,192,808 (152).

    Args:
      depth: number of layers, as counted by the paper.
      num_classes: number of logits.
      norm: ``"batch"``, ``"layer"`` (over the channels of a pixel) or ``"none"``.
      initialization: see `layer_initializers`; torchvision's leaves the head as PyTorch makes it.

    >>> imagenet_resnet(50, 1000).blocks
    (3, 4, 6, 3)

    Source: He et al., CVPR 2016, Table 1.
    """
    blocks, bottleneck = _DEPTHS[depth]
    return ImageNetResNet(
        blocks=blocks,
        num_classes=num_classes,
        bottleneck=bottleneck,
        norm=norm,
        initialization=initialization,
    )
