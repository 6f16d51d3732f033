"""VGG networks with or without normalisation, and the named ones of the experiments."""

from collections.abc import Sequence

from flax import linen as nn
from jaxtyping import Array, Float

from wsa_jax import checks
from wsa_jax.conv import conv_general_dilated, max_pool
from wsa_jax.door import door
from wsa_jax.models.dense import dense_layers
from wsa_jax.models.fields import counts_of, sequence_of
from wsa_jax.models.initializers import layer_initializers
from wsa_jax.models.norms import check_norm, normalize_channels

__all__ = ["VGG", "vgg8", "vgg11", "vgg16"]

Feature = int | str

_VGG8: tuple[Feature, ...] = (64, "M", 128, "M", 256, "M", 512, "M", 512, "M")
_VGG11: tuple[Feature, ...] = (64, "M", 128, "M", 256, 256, "M", *2 * (512, 512, "M"))
_VGG16: tuple[Feature, ...] = (
    *(64, 64, "M", 128, 128, "M"),
    *(256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"),
)
_DENSE = (512, 512)


class VGG(nn.Module):
    """3x3 convolutions with 2x2 max-pools in between, then dense layers; normalised or not.

    for each feature: a number c -> conv 3x3 SAME with c channels, norm, ReLU; "M" -> max-pool 2x2
    then flatten -> [dense, ReLU] for each width in `dense` -> classes

    Shapes: [batch, height, width, channels] -> [batch, num_classes] logits.
    Parameters: `Conv_0`, `Conv_1` and so on, then `Dense_0` and so on, each with `kernel` and
    `bias`; after each convolution `BatchNorm_0` or `LayerNorm_0` and so on, with `scale` and
    `bias`, if `norm` is "batch" or "layer". Running moments are in the collection `batch_stats`.

    Guarantees: no dropout; without BatchNorm the only state is the parameters, and `train` changes
    nothing. The features are flattened in the order height, width, channel.

    Errors: `ValueError` for no features, an unknown feature, images too small for the max-pools, or
    an unknown norm or initialization (see `layer_initializers`).

    >>> import jax, jax.numpy as jnp
    >>> model = VGG(features=(8, "M", 16, "M"), dense=(32,), num_classes=10)
    >>> params = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    >>> jax.eval_shape(model.apply, params, jnp.ones((5, 8, 8, 3))).shape
    (5, 10)

    Source: Simonyan and Zisserman, ICLR 2015, without its dropout; WSA names a VGG8 but gives
    neither its widths nor a normalisation.
    """

    features: Sequence[Feature]
    dense: Sequence[int]
    num_classes: int
    # Not `init`: the name would hide the module's own method.
    initialization: str = "reference"
    norm: str = "none"

    def __post_init__(self):
        checks.count("num_classes", self.num_classes)
        object.__setattr__(self, "features", sequence_of("features", self.features))
        object.__setattr__(self, "dense", counts_of("dense", self.dense))
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        _check_features(self.features, min(x.shape[1:3]))
        convolutions = 0
        for feature, follower in zip(self.features, (*self.features[1:], None), strict=True):
            if feature == "M":
                x = max_pool(x)
            else:
                kernel_init, bias_init = layer_initializers(
                    self.initialization, 9 * x.shape[-1], 9 * int(feature)
                )
                x = nn.Conv(
                    int(feature),
                    (3, 3),
                    kernel_init=kernel_init,
                    bias_init=bias_init,
                    conv_general_dilated=conv_general_dilated,
                )(x)
                x = normalize_channels(x, self.norm, convolutions, train=train)
                convolutions += 1
            # The maximum of rectified values is the rectified maximum, at a quarter of the work.
            if follower != "M":
                x = nn.relu(x)
        x = x.reshape(x.shape[0], -1)
        return dense_layers(x, (*self.dense, self.num_classes), self.initialization)


@door
def vgg8(num_classes: int, *, width: float | int = 1.0, initialization: str = "reference") -> VGG:
    """VGG8: five convolutions (64 to 512 channels), each with a max-pool, three dense layers.

    Parameters: 4,441,226 for 32x32x3 images, 10 classes and width 1.

    Args:
      num_classes: number of logits.
      width: factor on every channel count and dense width, each rounded to at least 1.
      initialization: see `layer_initializers`.

    Raises:
      ValueError: a width that is not positive.

    >>> vgg8(10, width=0.25).features
    (16, 'M', 32, 'M', 64, 'M', 128, 'M', 128, 'M')

    Source: WSA, Figure 9, names it; the layers are a guess from networks of that name.
    """
    return _scaled(_VGG8, _DENSE, num_classes, width, initialization)


@door
def vgg11(
    num_classes: int,
    *,
    width: float | int = 1.0,
    dense: Sequence[int] = _DENSE,
    initialization: str = "reference",
) -> VGG:
    """VGG11: eight convolutions (64 to 512 channels), five max-pools, three dense layers.

    The dense layers are those of `vgg8` (512 units, for small images), not the 4,096 of ImageNet.

    Args:
      num_classes: number of logits.
      width: factor on every channel count and dense width, each rounded to at least 1.
      dense: widths of the dense layers before the last one, at width 1; ``()`` for one linear head,
        as in NP Merge's VGG11.
      initialization: see `layer_initializers`; He's keeps the signal through layers without a norm.

    Raises:
      ValueError: a width that is not positive.

    >>> len([feature for feature in vgg11(10).features if feature != "M"])
    8
    >>> vgg11(10, dense=()).dense
    ()

    Source: Simonyan and Zisserman, ICLR 2015, configuration A.
    """
    return _scaled(_VGG11, dense, num_classes, width, initialization)


@door
def vgg16(
    num_classes: int,
    *,
    width: float | int = 1.0,
    norm: str = "batch",
    initialization: str = "he",
) -> VGG:
    """VGG16: thirteen convolutions (64 to 512 channels), five max-pools, one linear head.

    Parameters: 14,728,266 for 32x32x3 images, 10 classes, width 1 and a norm. Convolutions keep
    their bias, which has no effect before a BatchNorm, as in the networks known as VGG16-BN.

    Args:
      num_classes: number of logits.
      width: factor on every channel count, each rounded to at least 1.
      norm: ``"batch"``, ``"layer"`` (over the channels of a pixel) or ``"none"``.
      initialization: see `layer_initializers`.

    Raises:
      ValueError: a width that is not positive, or an unknown norm.

    >>> vgg16(10, width=0.25).norm, vgg16(10, width=0.25).dense
    ('batch', ())

    Source: Simonyan and Zisserman, ICLR 2015, configuration D, with the head for small images.
    """
    check_norm(norm)
    return _scaled(_VGG16, (), num_classes, width, initialization, norm)


def _scaled(
    features: tuple[Feature, ...],
    dense: Sequence[int],
    num_classes: int,
    width: float | int,
    initialization: str,
    norm: str = "none",
) -> VGG:
    if not width > 0:
        raise ValueError(f"width {width} is not positive; give a factor on the channel counts")

    def scaled(count: int) -> int:
        return max(1, round(width * count))

    return VGG(
        features=tuple("M" if feature == "M" else scaled(int(feature)) for feature in features),
        dense=tuple(scaled(count) for count in dense),
        num_classes=num_classes,
        initialization=initialization,
        norm=norm,
    )


def _check_features(features: Sequence[Feature], size: int) -> None:
    if not features:
        raise ValueError("features must name at least one convolution's channels, got ()")
    for feature in features:
        if feature != "M" and (not isinstance(feature, int) or feature < 1):
            raise ValueError(f"feature {feature!r} is neither a channel count nor 'M'")
    pools = sum(feature == "M" for feature in features)
    if size < 2**pools:
        raise ValueError(
            f"{pools} max-pools need images of at least {2**pools}x{2**pools}, got a side of {size}"
        )
