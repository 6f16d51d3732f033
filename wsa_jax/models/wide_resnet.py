"""Wide residual networks whose blocks begin with norm and ReLU: WRN-(6n+4)-k."""

from collections.abc import Sequence

from flax import linen as nn
from jaxtyping import Array, Float

from wsa_jax import checks
from wsa_jax.door import door
from wsa_jax.models.convolutions import convolution, symmetric
from wsa_jax.models.dense import dense_layers
from wsa_jax.models.fields import counts_of
from wsa_jax.models.norms import check_norm, normalize_channels

__all__ = ["WideResNet", "wide_resnet", "wrn16_4"]


class WideResNet(nn.Module):
    """Three stages of blocks that begin with norm and ReLU, each of half the side of the last.

    stem:  conv 3x3
    block: y = ReLU(norm(x)); shortcut + conv 3x3(ReLU(norm(conv 3x3(y))))
    head:  ReLU(norm(x)) -> mean over pixels -> one dense layer

    The first block of a stage has a shortcut conv 1x1 of y where side or width changes; the
    shortcut is x itself elsewhere. Its strided convolutions pad a pixel on each side, as PyTorch
    does. Convolutions have no bias.

    Shapes: [batch, height, width, channels] -> [batch, num_classes] logits.
    Parameters: `Conv_0/kernel` of the stem; `Block_0`, `Block_1` and so on through all stages, each
    with `BatchNorm_0`, `Conv_0`, `BatchNorm_1`, `Conv_1` and the shortcut's `Conv_2` where there is
    one; `BatchNorm_0` of the head, `Dense_0`. With norm "layer" they are named `LayerNorm_0`.

    Guarantees: no dropout. The blocks of a stage share one residual stream, which no ReLU cuts; in
    the first stage the stem shares it, too, if their widths are equal.

    Errors: `ValueError` for no blocks, widths that are no counts, or an unknown norm or
    initialization.

    >>> import jax, jax.numpy as jnp
    >>> model = WideResNet(blocks=1, widths=(8, 16, 32), num_classes=10, stem=4)
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    >>> sorted(variables["params"]["Block_1"])
    ['BatchNorm_0', 'BatchNorm_1', 'Conv_0', 'Conv_1', 'Conv_2']

    Source: Zagoruyko and Komodakis, BMVC 2016, Table 1; He's initial weights, as their code.
    """

    blocks: int
    widths: Sequence[int]
    num_classes: int
    stem: int = 16
    norm: str = "batch"
    # Not `init`: the name would hide the module's own method.
    initialization: str = "he"

    def __post_init__(self):
        for name in ("blocks", "num_classes", "stem"):
            checks.count(name, getattr(self, name))
        object.__setattr__(self, "widths", counts_of("widths", self.widths))
        check_norm(self.norm)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        x = convolution(x, self.stem, 3, 1, 0, self.initialization)
        for index in range(len(self.widths) * self.blocks):
            stage, position = divmod(index, self.blocks)
            x = _Block(
                channels=self.widths[stage],
                stride=2 if stage and not position else 1,
                norm=self.norm,
                initialization=self.initialization,
                name=f"Block_{index}",
            )(x, train)
        x = nn.relu(normalize_channels(x, self.norm, 0, train=train)).mean(axis=(1, 2))
        return dense_layers(x, (self.num_classes,), self.initialization)


class _Block(nn.Module):
    channels: int
    stride: int
    norm: str
    initialization: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch new_height new_width new_channels"]:
        y = nn.relu(normalize_channels(x, self.norm, 0, train=train))
        # The shortcut sees what the first convolution sees, as in the reference code.
        if self.stride != 1 or x.shape[-1] != self.channels:
            x = convolution(y, self.channels, 1, self.stride, 2, self.initialization)
        y = convolution(
            y, self.channels, 3, self.stride, 0, self.initialization, padding=symmetric(3)
        )
        y = nn.relu(normalize_channels(y, self.norm, 1, train=train))
        return x + convolution(y, self.channels, 3, 1, 1, self.initialization)


@door
def wide_resnet(
    depth: int,
    num_classes: int,
    *,
    width: float | int = 1,
    norm: str = "batch",
    initialization: str = "he",
) -> WideResNet:
    """WRN-depth-width: a stem of 16 channels, then n blocks of 16k, 32k and 64k, depth 6n+4.

    `cifar_resnet` makes the networks of the same depths whose blocks end in a ReLU.

    Args:
      depth: number of convolutions, as counted by the paper: 10, 16, 22, 28, 40.
      num_classes: number of logits.
      width: factor k on the channel counts of the stages, each rounded to at least 1.
      norm: ``"batch"``, ``"layer"`` (over the channels of a pixel) or ``"none"``.
      initialization: see `layer_initializers`.

    Raises:
      ValueError: a depth that is not 6n+4 with n >= 1, or a width that is not positive.

    >>> wide_resnet(28, 10, width=10).widths
    (160, 320, 640)

    Source: Zagoruyko and Komodakis, BMVC 2016.
    """
    blocks, rest = divmod(depth - 4, 6)
    if blocks < 1 or rest:
        raise ValueError(f"depth {depth} is not 6n+4; give 10, 16, 22, 28, 34, 40 or so on")
    checks.positive("width", width, "a factor on the channel counts")
    first, second, third = (max(1, round(width * count)) for count in (16, 32, 64))
    return WideResNet(
        blocks=blocks,
        widths=(first, second, third),
        num_classes=num_classes,
        norm=norm,
        initialization=initialization,
    )


@door
def wrn16_4(num_classes: int, *, norm: str = "batch", initialization: str = "he") -> WideResNet:
    """WRN-16-4, `wide_resnet(16, ..., width=4)`: 2,748,890 parameters for RGB and 10 classes.

    >>> wrn16_4(10).blocks
    2
    """
    return wide_resnet(16, num_classes, width=4, norm=norm, initialization=initialization)
