"""A multi-layer perceptron."""

import math
from collections.abc import Sequence

from flax import linen as nn
from jaxtyping import Array, Float

from wsa_jax.models.dense import dense_layers
from wsa_jax.models.fields import counts_of

__all__ = ["MLP"]


class MLP(nn.Module):
    """Dense layers with ReLUs in between.

    x_{l+1} = ReLU(x_l · W_l + b_l); the last layer has no ReLU

    Shapes: [batch, ...] -> [batch, features[-1]]; all axes after the first are flattened.
    Parameters: `Dense_0/kernel`, `Dense_0/bias`, `Dense_1/kernel` and so on.

    Edge cases: one feature count makes a linear model.

    Errors: `ValueError` for no features or an unknown initialization (see `layer_initializers`).

    >>> import jax, jax.numpy as jnp
    >>> model = MLP(features=(16, 10))
    >>> params = model.init(jax.random.key(0), jnp.ones((1, 8, 8)))
    >>> model.apply(params, jnp.ones((5, 8, 8))).shape
    (5, 10)

    Source: the two-layer networks of McMahan et al., AISTATS 2017, are of this kind.
    """

    features: Sequence[int]
    # Not `init`: the name would hide the module's own method.
    initialization: str = "reference"

    def __post_init__(self):
        object.__setattr__(self, "features", counts_of("features", self.features))
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "batch ..."]) -> Float[Array, "batch outputs"]:
        if not self.features:
            raise ValueError("features must name at least one layer's width, got ()")
        x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        return dense_layers(x, self.features, self.initialization)
