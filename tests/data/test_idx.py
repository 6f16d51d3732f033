"""Image sets in IDX files: written byte by byte, read back, and damaged in every way."""

import dataclasses
import gzip
import struct

import numpy as np
import pytest

from wsa_jax.data import DATASETS, load_dataset

INFO = dataclasses.replace(DATASETS["fashion-mnist"], image_shape=(3, 2, 1), num_classes=4)
IMAGES = np.arange(30, dtype=np.uint8).reshape(5, 3, 2)
LABELS = np.array([3, 0, 1, 2, 3], np.uint8)


def idx(array):
    """An array as IDX bytes: type 8, the number of axes, big-endian sizes, the values."""
    return (
        bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + bytes(array)
    )


def write(folder, prefix="train", images=None, labels=None):
    folder = folder / "fashion-mnist"
    folder.mkdir(exist_ok=True)
    images = gzip.compress(idx(IMAGES)) if images is None else images
    (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(images)
    (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(LABELS) if labels is None else labels)


def test_files_are_read_as_they_are_compressed_or_not(tmp_path):
    write(tmp_path)
    write(tmp_path, "t10k", gzip.compress(idx(IMAGES[:2])), idx(LABELS[:2]))
    train = load_dataset(INFO, data_dir=tmp_path)
    np.testing.assert_array_equal(train.images, IMAGES[..., None])
    np.testing.assert_array_equal(train.labels, LABELS)
    assert train.labels.dtype == np.int32
    assert len(load_dataset(INFO, split="test", data_dir=tmp_path)) == 2


PACKED = gzip.compress(idx(IMAGES))
DAMAGED = {
    "is no gzip file": {"images": b"no gzip file"},
    "is cut short": {"images": PACKED[:-12]},
    "has another checksum": {"images": PACKED[:-8] + bytes(4) + PACKED[-4:]},
    "has labels for images": {"images": gzip.compress(idx(LABELS))},
    "has a byte less": {"images": gzip.compress(idx(IMAGES)[:-1])},
    "has a byte more": {"images": gzip.compress(idx(IMAGES) + b"0")},
    "is empty": {"labels": b""},
    "has a label of no class": {"labels": idx(LABELS + np.uint8(1))},
    "has a label too few": {"labels": idx(LABELS[1:])},
    "has other images": {"images": gzip.compress(idx(IMAGES.reshape(5, 2, 3)))},
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_file_is_named_in_one_line(how, tmp_path):
    write(tmp_path, **DAMAGED[how])
    with pytest.raises(ValueError, match=r"-ubyte(\.gz)? (cannot be read:|holds|has) ") as error:
        load_dataset(INFO, data_dir=tmp_path)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)
