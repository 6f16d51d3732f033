"""The normalisation layers of the architectures, by name."""

from flax import linen as nn
from jaxtyping import Array, Float

__all__ = ["check_norm", "normalize_channels"]

NORMS = ("batch", "layer", "none")


def normalize_channels(
    x: Float[Array, "batch height width channels"], norm: str, index: int, *, train: bool
) -> Float[Array, "batch height width channels"]:
    """Normalise inside a compact module, with the submodule `BatchNorm_i` or `LayerNorm_i`.

    "batch": y = scale · (x - mean) / sqrt(var + 1e-5) + bias, moments over all axes but the
      channels; with train, those of the batch, which move the running ones by 0.1; otherwise the
      running ones
    "layer": the same over the channels of each pixel, with 1e-6
    "none":  y = x

    Raises:
      ValueError: an unknown norm.

    Source: Ioffe and Szegedy, ICML 2015, with PyTorch's constants; Ba et al., 2016, as in the
    networks of Ainsworth et al., Git Re-Basin, ICLR 2023.
    """
    check_norm(norm)
    if norm == "batch":
        return nn.BatchNorm(
            use_running_average=not train, momentum=0.9, epsilon=1e-5, name=f"BatchNorm_{index}"
        )(x)
    if norm == "layer":
        return nn.LayerNorm(name=f"LayerNorm_{index}")(x)
    return x


def check_norm(norm: str, known: tuple[str, ...] = NORMS) -> None:
    """Raise a ValueError unless the norm is known.

    >>> check_norm("group")
    Traceback (most recent call last):
    ValueError: norm must be 'batch', 'layer' or 'none', got 'group'
    """
    if norm not in known:
        *others, last = map(repr, known)
        raise ValueError(f"norm must be {', '.join(others)} or {last}, got {norm!r}")
