"""The data set that most tests train on."""

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
