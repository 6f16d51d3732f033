"""What a model may replace on disk, and what is left where saving fails."""

import errno
from pathlib import Path

import numpy as np
import pytest

from tests.files.test_formats import model, same, tree_of
from wsa_jax.files import ModelFileError, load_model, save_model
from wsa_jax.runs.run_directory import RunDirectory


@pytest.mark.parametrize("kept", ["mine", "a checkpoint and mine", "shards", "a run", "a file"])
def test_only_a_checkpoint_is_replaced_by_one(tmp_path, kept):
    folder = tmp_path / "results"
    if kept == "mine":
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "x").write_text("x")
    elif kept == "a checkpoint and mine":
        save_model(folder, model())
        (folder / "notes.txt").write_text("precious")
    elif kept == "shards":
        save_model(folder, model(), shard_bytes=300)
    elif kept == "a run":
        with RunDirectory(folder, {}, total=1) as run:
            run.save(1, {"w": np.ones(2)})
    else:
        folder.write_text("precious")
    before = tree_of(tmp_path)
    with pytest.raises(ModelFileError, match=r"results (holds|is a file)[^\n]*give another path"):
        save_model(folder, {"w": np.ones(2)})
    if kept == "a run":
        with pytest.raises(ModelFileError, match="1 holds other things than one checkpoint"):
            save_model(folder / "checkpoints" / "1", {"w": np.ones(2)})
    assert tree_of(tmp_path) == before


def test_the_working_folder_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "m").mkdir()
    monkeypatch.chdir(tmp_path / "m")
    for path in (".", tmp_path / "m"):
        with pytest.raises(ModelFileError, match="is the folder that this runs in; give"):
            save_model(path, model())
    (tmp_path / "m" / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "m" / "inner")
    with pytest.raises(ModelFileError, match=r"holds other things .*inner"):
        save_model("..", model())


def test_an_empty_folder_and_a_link_take_a_checkpoint(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "link").symlink_to("m")
    for value in (1, 2):
        save_model(tmp_path / "link", {"w": np.full(2, value)})
        same(load_model(tmp_path / "m"), {"w": np.full(2, value)})
    assert (tmp_path / "link").is_symlink()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["link", "m"]


def failing(monkeypatch, *, at):
    """Let orbax write a part and then fail, or the last move."""
    import orbax.checkpoint as ocp

    def save(self, path, *arguments, **settings):
        Path(f"{path}.orbax-checkpoint-tmp").mkdir()
        raise ValueError("the library says no")

    def rename(self, target, before=Path.rename):
        if self.name == "new":
            raise OSError(errno.EBUSY, "Device or resource busy")
        return before(self, target)

    if at == "save":
        monkeypatch.setattr(ocp.PyTreeCheckpointer, "save", save)
    else:
        monkeypatch.setattr(Path, "rename", rename)


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize(
    ("at", "message"),
    [
        ("save", r"cannot write .*m \(the library says no\); make room there, or end the path in"),
        ("move", r"cannot write .*m \(Device or resource busy\); move it away, or give another"),
    ],
)
def test_a_checkpoint_that_fails_leaves_the_old_one(tmp_path, monkeypatch, there, at, message):
    if there:
        save_model(tmp_path / "m", model())
    before = tree_of(tmp_path)
    with monkeypatch.context() as patched:
        failing(patched, at=at)
        with pytest.raises(ModelFileError, match=message):
            save_model(tmp_path / "m", {"w": np.ones(2)})
    assert tree_of(tmp_path) == before
    assert [one.name for one in tmp_path.iterdir()] == ["m"] * there
    save_model(tmp_path / "m", {"w": np.ones(2)})
    same(load_model(tmp_path / "m"), {"w": np.ones(2)})


def test_what_came_while_a_checkpoint_was_written_stays(tmp_path, monkeypatch):
    import orbax.checkpoint as ocp

    save_model(tmp_path / "m", model())
    before = ocp.PyTreeCheckpointer.save

    def save(self, *arguments, **settings):
        (tmp_path / "m" / "notes.txt").write_text("precious")
        return before(self, *arguments, **settings)

    monkeypatch.setattr(ocp.PyTreeCheckpointer, "save", save)
    with pytest.raises(ModelFileError, match=r"m holds other things .*\(notes.txt\)"):
        save_model(tmp_path / "m", {"w": np.ones(2)})
    assert (tmp_path / "m" / "notes.txt").read_text() == "precious"
    assert [one.name for one in tmp_path.iterdir()] == ["m"]


def test_orbax_names_leaves_without_elements(tmp_path):
    save_model(tmp_path / "m", model())
    empty = {"w": np.ones(2), "a": {"e": np.zeros((0, 2))}, "f": np.zeros(0)}
    for folder in ("m", "new"):
        with pytest.raises(ModelFileError, match=r"orbax keeps no leaf .* \(a.e, f\); leave"):
            save_model(tmp_path / folder, empty)
    same(load_model(tmp_path / "m"), model())
    assert [one.name for one in tmp_path.iterdir()] == ["m"]
