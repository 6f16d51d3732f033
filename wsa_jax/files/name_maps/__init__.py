"""Name maps of known architectures, one file each; see `wsa_jax.files.NameMap` for one's own."""

from wsa_jax.files.name_maps.mlp import mlp_names
from wsa_jax.files.name_maps.resnet import resnet_names
from wsa_jax.files.name_maps.transformers import text_encoder_names, vit_names
from wsa_jax.files.name_maps.vgg import vgg_names

__all__ = ["mlp_names", "resnet_names", "text_encoder_names", "vgg_names", "vit_names"]
