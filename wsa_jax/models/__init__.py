"""Flax Linen architectures, one per file, with the initialisation of the reference code."""

from wsa_jax.models.cnn import CNN
from wsa_jax.models.initializers import layer_initializers
from wsa_jax.models.mlp import MLP
from wsa_jax.models.resnet import ResNet, cifar_resnet, resnet20
from wsa_jax.models.vgg import VGG, vgg8, vgg11, vgg16

__all__ = [
    "CNN",
    "MLP",
    "VGG",
    "ResNet",
    "cifar_resnet",
    "layer_initializers",
    "resnet20",
    "vgg8",
    "vgg11",
    "vgg16",
]
