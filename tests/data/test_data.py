import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsa_jax.data import DATASETS, DatasetInfo, load_dataset, normalize, train_validation_split

ROOT = Path(__file__).resolve().parents[2]


def tfds_dir_with_cifar10() -> Path | None:
    candidates = [os.environ.get("TFDS_DATA_DIR"), ROOT.parent / "shared" / "data" / "tfds"]
    return next((Path(c) for c in candidates if c and (Path(c) / "cifar10").is_dir()), None)


CIFAR_DIR = tfds_dir_with_cifar10()
needs_cifar = pytest.mark.skipif(
    CIFAR_DIR is None, reason="no prepared CIFAR-10: set TFDS_DATA_DIR"
)


def write_folder(root: Path, sizes: dict[str, tuple[int, int]], mode: str = "RGB") -> dict:
    """One random PNG in each class folder; returns the pixels by class."""
    rng = np.random.default_rng(0)
    written = {}
    for name, (height, width) in sizes.items():
        shape = (height, width, 3) if mode == "RGB" else (height, width)
        written[name] = rng.integers(0, 256, shape).astype(np.uint8)
        (root / name).mkdir(parents=True)
        Image.fromarray(written[name]).save(root / name / "image.png")
    return written


def folder_info(num_classes: int, shape: tuple[int, int, int]) -> DatasetInfo:
    mean, std = (0.5,) * shape[2], (0.25,) * shape[2]
    return DatasetInfo(
        name="mine",
        num_classes=num_classes,
        image_shape=shape,
        splits=("train",),
        mean=mean,
        std=std,
        source="folder",
    )


@pytest.mark.parametrize("name", DATASETS)
def test_every_entry_is_filed_under_its_own_name_and_starts_with_train(name):
    info = DATASETS[name]
    assert info.name == name
    assert info.splits[0] == "train"
    # A pixel lies in [0, 1], so neither statistic can be larger, and a std not above 1/2.
    assert all(0 < m < 1 for m in info.mean)
    assert all(0 < s <= 0.5 for s in info.std)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": (0.5,)}, "mean"),
        ({"std": (0.1, float("nan"), 0.1)}, "std"),
        ({"std": (0.1, 0.0, 0.1)}, "positive"),
        ({"scale": 0.0}, "scale"),
        ({"num_classes": 0}, "num_classes"),
        ({"splits": ()}, "splits"),
    ],
)
def test_an_impossible_entry_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(DATASETS["cifar10"], **change)


def test_digits_are_scikit_learns_digits_split_once():
    from sklearn.datasets import load_digits

    train, test = load_dataset("digits"), load_dataset("digits", split="test")
    original = load_digits()
    assert train.images.dtype == test.images.dtype == np.uint8
    assert train.labels.dtype == test.labels.dtype == np.int32

    def rows(images, labels):
        return sorted(zip(images.reshape(len(labels), -1).tolist(), labels.tolist(), strict=True))

    both = rows(
        np.concatenate([train.images, test.images]), np.concatenate([train.labels, test.labels])
    )
    assert both == rows(original.images.astype(int), original.target)
    for label in range(10):
        total = (original.target == label).sum()
        assert (test.labels == label).sum() == total // 5


def test_digits_statistics_are_those_of_the_training_split():
    train = load_dataset("digits")
    pixels = train.images / train.info.scale
    # The registry holds four decimals.
    assert abs(pixels.mean() - train.info.mean[0]) <= 0.5e-4
    assert abs(pixels.std() - train.info.std[0]) <= 0.5e-4


def test_unknown_dataset_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'cifar11'.*cifar10, cifar100.*digits") as error:
        load_dataset("cifar11")
    assert "\n" not in str(error.value)


def test_unknown_split_names_the_known_ones():
    with pytest.raises(ValueError, match=r"digits.*'valid'.*train, test"):
        load_dataset("digits", split="valid")


@pytest.mark.parametrize(
    "name", ["cifar100", "svhn_cropped", "fashion-mnist", "cinic10", "cub", "imagenet"]
)
def test_missing_data_says_where_it_looked_and_what_to_do(name, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load_dataset(name, data_dir=tmp_path)
    message = str(error.value)
    assert "\n" not in message
    assert str(tmp_path / name) in message
    assert "TFDS_DATA_DIR" in message


def test_data_dir_defaults_to_the_environment_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "here"))
    with pytest.raises(FileNotFoundError, match="here"):
        load_dataset("mnist")


def test_image_folder_is_read_exactly_in_sorted_class_order(tmp_path):
    written = write_folder(tmp_path / "mine" / "train", {"b": (4, 6), "a": (4, 6), "c": (4, 6)})
    (tmp_path / "mine" / "train" / "a" / "notes.txt").write_text("not an image")
    data = load_dataset(folder_info(3, (4, 6, 3)), data_dir=tmp_path)
    assert len(data) == 3
    np.testing.assert_array_equal(data.labels, [0, 1, 2])
    for image, name in zip(data.images, "abc", strict=True):
        np.testing.assert_array_equal(image, written[name])


def test_grey_images_become_rgb_and_rgb_images_grey(tmp_path):
    grey = write_folder(tmp_path / "mine" / "train", {"a": (4, 4)}, mode="L")
    data = load_dataset(folder_info(1, (4, 4, 3)), data_dir=tmp_path)
    np.testing.assert_array_equal(data.images[0], np.repeat(grey["a"][:, :, None], 3, axis=2))
    data = load_dataset(folder_info(1, (4, 4, 1)), data_dir=tmp_path)
    np.testing.assert_array_equal(data.images[0, :, :, 0], grey["a"])


def test_an_image_of_another_size_is_cropped_at_the_centre_and_resized(tmp_path):
    root = tmp_path / "mine" / "train" / "a"
    root.mkdir(parents=True)
    # A wide image whose centre square is flat: only distortion or a shifted crop could mix in
    # the border colour. The resampling filter reads two pixels past the crop, hence the margin.
    wide = np.full((16, 48, 3), 255, np.uint8)
    wide[:, 12:36] = (10, 200, 30)
    Image.fromarray(wide).save(root / "wide.png")
    data = load_dataset(folder_info(1, (8, 8, 3)), data_dir=tmp_path)
    np.testing.assert_array_equal(data.images[0], np.broadcast_to((10, 200, 30), (8, 8, 3)))


def test_a_folder_with_a_missing_class_is_refused(tmp_path):
    write_folder(tmp_path / "mine" / "train", {"a": (4, 4), "b": (4, 4)})
    with pytest.raises(ValueError, match=r"2 class folders.*num_classes=3"):
        load_dataset(folder_info(3, (4, 4, 3)), data_dir=tmp_path)


@needs_cifar
def test_cifar10_equals_the_librarys_own_reading():
    import tensorflow_datasets as tfds

    data = load_dataset("cifar10", split="test", data_dir=CIFAR_DIR)
    assert data.images.shape == (10_000, 32, 32, 3)
    np.testing.assert_array_equal(np.bincount(data.labels), [1000] * 10)
    source = tfds.data_source("cifar10", data_dir=str(CIFAR_DIR), split="test")
    for row in (0, 1, 4321, 9999):
        np.testing.assert_array_equal(data.images[row], source[row]["image"])
        assert data.labels[row] == source[row]["label"]
    assert "tensorflow" not in sys.modules


@needs_cifar
def test_prepared_images_of_another_shape_are_refused():
    info = dataclasses.replace(DATASETS["cifar10"], image_shape=(28, 28, 3))
    with pytest.raises(ValueError, match=r"\(32, 32\).*image_shape=\(28, 28, 3\)"):
        load_dataset(info, split="test", data_dir=CIFAR_DIR)


def block_means(images, block):
    """Means of blocks in float64, pixel by pixel, rounded by NumPy."""
    count, height, width, channels = images.shape
    means = np.empty((count, height // block, width // block, channels))
    for row, column in np.ndindex(*means.shape[1:3]):
        rows, columns = (slice(block * at, block * at + block) for at in (row, column))
        means[:, row, column] = images[:, rows, columns].astype(np.float64).mean(axis=(1, 2))
    return np.rint(means).astype(np.uint8)


@pytest.mark.parametrize("side", [1, 2, 4, 6, 12])
def test_a_side_gives_rounded_means_of_blocks(side, tmp_path):
    write_folder(tmp_path / "mine" / "train", {"a": (12, 12), "b": (12, 12)})
    info = folder_info(2, (12, 12, 3))
    stored = load_dataset(info, data_dir=tmp_path)
    data = load_dataset(info, data_dir=tmp_path, side=side)
    assert data.images.dtype == np.uint8
    np.testing.assert_array_equal(data.images, block_means(stored.images, 12 // side))
    np.testing.assert_array_equal(data.labels, stored.labels)
    assert data.info == dataclasses.replace(info, image_shape=(side, side, 3))


def test_halves_of_block_means_are_rounded_to_even(tmp_path):
    root = tmp_path / "mine" / "train" / "a"
    root.mkdir(parents=True)
    # Means 0.5, 1.5, 2.25 and 254.75.
    blocks = [[0, 1, 0, 1], [1, 2, 1, 2], [2, 2, 2, 3], [255, 255, 255, 254]]
    pixels = np.array(blocks, np.uint8).reshape(2, 2, 2, 2).transpose(0, 2, 1, 3).reshape(4, 4)
    Image.fromarray(pixels).save(root / "image.png")
    data = load_dataset(folder_info(1, (4, 4, 1)), data_dir=tmp_path, side=2)
    np.testing.assert_array_equal(data.images[0, :, :, 0], [[0, 2], [2, 255]])


def test_a_side_that_makes_no_blocks_is_refused():
    for side in (3, 0, 16):
        with pytest.raises(ValueError, match=f"side={side} does not.*8x8.*choose from 8, 4, 2, 1"):
            load_dataset("digits", side=side)
    with pytest.raises(ValueError, match=r"side=2: images of 'mine' are 4x6, not square"):
        load_dataset(folder_info(1, (4, 6, 3)), side=2)


def test_inputs_of_a_side_are_block_means_of_the_inputs():
    full, half = load_dataset("digits"), load_dataset("digits", side=4)
    expected = np.asarray(normalize(full.images, full.info), np.float64)
    expected = expected.reshape(-1, 4, 2, 4, 2, 1).mean(axis=(2, 4))
    # The averages are rounded to whole pixels: half a pixel in units of scale and std.
    bound = 0.5 / (half.info.scale * half.info.std[0])
    assert np.abs(normalize(half.images, half.info) - expected).max() <= bound + 1e-5


@needs_cifar
def test_cifar10_of_side_16():
    full = load_dataset("cifar10", split="test", data_dir=CIFAR_DIR)
    half = load_dataset("cifar10", split="test", data_dir=CIFAR_DIR, side=16)
    assert half.info == dataclasses.replace(full.info, image_shape=(16, 16, 3))
    np.testing.assert_array_equal(half.images, block_means(full.images, 2))
    np.testing.assert_array_equal(half.labels, full.labels)
    spread = normalize(half.images, half.info).std(axis=(0, 1, 2))
    # The documented loss of spread.
    np.testing.assert_allclose(spread, 0.96, atol=0.01)


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_validation_split_is_stratified_disjoint_and_complete(fraction):
    labels = np.random.default_rng(0).integers(0, 7, 500)
    train, validation = train_validation_split(labels, fraction, 3)
    np.testing.assert_array_equal(
        np.sort(np.concatenate([train, validation])), np.arange(labels.size)
    )
    share = np.bincount(labels[validation], minlength=7) / np.bincount(labels)
    # Rounding to whole samples moves a class's share by at most half a sample.
    assert np.all(np.abs(share - fraction) <= 0.5 / np.bincount(labels) + 1e-12)


def test_validation_split_depends_on_the_seed_alone():
    labels = np.arange(100) % 4
    again = [train_validation_split(labels, 0.2, 7)[1] for _ in range(2)]
    np.testing.assert_array_equal(*again)
    assert not np.array_equal(again[0], train_validation_split(labels, 0.2, 8)[1])


def test_validation_split_leaves_every_class_a_training_sample():
    labels = np.array([0, 0, 1, 5])
    train, validation = train_validation_split(labels, 0.9, 0)
    assert set(labels[train]) == {0, 1, 5}
    assert set(labels[validation]) == {0}


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_validation_fraction_outside_its_range_is_refused(fraction):
    with pytest.raises(ValueError, match="fraction"):
        train_validation_split(np.zeros(4, int), fraction, 0)


def test_validation_split_of_nothing_is_refused():
    with pytest.raises(ValueError, match="labels"):
        train_validation_split(np.zeros(0, int), 0.5, 0)


def test_importing_loads_no_dataset_library_and_no_matplotlib():
    code = (
        "import sys, wsa_jax, wsa_jax.data, wsa_jax.plots; "
        "print([m for m in ('tensorflow', 'tensorflow_datasets', 'sklearn', 'matplotlib', 'PIL') "
        "if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"
