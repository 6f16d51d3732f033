"""Dense layers inside a compact module, as all networks of images end in them."""

from collections.abc import Sequence

from flax import linen as nn
from jaxtyping import Array, Float

from wsa_jax.models.initializers import layer_initializers


def dense_layers(
    x: Float[Array, "batch inputs"], widths: Sequence[int], initialization: str
) -> Float[Array, "batch outputs"]:
    """Apply the submodules `Dense_0`, `Dense_1` and so on, initialised by name, ReLUs in between.

    The last layer has no ReLU, so one width makes a linear head.
    """
    for index, width in enumerate(widths):
        if index:
            x = nn.relu(x)
        kernel_init, bias_init = layer_initializers(initialization, x.shape[-1])
        x = nn.Dense(width, kernel_init=kernel_init, bias_init=bias_init, name=f"Dense_{index}")(x)
    return x
