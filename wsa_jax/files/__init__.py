"""Models in files: safetensors, npz, flax's msgpack and orbax, leaf by leaf; maps of names."""

from wsa_jax.files.layouts import (
    CONV,
    DENSE,
    SAME,
    Layout,
    chained,
    flattened,
    heads_in,
    heads_out,
    transposed,
)
from wsa_jax.files.load_save import load_model, open_model, save_model
from wsa_jax.files.model_file import ModelFile, ModelFileError
from wsa_jax.files.name_map import Entry, NameMap
from wsa_jax.files.name_maps import (
    mlp_names,
    resnet_names,
    text_encoder_names,
    vgg_names,
    vit_names,
)
from wsa_jax.files.names import flatten, unflatten

__all__ = [
    "CONV",
    "DENSE",
    "SAME",
    "Entry",
    "Layout",
    "ModelFile",
    "ModelFileError",
    "NameMap",
    "chained",
    "flatten",
    "flattened",
    "heads_in",
    "heads_out",
    "load_model",
    "mlp_names",
    "open_model",
    "resnet_names",
    "save_model",
    "text_encoder_names",
    "transposed",
    "unflatten",
    "vgg_names",
    "vit_names",
]
