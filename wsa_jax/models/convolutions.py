"""A convolution without bias inside a compact module, as the residual networks have it."""

from collections.abc import Sequence

from flax import linen as nn
from jaxtyping import Array, Float

from wsa_jax.conv import conv_general_dilated
from wsa_jax.models.initializers import layer_initializers


def convolution(
    x: Float[Array, "batch height width channels"],
    channels: int,
    size: int,
    stride: int,
    index: int,
    initialization: str,
    padding: str | Sequence[tuple[int, int]] = "SAME",
    groups: int = 1,
) -> Float[Array, "batch new_height new_width new_channels"]:
    """Convolve with the submodule `Conv_i`, whose kernel is initialised by name.

    A kernel of several groups has the fan-out that PyTorch counts, that of all groups together.
    """
    kernel_init, _ = layer_initializers(
        initialization, size * size * x.shape[-1] // groups, size * size * channels
    )
    return nn.Conv(
        channels,
        (size, size),
        strides=(stride, stride),
        padding=padding,
        feature_group_count=groups,
        use_bias=False,
        kernel_init=kernel_init,
        conv_general_dilated=conv_general_dilated,
        name=f"Conv_{index}",
    )(x)


def symmetric(size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """PyTorch's padding, the same on each side; SAME pads less before than after a stride of 2.

    >>> symmetric(3)
    ((1, 1), (1, 1))
    """
    return ((size // 2, size // 2), (size // 2, size // 2))
