"""Flax Linen architectures, one per file, with the initialisation of the reference code."""

from wsa_jax.models.cnn import CNN as CNN
from wsa_jax.models.initializers import layer_initializers as layer_initializers
from wsa_jax.models.mlp import MLP as MLP
from wsa_jax.models.resnet import ResNet as ResNet
from wsa_jax.models.resnet import cifar_resnet as cifar_resnet
from wsa_jax.models.resnet import resnet20 as resnet20
from wsa_jax.models.vgg import VGG as VGG
from wsa_jax.models.vgg import vgg8 as vgg8
from wsa_jax.models.vgg import vgg11 as vgg11
from wsa_jax.models.vgg import vgg16 as vgg16
