"""A BERT-style encoder of texts, with logits for a text, for each token, or vectors of texts."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from wsa_jax import checks
from wsa_jax.models.transformer import attend, check_heads, dense, feed_forward, small

__all__ = ["TextEncoder"]


class TextEncoder(nn.Module):
    """Embeddings and transformer blocks that end in LayerNorm, as in BERT and MiniLM.

    tokens: LayerNorm(word + position + type 0)
    block:  x = LayerNorm(x + attention(x)); LayerNorm(x + dense(GELU(dense(x))))
    pool:   "mean" over the tokens that are no padding, "first" token, or "none": each token
    head:   one dense layer, or none if num_classes is None

    Shapes: integers [batch, tokens] -> [batch, classes] logits, or [batch, tokens, classes] without
    pooling; [batch, width] or [batch, tokens, width] vectors without classes.
    Parameters: `word`, `position` and `type`, each with `embedding`; `LayerNorm_0`; `Block_0` and
    so on, each with `attention` (`query`, `key`, `value`, `out`), `LayerNorm_0`, `Dense_0`,
    `Dense_1` and `LayerNorm_1`; `Dense_0` of the head.

    Guarantees: tokens equal to `padding` are attended to by none and enter no mean, so texts of any
    length up to the embedding's may share a batch. All tokens are of the first type. No dropout
    (the reference drops 0.1), no state, no pooler.

    Edge cases: a text of padding alone has the vector 0 under "mean".

    Errors: `ValueError` for counts below 1, a width that is no multiple of the heads, an unknown
    pooling, or texts longer than `max_tokens`.

    >>> import jax, jax.numpy as jnp
    >>> model = TextEncoder(vocabulary=50, width=12, depth=2, heads=3, hidden=24, num_classes=6)
    >>> texts = jnp.array([[2, 7, 9, 3, 0], [2, 8, 3, 0, 0]])
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), texts)
    >>> jax.eval_shape(model.apply, variables, texts).shape
    (2, 6)

    Source: Devlin et al., BERT, NAACL 2019; the mean of tokens: Reimers and Gurevych, EMNLP 2019.
    """

    vocabulary: int
    width: int
    depth: int
    heads: int
    hidden: int
    num_classes: int | None = None
    pooling: str = "mean"
    max_tokens: int = 512
    types: int = 2
    padding: int = 0
    epsilon: float = 1e-12

    def __post_init__(self):
        for name in ("vocabulary", "depth", "hidden", "max_tokens", "types"):
            checks.count(name, getattr(self, name))
        if self.num_classes is not None:
            checks.count("num_classes", self.num_classes)
        checks.one_of("pooling", self.pooling, ("mean", "first", "none"))
        check_heads(self.width, self.heads)
        super().__post_init__()

    @nn.compact
    def __call__(self, tokens: Int[Array, "batch tokens"]) -> Float[Array, "batch ..."]:
        length = tokens.shape[1]
        if length > self.max_tokens:
            raise ValueError(
                f"texts of {length} tokens are longer than max_tokens {self.max_tokens}; cut them, "
                "or give a larger max_tokens"
            )
        sizes = {"word": self.vocabulary, "position": self.max_tokens, "type": self.types}
        word, position, kind = (
            nn.Embed(size, self.width, embedding_init=small, name=name)
            for name, size in sizes.items()
        )
        x = word(tokens) + position(jnp.arange(length))[None] + kind(jnp.zeros(1, int))[None]
        x = nn.LayerNorm(self.epsilon)(x)
        present = tokens != self.padding
        for index in range(self.depth):
            block = _Block(self.heads, self.hidden, self.epsilon, name=f"Block_{index}")
            x = block(x, present[:, None, None])
        if self.pooling == "mean":
            weights = present.astype(x.dtype)[..., None]
            x = jnp.sum(x * weights, axis=1) / jnp.maximum(jnp.sum(weights, axis=1), 1)
        elif self.pooling == "first":
            x = x[:, 0]
        return x if self.num_classes is None else dense(x, self.num_classes, 0)


class _Block(nn.Module):
    heads: int
    hidden: int
    epsilon: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens width"], mask: Bool[Array, "batch 1 1 tokens"]
    ) -> Float[Array, "batch tokens width"]:
        x = nn.LayerNorm(self.epsilon)(x + attend(x, self.heads, mask))
        return nn.LayerNorm(self.epsilon)(x + feed_forward(x, self.hidden))
