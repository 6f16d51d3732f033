"""What happens to a batch of images inside the jitted training step."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Real

from wsa_jax.data.registry import DatasetInfo
from wsa_jax.door import door

__all__ = ["AugmentMode", "augment", "normalize"]

AugmentMode = Literal["none", "batch", "example"]
"""No augmentation, one draw for the whole batch, or one for each example."""


@door
def normalize(
    images: Real[Array | np.ndarray, "*batch h w c"], info: DatasetInfo
) -> Float[Array, "*batch h w c"]:
    """Convert stored pixels to network input, `(pixel / scale - mean) / std` per channel.

    Args:
      images: stored pixels `[..., h, w, c]`, 0 to the info's scale, usually uint8.
      info: supplies `mean`, `std` `[c]` and `scale`.

    Returns:
      float32 `[..., h, w, c]`, equal to the formula up to rounding: it is computed as one
      multiplication and one addition.

    Raises:
      ValueError: the images have a different number of channels than the info.

    >>> from wsa_jax.data import load_dataset
    >>> train = load_dataset("digits")
    >>> inputs = normalize(train.images, train.info)
    >>> print(inputs.dtype, bool(abs(inputs.mean()) < 1e-3), bool(abs(inputs.std() - 1) < 1e-3))
    float32 True True
    """
    if images.shape[-1] != len(info.mean):
        raise ValueError(
            f"images of shape {images.shape} have {images.shape[-1]} channels in the last axis, "
            f"but {info.name!r} has {len(info.mean)}"
        )
    std = np.asarray(info.std)
    factor = np.asarray(1.0 / (info.scale * std), np.float32)
    shift = np.asarray(-np.asarray(info.mean) / std, np.float32)
    shape = (1,) * (images.ndim - 1) + (-1,)
    return jnp.asarray(images, jnp.float32) * factor.reshape(shape) + shift.reshape(shape)


@door
def augment(
    key: Key[Array, ""],
    images: Float[Array, "n h w c"],
    *,
    mode: AugmentMode = "none",
    padding: int = 4,
    flip: bool = True,
) -> Float[Array, "n h w c"]:
    """Random crop of the zero-padded image, then a left-right flip with probability 1/2.

    Apply it after `normalize`: the border is then zero in normalised space, that is, the mean
    colour, as in the reference federated code.

    Args:
      key: one JAX key; equal keys give equal crops and flips.
      images: `[n, h, w, c]`, normalised.
      mode: "none" returns the images; "batch" draws one crop and one coin for the whole batch,
        as the reference federated code does; "example" draws them for each image.
      padding: pixels of zeros on each side; offsets are uniform on 0 .. 2 · padding per axis.
      flip: whether to flip at all.

    Returns:
      Images of the same shape and dtype; every pixel is a pixel of its image or 0.

    Raises:
      ValueError: unknown mode, or padding < 0.

    >>> images = jnp.ones((2, 32, 32, 3))
    >>> jax.jit(augment, static_argnames="mode")(jax.random.key(0), images, mode="example").shape
    (2, 32, 32, 3)
    """
    if mode not in ("none", "batch", "example"):
        raise ValueError(f"mode={mode!r} must be one of 'none', 'batch', 'example'")
    if padding < 0:
        raise ValueError(f"padding={padding} must be >= 0")
    if mode == "none":
        return images
    count, height, width, _ = images.shape
    offsets, flips = draw_crops(key, count if mode == "example" else 1, padding=padding, flip=flip)
    # One gather by computed coordinates, without padding or slicing at data-dependent places:
    # under vmap over clients a dynamic slice becomes a gather several times slower than this.
    rows = jnp.arange(height)[None, :] + offsets[:, :1] - padding
    columns = jnp.arange(width)[None, :]
    columns = jnp.where(flips[:, None], width - 1 - columns, columns) + offsets[:, 1:] - padding
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[
        :, None, :
    ]
    gathered = images[
        jnp.arange(count)[:, None, None],
        jnp.clip(rows, 0, height - 1)[:, :, None],
        jnp.clip(columns, 0, width - 1)[:, None, :],
    ]
    return jnp.where(inside[..., None], gathered, jnp.zeros((), images.dtype))


def draw_crops(
    key: Key[Array, ""], count: int, *, padding: int, flip: bool
) -> tuple[Int[Array, "count 2"], Bool[Array, " count"]]:
    """The random numbers of `augment`: crop offsets (row, column) and flip coins.

    >>> offsets, flips = draw_crops(jax.random.key(0), 5, padding=4, flip=False)
    >>> offsets.shape, bool(offsets.min() >= 0), bool(offsets.max() <= 8), bool(flips.any())
    ((5, 2), True, True, False)
    """
    crop_key, flip_key = jax.random.split(key)
    offsets = jax.random.randint(crop_key, (count, 2), 0, 2 * padding + 1)
    coins = jax.random.bernoulli(flip_key, 0.5, (count,))
    return offsets, coins if flip else jnp.zeros_like(coins)
