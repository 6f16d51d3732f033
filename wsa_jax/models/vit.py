"""Vision transformers: any patch, any image size, and the usual three widths."""

from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from wsa_jax import checks
from wsa_jax.conv import conv_general_dilated
from wsa_jax.door import door
from wsa_jax.models.transformer import attend, check_heads, dense, feed_forward, small

__all__ = ["ViT", "vit"]

# Width and heads; all have twelve blocks, and four times the width between their dense layers.
_SIZES = {"Ti": (192, 3), "S": (384, 6), "B": (768, 12)}


class ViT(nn.Module):
    """Patches as tokens, a class token, and transformer blocks that begin with LayerNorm.

    tokens: conv patch x patch with stride patch; a class token before them; + position embedding
    block:  x = x + attention(LayerNorm(x)); x + dense(GELU(dense(LayerNorm(x))))
    head:   LayerNorm -> class token -> one dense layer

    Shapes: [batch, height, width, channels] -> [batch, num_classes] logits.
    Parameters: `class_token` [1, 1, width], `position_embedding` [1, 1 + patches, width], `Conv_0`
    of the patches, `Block_0` and so on, each with `LayerNorm_0`, `attention` (`query`, `key`,
    `value` and `out`), `LayerNorm_1`, `Dense_0` and `Dense_1`; then `LayerNorm_0` and `Dense_0`.

    Guarantees: no dropout, no state: `train` is not an argument. GELU is exact, not its
    approximation by tanh. The position embedding belongs to one image size; it and the class token
    are not named kernels, so that the default selection of layers leaves them out.

    Errors: `ValueError` for counts below 1, a width that is no multiple of the heads, or images
    whose sides are no multiples of the patch.

    >>> import jax, jax.numpy as jnp
    >>> model = ViT(patch=4, width=12, depth=2, heads=3, hidden=24, num_classes=10)
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    >>> variables["params"]["position_embedding"].shape
    (1, 5, 12)
    >>> variables["params"]["Block_0"]["attention"]["query"]["kernel"].shape
    (12, 3, 4)

    Source: Dosovitskiy et al., ICLR 2021; initial weights N(0, 0.02²) and widths Ti and S of
    Touvron et al., DeiT, ICML 2021.
    """

    patch: int
    width: int
    depth: int
    heads: int
    hidden: int
    num_classes: int
    # google/vit-* on Hugging Face has 1e-12.
    epsilon: float = 1e-6

    def __post_init__(self):
        for name in ("patch", "depth", "hidden", "num_classes"):
            checks.count(name, getattr(self, name))
        check_heads(self.width, self.heads)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch classes"]:
        if x.shape[1] % self.patch or x.shape[2] % self.patch:
            raise ValueError(
                f"images of {x.shape[1]}x{x.shape[2]} are no whole patches of "
                f"{self.patch}x{self.patch}; give a patch that divides both sides"
            )
        x = nn.Conv(
            self.width,
            (self.patch, self.patch),
            strides=(self.patch, self.patch),
            padding="VALID",
            kernel_init=small,
            conv_general_dilated=conv_general_dilated,
        )(x)
        x = x.reshape(x.shape[0], -1, self.width)
        token = self.param("class_token", small, (1, 1, self.width))
        x = jnp.concatenate([jnp.tile(token.astype(x.dtype), (len(x), 1, 1)), x], axis=1)
        x = x + self.param("position_embedding", small, (1, *x.shape[1:]))
        for index in range(self.depth):
            x = _Block(self.heads, self.hidden, self.epsilon, name=f"Block_{index}")(x)
        return dense(nn.LayerNorm(self.epsilon)(x)[:, 0], self.num_classes, 0)


class _Block(nn.Module):
    heads: int
    hidden: int
    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        x = x + attend(nn.LayerNorm(self.epsilon)(x), self.heads)
        return x + feed_forward(nn.LayerNorm(self.epsilon)(x), self.hidden)


@door
def vit(
    size: Literal["Ti", "S", "B"], num_classes: int, *, patch: int = 16, epsilon: float = 1e-6
) -> ViT:
    """ViT-Ti, -S or -B: twelve blocks of width 192, 384 or 768, with 3, 6 or 12 heads.

    Parameters, for images of 224x224, patches of 16 and 1,000 classes: 5,717,416, 22,050,664 and
    86,567,656.

    Args:
      size: which width.
      num_classes: number of logits.
      patch: side of a patch; 4 suits images of 32x32.
      epsilon: of the LayerNorms; 1e-12 for google/vit-* on Hugging Face.

    >>> vit("S", 100, patch=4).heads
    6

    Source: Dosovitskiy et al., ICLR 2021, Table 1; Touvron et al., ICML 2021, Table 1.
    """
    width, heads = _SIZES[size]
    return ViT(
        patch=patch,
        width=width,
        depth=12,
        heads=heads,
        hidden=4 * width,
        num_classes=num_classes,
        epsilon=epsilon,
    )
