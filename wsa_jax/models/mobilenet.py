"""MobileNet-v2, with the stem of ImageNet or that of small images."""

from collections.abc import Sequence
from typing import Literal

from flax import linen as nn
from jaxtyping import Array, Float

from wsa_jax import checks
from wsa_jax.door import door
from wsa_jax.models.convolutions import convolution, symmetric
from wsa_jax.models.dense import dense_layers
from wsa_jax.models.fields import counts_of, sequence_of
from wsa_jax.models.norms import check_norm, normalize_channels

__all__ = ["MobileNetV2", "mobilenet_v2"]

Stage = tuple[int, int, int, int]
"""Expansion, channels, blocks, stride of the first block."""

_STAGES: tuple[Stage, ...] = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2(nn.Module):
    """Inverted residual blocks: a wide depthwise convolution between two narrow 1x1 ones.

    stem:  conv 3x3, norm, ReLU6
    block: conv 1x1 to t times the channels, norm, ReLU6 (none if t = 1)
           -> depthwise conv 3x3, norm, ReLU6 -> conv 1x1, norm; + x where the shape stays
    head:  conv 1x1, norm, ReLU6 -> mean over pixels -> one dense layer

    Strided convolutions pad a pixel on each side, as PyTorch does. Convolutions have no bias.

    Shapes: [batch, height, width, channels] -> [batch, num_classes] logits.
    Parameters: `Conv_0` and `BatchNorm_0` of the stem, `Conv_1` and `BatchNorm_1` of the head,
    `Dense_0`; `Block_0`, `Block_1` and so on through all stages, each with `Conv_0` (to the wide
    channels, absent if t = 1), `Conv_1` (depthwise, [3, 3, 1, channels]) and `Conv_2`, and their
    norms under the same numbers.

    Guarantees: no dropout (the reference drops 0.2 before the dense layer). ReLU6 is bounded, so
    units admit permutations only.

    Errors: `ValueError` for stages that are not four counts each, or an unknown norm or
    initialization.

    >>> import jax, jax.numpy as jnp
    >>> model = MobileNetV2(stages=((1, 4, 1, 1), (2, 6, 2, 2)), stem=4, last=8, num_classes=3)
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    >>> variables["params"]["Block_2"]["Conv_1"]["kernel"].shape
    (3, 3, 1, 12)

    Source: Sandler et al., CVPR 2018, Table 2; initial weights as torchvision's.
    """

    stages: Sequence[Sequence[int]]
    stem: int
    last: int
    num_classes: int
    stem_stride: int = 1
    norm: str = "batch"
    # Not `init`: the name would hide the module's own method.
    initialization: str = "torchvision"

    def __post_init__(self):
        for name in ("stem", "last", "num_classes", "stem_stride"):
            checks.count(name, getattr(self, name))
        stages = [
            counts_of(f"stages[{index}]", stage)
            for index, stage in enumerate(sequence_of("stages", self.stages))
        ]
        if not stages or any(len(stage) != 4 for stage in stages):
            raise ValueError(
                f"stages {tuple(stages)} are not (expansion, channels, blocks, stride) each; give "
                "four counts a stage, such as ((1, 16, 1, 1), (6, 24, 2, 2))"
            )
        object.__setattr__(self, "stages", tuple(stages))
        check_norm(self.norm)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        x = convolution(
            x, self.stem, 3, self.stem_stride, 0, self.initialization, padding=symmetric(3)
        )
        x = nn.relu6(normalize_channels(x, self.norm, 0, train=train))
        blocks = [
            (expansion, channels, 1 if position else stride)
            for expansion, channels, count, stride in self.stages
            for position in range(count)
        ]
        for index, (expansion, channels, stride) in enumerate(blocks):
            x = _Block(
                expansion=expansion,
                channels=channels,
                stride=stride,
                norm=self.norm,
                initialization=self.initialization,
                name=f"Block_{index}",
            )(x, train)
        x = convolution(x, self.last, 1, 1, 1, self.initialization)
        x = nn.relu6(normalize_channels(x, self.norm, 1, train=train)).mean(axis=(1, 2))
        return dense_layers(x, (self.num_classes,), self.initialization)


class _Block(nn.Module):
    expansion: int
    channels: int
    stride: int
    norm: str
    initialization: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch new_height new_width new_channels"]:
        y, wide = x, self.expansion * x.shape[-1]
        if self.expansion != 1:
            y = convolution(y, wide, 1, 1, 0, self.initialization)
            y = nn.relu6(normalize_channels(y, self.norm, 0, train=train))
        y = convolution(
            y, wide, 3, self.stride, 1, self.initialization, padding=symmetric(3), groups=wide
        )
        y = nn.relu6(normalize_channels(y, self.norm, 1, train=train))
        # No ReLU after it: the narrow end carries all that the block has found.
        y = convolution(y, self.channels, 1, 1, 2, self.initialization)
        y = normalize_channels(y, self.norm, 2, train=train)
        return x + y if x.shape == y.shape else y


@door
def mobilenet_v2(
    num_classes: int,
    *,
    width: float | int = 1.0,
    stem: Literal["imagenet", "cifar"] = "imagenet",
    norm: str = "batch",
    initialization: str = "torchvision",
) -> MobileNetV2:
    """MobileNet-v2 for images of 224x224 (ImageNet's stem) or 32x32 (CIFAR's).

    "imagenet" divides the side by 32: stem and four stages have stride 2.
    "cifar" divides it by 8: the stem and the stage of 24 channels have stride 1.

    Parameters: 3,504,872 for RGB images, 1,000 classes and width 1; 2,236,682 for 10 classes.

    Args:
      num_classes: number of logits.
      width: factor on every channel count, each rounded to a multiple of 8 as in the reference
        code; the head has at least 1,280 channels.
      stem: which images it is for.
      norm: ``"batch"``, ``"layer"`` (over the channels of a pixel) or ``"none"``.
      initialization: see `layer_initializers`.

    Raises:
      ValueError: a width that is not positive.

    >>> mobilenet_v2(10, width=0.5, stem="cifar").stages[1]
    (6, 16, 2, 1)

    Source: Sandler et al., CVPR 2018. The strides for small images are those in general use.
    """
    checks.positive("width", width, "a factor on the channel counts")
    return MobileNetV2(
        stages=tuple(
            (
                expansion,
                _multiple_of_8(width * channels),
                blocks,
                1 if stem == "cifar" and channels == 24 else stride,
            )
            for expansion, channels, blocks, stride in _STAGES
        ),
        stem=_multiple_of_8(width * 32),
        last=_multiple_of_8(1280 * max(1.0, width)),
        num_classes=num_classes,
        stem_stride=1 if stem == "cifar" else 2,
        norm=norm,
        initialization=initialization,
    )


def _multiple_of_8(count: float) -> int:
    """The nearest multiple of 8, at least 8, and never more than a tenth below the count.

    >>> _multiple_of_8(16.0), _multiple_of_8(33.6), _multiple_of_8(11.9)
    (16, 32, 16)
    """
    nearest = max(8, int(count + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * count else nearest
