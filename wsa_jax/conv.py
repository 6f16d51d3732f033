"""A convolution and a max-pool that stay fast under `jit`, `lax.scan`, `lax.map` and `vmap`.

XLA compiles only canonical convolutions (NHWC inputs, HWIO kernels, NHWC outputs) to a fast routine
when they stand inside a loop on the CPU. JAX writes the two gradients of a convolution in other
layouts, so a training step in `lax.scan` runs tens of times slower than the same step alone
(https://github.com/jax-ml/jax/issues/12868). Here both gradients are canonical convolutions
themselves, and `vmap` over kernels runs one convolution after another instead of a grouped one
(https://github.com/jax-ml/jax/issues/26568).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Num

from wsa_jax.pooling import max_pool as max_pool

__all__ = ["conv_general_dilated", "max_pool"]

# jax 0.10's convolution on the CPU is two to three times slower than matrix products of rows.
_SLOW_LIBRARY = jax.__version_info__ < (0, 11)

# Within the range of second-level caches per core, 256 KiB to 1 MiB and more.
_CACHE_BYTES = 384 * 1024


class _Geometry(NamedTuple):
    """A canonical convolution's static part: shapes [batch, ..., in], [..., in / groups, out]."""

    x_shape: tuple[int, ...]
    w_shape: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    groups: int
    precision: Any


def conv_general_dilated(
    lhs: Num[Array, "..."],
    rhs: Num[Array, "..."],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> Num[Array, "..."]:
    """Drop-in for `jax.lax.conv_general_dilated` whose gradients stay fast inside loops and `vmap`.

    y[n, i, o] = sum_{k, c} x[n, stride·i + dilation·k - pad, c] · w[k, c, o]

    Shapes: as given by `dimension_numbers`; for ("NHWC", "HWIO", "NHWC") lhs is
    [batch, height, width, in], rhs [height, width, in / groups, out].

    Guarantees: values and gradients of any order in reverse mode equal lax's up to the rounding of
    another order of summation. Under `vmap` over the inputs alone the batches are joined; over
    kernels, convolutions run one after another, so peak memory is that of one.

    Edge cases: lax itself runs on every backend except the CPU, and where there is no faster form:
    batch groups, no or more than three spatial axes, integer or complex numbers, empty arrays,
    `out_sharding`, or a `preferred_element_type` other than the inputs' type. Forward mode
    (`jvp`, `jacfwd`, `hessian`) is not supported on the CPU: use `jax.lax.conv_general_dilated`;
    `jacrev(jacrev(f))` works with both.

    Errors: lax's own, for shapes that do not fit.

    >>> import jax, jax.numpy as jnp
    >>> from flax import linen as nn
    >>> layer = nn.Conv(8, (3, 3), conv_general_dilated=conv_general_dilated)
    >>> params = layer.init(jax.random.key(0), jnp.ones((1, 6, 6, 3)))
    >>> layer.apply(params, jnp.ones((2, 6, 6, 3))).shape
    (2, 6, 6, 8)

    Source: the gradient layouts are derived from the definition above; the reasons are in the two
    issues cited at the top of the module.
    """
    plain = partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
        out_sharding=out_sharding,
    )
    if jax.default_backend() != "cpu" or batch_group_count != 1 or out_sharding is not None:
        return plain(lhs, rhs)
    # Abstract evaluation raises lax's own errors before any layout has changed.
    out = jax.eval_shape(plain, lhs, rhs)
    spatial = len(out.shape) - 2
    if (
        not 1 <= spatial <= 3
        or not jnp.issubdtype(lhs.dtype, jnp.floating)
        or not lhs.dtype == rhs.dtype == out.dtype
        or 0 in (lhs.size, rhs.size, out.size)
    ):
        return plain(lhs, rhs)

    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    # The specs list where (batch, feature, spatial...) and (out, in, spatial...) stand.
    x = jnp.transpose(lhs, (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1]))
    w = jnp.transpose(rhs, (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0]))
    ones = (1,) * spatial
    strides, dilation = tuple(window_strides), tuple(rhs_dilation or ones)
    if isinstance(padding, str):
        reach = [(k - 1) * d + 1 for k, d in zip(w.shape[:-2], dilation, strict=True)]
        padding = lax.padtype_to_pads(x.shape[1:-1], reach, strides, padding)
    geometry = _Geometry(
        x_shape=x.shape,
        w_shape=w.shape,
        strides=strides,
        pads=tuple((int(low), int(high)) for low, high in padding),
        lhs_dilation=tuple(lhs_dilation or ones),
        rhs_dilation=dilation,
        groups=feature_group_count,
        precision=precision,
    )
    y = _bilinear(_output, geometry, x, w)
    order = (numbers.out_spec[0], *numbers.out_spec[2:], numbers.out_spec[1])
    return jnp.transpose(y, [order.index(axis) for axis in range(spatial + 2)])


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _bilinear(function: Callable[..., Array], geometry: _Geometry, a: Array, b: Array) -> Array:
    """One of `_output`, `_input` and `_kernel`, with the other two as its gradients.

    For a cotangent g of y = conv(x, w), the form <y, g> is linear in each of x, w and g; each of
    the three is its gradient in one of them. That closes reverse mode to any order.
    """
    run = custom_vmap(partial(function, geometry))

    @run.def_vmap
    def _(size: int, batched: list[bool], a: Array, b: Array) -> tuple[Array, bool]:
        again = partial(_bilinear, function)
        if function is _output and not batched[1]:
            joined = _joined(geometry, size)
            return _split(again(joined, _join(a), b), size, geometry), True
        if function is _input and not batched[0]:
            return _split(again(_joined(geometry, size), a, _join(b)), size, geometry), True
        # lax would run a grouped convolution, slow on every backend.
        if not batched[0]:
            return lax.map(lambda b: again(geometry, a, b), b), True
        if not batched[1]:
            return lax.map(lambda a: again(geometry, a, b), a), True
        return lax.map(lambda pair: again(geometry, *pair), (a, b)), True

    return run(a, b)


def _forward(
    function: Callable[..., Array], geometry: _Geometry, a: Array, b: Array
) -> tuple[Array, tuple[Array, Array]]:
    return _bilinear(function, geometry, a, b), (a, b)


def _backward(
    function: Callable[..., Array], geometry: _Geometry, residuals: tuple[Array, Array], ct: Array
) -> tuple[Array, Array]:
    a, b = residuals
    if function is _output:  # (x, w) -> y
        pairs = (_input, b, ct), (_kernel, a, ct)
    elif function is _input:  # (w, g) -> x
        pairs = (_kernel, ct, b), (_output, ct, a)
    else:  # (x, g) -> w
        pairs = (_input, ct, b), (_output, a, ct)
    (first, *left), (second, *right) = pairs
    return _bilinear(first, geometry, *left), _bilinear(second, geometry, *right)


_bilinear.defvjp(_forward, _backward)


def _joined(geometry: _Geometry, size: int) -> _Geometry:
    batch, *rest = geometry.x_shape
    return geometry._replace(x_shape=(size * batch, *rest))


def _join(a: Array) -> Array:
    return a.reshape(-1, *a.shape[2:])


def _split(a: Array, size: int, geometry: _Geometry) -> Array:
    return a.reshape(size, geometry.x_shape[0], *a.shape[1:])


def _output(geometry: _Geometry, x: Array, w: Array) -> Array:
    """(x, w) -> y."""
    if _depthwise(geometry):
        return _total([part * w[i : i + 1, j : j + 1] for i, j, part in _shifts(geometry, x)])
    if _rows_pay(geometry, x):
        kernels = jnp.swapaxes(w, 0, 1).reshape(w.shape[1], -1, w.shape[-1])
        dot = partial(jnp.matmul, precision=geometry.precision)
        return _total([dot(c, k) for c, k in zip(_columns(geometry, x), kernels, strict=True)])
    return _library(geometry, x, w)


def _input(geometry: _Geometry, w: Array, g: Array) -> Array:
    """(w, g) -> dL/dx: the output gradient, spread by the strides, with the flipped kernel."""
    *sizes, group_in, out = w.shape
    groups = geometry.groups
    flipped = jnp.flip(w, range(len(sizes))).reshape(*sizes, group_in, groups, out // groups)
    flipped = jnp.moveaxis(flipped, -1, -3)  # [..., out / groups, in / groups, groups]
    flipped = jnp.swapaxes(flipped, -1, -2).reshape(*sizes, out // groups, groups * group_in)
    reaches = [(k - 1) * d for k, d in zip(sizes, geometry.rhs_dilation, strict=True)]
    lows = [reach - low for reach, (low, _) in zip(reaches, geometry.pads, strict=True)]
    back = geometry._replace(strides=geometry.lhs_dilation, lhs_dilation=geometry.strides)
    back = _fitted(back, g, flipped, lows, geometry.x_shape[1:-1])
    if _plane(back) and back.strides == (1, 1) and geometry.x_shape[1] > 1.2 * g.shape[1]:
        return _row_sums(back, g, flipped, geometry.x_shape[1])
    return _output(back, g, flipped)


def _kernel(geometry: _Geometry, x: Array, g: Array) -> Array:
    """(x, g) -> dL/dw."""
    if _depthwise(geometry):
        parts = [jnp.sum(part * g, axis=(0, 1, 2)) for _, _, part in _shifts(geometry, x)]
        return jnp.stack(parts).reshape(geometry.w_shape)
    dot = partial(lax.dot_general, precision=geometry.precision)
    if _plane(geometry) and geometry.w_shape[:2] == (1, 1):
        # Three times faster than the library, and than the same product of flattened pixels.
        pixels = ((0, 1, 2), (0, 1, 2)), ((), ())
        return dot(_columns(geometry, x)[0], g, pixels).reshape(geometry.w_shape)
    if _rows_pay(geometry, x):
        height, width, channels, out = geometry.w_shape
        pixels = ((0,), (0,)), ((), ())
        flat = [a.reshape(-1, a.shape[-1]) for a in (g, *_columns(geometry, x))]
        parts = jnp.stack([dot(c, flat[0], pixels) for c in flat[1:]], axis=1)
        return parts.reshape(height, channels, width, out).swapaxes(1, 2)
    parts = _parts(geometry, g)
    if parts == 1:
        return _library_kernel(geometry, x, g)
    part = geometry._replace(x_shape=(len(x) // parts, *x.shape[1:]))
    pairs = [a.reshape(parts, -1, *a.shape[1:]) for a in (x, g)]
    return jnp.sum(lax.map(lambda pair: _library_kernel(part, *pair), pairs), axis=0)


def _library_kernel(geometry: _Geometry, x: Array, g: Array) -> Array:
    """(x, g) -> dL/dw: the input, its channels as the batch, with the output gradient as kernel."""
    batch, groups, spatial = x.shape[0], geometry.groups, x.ndim - 2
    # [batch, ..., in] -> [in / groups, ..., groups * batch], [batch, ..., out] -> [..., batch, out]
    lhs = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
    lhs = lhs.transpose(spatial + 2, *range(1, spatial + 1), spatial + 1, 0)
    lhs = lhs.reshape(*lhs.shape[:-2], groups * batch)
    rhs = jnp.moveaxis(g, 0, -2)
    back = geometry._replace(strides=geometry.rhs_dilation, rhs_dilation=geometry.strides)
    lows = [low for low, _ in geometry.pads]
    back = _fitted(back, lhs, rhs, lows, geometry.w_shape[:-2])
    return jnp.moveaxis(_library(back, lhs, rhs), 0, -2)


def _fitted(
    geometry: _Geometry, lhs: Array, rhs: Array, lows: Sequence[int], wanted: Sequence[int]
) -> _Geometry:
    """The geometry of these operands whose upper padding gives outputs of the wanted sizes."""
    pads = []
    for axis, low in enumerate(lows):
        spread = (lhs.shape[1 + axis] - 1) * geometry.lhs_dilation[axis] + 1
        reach = (rhs.shape[axis] - 1) * geometry.rhs_dilation[axis] + 1
        pads.append((low, (wanted[axis] - 1) * geometry.strides[axis] + reach - spread - low))
    return geometry._replace(x_shape=lhs.shape, w_shape=rhs.shape, pads=tuple(pads))


def _library(geometry: _Geometry, x: Array, w: Array) -> Array:
    letters = "DHW"[5 - x.ndim :]
    return lax.conv_general_dilated(
        x,
        w,
        geometry.strides,
        geometry.pads,
        geometry.lhs_dilation,
        geometry.rhs_dilation,
        (f"N{letters}C", f"{letters}IO", f"N{letters}C"),
        feature_group_count=geometry.groups,
        precision=geometry.precision,
    )


def _plane(geometry: _Geometry) -> bool:
    return len(geometry.strides) == 2 and geometry.groups == 1 and geometry.lhs_dilation == (1, 1)


def _depthwise(geometry: _Geometry) -> bool:
    """One kernel per channel: 14 ms in the library, 1 as shifted products (128 channels, 3x3)."""
    planes = len(geometry.strides) == 2 and geometry.groups == geometry.x_shape[-1] > 1
    return (
        planes and geometry.w_shape[-1] == geometry.groups and math.prod(geometry.w_shape[:2]) < 50
    )


def _rows_pay(geometry: _Geometry, x: Array) -> bool:
    # Gathered rows that outgrow the cache, or short kernels, lose to the library.
    gathered = x.size * geometry.w_shape[0] * x.dtype.itemsize
    return _SLOW_LIBRARY and _plane(geometry) and geometry.w_shape[0] >= 5 and gathered < 2**23


def _parts(geometry: _Geometry, g: Array) -> int:
    """Number of parts of the batch in which the library computes a kernel gradient.

    The library is fastest where a part of the output gradient, its kernel, stays in the
    second-level cache: twice as fast for the federated CNN, five times for 64 channels of 32x32
    (batch 50). A kernel larger than the whole output gradient would cost more to add up than that
    saves.
    """
    if math.prod(geometry.w_shape) > g.size:
        return 1
    counts = [count for count in range(1, len(g) + 1) if len(g) % count == 0]
    size = g.size * g.dtype.itemsize / _CACHE_BYTES
    return min(counts, key=lambda count: abs(math.log(count / size)))


def _total(terms: list[Array]) -> Array:
    return reduce(jnp.add, terms)


def _padded(geometry: _Geometry, x: Array) -> Array:
    sides = zip(geometry.pads, geometry.lhs_dilation, strict=True)
    spatial = [(low, high, spread - 1) for (low, high), spread in sides]
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *spatial, (0, 0, 0)])


def _shifted(geometry: _Geometry, x: Array, axis: int) -> list[Array]:
    """For each kernel position along one spatial axis, the inputs that meet it."""
    stride, dilation = geometry.strides[axis], geometry.rhs_dilation[axis]
    size = geometry.w_shape[axis]
    end = x.shape[1 + axis] - (size - 1) * dilation
    starts = range(0, size * dilation, dilation)
    return [lax.slice_in_dim(x, i, i + end, stride, 1 + axis) for i in starts]


def _shifts(geometry: _Geometry, x: Array) -> list[tuple[int, int, Array]]:
    rows = _shifted(geometry, _padded(geometry, x), 0)
    return [
        (i, j, c) for i, row in enumerate(rows) for j, c in enumerate(_shifted(geometry, row, 1))
    ]


def _columns(geometry: _Geometry, x: Array) -> list[Array]:
    """For each kernel column, [batch, out height, out width, kernel rows * in] inputs."""
    rows = _shifted(geometry, _padded(geometry, x), 0)
    return _shifted(geometry, jnp.concatenate(rows, axis=-1), 1)


def _row_sums(geometry: _Geometry, x: Array, w: Array, wanted: int) -> Array:
    """Convolve along the width to (kernel rows * out) channels, then add each row in its place.

    A convolution whose output outgrows its input would multiply mostly padding.
    """
    rows, width, channels, out = w.shape
    wide = jnp.moveaxis(w, 0, 2).reshape(1, width, channels, rows * out)
    flat = geometry._replace(w_shape=wide.shape, pads=((0, 0), geometry.pads[1]))
    parts, terms = _library(flat, x, wide), []
    for i, part in enumerate(jnp.split(parts, rows, axis=-1)):
        low = geometry.pads[0][0] - i * geometry.rhs_dilation[0]
        sides = [(0, 0, 0), (low, wanted - x.shape[1] - low, 0), (0, 0, 0), (0, 0, 0)]
        terms.append(lax.pad(part, jnp.zeros((), x.dtype), sides))
    return _total(terms)
