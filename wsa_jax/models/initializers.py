"""Initial weights by name: the reference code's (PyTorch's default), He's and torchvision's."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

__all__ = ["layer_initializers"]

Initializer = Callable[..., Array]


def layer_initializers(
    name: str, fan_in: int, fan_out: int | None = None
) -> tuple[Initializer, Initializer]:
    """The kernel and bias initialisers of a dense or convolutional layer.

    "reference":   kernel and bias ~ U(-b, b), b = 1/√fan_in, so std = 1/√(3·fan_in)
    "he":          kernel ~ N(0, 2/fan_in), bias = 0
    "torchvision": kernel ~ N(0, 2/fan_out) of a convolution, N(0, 0.01²) of a dense layer, bias = 0

    `fan_in` counts the weights that feed one output unit: kernel height · width · input channels,
    or the input width of a dense layer. The bias shares the kernel's fan-in. `fan_out` counts the
    weights that one input unit feeds: kernel height · width · output channels; None says that the
    layer is dense.

    Guarantees: initialisers have Flax's signature `(key, shape, dtype)`; the bounds hold exactly.

    Edge cases: biases of 0 are constant, so their scope has std 0; leave them out of a selection of
    layers (`wsa_jax.constant_layers` names them; `simulate` leaves them out itself).

    Errors: `ValueError` for an unknown name or a fan below 1.

    >>> import jax
    >>> kernel, bias = layer_initializers("reference", fan_in=100)
    >>> weights = kernel(jax.random.key(0), (100, 50))
    >>> bool(abs(weights).max() <= 0.1), bias(jax.random.key(1), (50,)).shape
    (True, (50,))

    Source: PyTorch's documented default of `torch.nn.Linear` and `torch.nn.Conv2d`; He et al.,
    "Delving deep into rectifiers", ICCV 2015, Eq. 10; torchvision's `VGG`.
    """
    if fan_in < 1:
        raise ValueError(f"fan_in must be at least 1, got {fan_in}; give every layer an input")
    if fan_out is not None and fan_out < 1:
        raise ValueError(f"fan_out must be at least 1, got {fan_out}; give every layer an output")
    if name == "reference":
        uniform = _uniform(1 / math.sqrt(fan_in))
        return uniform, uniform
    if name == "he":
        return _flat(nn.initializers.normal(math.sqrt(2 / fan_in))), nn.initializers.zeros
    if name == "torchvision":
        std = 0.01 if fan_out is None else math.sqrt(2 / fan_out)
        return _flat(nn.initializers.normal(std)), nn.initializers.zeros
    raise ValueError(f"initialization must be 'reference', 'he' or 'torchvision', got {name!r}")


def _uniform(bound: float) -> Initializer:
    def init(
        key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
    ) -> Float[Array, "..."]:
        return jax.random.uniform(key, shape, dtype, minval=-bound, maxval=bound)

    return _flat(init)


def _flat(initializer: Initializer) -> Initializer:
    """Draw a vector with the same bits: XLA's CPU compiler takes seconds per draw of four axes."""

    def init(
        key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
    ) -> Float[Array, "..."]:
        return initializer(key, (math.prod(shape),), dtype).reshape(shape)

    return init
