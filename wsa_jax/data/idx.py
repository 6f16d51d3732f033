"""Image sets in IDX files, the format of MNIST: read whole, checked against what is expected."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from wsa_jax.data.registry import DatasetInfo

__all__ = ["read_idx"]

_UINT8 = 8


def read_idx(folder: Path, info: DatasetInfo, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of ``<prefix>-images-idx3-ubyte`` and ``<prefix>-labels-idx1-ubyte``.

    The prefix is the split's name, for ``test`` MNIST's ``t10k``; files may end in ``.gz``.

    Returns:
      uint8 images ``[n, h, w, 1]`` and int32 labels ``[n]``.

    Raises:
      FileNotFoundError: a file is not there; the message says where to get it.
      ValueError: a file that is damaged, of another size, or with a label of no class; it is named.
    """
    prefix = "t10k" if split == "test" else split
    images_file = _found(folder, f"{prefix}-images-idx3-ubyte", info)
    labels_file = _found(folder, f"{prefix}-labels-idx1-ubyte", info)
    images, labels = _read_array(images_file, 3)[..., None], _read_array(labels_file, 1)
    if images.shape[1:] != info.image_shape:
        raise ValueError(
            f"{images_file} has images of shape {images.shape[1:]}, but {info.name!r} has "
            f"image_shape={info.image_shape}"
        )
    if len(images) != len(labels):
        raise ValueError(
            f"{labels_file} has {len(labels)} labels for {len(images)} images; replace both files"
        )
    if labels.size and labels.max() >= info.num_classes:
        raise ValueError(
            f"{labels_file} has the label {labels.max()}, but {info.name!r} has "
            f"num_classes={info.num_classes}"
        )
    return images, labels.astype(np.int32)


def _found(folder: Path, name: str, info: DatasetInfo) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"no {name} of {info.name!r} in {folder}: put the files there, compressed or not, or set "
        f"data_dir or TFDS_DATA_DIR to the folder that holds {info.name}/; Debian's package "
        f"dataset-{info.name} puts them in /usr/share/datasets"
    )


def _read_array(path: Path, axes: int) -> np.ndarray:
    """One file: two zeros, the type, the number of axes, their sizes, the bytes."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4 + 4 * axes)
            if len(head) < 4 + 4 * axes or head[:4] != bytes((0, 0, _UINT8, axes)):
                raise ValueError(f"no IDX file of bytes with {axes} axes")
            shape = struct.unpack(f">{axes}I", head[4:])
            # One byte more than there should be, and not all that a small file may unpack to.
            data = file.read(math.prod(shape) + 1)
    except (OSError, EOFError, ValueError, OverflowError, MemoryError, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be read: {reason}; replace it") from error
    if len(data) != math.prod(shape):
        raise ValueError(
            f"{path} holds {'fewer' if len(data) < math.prod(shape) else 'more'} bytes than its "
            f"sizes {shape} say; replace it"
        )
    return np.frombuffer(data, np.uint8).reshape(shape)
