"""The fast convolution and max-pool against lax: values, gradients, transformations, errors."""

import itertools
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
    return jax.random.normal(jax.random.key(seed), shape)


def value_and_gradients(conv, x, w, **settings):
    @jax.jit
    def run(x, w):
        y, backward = jax.vjp(lambda x, w: conv(x, w, **settings), x, w)
        # A cotangent that differs from place to place.
        return y, *backward(jnp.cos(y))

    return run(x, w)


def assert_equal_to_lax(x, w, **settings):
    ours = value_and_gradients(conv_general_dilated, x, w, **settings)
    lax_s = value_and_gradients(lax.conv_general_dilated, x, w, **settings)
    for a, b in zip(ours, lax_s, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


def settings_grid():
    strides = [(1, 1), (2, 1), (3, 2)]
    paddings = ["SAME", "VALID", "SAME_LOWER", ((2, 1), (0, 3)), ((-1, 2), (5, 0))]
    for s, p, spread, d, g in itertools.product(strides, paddings, [1, 2], [1, 2], [1, 2, 4]):
        if spread == 1 or not isinstance(p, str):
            yield s, p, (spread, 1), (d, 1), g


# Every setting meets every other across the grid's halves; the whole grid takes minutes.
@pytest.mark.parametrize("slow_library", [False, True])
@pytest.mark.parametrize("settings", list(settings_grid())[::3], ids=str)
def test_values_and_gradients_equal_lax(settings, slow_library, monkeypatch):
    monkeypatch.setattr(conv_module, "_SLOW_LIBRARY", slow_library)
    strides, padding, lhs_dilation, rhs_dilation, groups = settings
    rows = 5 if slow_library else 3
    x, w = normal(0, 2, 12, 11, 4), normal(1, rows, 2, 4 // groups, 4)
    assert_equal_to_lax(
        x,
        w,
        window_strides=strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=CHANNELS_LAST,
        feature_group_count=groups,
    )
