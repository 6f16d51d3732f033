"""What the transformers share: attention, the layers after it, and their initial weights."""

from typing import Any

from flax import linen as nn
from jaxtyping import Array, Bool, Float

from wsa_jax import checks

small = nn.initializers.normal(0.02)
"""N(0, 0.02²): the initial kernels and embeddings of BERT's and DeiT's PyTorch code."""


def attend(
    x: Float[Array, "batch tokens width"],
    heads: int,
    mask: Bool[Array, "batch 1 1 tokens"] | None = None,
) -> Float[Array, "batch tokens width"]:
    """Self-attention by the submodule `attention`, which has `query`, `key`, `value` and `out`.

    Their kernels are [width, heads, width / heads], and [heads, width / heads, width] for `out`.
    """
    attention: Any = nn.MultiHeadDotProductAttention(heads, kernel_init=small, name="attention")
    return attention(x, mask=mask)


def dense(x: Float[Array, "*batch width"], width: int, index: int) -> Float[Array, "*batch out"]:
    """A dense layer, the submodule `Dense_i`."""
    return nn.Dense(width, kernel_init=small, name=f"Dense_{index}")(x)


def feed_forward(
    x: Float[Array, "batch tokens width"], hidden: int
) -> Float[Array, "batch tokens width"]:
    """Two dense layers with the exact GELU, x · Φ(x), between."""
    return dense(nn.gelu(dense(x, hidden, 0), approximate=False), x.shape[-1], 1)


def check_heads(width: int, heads: int) -> None:
    """Raise a ValueError unless the width is a multiple of the heads.

    >>> check_heads(10, 3)
    Traceback (most recent call last):
    ValueError: width 10 is no multiple of heads 3; give one that is
    """
    checks.count("width", width)
    checks.count("heads", heads)
    if width % heads:
        raise ValueError(f"width {width} is no multiple of heads {heads}; give one that is")
