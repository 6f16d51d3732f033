"""The convolutional network of the federated experiments."""

from flax import linen as nn
from jaxtyping import Array, Float

from wsa_jax import checks
from wsa_jax.conv import conv_general_dilated, max_pool
from wsa_jax.models.dense import dense_layers
from wsa_jax.models.fields import counts_of
from wsa_jax.models.initializers import layer_initializers

__all__ = ["CNN"]


class CNN(nn.Module):
    """Two 5x5 convolutions (32 and 64 channels), each with a 2x2 max-pool, and three dense layers.

    [conv 5x5 VALID, ReLU, max-pool 2x2] x 2 -> flatten -> 384, ReLU -> 192, ReLU -> classes

    `channels`, `units` and `kernel_size` make smaller and larger networks of the same form.

    Shapes: [batch, height, width, channels] -> [batch, num_classes] logits.
    Parameters: `Conv_0`, `Conv_1`, `Dense_0`, `Dense_1`, `Dense_2`, each with `kernel` and `bias`.

    Guarantees: 744,330 parameters for 32x32x3 images and 10 classes; no normalisation, no dropout.
    The features are flattened in the order height, width, channel (PyTorch: channel, height,
    width), which matters only for weights taken from there.

    Edge cases: a max-pool leaves out the last row and column of an odd number.

    Errors: `ValueError` for images with a side below 3 · kernel_size + 1 (16 for 5x5), which leave
    the second max-pool nothing, or an unknown initialization (see `layer_initializers`).

    >>> import jax, jax.numpy as jnp
    >>> model = CNN(num_classes=10)
    >>> shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))
    >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
    744330

    Source: the CIFAR network of Acar et al., FedDyn, ICLR 2021, with 32 channels in the first
    convolution as in the FedExP experiments (Jhunjhunwala et al., ICLR 2023).
    """

    num_classes: int
    # Not `init`: the name would hide the module's own method.
    initialization: str = "reference"
    channels: tuple[int, int] = (32, 64)
    units: tuple[int, int] = (384, 192)
    kernel_size: int = 5

    def __post_init__(self):
        checks.count("num_classes", self.num_classes)
        checks.count("kernel_size", self.kernel_size)
        object.__setattr__(self, "channels", counts_of("channels", self.channels))
        object.__setattr__(self, "units", counts_of("units", self.units))
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch classes"]:
        size = self.kernel_size
        smallest = 3 * size + 1
        if min(x.shape[1:3]) < smallest:
            raise ValueError(
                f"images must be at least {smallest}x{smallest}, got {x.shape[1]}x{x.shape[2]}"
            )
        for channels in self.channels:
            kernel_init, bias_init = layer_initializers(
                self.initialization, size * size * x.shape[-1], size * size * channels
            )
            x = nn.Conv(
                channels,
                (size, size),
                padding="VALID",
                kernel_init=kernel_init,
                bias_init=bias_init,
                conv_general_dilated=conv_general_dilated,
            )(x)
            # The maximum of rectified values is the rectified maximum, at a quarter of the work.
            x = nn.relu(max_pool(x))
        x = x.reshape(x.shape[0], -1)
        return dense_layers(x, (*self.units, self.num_classes), self.initialization)
