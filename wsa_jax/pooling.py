"""A max-pool whose gradient stays fast on the CPU; users import it from `wsa_jax.conv`."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


def max_pool(
    x: Float[Array, "*batch height width channels"],
    window: tuple[int, int] = (2, 2),
    strides: tuple[int, int] | None = None,
) -> Float[Array, "*batch pooled_height pooled_width channels"]:
    """Maximum over spatial windows, without padding, with a fast gradient where windows tile.

    y[.., i, j, c] = max_{a < window[0], b < window[1]} x[.., strides[0]·i + a, strides[1]·j + b, c]

    Shapes: [..., height, width, channels] -> [..., ⌊(height - window[0]) / strides[0]⌋ + 1,
    ⌊(width - window[1]) / strides[1]⌋ + 1, channels]. `strides` defaults to `window`, so that
    windows tile; other strides use XLA's window reduction, whose gradient is slow.

    Guarantees: values equal `jax.lax.reduce_window`'s. The gradient goes to the first maximum of
    each window in row order, as in PyTorch, and is therefore a subgradient also where values tie.
    Forward mode and `vmap` work.

    Edge cases: rows and columns that do not fill a window are ignored and get gradient 0. A
    window with NaN gives NaN and passes no gradient. Max-pool and ReLU commute, so
    `relu(max_pool(x))` is `max_pool(relu(x))` with less work.

    Errors: a window or stride below 1, or a window larger than the image, is a `ValueError`.

    >>> import jax.numpy as jnp
    >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    >>> max_pool(x)[0, :, :, 0]
    Array([[ 5.,  7.],
           [13., 15.]], dtype=float32)

    Source: the definition above.
    """
    window = tuple(window)
    strides = window if strides is None else tuple(strides)
    if min(*window, *strides) < 1:
        raise ValueError(f"window and strides must be at least 1, got {window} and {strides}")
    if x.ndim < 3 or x.shape[-3] < window[0] or x.shape[-2] < window[1]:
        raise ValueError(
            f"window {window} must fit [..., height, width, channels], got shape {x.shape}"
        )
    if strides == window:
        return _tiled_max(window, x)
    lead = (1,) * (x.ndim - 3)
    return lax.reduce_window(
        x, -jnp.inf, lax.max, (*lead, *window, 1), (*lead, *strides, 1), "VALID"
    )


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _tiled_max(window: tuple[int, int], x: Array) -> Array:
    return jnp.max(_windows(window, x), axis=(-4, -2))


@_tiled_max.defjvp
def _(
    window: tuple[int, int], primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    y, size = _tiled_max(window, primals[0]), math.prod(window)
    dtype = jnp.uint8 if size < 256 else jnp.int32
    index = np.arange(size, dtype=dtype).reshape(window[0], 1, window[1], 1)
    index = np.expand_dims(index, tuple(range(y.ndim - 2)))
    highest = _windows(window, primals[0]) == jnp.expand_dims(y, (-4, -2))
    place = jnp.min(jnp.where(highest, index, np.array(size, dtype)), axis=(-4, -2))
    # The barriers keep XLA from finding the places again for each use of the gradient, a tenth of
    # a training step; the backward pass then needs one byte for each output value.
    y, place = lax.optimization_barrier((y, place))
    windows = _windows(window, lax.optimization_barrier(tangents[0]))
    chosen = jnp.expand_dims(place, (-4, -2)) == index
    return y, jnp.sum(jnp.where(chosen, windows, jnp.zeros_like(windows)), axis=(-4, -2))


def _windows(window: tuple[int, int], x: Array) -> Array:
    """[..., height, width, channels] -> [..., rows, window[0], columns, window[1], channels]."""
    *batch, height, width, channels = x.shape
    rows, columns = height // window[0], width // window[1]
    x = x[..., : rows * window[0], : columns * window[1], :]
    return x.reshape(*batch, rows, window[0], columns, window[1], channels)
