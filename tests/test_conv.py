"""The fast convolution and max-pool against lax: values, gradients, transformations, errors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax import lax

from wsa_jax import conv as conv_module
from wsa_jax.conv import conv_general_dilated, max_pool

CHANNELS_LAST = ("NHWC", "HWIO", "NHWC")


def normal(seed, *shape):
    # Drawn by NumPy: to compile the draw of each shape would take longer than many a test here.
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def value_and_gradients(conv, x, w, **settings):
    y, backward = jax.vjp(lambda x, w: conv(x, w, **settings), x, w)
    # A cotangent that differs from place to place.
    return y, *backward(jnp.cos(y))


def assert_equal_to_lax(x, w, **settings):
    @jax.jit
    def both(x, w):
        convs = conv_general_dilated, lax.conv_general_dilated
        return [value_and_gradients(conv, x, w, **settings) for conv in convs]

    for a, b in zip(*both(x, w), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


# (input shape, kernel shape, strides, padding, input dilation, kernel dilation, groups)
PLANES = [
    ((2, 12, 11, 4), (3, 3, 4, 5), (1, 1), "SAME", (1, 1), (1, 1), 1),
    ((2, 12, 11, 4), (5, 2, 4, 5), (1, 1), "VALID", (1, 1), (1, 1), 1),
    ((2, 12, 11, 4), (5, 3, 4, 5), (1, 1), ((2, 1), (0, 3)), (1, 1), (1, 2), 1),
    ((2, 12, 11, 4), (5, 3, 4, 5), (2, 1), "VALID", (1, 1), (2, 1), 1),
    ((2, 12, 11, 4), (5, 2, 4, 5), (3, 2), "SAME_LOWER", (1, 1), (1, 1), 1),
    ((2, 12, 11, 4), (5, 2, 4, 5), (2, 3), ((-1, 2), (5, 0)), (1, 1), (1, 1), 1),
    ((2, 6, 7, 4), (3, 2, 4, 5), (2, 1), ((2, 1), (0, 3)), (2, 3), (1, 2), 1),
    ((2, 12, 11, 4), (1, 1, 4, 5), (1, 1), "SAME", (1, 1), (1, 1), 1),
    ((2, 12, 11, 4), (1, 1, 4, 5), (2, 2), "SAME", (1, 1), (1, 1), 1),
    ((2, 12, 11, 4), (3, 2, 2, 6), (1, 2), "SAME", (1, 1), (2, 1), 2),
    ((2, 6, 7, 4), (3, 2, 2, 6), (1, 2), ((2, 1), (0, 3)), (2, 1), (1, 1), 2),
    ((2, 12, 11, 4), (3, 3, 1, 4), (1, 1), "SAME", (1, 1), (1, 1), 4),
    ((2, 12, 11, 4), (3, 2, 1, 4), (2, 3), ((-1, 2), (5, 0)), (1, 1), (2, 1), 4),
    ((2, 6, 7, 4), (3, 2, 1, 4), (1, 1), ((2, 1), (0, 3)), (2, 3), (1, 1), 4),
    ((2, 12, 11, 4), (3, 3, 1, 8), (1, 1), "SAME", (1, 1), (1, 1), 4),
]


def plane_settings(strides, padding, lhs_dilation, rhs_dilation, groups):
    return {
        "window_strides": strides,
        "padding": padding,
        "lhs_dilation": lhs_dilation,
        "rhs_dilation": rhs_dilation,
        "dimension_numbers": CHANNELS_LAST,
        "feature_group_count": groups,
    }


@pytest.mark.parametrize("case", PLANES, ids=str)
def test_equals_lax_in_values_and_gradients(case):
    x_shape, w_shape, *settings = case
    assert_equal_to_lax(normal(0, *x_shape), normal(1, *w_shape), **plane_settings(*settings))


@pytest.mark.parametrize("case", [c for c in PLANES if c[1][0] == 5], ids=str)
def test_row_products_equal_lax(case, monkeypatch):
    # The form that older jax versions get, whichever version runs the tests.
    monkeypatch.setattr(conv_module, "_SLOW_LIBRARY", True)
    x_shape, w_shape, *settings = case
    assert_equal_to_lax(normal(0, *x_shape), normal(1, *w_shape), **plane_settings(*settings))


@pytest.mark.parametrize("case", [PLANES[i] for i in (0, 3, 6, 9)], ids=str)
def test_kernel_gradients_in_parts_of_the_batch_equal_lax(case, monkeypatch):
    # As if the cache held nothing, so that each image is a part, in whichever version of jax.
    monkeypatch.setattr(conv_module, "_CACHE_BYTES", 1)
    monkeypatch.setattr(conv_module, "_SLOW_LIBRARY", False)
    x_shape, w_shape, *settings = case
    x, settings = normal(0, 6, *x_shape[1:]), plane_settings(*settings)
    gradient = jax.grad(lambda w: conv_general_dilated(x, w, **settings).sum())
    assert "length=6" in str(jax.make_jaxpr(gradient)(normal(1, *w_shape)))
    assert_equal_to_lax(x, normal(1, *w_shape), **settings)


@pytest.mark.parametrize(
    ("batch", "size", "channels", "parts"),
    [
        (50, 28, 32, 10),  # parts of 5 images of 100 KB
        (53, 28, 32, 53),  # nothing else divides 53
        (50, 4, 8, 1),  # fits the cache
        (50, 2, 512, 1),  # smaller than its kernel
    ],
)
def test_parts_of_the_batch(batch, size, channels, parts, monkeypatch):
    monkeypatch.setattr(conv_module, "_SLOW_LIBRARY", False)
    x, w = normal(0, batch, size + 2, size + 2, channels), normal(1, 3, 3, channels, channels)
    valid = {"window_strides": (1, 1), "padding": "VALID", "dimension_numbers": CHANNELS_LAST}
    gradient = jax.grad(lambda w: conv_general_dilated(x, w, **valid).sum())
    scans = str(jax.make_jaxpr(gradient)(w)).count(f"length={parts}\n")
    assert scans == (parts > 1)


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "numbers"),
    [
        ((2, 4, 12, 11), (6, 4, 3, 2), None),
        ((2, 4, 12, 11), (6, 4, 3, 2), ("NCHW", "OIHW", "NHWC")),
        ((12, 11, 2, 4), (4, 6, 3, 2), ("HWNC", "IOHW", "CHWN")),
        ((2, 9, 4), (3, 4, 6), ("NHC", "HIO", "NHC")),
        ((2, 5, 6, 7, 2), (2, 3, 2, 2, 3), ("NDHWC", "DHWIO", "NDHWC")),
    ],
    ids=str,
)
def test_layouts_and_ranks(x_shape, w_shape, numbers):
    x, w = normal(0, *x_shape), normal(1, *w_shape)
    strides = (2, *(1 for _ in x_shape[3:]))
    settings = {"window_strides": strides, "padding": "SAME", "dimension_numbers": numbers}
    assert_equal_to_lax(x, w, **settings)


def test_dimension_numbers_object_and_precision():
    x, w = normal(0, 2, 6, 6, 3), normal(1, 3, 3, 3, 4)
    numbers = lax.conv_dimension_numbers(x.shape, w.shape, CHANNELS_LAST)
    high = (lax.Precision.HIGHEST, lax.Precision.DEFAULT)
    settings = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": numbers}
    assert_equal_to_lax(x, w, precision=high, **settings)


@pytest.mark.parametrize(
    ("dtype", "settings"),
    [
        (jnp.float32, {"batch_group_count": 2}),
        (jnp.bfloat16, {"preferred_element_type": jnp.float32}),
        (jnp.int32, {}),
    ],
    ids=str,
)
def test_what_has_no_better_form_is_lax(dtype, settings):
    x, w = normal(0, 4, 6, 6, 3).astype(dtype), normal(1, 3, 3, 3, 4).astype(dtype)
    settings |= {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": CHANNELS_LAST}
    ours, lax_s = conv_general_dilated(x, w, **settings), lax.conv_general_dilated(x, w, **settings)
    assert ours.dtype == lax_s.dtype
    np.testing.assert_array_equal(ours, lax_s)


def test_half_precision_keeps_its_type():
    x = normal(0, 2, 8, 8, 3).astype(jnp.bfloat16)
    w = normal(1, 3, 3, 3, 4).astype(jnp.bfloat16)
    compiled = jax.jit(partial(value_and_gradients, square_conv))
    y, dx, dw = compiled(x, w)
    assert {y.dtype, dx.dtype, dw.dtype} == {jnp.dtype(jnp.bfloat16)}
    full = compiled(x.astype(jnp.float32), w.astype(jnp.float32))
    np.testing.assert_allclose(y.astype(jnp.float32), full[0], rtol=0.02, atol=0.05)


def square_conv(x, w, conv=conv_general_dilated):
    return conv(x, w, (1, 1), "SAME", dimension_numbers=CHANNELS_LAST)


def test_empty_batch():
    compiled = jax.jit(partial(value_and_gradients, square_conv))
    y, dx, dw = compiled(np.ones((0, 6, 6, 3), np.float32), np.ones((3, 3, 3, 4), np.float32))
    assert (y.shape, dx.shape) == ((0, 6, 6, 4), (0, 6, 6, 3))
    assert not dw.any()


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)], ids=str)
def test_vmap_over_nothing(axes):
    x, w = (np.ones((1, *shape), np.float32) for shape in ((2, 6, 6, 3), (3, 3, 3, 4)))
    x, w = (a[0] if axis is None else a[:0] for a, axis in zip((x, w), axes, strict=True))
    many = jax.vmap(square_conv, axes)
    y, dx, dw = jax.jit(partial(value_and_gradients, many))(x, w)
    assert (y.shape, dx.shape, dw.shape) == ((0, 2, 6, 6, 4), x.shape, w.shape)
    assert not np.any(dx)
    assert not np.any(dw)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0), (1, 3)], ids=str)
def test_vmap_equals_lax_before_and_after_differentiation(axes):
    x, w = normal(0, 3, 3, 8, 8, 2), normal(1, 3, 3, 2, 3, 4)
    x = x if axes[0] is not None else x[0]
    w = jnp.moveaxis(w, 3, axes[1]) if axes[1] is not None else w[..., 0, :]

    def inside(conv, x, w):
        def loss(x, w):
            return jnp.sin(square_conv(x, w, conv)).sum()

        return jax.vmap(jax.value_and_grad(loss, argnums=(0, 1)), axes)(x, w)

    def outside(conv, x, w):
        def loss(x, w):
            return jnp.sin(jax.vmap(partial(square_conv, conv=conv), axes)(x, w)).sum()

        return jax.value_and_grad(loss, argnums=(0, 1))(x, w)

    @jax.jit
    def both(x, w):
        convs = conv_general_dilated, lax.conv_general_dilated
        return [[transform(conv, x, w) for transform in (inside, outside)] for conv in convs]

    ours, lax_s = both(x, w)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-4), ours, lax_s)


def test_vmap_in_vmap():
    x, w = normal(0, 2, 3, 1, 6, 6, 2), normal(1, 3, 3, 3, 2, 4)

    def run(conv):
        inner = jax.vmap(jax.grad(lambda w, x: jnp.sin(square_conv(x, w, conv)).sum()))
        return jax.jit(jax.vmap(inner, (None, 0)))(w, x)

    ours, lax_s = run(conv_general_dilated), run(lax.conv_general_dilated)
    np.testing.assert_allclose(ours, lax_s, rtol=2e-4, atol=2e-4)


def test_vmap_over_kernels_makes_no_grouped_convolution():
    x, w = normal(0, 3, 2, 8, 8, 2), normal(1, 3, 3, 3, 2, 4)
    if jax.default_backend() != "cpu":
        pytest.skip("other backends get lax itself")
    loss = jax.grad(lambda w, x: jnp.sin(square_conv(x, w)).sum())
    text = jax.jit(jax.vmap(loss)).lower(w, x).as_text()
    assert "convolution" in text
    assert "feature_group_count = 3" not in text
    assert "batch_group_count = 3" not in text


def test_scan_and_map_equal_the_plain_loop():
    x, w = normal(0, 2, 3, 4, 8, 8, 2), normal(1, 3, 3, 2, 2)

    def train(w, batches):
        def step(w, x):
            loss, gradient = jax.value_and_grad(lambda w: jnp.square(square_conv(x, w)).mean())(w)
            return w - 0.1 * gradient, loss

        return lax.scan(step, w, batches)

    mapped, losses = jax.jit(lambda w, x: lax.map(partial(train, w), x))(w, x)

    @jax.jit
    def step(w, x):
        loss = partial(square_conv, conv=lax.conv_general_dilated)
        return w - 0.1 * jax.grad(lambda w: jnp.square(loss(x, w)).mean())(w)

    for client in range(2):
        expected = w
        for batch in np.asarray(x[client]):
            expected = step(expected, batch)
        np.testing.assert_allclose(mapped[client], expected, rtol=1e-4, atol=1e-5)
    assert losses.shape == (2, 3)


def test_gradients_inside_a_loop_are_canonical():
    """XLA's CPU compiler has a fast routine in loops for NHWC, HWIO and NHWC only."""
    if jax.default_backend() != "cpu":
        pytest.skip("other backends get lax itself")
    loss = jax.grad(lambda x, w: jnp.sin(square_conv(x, w)).sum(), argnums=(0, 1))
    text = jax.jit(loss).lower(jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))).as_text()
    lines = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert len(lines) == 3
    assert all("[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" in line for line in lines)


def test_second_derivatives_in_reverse_mode():
    x, w = normal(0, 2, 7, 7, 2), normal(1, 3, 3, 2, 2)

    def curvature(conv, x, w):
        loss = lambda x, w: jnp.sin(square_conv(x, w, conv)).sum()  # noqa: E731
        norm = lambda x, w: sum(jnp.square(g).sum() for g in jax.grad(loss, (0, 1))(x, w))  # noqa: E731
        return jax.jit(jax.grad(norm, (0, 1)))(x, w)

    ours, lax_s = curvature(conv_general_dilated, x, w), curvature(lax.conv_general_dilated, x, w)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3), ours, lax_s)


def test_in_linen_and_nnx_layers():
    x = normal(0, 3, 9, 9, 2)
    settings = {"kernel_size": (3, 3), "strides": 2, "padding": "VALID"}
    fast, plain = (
        nn.Conv(4, conv_general_dilated=conv, **settings) for conv in (conv_general_dilated, None)
    )
    params = jax.jit(plain.init)(jax.random.key(1), x)

    @jax.jit
    def both(params):
        return [
            jax.grad(lambda p, m=m: jnp.sin(m.apply(p, x)).sum())(params) for m in (fast, plain)
        ]

    gradients = both(params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), *gradients)
    fast, plain = (
        nnx.Conv(2, 4, rngs=nnx.Rngs(0), conv_general_dilated=conv, **settings)
        for conv in (conv_general_dilated, lax.conv_general_dilated)
    )
    gradients = [nnx.grad(lambda m: jnp.sin(m(x)).sum())(model) for model in (fast, plain)]
    leaves = [jax.tree.leaves(nnx.to_pure_dict(g)) for g in gradients]
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_shape_errors_are_lax_s_own():
    x, w = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 5, 4))
    with pytest.raises(Exception) as ours:
        square_conv(x, w)
    with pytest.raises(type(ours.value)) as lax_s:
        square_conv(x, w, lax.conv_general_dilated)
    assert str(ours.value) == str(lax_s.value)


@pytest.mark.parametrize(
    ("shape", "window", "strides"),
    [
        ((2, 8, 8, 3), (2, 2), None),
        ((2, 9, 7, 3), (2, 2), None),
        ((2, 9, 7, 3), (3, 2), (3, 2)),
        ((2, 9, 7, 3), (3, 3), (2, 2)),
        ((9, 7, 3), (2, 3), (1, 2)),
        ((2, 2, 6, 6, 3), (2, 2), None),
        ((2, 4, 4, 1), (1, 1), None),
    ],
    ids=str,
)
def test_max_pool_equals_reduce_window(shape, window, strides):
    # Rounded to halves: most windows have a single maximum, many have ties.
    x = np.round(2 * np.asarray(normal(0, *shape))) / 2
    lead = (1,) * (len(shape) - 3)

    def expected(x):
        steps = (*lead, *(strides or window), 1)
        return lax.reduce_window(x, -jnp.inf, lax.max, (*lead, *window, 1), steps, "VALID")

    @jax.jit
    def both(x):
        results = []
        for pool in (lambda x: max_pool(x, window, strides), expected):
            y, backward = jax.vjp(pool, x)
            results.append((y, *backward(jnp.cos(jnp.arange(y.size)).reshape(y.shape))))
        return results

    for a, b in zip(*both(x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_max_pool_gradient_goes_to_the_first_of_equal_values():
    x = np.array([[1.0, 2.0], [2.0, 2.0]], np.float32).reshape(1, 2, 2, 1)
    gradient = jax.jit(jax.grad(lambda x: max_pool(x).sum()))(x)
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[0.0, 1.0], [0.0, 0.0]])


def test_max_pool_nan_and_infinities():
    x = np.array([[np.nan, 1.0, -np.inf, -np.inf], [0.0, 2.0, -np.inf, -np.inf]], np.float32)
    y = np.asarray(jax.jit(max_pool)(x.reshape(1, 2, 4, 1)))[0, 0, :, 0]
    assert np.isnan(y[0])
    assert y[1] == -jnp.inf


def test_max_pool_forward_mode_vmap_and_second_derivatives():
    x = normal(0, 3, 2, 4, 4, 2)

    @jax.jit
    def all_of_it(x):
        def squared(x):
            return (max_pool(x) ** 2).sum()

        second = jax.grad(lambda x: jnp.square(jax.grad(squared)(x)).sum())(x)
        expected = jax.grad(lambda x: 4 * squared(x))(x)
        _, tangent = jax.jvp(max_pool, (x,), (2 * x,))
        return max_pool(x), jax.vmap(max_pool)(x), tangent, second, expected

    y, mapped, tangent, second, expected = all_of_it(x)
    np.testing.assert_allclose(tangent, 2 * y)
    np.testing.assert_array_equal(mapped, y)
    np.testing.assert_allclose(second, expected, rtol=1e-6)


def test_relu_and_max_pool_commute():
    x = normal(0, 2, 8, 8, 3)
    g = normal(1, 2, 4, 4, 3)

    @jax.jit
    def both(x, g):
        results = []
        for fun in (lambda x: nn.relu(max_pool(x)), lambda x: max_pool(nn.relu(x))):
            y, pull = jax.vjp(fun, x)
            results.append((y, *pull(g)))
        return results

    for first, last in zip(*both(x, g), strict=True):
        np.testing.assert_array_equal(first, last)


@pytest.mark.parametrize(
    ("shape", "window", "strides", "message"),
    [
        ((1, 4, 4, 1), (0, 2), None, "window and strides must be at least 1"),
        ((1, 4, 4, 1), (2, 2), (2, 0), "window and strides must be at least 1"),
        ((1, 4, 4, 1), (5, 2), None, r"window \(5, 2\) must fit"),
    ],
)
def test_max_pool_errors(shape, window, strides, message):
    with pytest.raises(ValueError, match=message):
        max_pool(jnp.ones(shape), window, strides)
