"""Names of vision transformers and of BERT's family, as Hugging Face has them."""

from wsa_jax.door import door
from wsa_jax.files.layouts import heads_in, heads_out
from wsa_jax.files.name_map import Entry, NameMap
from wsa_jax.files.name_maps.pytorch import convolution, dense, layer_norm
from wsa_jax.models import TextEncoder, ViT

__all__ = ["text_encoder_names", "vit_names"]


@door
def vit_names(model: ViT, *, prefix: str = "vit.", head: str | None = "classifier") -> NameMap:
    """The map between a `ViT` and google/vit-* of Hugging Face.

    Theirs: ``vit.embeddings.cls_token``, ``vit.encoder.layer.0.attention.attention.query.weight``
    and so on, ``classifier.weight``. A pooler is left out, since its class token is not the one
    that the head looks at.

    Args:
      model: our network; their epsilon is 1e-12, `vit("B", 1000, epsilon=1e-12)`.
      prefix: what stands before the names of all but the head; ``""`` in files without one.
      head: what the last layer is called; None where the file has none, and then our tree neither.

    >>> from wsa_jax.models import vit
    >>> names = vit_names(vit("Ti", 10))
    >>> names.entries[0].theirs, names.entries[0].ours
    ('vit.embeddings.cls_token', 'params.class_token')

    Source: Hugging Face's ``ViTForImageClassification``.
    """
    body, layer = f"{prefix}embeddings", f"{prefix}encoder.layer.{{i}}"
    entries = [
        Entry(f"{body}.cls_token", "params.class_token"),
        Entry(f"{body}.position_embeddings", "params.position_embedding"),
        *convolution(f"{body}.patch_embeddings.projection", "Conv_0", bias=True),
        *layer_norm(f"{layer}.layernorm_before", "Block_{i}.LayerNorm_0"),
        *_block(layer, f"{layer}.attention.attention", model.heads),
        *layer_norm(f"{layer}.layernorm_after", "Block_{i}.LayerNorm_1"),
        *layer_norm(f"{prefix}layernorm", "LayerNorm_0"),
        *_left_out(f"{prefix}pooler.dense"),
        *(() if head is None else dense(head, "Dense_0")),
    ]
    return NameMap(f"of ViT with {model.depth} blocks", tuple(entries))


@door
def text_encoder_names(
    model: TextEncoder, *, prefix: str = "", head: str = "classifier"
) -> NameMap:
    """The map between a `TextEncoder` and BERT's family of Hugging Face, MiniLM among it.

    Theirs: ``embeddings.word_embeddings.weight``, ``encoder.layer.0.attention.self.query.weight``
    and so on. A pooler is left out.

    Args:
      model: our network; without `num_classes` there is no head.
      prefix: what stands before the names of all but the head: ``"bert."`` in files of classifiers.
      head: what the last layer is called.

    >>> from wsa_jax.models import TextEncoder
    >>> names = text_encoder_names(TextEncoder(9, 4, 1, 2, 6), prefix="bert.")
    >>> names.entries[0].theirs
    'bert.embeddings.word_embeddings.weight'

    Source: Hugging Face's ``BertModel`` and ``BertForSequenceClassification``.
    """
    body, layer = f"{prefix}embeddings", f"{prefix}encoder.layer.{{i}}"
    kinds = {"word_embeddings": "word", "position_embeddings": "position"}
    kinds |= {"token_type_embeddings": "type"}
    entries = [
        *(Entry(f"{body}.{t}.weight", f"params.{ours}.embedding") for t, ours in kinds.items()),
        Entry(f"{body}.position_ids", None),
        *layer_norm(f"{body}.LayerNorm", "LayerNorm_0"),
        *_block(layer, f"{layer}.attention.self", model.heads),
        *layer_norm(f"{layer}.attention.output.LayerNorm", "Block_{i}.LayerNorm_0"),
        *layer_norm(f"{layer}.output.LayerNorm", "Block_{i}.LayerNorm_1"),
        *_left_out(f"{prefix}pooler.dense"),
        *(() if model.num_classes is None else dense(head, "Dense_0")),
    ]
    return NameMap(f"of TextEncoder with {model.depth} blocks", tuple(entries))


def _block(layer: str, attention: str, heads: int) -> list[Entry]:
    """Attention and the two dense layers, which both families call alike."""
    ours = "Block_{i}.attention"
    entries = list[Entry]()
    for name in ("query", "key", "value"):
        entries += dense(f"{attention}.{name}", f"{ours}.{name}", heads_out(heads))
        # The bias is of all heads, too.
        entries[-1] = Entry(entries[-1].theirs, entries[-1].ours, heads_out(heads))
    entries += dense(f"{layer}.attention.output.dense", f"{ours}.out", heads_in(heads))
    entries += dense(f"{layer}.intermediate.dense", "Block_{i}.Dense_0")
    entries += dense(f"{layer}.output.dense", "Block_{i}.Dense_1")
    return entries


def _left_out(theirs: str) -> tuple[Entry, Entry]:
    return Entry(f"{theirs}.weight", None), Entry(f"{theirs}.bias", None)
