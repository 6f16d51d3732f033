"""The data set that most tests train on."""

import numpy as np

from wsa_jax.data.registry import DatasetInfo

# Grey images of 3x3 pixels in three classes.
INFO = DatasetInfo(
    name="tiny",
    num_classes=3,
    image_shape=(3, 3, 1),
    splits=("train",),
    mean=(0.5,),
    std=(0.25,),
    source="folder",
    scale=16.0,
)


def examples(count):
    """Images and labels drawn here, without a data set; the class is the brightest row."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, count).astype(np.int32)
    images = rng.integers(0, 12, (count, 3, 3, 1))
    images[np.arange(count), labels] += 4
    return images.astype(np.uint8), labels
