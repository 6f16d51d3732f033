"""Whether images are what a dataset's normalisation is made for: stored pixels, 0 .. scale."""

import jax
import numpy as np
from jax import Array

from wsa_jax.data.registry import DatasetInfo

# Images looked at, spread over all: a range that is wrong shows in a few.
_SAMPLE = 256
# From so many on, not all are dark by chance, as a single photograph may be.
_MANY = 32


def check_images(images: np.ndarray | Array, info: DatasetInfo, what: str) -> None:
    """Raise a ValueError unless images hold pixels as ``info`` normalises them.

    Looks at the dtype and at the range of some of the images, on the host; traced images are
    checked for their dtype alone. Floating-point images are accepted in the range of the stored
    ones. Images that are all equal (blank) are accepted, and fewer than 32 of them may all be dark.

    >>> info = DatasetInfo(name="x", num_classes=2, image_shape=(2, 2, 1), mean=(0.5,), std=(0.2,))
    >>> check_images(np.linspace(0, 1, 8, dtype=np.float32).reshape(2, 2, 2, 1), info, "train")
    Traceback (most recent call last):
    ValueError: images of train are float32 from 0 to 1, but 'x' normalises pixels 0 .. 255 ...
    """
    check_image_dtype(images, info, what)
    if isinstance(images, jax.core.Tracer) or not np.size(images):
        return
    step = max(1, len(images) // _SAMPLE)
    sample = np.asarray(images[::step]).astype(np.float64)
    low, high = sample.min(), sample.max()
    largest = info.scale * (1 + 1e-6)
    # Pixels 0 .. 1 are in other units, and so are those of many images that are all darker than the
    # dataset's mean.
    mean = info.scale * min(info.mean) if len(images) >= _MANY else 0.0
    dark = high <= max(mean, 1.0 if info.scale > 2 else 0.0)
    if not (low >= 0 and high <= largest) or (dark and high > low):
        raise ValueError(
            f"images of {what} are {images.dtype} from {low:g} to {high:g}, but {info.name!r} "
            f"normalises pixels 0 .. {info.scale:g} (its scale); give them as they are stored, "
            "or a task whose info has their scale, by dataclasses.replace(info, scale=...)"
        )


def check_image_dtype(images: np.ndarray | Array, info: DatasetInfo, what: str) -> None:
    """Raise a ValueError unless a dtype can hold pixels 0 .. scale."""
    dtype = np.dtype(images.dtype)
    floating = jax.numpy.issubdtype(dtype, np.floating)
    room = np.iinfo(dtype).max >= info.scale if dtype.kind in "iu" else floating
    if not room:
        raise ValueError(
            f"images of {what} are {dtype}, which holds no pixels 0 .. {info.scale:g} (the scale "
            f"of {info.name!r}); give them as they are stored, usually uint8"
        )
