"""Flax Linen architectures, one per file, with the initialisation of the reference code."""

from wsa_jax.models.cnn import CNN
from wsa_jax.models.gcn import GCN
from wsa_jax.models.graph import Graph, graph
from wsa_jax.models.graph_sage import GraphSAGE
from wsa_jax.models.imagenet_resnet import ImageNetResNet, imagenet_resnet
from wsa_jax.models.initializers import layer_initializers
from wsa_jax.models.mlp import MLP
from wsa_jax.models.mobilenet import MobileNetV2, mobilenet_v2
from wsa_jax.models.resnet import ResNet, cifar_resnet, resnet20
from wsa_jax.models.text_encoder import TextEncoder
from wsa_jax.models.vgg import VGG, vgg8, vgg11, vgg16
from wsa_jax.models.vit import ViT, vit
from wsa_jax.models.wide_resnet import WideResNet, wide_resnet, wrn16_4

__all__ = [
    "CNN",
    "GCN",
    "MLP",
    "VGG",
    "Graph",
    "GraphSAGE",
    "ImageNetResNet",
    "MobileNetV2",
    "ResNet",
    "TextEncoder",
    "ViT",
    "WideResNet",
    "cifar_resnet",
    "graph",
    "imagenet_resnet",
    "layer_initializers",
    "mobilenet_v2",
    "resnet20",
    "vgg8",
    "vgg11",
    "vgg16",
    "vit",
    "wide_resnet",
    "wrn16_4",
]
