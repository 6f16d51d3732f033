"""What graph networks share inside a compact module: dropout, layer, ReLU, layer after layer."""

from collections.abc import Callable, Sequence

from flax import linen as nn
from jaxtyping import Array, Float

from wsa_jax import checks
from wsa_jax.models.fields import counts_of


def graph_layers(
    x: Float[Array, "nodes inputs"],
    widths: Sequence[int],
    layer: Callable[[Array, int, str], Array],
    *,
    dropout: float,
) -> Float[Array, "nodes outputs"]:
    """Apply ``layer(x, width, name)``, named `Layer_0` and so on, ReLUs in between.

    Dropout acts before each layer; 0 is none, and needs no key.
    """
    for index, width in enumerate(widths):
        if index:
            x = nn.relu(x)
        x = nn.Dropout(dropout, deterministic=not dropout)(x)
        x = layer(x, width, f"Layer_{index}")
    return x


def layer_widths(features: Sequence[int], dropout: float) -> tuple[int, ...]:
    """Return the widths of a graph network's layers as a tuple, or refuse them or the dropout.

    >>> layer_widths((), 0.5)
    Traceback (most recent call last):
    ValueError: features must name at least one layer's width, got ()
    """
    checks.number("dropout", dropout, 0, 1, "0 for none")
    widths = counts_of("features", features)
    if not widths:
        raise ValueError("features must name at least one layer's width, got ()")
    return widths
