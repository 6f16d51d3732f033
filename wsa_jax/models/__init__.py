"""Flax Linen architectures, one a file, with the initialisation of the reference code."""

from wsa_jax.models.cnn import CNN as CNN
from wsa_jax.models.initializers import layer_initializers as layer_initializers
from wsa_jax.models.mlp import MLP as MLP
