"""Residual networks for small images: ResNet-(6n+2), and the wide ResNet-(6n+4)."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from wsa_jax import checks
from wsa_jax.door import door
from wsa_jax.models.convolutions import convolution, symmetric
from wsa_jax.models.dense import dense_layers
from wsa_jax.models.fields import counts_of
from wsa_jax.models.norms import check_norm, normalize_channels

__all__ = ["ResNet", "cifar_resnet", "resnet20"]


class ResNet(nn.Module):
    """Three stages of residual blocks, each with half the side of the last and its own width.

    stem:  conv 3x3, norm, ReLU
    block: ReLU(shortcut(x) + norm(conv 3x3(ReLU(norm(conv 3x3(x))))))
    head:  mean over pixels -> one dense layer

    The first block of the second and third stage has stride 2. The shortcut is conv + norm, with
    the same stride, where side or width changes, and x itself elsewhere. Convolutions have no bias.

    `shortcut` is the kernel of that convolution, 1 or 3; or "pad" for He et al.'s option A, which
    has no parameters: every second pixel of x, with channels of zeros on both sides of its own.
    Strided convolutions then pad a pixel on each side, as PyTorch does, so that a kernel's centre
    is the pixel that the shortcut takes: published PyTorch weights give the same logits.
    `padding` is "SAME", as published here, or "symmetric": PyTorch's, whatever the shortcut.

    Shapes: [batch, height, width, channels] -> [batch, num_classes] logits.
    Parameters: `Conv_0/kernel` and `LayerNorm_0` (or `BatchNorm_0`) of the stem; `Block_0`,
    `Block_1` and so on through all stages, each with `Conv_0`, `Conv_1` and their norms, and the
    shortcut's `Conv_2` and norm where there is one; `Dense_0/kernel`, `Dense_0/bias`. Norms have
    `scale` and `bias`. Running moments are in the collection `batch_stats`, under the same names.

    Guarantees: blocks end in a ReLU (no pre-activation). The blocks of a stage share one residual
    stream; in the first stage, the stem shares it, too, if their widths are equal.

    Errors: `ValueError` for no blocks, an unknown norm, initialization or padding, a shortcut other
    than 1, 3 or "pad", or "pad" with a stage narrower than what it gets.

    >>> import jax, jax.numpy as jnp
    >>> model = ResNet(blocks=1, stem=4, widths=(4, 8, 16), num_classes=10)
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    >>> sorted(variables["params"]["Block_1"])
    ['Conv_0', 'Conv_1', 'Conv_2', 'LayerNorm_0', 'LayerNorm_1', 'LayerNorm_2']

    Source: He et al., CVPR 2016, section 4.2, with the convolutional shortcut and the LayerNorm of
    Ainsworth et al., Git Re-Basin, ICLR 2023.
    """

    blocks: int
    stem: int
    widths: tuple[int, int, int]
    num_classes: int
    norm: str = "layer"
    shortcut: int | str = 3
    # Not `init`: the name would hide the module's own method.
    initialization: str = "he"
    padding: str = "SAME"

    def __post_init__(self):
        checks.one_of("padding", self.padding, ("SAME", "symmetric"))
        whole = isinstance(self.blocks, int)
        if (whole and self.blocks < 1) or self.shortcut not in (1, 3, "pad"):
            raise ValueError(
                f"blocks {self.blocks} or shortcut {self.shortcut} is impossible; give at least "
                "one block per stage and a shortcut kernel of 1 or 3, or 'pad'"
            )
        checks.count("blocks", self.blocks)
        checks.count("stem", self.stem)
        checks.count("num_classes", self.num_classes)
        object.__setattr__(self, "widths", counts_of("widths", self.widths))
        streams = (self.stem, *self.widths)
        if self.shortcut == "pad" and list(streams) != sorted(streams):
            raise ValueError(
                f"shortcut 'pad' cannot narrow the stream, which has {streams} channels; give "
                "widths that grow, or a shortcut kernel of 1 or 3"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        check_norm(self.norm, ("batch", "layer"))
        x = convolution(x, self.stem, 3, 1, 0, self.initialization)
        x = nn.relu(normalize_channels(x, self.norm, 0, train=train))
        for index in range(3 * self.blocks):
            stage, position = divmod(index, self.blocks)
            x = _Block(
                channels=self.widths[stage],
                stride=2 if stage and not position else 1,
                norm=self.norm,
                shortcut=self.shortcut,
                initialization=self.initialization,
                padding=self.padding,
                name=f"Block_{index}",
            )(x, train)
        x = x.mean(axis=(1, 2))
        return dense_layers(x, (self.num_classes,), self.initialization)


class _Block(nn.Module):
    channels: int
    stride: int
    norm: str
    shortcut: int | str
    initialization: str
    padding: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch new_height new_width new_channels"]:
        # Symmetric, not the smallest: the centres are then the pixels that option A takes.
        pads = symmetric(3) if self.shortcut == "pad" or self.padding == "symmetric" else "SAME"
        y = convolution(x, self.channels, 3, self.stride, 0, self.initialization, pads)
        y = nn.relu(normalize_channels(y, self.norm, 0, train=train))
        y = convolution(y, self.channels, 3, 1, 1, self.initialization)
        y = normalize_channels(y, self.norm, 1, train=train)
        if self.shortcut == "pad":
            x = _padded(x, self.channels, self.stride)
        elif self.stride != 1 or x.shape[-1] != self.channels:
            size = int(self.shortcut)
            edges = symmetric(size) if self.padding == "symmetric" else "SAME"
            x = convolution(x, self.channels, size, self.stride, 2, self.initialization, edges)
            x = normalize_channels(x, self.norm, 2, train=train)
        return nn.relu(x + y)


@door
def cifar_resnet(
    depth: int,
    num_classes: int,
    *,
    width: float | int = 1.0,
    norm: str = "layer",
    shortcut: int | str | None = None,
    initialization: str = "he",
) -> ResNet:
    """ResNet of 6n+2 layers (8, 14, 20, 32, ...), or a wide one of 6n+4 (10, 16, 22, 28, ...).

    6n+2: stem 16w, stages 16w, 32w, 64w of n blocks; shortcuts 3x3 (Git Re-Basin, NP Merge)
    6n+4: stem 16,  stages 16w, 32w, 64w of n blocks; shortcuts 1x1 (WRN-(6n+4)-w, whose
          depth counts them); the first stage has one too, unless w = 1

    `cifar_resnet(20, 10, norm="batch", shortcut="pad")` is He et al.'s ResNet20 for CIFAR-10, of
    269,722 parameters; `cifar_resnet(22, 10, width=2)` is WSA's ResNet-22x2. Blocks end in a ReLU
    in both, whereas those of the wide networks' paper begin with norm and ReLU (`wide_resnet`).

    Args:
      depth: number of layers, as counted by the papers.
      num_classes: number of logits.
      width: factor w on the channel counts, each rounded to at least 1.
      norm: ``"layer"`` (over the channels of a pixel) or ``"batch"``.
      shortcut: its kernel, 1 or 3, or ``"pad"`` for the one without parameters (option A); None for
        the usual one of the depth.
      initialization: see `layer_initializers`.

    Raises:
      ValueError: a depth that is neither 6n+2 nor 6n+4 with n >= 1, or a width that is not
        positive.

    >>> cifar_resnet(22, 10, width=2).widths, cifar_resnet(20, 10, width=0.5).widths
    ((32, 64, 128), (8, 16, 32))

    Source: He et al., CVPR 2016, section 4.2; Zagoruyko and Komodakis, BMVC 2016, Table 1.
    """
    blocks, rest = divmod(depth - 2, 6)
    if blocks < 1 or rest not in (0, 2):
        raise ValueError(
            f"depth {depth} is neither 6n+2 (8, 14, 20, ...) nor 6n+4 (10, 16, 22, ...); "
            "give one of those"
        )
    if not width > 0:
        raise ValueError(f"width {width} is not positive; give a factor on the channel counts")
    check_norm(norm, ("batch", "layer"))
    first, second, third = (max(1, round(width * count)) for count in (16, 32, 64))
    return ResNet(
        blocks=blocks,
        stem=16 if rest else first,
        widths=(first, second, third),
        num_classes=num_classes,
        norm=norm,
        shortcut=(1 if rest else 3) if shortcut is None else shortcut,
        initialization=initialization,
    )


@door
def resnet20(
    num_classes: int, *, width: float | int = 1.0, norm: str = "layer", initialization: str = "he"
) -> ResNet:
    """ResNet20, `cifar_resnet(20, ...)`: nine blocks of 16w, 32w and 64w channels.

    Parameters: 292,954 for RGB images, 10 classes and width 1; 269,722 of them outside the two
    shortcuts.

    >>> resnet20(10, width=4).stem
    64
    """
    return cifar_resnet(20, num_classes, width=width, norm=norm, initialization=initialization)


def _padded(x: Array, channels: int, stride: int) -> Array:
    """Option A: every pixel that the stride leaves, with channels of zeros before and after."""
    before = (channels - x.shape[-1]) // 2
    after = channels - x.shape[-1] - before
    return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (before, after)))
