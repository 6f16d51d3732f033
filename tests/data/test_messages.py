"""Arguments of data functions and fields of models that make no sense: one line each."""

import dataclasses

import jaxtyping
import numpy as np
import pytest

from wsa_jax.data import DATASETS, augment, dataset_info, load_dataset, train_validation_split
from wsa_jax.models import CNN, MLP, ResNet, vgg8
from wsa_jax.training import classification

LABELS = np.arange(6) % 3
INFO = DATASETS["digits"]

WRONG = {
    "features 10 is no sequence of sizes; give for example features=.10,.": lambda: MLP(10),
    r"features\[0\] must be a positive integer, got -1": lambda: MLP((-1,)),
    r"features\[1\] must be a positive integer, got 1.5": lambda: MLP([8, 1.5]),
    "features '8' is no sequence": lambda: MLP("8"),
    "num_classes must be a positive integer, got 0": lambda: CNN(0),
    "num_classes of vgg8 is 10.0; give an integer": lambda: vgg8(10.0),
    "channels 32 is no sequence": lambda: CNN(10, channels=32),
    "widths None is no sequence": lambda: ResNet(1, 8, None, 10),
    "name of load_dataset is 3; give": lambda: load_dataset(3),
    "split of load_dataset is 3; give a string": lambda: load_dataset("digits", split=3),
    "side of load_dataset is '8'; give an integer": lambda: load_dataset("digits", side="8"),
    "name of dataset_info is None": lambda: dataset_info(None),
    "seed of train_validation_split is '0'; give": lambda: train_validation_split(LABELS, 0.5, "0"),
    "seed of train_validation_split is 1.5; give": lambda: train_validation_split(LABELS, 0.5, 1.5),
    "seed -1 is negative; give": lambda: train_validation_split(LABELS, 0.5, -1),
    "fraction of train_validation_split is '0.5'": lambda: train_validation_split(LABELS, "0.5", 0),
    "key of augment is 0; give a JAX key": lambda: augment(0, np.ones((1, 8, 8, 1), np.float32)),
    "scale of DatasetInfo is '16'; give a number": lambda: dataclasses.replace(INFO, scale="16"),
    "mean of DatasetInfo is 0.5; give a": lambda: dataclasses.replace(INFO, mean=0.5),
    "num_classes of DatasetInfo is '3'": lambda: dataclasses.replace(INFO, num_classes="3"),
    "digits: num_classes=0 and image_shape=": lambda: dataclasses.replace(INFO, num_classes=0),
}


@pytest.fixture
def as_a_user(monkeypatch):
    """Without the types that only tests check."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("message", WRONG)
def test_is_named_in_one_line(message):
    with pytest.raises(ValueError, match=f"^{message}") as error:
        WRONG[message]()
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("as_a_user")
def test_lists_are_taken_where_tuples_are_meant():
    info = dataclasses.replace(INFO, mean=[0.3], std=[0.4], image_shape=[8, 8, 1])
    assert MLP(features=[8, 10]) == MLP(features=(8, 10))
    task = classification(MLP(features=[8, 10]), info)
    assert task is classification(MLP((8, 10)), info)
