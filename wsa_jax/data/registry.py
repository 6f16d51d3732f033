"""The datasets this library knows: one entry each."""

import math
from dataclasses import dataclass
from typing import Literal

from wsa_jax.door import check_fields, door

__all__ = ["DATASETS", "DatasetInfo", "dataset_info"]


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What has to be known about an image dataset before reading it.

    Pixels are stored as uint8 and normalised per channel as
    `(pixel / scale - mean) / std`, so `mean` and `std` are in units of `scale`.

    Attributes:
      name: key in `DATASETS`, also the folder name below the data directory.
      num_classes: labels are `0 .. num_classes - 1`.
      image_shape: (height, width, channels) of every image.
      splits: names that `load_dataset` accepts as `split`; the first is the training split.
      mean: per-channel mean, in units of `scale`.
      std: per-channel standard deviation, in units of `scale`.
      source: "tfds" (a prepared `tensorflow_datasets` folder), "sklearn" (shipped with
        scikit-learn), "idx" (MNIST's own files, `<data_dir>/<name>/train-images-idx3-ubyte.gz` and
        so on) or "folder" (`<data_dir>/<name>/<split>/<class>/*.png|jpg|jpeg`).
      scale: stored value that stands for full intensity.

    Raises:
      ValueError: `mean` or `std` does not hold one finite value per channel, a `std` or
        `scale` is not positive, or there are no classes or splits.

    A dataset of your own needs no registration; `load_dataset` also takes an info:

    >>> import dataclasses
    >>> info = dataclasses.replace(DATASETS["imagenet"], name="imagenette", num_classes=10)
    >>> info.image_shape, info.source
    ((224, 224, 3), 'folder')
    """

    name: str
    num_classes: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    splits: tuple[str, ...] = ("train", "test")
    source: Literal["tfds", "sklearn", "idx", "folder"] = "folder"
    scale: float = 255.0

    def __post_init__(self) -> None:
        check_fields(self)
        for field in ("image_shape", "mean", "std", "splits"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if len(self.image_shape) != 3:
            raise ValueError(
                f"{self.name}: image_shape={self.image_shape} must be (height, width, channels)"
            )
        for size in (self.num_classes, *self.image_shape):
            if size < 1:
                raise ValueError(
                    f"{self.name}: num_classes={self.num_classes} and image_shape="
                    f"{self.image_shape} must be positive"
                )
        channels = self.image_shape[-1]
        for field, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != channels or not all(map(math.isfinite, values)):
                raise ValueError(
                    f"{self.name}: {field}={values} must hold one finite value for each of the "
                    f"{channels} channels of image_shape={self.image_shape}"
                )
        if min(self.std) <= 0 or not self.scale > 0:
            raise ValueError(f"{self.name}: std={self.std} and scale={self.scale} must be positive")
        if self.num_classes < 1 or not self.splits:
            raise ValueError(
                f"{self.name}: num_classes={self.num_classes} and splits={self.splits} "
                "must name at least one class and one split"
            )


# One pair for CIFAR-10 and CIFAR-100, as in the reference federated code the paper follows; the
# std is that of all pixels, not the mean of per-image stds (.202, .199, .201), also in use.
_CIFAR = {"mean": (0.491, 0.482, 0.447), "std": (0.247, 0.243, 0.262)}
# ImageNet training-set statistics as published with torchvision's pretrained models. CUB uses
# the same, because it is used with ImageNet-pretrained weights.
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

_ENTRIES = (
    DatasetInfo(
        name="cifar10",
        num_classes=10,
        image_shape=(32, 32, 3),
        splits=("train", "test"),
        source="tfds",
        **_CIFAR,
    ),
    DatasetInfo(
        name="cifar100",
        num_classes=100,
        image_shape=(32, 32, 3),
        splits=("train", "test"),
        source="tfds",
        **_CIFAR,
    ),
    # Statistics of the 73,257 training images, the figures usual in PyTorch code.
    DatasetInfo(
        name="svhn_cropped",
        num_classes=10,
        image_shape=(32, 32, 3),
        splits=("train", "test", "extra"),
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.198, 0.201, 0.197),
        source="tfds",
    ),
    # Statistics of the 60,000 training images, the figures of PyTorch's MNIST example.
    DatasetInfo(
        name="mnist",
        num_classes=10,
        image_shape=(28, 28, 1),
        splits=("train", "test"),
        mean=(0.1307,),
        std=(0.3081,),
        source="tfds",
    ),
    # Statistics of the 60,000 training images. The name is that of the folder in which Debian's
    # package has them.
    DatasetInfo(
        name="fashion-mnist",
        num_classes=10,
        image_shape=(28, 28, 1),
        splits=("train", "test"),
        mean=(0.2860,),
        std=(0.3530,),
        source="idx",
    ),
    # Statistics stated in CINIC-10's own README.
    DatasetInfo(
        name="cinic10",
        num_classes=10,
        image_shape=(32, 32, 3),
        splits=("train", "valid", "test"),
        mean=(0.47889522, 0.47227842, 0.43047404),
        std=(0.24205776, 0.23828046, 0.25874835),
        source="folder",
    ),
    DatasetInfo(
        name="cub",
        num_classes=200,
        image_shape=(224, 224, 3),
        splits=("train", "test"),
        source="folder",
        **_IMAGENET,
    ),
    # All 1.28 million training images would take 193 GB as uint8: meant for subsets.
    DatasetInfo(
        name="imagenet",
        num_classes=1000,
        image_shape=(224, 224, 3),
        splits=("train", "val"),
        source="folder",
        **_IMAGENET,
    ),
    # Statistics of our own training split, in units of 16; a test recomputes them.
    DatasetInfo(
        name="digits",
        num_classes=10,
        image_shape=(8, 8, 1),
        splits=("train", "test"),
        mean=(0.3051,),
        std=(0.3762,),
        source="sklearn",
        scale=16.0,
    ),
)

DATASETS: dict[str, DatasetInfo] = {info.name: info for info in _ENTRIES}
"""The data sets that `load_dataset` knows by name; it takes a `DatasetInfo` of your own, too."""


@door
def dataset_info(name: str) -> DatasetInfo:
    """Return the registry's entry for a dataset.

    Raises:
      ValueError: the name is not registered; the message lists the known ones.

    >>> dataset_info("cifar10").num_classes
    10
    >>> dataset_info("cifar11")
    Traceback (most recent call last):
    ...
    ValueError: unknown dataset 'cifar11': choose from cifar10, cifar100, svhn_cropped, mnist, \
fashion-mnist, cinic10, cub, imagenet, digits
    """
    if name not in DATASETS:
        raise ValueError(f"unknown dataset {name!r}: choose from {', '.join(DATASETS)}")
    return DATASETS[name]
