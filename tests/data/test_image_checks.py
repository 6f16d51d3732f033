"""Images in other units than the task's, images of 16 bits, damaged files and empty folders."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from wsa_jax.data import DATASETS, DatasetInfo, load_dataset
from wsa_jax.data.checks import check_images
from wsa_jax.federated import LocalSettings, iid, simulate
from wsa_jax.models import MLP
from wsa_jax.training import FitSettings, classification, evaluate, fit

DIGITS = DATASETS["digits"]
CIFAR = DATASETS["cifar10"]


def images(low, high, dtype, count=8):
    """Images whose range is exactly [low, high]."""
    return np.linspace(low, high, count * 64).reshape(count, 8, 8, 1).astype(dtype)


WRONG = {
    "float32 from 0 to 1, .* 0 .. 255": (CIFAR, images(0, 1, np.float32)),
    "float16 from 0 to 1, .* 0 .. 16": (DIGITS, images(0, 1, np.float16)),
    "uint8 from 0 to 255, .* 0 .. 16": (DIGITS, images(0, 255, np.uint8)),
    "uint8 from 0 to 16, .* 0 .. 255": (CIFAR, images(0, 16, np.uint8, count=32)),
    "uint8 from 0 to 1, .* 0 .. 255": (CIFAR, images(0, 1, np.uint8)),
    "float32 from -2 to 2.5, .* 0 .. 255": (CIFAR, images(-2, 2.5, np.float32)),
    "int64 from -1 to 255, .* 0 .. 255": (CIFAR, images(-1, 255, np.int64)),
    "float32 from 0 to 65535, .* 0 .. 255": (CIFAR, images(0, 65535, np.float32)),
    "float64 from nan to nan, .* 0 .. 255": (CIFAR, images(0, np.nan, np.float64)),
    "bool, which holds no pixels 0 .. 255": (CIFAR, images(0, 1, bool)),
    "int8, which holds no pixels 0 .. 255": (CIFAR, images(0, 100, np.int8)),
    "complex64, which holds no pixels 0 .. 255": (CIFAR, images(0, 255, np.complex64)),
}


@pytest.mark.parametrize("message", WRONG)
@pytest.mark.parametrize("on_device", [False, True])
def test_dtype_range_and_scale_are_named(message, on_device):
    info, wrong = WRONG[message]
    if on_device and wrong.dtype.itemsize < 8:
        wrong = jnp.asarray(wrong)
    with pytest.raises(ValueError, match=f"^images of train are {message}") as error:
        check_images(wrong, info, "train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("info", "right"),
    [
        (CIFAR, images(0, 255, np.uint8)),
        (CIFAR, images(0, 255, np.float32)),
        (CIFAR, images(3, 180, np.int32)),
        (DIGITS, images(0, 16, np.int8)),
        (dataclasses.replace(CIFAR, scale=1.0), images(0, 1, np.float32)),
        (dataclasses.replace(CIFAR, scale=65535.0), images(0, 65535, np.uint16)),
        (CIFAR, images(0, 99, np.uint8, count=1)),
        (CIFAR, images(0, 99, np.float32, count=31)),
        (CIFAR, np.zeros((3, 8, 8, 1), np.uint8)),
        (CIFAR, np.zeros((0, 8, 8, 1), np.uint8)),
    ],
)
def test_stored_pixels_are_taken(info, right):
    check_images(right, info, "train")
    jax.jit(lambda x: check_images(x, info, "train"))(right)


@pytest.fixture(scope="module")
def task():
    return classification(MLP(features=(8, 10)), DIGITS)


@pytest.fixture(scope="module")
def digits():
    data = load_dataset("digits")
    return data.images[:40], data.labels[:40]


def test_every_door_refuses_images_in_other_units(task, digits):
    pixels, labels = digits
    wrong = (pixels / 16).astype(np.float32)
    params, state = task.init(jax.random.key(0))
    settings, local = FitSettings(steps=1, batch_size=20), LocalSettings(steps=1, batch_size=20)
    part, key = iid(labels, clients=2, seed=0), jax.random.key(0)
    calls = [
        ("the training data", lambda: fit(key, task, wrong, labels, settings=settings)),
        ("the data", lambda: evaluate(task, params, state, wrong, labels)),
        ("train", lambda: simulate(key, task, (wrong, labels), part, rounds=1, local=local)),
        (
            "test",
            lambda: simulate(
                key, task, digits, part, rounds=1, local=local, test=(wrong, labels)
            ),
        ),
    ]  # fmt: skip
    for what, call in calls:
        with pytest.raises(ValueError, match=f"images of {what} are float32 from 0 to 1, .* 16"):
            call()


def own_info(num_classes, shape=(8, 8, 1)):
    return DatasetInfo(
        name="mine", num_classes=num_classes, image_shape=shape, splits=("train",),
        mean=(0.5,) * shape[-1], std=(0.5,) * shape[-1],
    )  # fmt: skip


def folder(root, *classes):
    for name in classes:
        (root / "mine/train" / name).mkdir(parents=True)
    return root / "mine/train"


@pytest.mark.parametrize("channels", [1, 3])
def test_of_16_bits_the_high_byte_is_kept(tmp_path, channels):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(folder(tmp_path, "a") / "a/0.png")
    data = load_dataset(own_info(1, (8, 8, channels)), data_dir=tmp_path)
    for channel in range(channels):
        np.testing.assert_array_equal(data.images[0, ..., channel], ramp >> 8)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[100:]])
def test_a_damaged_image_is_named(tmp_path, damage):
    path = folder(tmp_path, "a") / "a/7.png"
    noise = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(noise).resize((64, 64)).save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"a/7\.png cannot be read: .*; replace or rem") as error:
        load_dataset(own_info(1), data_dir=tmp_path)
    assert "\n" not in str(error.value)


def test_a_class_without_images_is_refused(tmp_path):
    root = folder(tmp_path, "a", "b")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(root / "a/0.png")
    (root / "b/notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"train/b holds no image \(.png, .jpg, .jpeg\)"):
        load_dataset(own_info(2), data_dir=tmp_path)
