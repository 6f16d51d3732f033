"""Reading datasets into memory as uint8 NumPy arrays, without TensorFlow."""

import dataclasses
import io
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Integer, UInt8

from wsa_jax.data.idx import read_idx
from wsa_jax.data.registry import DatasetInfo, dataset_info
from wsa_jax.data.trust import check_features
from wsa_jax.door import door
from wsa_jax.extras import require

__all__ = ["Dataset", "load_dataset", "train_validation_split"]

_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a dataset, in memory on the host.

    Attributes:
      images: uint8 `[n, height, width, channels]`, as stored or averaged, not normalised.
      labels: int32 `[n]`, in `0 .. info.num_classes - 1`.
      info: the registry's entry, with the `image_shape` of these images.
    """

    images: UInt8[np.ndarray, "n h w c"]
    labels: Int32[np.ndarray, " n"]
    info: DatasetInfo

    def __len__(self) -> int:
        return len(self.labels)


@door
def load_dataset(
    name: str | DatasetInfo,
    *,
    split: str = "train",
    data_dir: str | Path | None = None,
    side: int | None = None,
) -> Dataset:
    """Read one split of a dataset into memory.

    Nothing is ever downloaded. Equal files give equal arrays, in the order of the files.

    Args:
      name: a name in `wsa_jax.data.DATASETS`, or the `DatasetInfo` of a dataset of your own.
      split: one of the info's `splits`.
      data_dir: folder that holds `<name>/`. Default: the environment variable TFDS_DATA_DIR, then
        `~/tensorflow_datasets`. Not used for digits, which scikit-learn ships.
      side: height and width of smaller images, made of square ones: each pixel is the mean of a
        block, 2x2 for a side of 16 and images of 32x32, rounded to the nearest integer and halves
        to the even one, as `numpy.rint` does. It must divide the images' own side.

    Returns:
      A `Dataset`: uint8 images `[n, h, w, c]`, int32 labels `[n]`, info.

      * digits: in each class, every fifth image, in scikit-learn's order, belongs to the test
        split (355 images), the others to the training split (1,442). Pixels are 0 .. 16.
      * folders: classes are the sorted sub-folder names of the split. An image of another size
        is resized bilinearly so that it covers the info's shape, then cropped at the centre (no
        distortion); modes are converted to RGB or grey, and of 16 bits the high byte is kept.
      * a side: the info has its `image_shape`, and the `mean` and `std` of the images as stored, so
        that the inputs are block means of the stored images' inputs, up to the rounding. They vary
        a little less: on CIFAR-10, the inputs' std is 0.96.

    Raises:
      ValueError: unknown dataset or split, prepared features that name a class of another library
        (no code that data names is imported), a folder with a different number of classes than the
        info or without an image, a file that is no image or a damaged one (it is named), prepared
        images of a different shape, or a side that does not divide theirs.
      FileNotFoundError: the data is not there; the message says what to run or set.

    >>> train = load_dataset("digits")
    >>> train.images.shape, train.images.dtype, train.labels.shape
    ((1442, 8, 8, 1), dtype('uint8'), (1442,))
    >>> load_dataset("digits", side=4).info.image_shape
    (4, 4, 1)
    """
    info = dataset_info(name) if isinstance(name, str) else name
    if side is not None:
        _check_side(side, info)
    if split not in info.splits:
        raise ValueError(
            f"dataset {info.name!r} has no split {split!r}: choose from {', '.join(info.splits)}"
        )
    if info.source == "sklearn":
        images, labels = _read_digits(split)
    else:
        root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
        folder = root.expanduser() / info.name
        read = {"tfds": _read_tfds, "idx": read_idx, "folder": _read_folder}[info.source]
        images, labels = read(folder, info, split)
    if side is None:
        return Dataset(images, labels, info)
    shape = (side, side, info.image_shape[2])
    return Dataset(_block_means(images, side), labels, dataclasses.replace(info, image_shape=shape))


@door
def train_validation_split(
    labels: Integer[np.ndarray, " n"], fraction: float, seed: int
) -> tuple[Int32[np.ndarray, " train"], Int32[np.ndarray, " validation"]]:
    """Split sample indices in two, class by class, to choose settings without the test set.

    Of a class with m samples, `round(fraction * m)` go to validation, but never all: each class
    with a sample keeps at least one for training.

    Args:
      labels: integer `[n]`.
      fraction: share of validation samples, in (0, 1).
      seed: equal seeds give equal splits.

    Returns:
      Sorted int32 index arrays (train, validation): disjoint, together `0 .. n - 1`.

    Raises:
      ValueError: `labels` is empty or not one axis of integers, `fraction` is outside (0, 1), or
        `seed` is negative.

    >>> labels = load_dataset("digits").labels
    >>> train, validation = train_validation_split(labels, 0.2, seed=0)
    >>> len(train), len(validation)
    (1154, 288)
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.size == 0 or labels.dtype.kind not in "iu":
        raise ValueError(
            "labels must be a non-empty array of integers with one axis, "
            f"got shape {labels.shape} of {labels.dtype}"
        )
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"fraction={fraction} must lie strictly between 0 and 1")
    if seed < 0:
        raise ValueError(f"seed {seed} is negative; give an integer from 0")
    rng = np.random.default_rng(seed)
    held_out = np.zeros(labels.size, bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        # floor(x + 1/2), because Python's round() takes halves to the even neighbour.
        count = min(math.floor(fraction * members.size + 0.5), members.size - 1)
        held_out[members[:count]] = True
    return (
        np.flatnonzero(~held_out).astype(np.int32),
        np.flatnonzero(held_out).astype(np.int32),
    )


def _check_side(side: int, info: DatasetInfo) -> None:
    height, width, _ = info.image_shape
    if height != width:
        raise ValueError(
            f"side={side}: images of {info.name!r} are {height}x{width}, not square; leave it out"
        )
    sides = [number for number in range(height, 0, -1) if height % number == 0]
    if side not in sides:
        raise ValueError(
            f"side={side} does not divide the {height}x{width} images of {info.name!r}: "
            f"choose from {', '.join(map(str, sides))}"
        )


def _block_means(
    images: UInt8[np.ndarray, "n h w c"], side: int
) -> UInt8[np.ndarray, "n side side c"]:
    count, height, _, channels = images.shape
    block = height // side
    blocks = images.reshape(count, side, block, side, block, channels)
    sums = np.zeros((count, side, side, channels), np.uint32)
    # Sums of integers are exact, and adding strided views takes a third of a reduction's time.
    for row in range(block):
        for column in range(block):
            sums += blocks[:, :, row, :, column]
    # float32 rounds correctly and holds these sums, so a half is a half.
    return np.rint(sums.astype(np.float32) / np.float32(block**2)).astype(np.uint8)


def _read_digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    require("sklearn", "the data set 'digits'")
    from sklearn.datasets import load_digits

    pixels, target = load_digits(return_X_y=True)
    labels = np.asarray(target, np.int32)
    # A rule instead of a random draw: NumPy may change its random streams between versions.
    rank = np.empty(labels.size, np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = np.arange(members.size)
    chosen = (rank % 5 == 4) == (split == "test")
    return np.asarray(pixels, np.uint8).reshape(-1, 8, 8, 1)[chosen], labels[chosen]


def _read_tfds(folder: Path, info: DatasetInfo, split: str) -> tuple[np.ndarray, np.ndarray]:
    versions = [
        path.parent
        for path in folder.glob("*/dataset_info.json")
        if any(path.parent.glob(f"*-{split}.array_record*"))
        # Other folders, a backup say, are no versions.
        and all(part.isdecimal() for part in path.parent.name.split("."))
    ]
    if not versions:
        raise FileNotFoundError(
            f"no prepared {info.name!r} ({split}, array_record) in {folder}: set data_dir or "
            "TFDS_DATA_DIR to a folder that holds it, or prepare it (in a scratch environment, "
            "since preparing, unlike reading, needs tensorflow and importlib_resources) with: "
            f'python -c "import tensorflow_datasets as tfds; '
            f"tfds.data_source('{info.name}', data_dir='{folder.parent}')\""
        )
    newest = max(versions, key=lambda path: [int(part) for part in path.name.split(".")])
    check_features(newest)

    require("array_record", f"the data set {info.name!r}")
    import tensorflow_datasets as tfds

    # Built from the folder and not by name, so that nothing can be downloaded. The images are
    # decoded here: with the library's own decoding the same loop takes a second longer.
    # `Any`: the library types a data source as a plain sequence, which has no batched read.
    source: Any = tfds.builder_from_directory(str(newest)).as_data_source(
        split=split, decoders={"image": tfds.decode.SkipDecoding()}
    )
    records = source.__getitems__(list(range(len(source))))
    images = _decode(
        ((newest, io.BytesIO(record["image"])) for record in records), len(records), info, False
    )
    return images, np.asarray([record["label"] for record in records], np.int32)


def _read_folder(folder: Path, info: DatasetInfo, split: str) -> tuple[np.ndarray, np.ndarray]:
    root = folder / split
    if not root.is_dir():
        raise FileNotFoundError(
            f"no images of {info.name!r} in {root}: extract the archive there as "
            f"{split}/<class>/*.png or *.jpg, or set data_dir or TFDS_DATA_DIR to the folder "
            f"that holds {info.name}/"
        )
    classes = sorted(path for path in root.iterdir() if path.is_dir())
    if len(classes) != info.num_classes:
        # A missing class would silently shift the labels of all that follow.
        raise ValueError(
            f"{root} holds {len(classes)} class folders but {info.name!r} has "
            f"num_classes={info.num_classes}: complete the folder, or pass an info with "
            "dataclasses.replace(info, num_classes=...)"
        )
    files = [
        (path, label)
        for label, one_class in enumerate(classes)
        for path in sorted(one_class.iterdir())
        if path.suffix.lower() in _SUFFIXES
    ]
    for label, one_class in enumerate(classes):
        if not any(label == of for _, of in files):
            raise ValueError(
                f"{one_class} holds no image ({', '.join(_SUFFIXES)}); complete the class, or "
                "remove the folder and its class"
            )
    images = _decode(((path, path) for path, _ in files), len(files), info, True)
    return images, np.asarray([label for _, label in files], np.int32)


def _decode(
    files: Iterable[tuple[Path, Path | io.BytesIO]], count: int, info: DatasetInfo, resize: bool
) -> np.ndarray:
    require("PIL", f"the data set {info.name!r}")
    from PIL import ImageOps
    from PIL.Image import Resampling

    height, width, channels = info.image_shape
    mode = {1: "L", 3: "RGB"}[channels]
    images = np.empty((count, height, width, channels), np.uint8)
    for row, (path, file) in enumerate(files):
        image = _read_image(file, mode, f"image {row} in {path}" if path.is_dir() else str(path))
        if image.size != (width, height):
            if not resize:
                raise ValueError(
                    f"image {row} in {path} has width, height {image.size}, but "
                    f"{info.name!r} has image_shape={info.image_shape}"
                )
            image = ImageOps.fit(image, (width, height), Resampling.BILINEAR)
        images[row] = np.asarray(image).reshape(height, width, channels)
    return images


def _read_image(file: Path | io.BytesIO, mode: str, name: str) -> Any:
    """Decode one image to 8 bits a channel; of 16 bits, the high byte is kept."""
    from PIL import Image

    try:
        # Naming the formats avoids a search through all of them, a tenth of the time.
        with Image.open(file, formats=("JPEG", "PNG")) as opened:
            opened.load()
            # Converted by Pillow, 16 bits of grey would be clipped at 255.
            if opened.mode.startswith("I"):
                deep = np.asarray(opened).astype(np.int64)
                return Image.fromarray((deep >> 8).astype(np.uint8)).convert(mode)
            return opened if opened.mode == mode else opened.convert(mode)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{name} cannot be read: {reason or type(error).__name__}; replace or remove it"
        ) from error
