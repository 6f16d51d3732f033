"""Training killed at a random moment and started again ends in bitwise the same models."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from tests.tiny import INFO, examples
from tests.trees import assert_bitwise
from wsa_jax.scope.scope import weight_scope
from wsa_jax.training import FitSettings, classification, fit
from wsa_jax.training.fit import _jitted_fit
from wsa_jax.training.fit_directory import fit_identity

ROOT = Path(__file__).resolve().parents[2]
# What conftest.py sets here: the two processes must compile alike.
LIKE_THIS_PROCESS = {
    "PYTHONPATH": str(ROOT),
    "JAX_NUM_CPU_DEVICES": str(jax.device_count()),
    "JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(jax.config.read("jax_disable_most_optimizations"))),
}
STEPS, EVERY = 40, 3
KEYS = jax.random.split(jax.random.key(3), 2)
SETTINGS = FitSettings(steps=STEPS, batch_size=20, weight_decay=1e-3)
SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, 0.2, 5, STEPS)


class Normed(nn.Module):
    """Moving statistics and dropout: all that a run draws and carries."""

    @nn.compact
    def __call__(self, x, *, train: bool):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x.reshape(len(x), -1))
        return nn.Dense(3)(nn.Dropout(0.2, deterministic=not train)(x))


# Drawn here: the process to be killed need not load a data set.
IMAGES, CLASSES = examples(130)
KERNEL = np.random.default_rng(0).normal(0, 0.2, (9, 3)).astype(np.float32)
TARGET = jax.jit(weight_scope)({"Dense_0": {"kernel": KERNEL}})


def train(directory=None, key=KEYS, settings=SETTINGS, rows=130, **changed):
    task = classification(Normed(), INFO)
    arguments = {
        "learning_rate": SCHEDULE,
        "target": TARGET,
        "strength": 0.3,
        "checkpoint_every": EVERY,
        "directory": directory,
    }
    data = IMAGES[:rows], CLASSES[:rows]
    return fit(key, task, *data, settings=settings, **(arguments | changed))


def checkpoints(directory):
    return sorted(int(p.name) for p in Path(directory, "checkpoints").glob("*") if p.name.isdigit())


@pytest.fixture(scope="module")
def whole():
    return train()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A finished run's directory and what it returned."""
    directory = tmp_path_factory.mktemp("saved")
    return directory, train(directory)


def test_checkpoints_change_nothing_and_the_newest_are_kept(whole, saved):
    directory, result = saved
    assert_bitwise(result, whole)
    assert (whole.loss[:, -5:].mean(1) < whole.loss[:, :5].mean(1)).all()
    assert checkpoints(directory) == [39, 40]


def test_a_finished_run_is_returned_and_an_earlier_checkpoint_gone_on_from(whole, saved, tmp_path):
    directory = shutil.copytree(saved[0], tmp_path / "copy")
    before = (directory / "checkpoints" / "40").stat().st_mtime_ns
    assert_bitwise(train(directory), whole)
    assert (directory / "checkpoints" / "40").stat().st_mtime_ns == before
    shutil.rmtree(directory / "checkpoints" / "40")
    # How often it is saved may change between the starts.
    assert_bitwise(train(directory, checkpoint_every=None), whole)
    assert checkpoints(directory) == [39, 40]


def test_one_compilation_however_often_it_is_saved_and_resumed(whole, saved):
    task = classification(Normed(), INFO)
    compiled = _jitted_fit(task, SETTINGS, True, True)
    assert compiled.advance._cache_size() == 1


def test_sigkill_at_a_random_step(whole, tmp_path):
    process = subprocess.Popen(
        [sys.executable, __file__, str(tmp_path)],
        env=os.environ | LIKE_THIS_PROCESS,
    )
    rng = np.random.default_rng(int.from_bytes(os.urandom(4)))
    goal, deadline = EVERY * rng.integers(1, 6), time.monotonic() + 200
    while max(checkpoints(tmp_path), default=0) < goal:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.05))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    reached = checkpoints(tmp_path)
    assert_bitwise(train(tmp_path), whole)
    assert reached[-1] < STEPS, "killed too late to show anything"


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"learning_rate": 0.1}, "learning rates"),
        ({"strength": 0.4}, "weight scope regularization"),
        ({"key": KEYS[::-1]}, "key"),
        ({"rows": 120}, "data"),
        ({"settings": FitSettings(steps=STEPS, batch_size=10)}, "settings"),
        ({"settings": dataclasses.replace(SETTINGS, direction="target||weights")}, "settings"),
    ],
)
def test_a_directory_of_another_run_is_refused(saved, changed, name):
    with pytest.raises(ValueError, match=rf"holds a run with {name} = .*, but this one") as error:
        train(saved[0], **changed)
    assert "\n" not in str(error.value)
    assert str(saved[0]) in str(error.value)


def test_settings_may_be_numbers_of_numpy():
    # A class of its own: under test, arguments of FitSettings are checked for Python's types.
    settings = dataclasses.make_dataclass("Settings", ["steps", "momentum"])
    numbers = (np.zeros(1), None, 0.0, {}, (np.zeros(1), np.zeros(1)))
    ours, theirs = (
        fit_identity(jax.random.key(0), (), settings(*given), *numbers)
        for given in ((np.int64(3), np.float32(0.5)), (3, 0.5))
    )
    assert ours == theirs


def test_other_initial_models_are_refused(saved, whole):
    with pytest.raises(ValueError, match="holds a run with initial model = "):
        train(saved[0], params=whole.params, model_state=whole.model_state)


def test_a_federated_run_is_refused(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"algorithm": ["fed_avg", {}]}))
    with pytest.raises(ValueError, match="holds a run with kind = None, but this one has fit"):
        train(tmp_path)


def test_checkpoint_every_that_is_not_positive(tmp_path):
    with pytest.raises(ValueError, match="checkpoint_every 0 is not positive"):
        train(tmp_path, checkpoint_every=0)


if __name__ == "__main__":
    train(sys.argv[1])
