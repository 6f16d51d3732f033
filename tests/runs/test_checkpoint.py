"""What is saved comes back bitwise; what is torn says so in one line."""

import dataclasses
import itertools
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsa_jax import weight_scope
from wsa_jax.runs.checkpoint import CheckpointError, Checkpoints
from wsa_jax.runs.files import write_atomically

pytestmark = pytest.mark.usefixtures("frozen")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    params: dict
    scope: object
    empty: tuple
    round: jax.Array


def state_of(seed):
    rng = np.random.default_rng(seed)
    params = {
        "a": {"kernel": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)},
        "attention": {"value": {"kernel": jnp.ones((2, 2))}, "kernel": jnp.zeros((2, 2))},
        "half": jnp.asarray(rng.normal(size=5), jnp.bfloat16),
    }
    return State(params, weight_scope(params), (), jnp.int32(seed))


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A directory with the checkpoints of steps 3 and 5."""
    directory = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(directory)
    for step in (1, 3, 5):
        checkpoints.save(step, state_of(step))
    return directory


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / "copy")


def test_restores_bitwise_with_classes_and_dtypes(saved):
    found = Checkpoints(saved).restore(5, state_of(0))
    assert_equal(found, state_of(5))


def test_keeps_the_newest(saved):
    checkpoints = Checkpoints(saved)
    assert checkpoints.latest() == 5
    assert checkpoints.restore(3, state_of(0)).round == 3
    assert sorted(p.name for p in saved.iterdir()) == ["3", "5"]


def test_goes_on_from_the_one_before_a_deleted_one(copy):
    shutil.rmtree(copy / "5")
    checkpoints = Checkpoints(copy)
    assert checkpoints.latest() == 3
    checkpoints.save(5, state_of(7))
    assert checkpoints.restore(5, state_of(0)).round == 7


DAMAGES = ("truncate", "delete", "empty")


def data_files(directory):
    return sorted(
        (p for p in (directory / "5").rglob("*") if p.is_file()), key=lambda p: -p.stat().st_size
    )


def test_each_torn_file_is_one_line_or_harmless(saved, tmp_path):
    """Each file in one way, in turns; ``tests/runs/mutate.py`` does all to all."""
    messages = []
    for i, damage in zip(range(len(data_files(saved))), itertools.cycle(DAMAGES), strict=False):
        copy = shutil.copytree(saved, tmp_path / str(i))
        path = data_files(copy)[i]
        if damage == "delete":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 * (damage != "empty")])
        try:
            found = Checkpoints(copy).restore(5, state_of(0))
        except CheckpointError as error:
            messages.append((str(error), str(copy / "5")))
        else:
            assert_equal(found, state_of(5))
    assert messages
    for message, folder in messages:
        assert "\n" not in message
        assert folder in message


def test_a_deleted_data_folder_is_torn(copy):
    shutil.rmtree(copy / "5" / "default")
    with pytest.raises(CheckpointError, match=r"5 is torn or unreadable .* delete that folder"):
        Checkpoints(copy).restore(5, state_of(0))


def test_other_shape_dtype_or_leaf_is_of_another_model(saved):
    like = state_of(0)
    for change, message in (
        ({"half": jnp.ones(6, jnp.bfloat16)}, r"half .* is bfloat16\[5\], expected bfloat16\[6\]"),
        ({"half": jnp.ones(5)}, r"half .* is bfloat16\[5\], expected float32\[5\]"),
        ({"new": jnp.ones(5)}, "has no leaf params/new"),
    ):
        other = dataclasses.replace(like, params=like.params | change)
        with pytest.raises(CheckpointError, match=message) as error:
            Checkpoints(saved).restore(5, other)
        assert "\n" not in str(error.value)


def test_leaves_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="two leaves named a/b"):
        Checkpoints(tmp_path).save(1, {"a": {"b": jnp.ones(1)}, "a/b": jnp.zeros(1)})


def test_write_atomically_replaces_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "rows.jsonl"
    for text in ("old", "new"):
        write_atomically(path, text)
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_text(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    write_atomically(path, "old")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
