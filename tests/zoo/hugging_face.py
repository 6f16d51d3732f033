"""Hugging Face's Flax models in tiny configurations, as functions of their parameters."""

import functools
import importlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np

_TEXT = {"vocab_size": 13, "max_position_embeddings": 16}
_BLOCKS = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 10,
}
_ENCODER = _TEXT | _BLOCKS | {"type_vocab_size": 2, "num_labels": 3, "pad_token_id": 0}
_GROUPED = _TEXT | _BLOCKS | {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
_IMAGE = _BLOCKS | {"image_size": 16, "patch_size": 8, "num_labels": 3}
_PAIR = {
    "vocab_size": 13,
    "d_model": 12,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 10,
    "decoder_ffn_dim": 8,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}

# Name: class of the configuration, class of the model, configuration, inputs.
MODELS = {
    "BERT": ("BertConfig", "FlaxBertForSequenceClassification", _ENCODER, "tokens"),
    "RoBERTa": ("RobertaConfig", "FlaxRobertaForMaskedLM", _ENCODER, "tokens"),
    "ELECTRA": (
        "ElectraConfig",
        "FlaxElectraForMaskedLM",
        _ENCODER | {"embedding_size": 8},
        "tokens",
    ),
    "ALBERT": ("AlbertConfig", "FlaxAlbertForMaskedLM", _ENCODER | {"embedding_size": 8}, "tokens"),
    "DistilBERT": (
        "DistilBertConfig",
        "FlaxDistilBertForMaskedLM",
        _TEXT | {"dim": 12, "n_layers": 2, "n_heads": 3, "hidden_dim": 10, "pad_token_id": 0},
        "tokens",
    ),
    "RoFormer": ("RoFormerConfig", "FlaxRoFormerForMaskedLM", _ENCODER, "tokens"),
    "GPT-2": (
        "GPT2Config",
        "FlaxGPT2LMHeadModel",
        {"vocab_size": 13, "n_positions": 16, "n_embd": 12, "n_layer": 2, "n_head": 3},
        "tokens",
    ),
    "GPT-Neo": (
        "GPTNeoConfig",
        "FlaxGPTNeoForCausalLM",
        _TEXT
        | {
            "hidden_size": 12,
            "num_layers": 2,
            "num_heads": 3,
            "attention_types": [[["global"], 2]],
        },
        "tokens",
    ),
    "GPT-J": (
        "GPTJConfig",
        "FlaxGPTJForCausalLM",
        {"vocab_size": 13, "n_positions": 16, "n_embd": 12, "n_layer": 2, "n_head": 2}
        | {"rotary_dim": 4},
        "tokens",
    ),
    "BLOOM": (
        "BloomConfig",
        "FlaxBloomForCausalLM",
        {"vocab_size": 13, "hidden_size": 12, "n_layer": 2, "n_head": 2},
        "tokens",
    ),
    "OPT": (
        "OPTConfig",
        "FlaxOPTForCausalLM",
        _TEXT | _BLOCKS | {"ffn_dim": 10, "word_embed_proj_dim": 12, "pad_token_id": 0},
        "tokens",
    ),
    "Llama, grouped queries": ("LlamaConfig", "FlaxLlamaForCausalLM", _GROUPED, "tokens"),
    "Mistral": ("MistralConfig", "FlaxMistralForCausalLM", _GROUPED, "tokens"),
    "Gemma": ("GemmaConfig", "FlaxGemmaForCausalLM", _GROUPED | {"head_dim": 4}, "tokens"),
    "T5": (
        "T5Config",
        "FlaxT5ForConditionalGeneration",
        {"vocab_size": 13, "d_model": 12, "d_kv": 4, "d_ff": 10, "num_layers": 2, "num_heads": 3}
        | {"decoder_start_token_id": 0, "tie_word_embeddings": False},
        "both",
    ),
    "BART": ("BartConfig", "FlaxBartForConditionalGeneration", _PAIR, "both"),
    "Pegasus": ("PegasusConfig", "FlaxPegasusForConditionalGeneration", _PAIR, "both"),
    "Whisper": (
        "WhisperConfig",
        "FlaxWhisperForConditionalGeneration",
        _PAIR | {"num_mel_bins": 8, "max_source_positions": 6, "max_target_positions": 16},
        "sound",
    ),
    "ViT": ("ViTConfig", "FlaxViTForImageClassification", _IMAGE, "images"),
    "BEiT": (
        "BeitConfig",
        "FlaxBeitForImageClassification",
        _IMAGE | {"use_relative_position_bias": True},
        "images",
    ),
    "DINOv2": ("Dinov2Config", "FlaxDinov2ForImageClassification", _IMAGE, "images"),
    "ResNet": (
        "ResNetConfig",
        "FlaxResNetForImageClassification",
        {"embedding_size": 6, "hidden_sizes": [8, 10], "depths": [1, 2], "num_labels": 3}
        | {"layer_type": "bottleneck"},
        "images",
    ),
    "RegNet": (
        "RegNetConfig",
        "FlaxRegNetForImageClassification",
        {"embedding_size": 6, "hidden_sizes": [8, 12], "depths": [1, 2], "groups_width": 4}
        | {"num_labels": 3},
        "images",
    ),
    "CLIP": (
        "CLIPConfig",
        "FlaxCLIPModel",
        {
            "text_config": _TEXT | _BLOCKS | {"bos_token_id": 1, "eos_token_id": 2},
            "vision_config": _IMAGE,
            "projection_dim": 7,
        },
        "clip",
    ),
}


def build(name):
    """A function of parameters and one array of inputs, shapes of both, and what draws inputs."""
    import transformers

    transformers.logging.set_verbosity_error()
    config_class, model_class, settings, kind = MODELS[name]
    config = getattr(transformers, config_class)(**settings)
    shape, draw, arguments = _KINDS[kind]
    module = importlib.import_module(getattr(transformers, model_class).__module__)
    module.jnp = _NumpyOfOld()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(transformers, model_class)(config, _do_init=False, input_shape=shape)
        shapes = jax.eval_shape(
            functools.partial(model.init_weights, input_shape=model.input_shape), jax.random.key(0)
        )

    def apply(params, inputs):
        outputs = model(**arguments(inputs), params=params)
        return outputs.logits_per_image if kind == "clip" else outputs.logits

    return apply, shapes, draw


class _NumpyOfOld:
    """`jax.numpy` with the argument of `clip` that transformers 4.56 still uses."""

    def __getattr__(self, name):
        return getattr(jnp, name)

    @staticmethod
    def clip(array, a_min=None, a_max=None):
        return jnp.clip(array, a_min, a_max)


def _tokens(rng, count):
    return rng.integers(3, 13, (count, 6)).astype(np.int32)


def _images(rng, count):
    return rng.normal(size=(count, 3, 16, 16)).astype(np.float32)


def _sound(rng, count):
    return rng.normal(size=(count, 8, 12)).astype(np.float32)


def _words(inputs):
    """Words that depend on other inputs."""
    flat = inputs.reshape(len(inputs), -1)[:, :6]
    return (jnp.abs(flat) * 7).astype(jnp.int32) % 10 + 3


# Kind: shapes for the initialisation, what draws inputs, and the arguments that they become.
_KINDS = {
    "tokens": ((1, 6), _tokens, lambda x: {"input_ids": x}),
    "both": ((1, 6), _tokens, lambda x: {"input_ids": x, "decoder_input_ids": x[:, ::-1]}),
    "images": ((1, 16, 16, 3), _images, lambda x: {"pixel_values": x}),
    "sound": (
        (1, 8, 12),
        _sound,
        lambda x: {"input_features": x, "decoder_input_ids": _words(x)},
    ),
    "clip": (
        ((1, 6), (1, 16, 16, 3)),
        _images,
        lambda x: {"input_ids": _words(x), "pixel_values": x},
    ),
}
