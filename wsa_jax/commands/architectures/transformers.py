"""Transformers, under our names or Hugging Face's."""

import json
import re

import jax.numpy as jnp
from jax import Array

from wsa_jax.commands.architectures.known import (
    Architecture,
    Asked,
    images,
    lacking,
    numbered,
    prefix_of,
)
from wsa_jax.files import ModelFileError, text_encoder_names, vit_names
from wsa_jax.files.model_file import Shapes, told
from wsa_jax.models import TextEncoder, ViT


class HeadsUnknownError(ModelFileError):
    """How many heads attention has is not told by the shapes of a file."""


def read_vit(shapes: Shapes, asked: Asked) -> Architecture:
    """A class token, patches and blocks; the image is a row of the patches."""
    prefix = prefix_of(shapes)
    if f"{prefix}class_token" in shapes:
        place = shapes[f"{prefix}position_embedding"].shape
        kernel = shapes[f"{prefix}Conv_0.kernel"].shape
        depth, heads, hidden = _our_blocks(shapes)
        classes = shapes[f"{prefix}Dense_0.kernel"].shape[-1]
        module = ViT(kernel[0], place[-1], depth, heads, hidden, classes)
        inputs = _patches(kernel[0], place[1], kernel[2])
        return Architecture(name="vit", module=module, inputs=inputs)
    before = _before(shapes, "embeddings.cls_token")
    place = shapes[f"{before}embeddings.position_embeddings"].shape
    kernel = shapes[f"{before}embeddings.patch_embeddings.projection.weight"].shape
    depth, hidden = _their_blocks(shapes, before)
    module = ViT(
        patch=kernel[2],
        width=place[-1],
        depth=depth,
        heads=_heads(asked),
        hidden=hidden,
        num_classes=shapes["classifier.weight"].shape[0],
        epsilon=1e-12,
    )
    return Architecture(
        name="vit",
        module=module,
        inputs=_patches(kernel[2], place[1], kernel[1]),
        names=vit_names(module, prefix=before),
        stream="LayerNorm_0/scale",
    )


def read_text_encoder(shapes: Shapes, asked: Asked) -> Architecture:
    """Embeddings and blocks, with a head or without; two texts of two tokens."""
    prefix = prefix_of(shapes)
    # A head is told by its kernel: an encoder alone, without one, gives a feature for each text.
    if f"{prefix}word.embedding" in shapes:
        word, place, kind = (
            shapes[f"{prefix}{name}.embedding"].shape for name in ("word", "position", "type")
        )
        depth, heads, hidden = _our_blocks(shapes)
        head = shapes.get(f"{prefix}Dense_0.kernel")
        before, classes = None, None if head is None else head.shape[-1]
    else:
        before = _before(shapes, "embeddings.word_embeddings.weight")
        word, place, kind = (
            shapes[f"{before}embeddings.{name}_embeddings.weight"].shape
            for name in ("word", "position", "token_type")
        )
        (depth, hidden), heads = _their_blocks(shapes, before), _heads(asked)
        classes = shapes["classifier.weight"].shape[0] if "classifier.weight" in shapes else None
    # Sizes alone: no weight is read to find out what it is.
    module = TextEncoder(
        vocabulary=word[0],
        width=word[1],
        depth=depth,
        heads=heads,
        hidden=hidden,
        num_classes=classes,
        max_tokens=place[0],
        types=kind[0],
    )
    return Architecture(
        name="text-encoder",
        module=module,
        inputs=jnp.ones((2, 2), jnp.int32),
        names=None if before is None else text_encoder_names(module, prefix=before),
        stream="LayerNorm_0/scale",
    )


def _our_blocks(shapes: Shapes) -> tuple[int, int, int]:
    """Number of blocks, heads of each, and the width between their dense layers."""
    block = rf"{re.escape(prefix_of(shapes))}Block_(\d+)\."
    queries = numbered(shapes, rf"{block}attention\.query\.kernel", rank=3)
    hidden = numbered(shapes, rf"{block}Dense_0\.kernel", rank=2)
    lacking("Block_0.attention.query.kernel", queries)
    lacking("Block_0.Dense_0.kernel", hidden)
    return len(queries), queries[0][1], hidden[0][1]


def _their_blocks(shapes: Shapes, before: str) -> tuple[int, int]:
    """Number of blocks under Hugging Face's names, and the width between their dense layers."""
    layer = rf"{re.escape(before)}encoder\.layer\.(\d+)\.intermediate\.dense\.weight"
    found = numbered(shapes, layer, rank=2)
    lacking(f"{before}encoder.layer.0.intermediate.dense.weight", found)
    return len(found), found[0][0]


def _before(shapes: Shapes, end: str) -> str:
    """What stands before Hugging Face's names."""
    found = [name.removesuffix(end) for name in shapes if name.endswith(end)]
    lacking(end, found)
    return found[0]


def _heads(asked: Asked) -> int:
    """How many heads: what the command says, or the config that Hugging Face puts beside a file."""
    if asked.heads is not None:
        return asked.heads
    folder = asked.path if asked.path.is_dir() else asked.path.parent
    config = folder / "config.json"
    if config.is_file():
        with told(config, "read", ValueError, LookupError, TypeError):
            return int(json.loads(config.read_text(encoding="utf-8"))["num_attention_heads"])
    raise HeadsUnknownError(
        f"shapes do not tell how many heads {asked.path} has, and no config.json lies beside it; "
        "give --heads"
    )


def _patches(patch: int, tokens: int, channels: int) -> Array:
    """A row of patches, one fewer than tokens."""
    return images(patch, patch * (tokens - 1), channels)
