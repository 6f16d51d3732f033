"""Models in files: what is saved is loaded, bit for bit, by us and by the formats' libraries."""

import json
import os
import zipfile

import equinox
import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
import safetensors.numpy
from flax import serialization

from wsa_jax.files import ModelFileError, flatten, load_model, open_model, save_model, unflatten
from wsa_jax.files.safetensors_file import INDEX

FORMS = [".safetensors", ".npz", ".msgpack", ""]


def model():
    rng = np.random.default_rng(0)
    return {
        "params": {
            "Conv_0": {"kernel": rng.standard_normal((3, 3, 2, 4)).astype(np.float32)},
            "Dense_0": {
                "kernel": rng.standard_normal((4, 3)).astype(np.float16),
                "bias": rng.standard_normal(3),
            },
        },
        "batch_stats": {"count": np.array(7, np.int64), "used": np.array([True, False])},
    }


def same(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def tree_of(folder):
    """Every file below a folder with its bytes."""
    return {one: one.read_bytes() for one in folder.rglob("*") if one.is_file()}


@pytest.mark.parametrize("form", FORMS)
def test_what_is_saved_is_loaded_bit_for_bit(tmp_path, form):
    path = tmp_path / "new" / f"model{form}"
    save_model(path, model(), metadata={"source": "a test", "b": "2"})
    same(load_model(path), model())
    file = open_model(path)
    assert file.metadata == {"source": "a test", "b": "2"}
    assert file.shapes["params.Dense_0.bias"].dtype == np.float64
    assert "params.Dense_0" not in file
    with pytest.raises(KeyError):
        file["params.Dense_0"]
    # Written over: the old metadata goes, too, and no temporary file stays.
    save_model(path, {"w": np.ones(2)})
    same(load_model(path), {"w": np.ones(2)})
    assert open_model(path).metadata == {}
    assert [one.name for one in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("form", FORMS)
def test_one_array_is_a_model(tmp_path, form, monkeypatch):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 40)  # the second is cut by flax
    for array in (np.float32([1, 2]), np.arange(8.0).reshape(2, 4), np.array(3)):
        save_model(tmp_path / f"m{form}", array)
        same(load_model(tmp_path / f"m{form}"), array)
        same(load_model(tmp_path / f"m{form}", like=array), array)
    if form == ".msgpack":
        same(serialization.msgpack_restore((tmp_path / "m.msgpack").read_bytes()), array)


@pytest.mark.parametrize("form", [".safetensors", ".msgpack", ""])
def test_bfloat16_is_kept(tmp_path, form):
    params = {"w": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3) / 7, "s": jnp.float32(2)}
    save_model(tmp_path / f"model{form}", params)
    same(load_model(tmp_path / f"model{form}"), params)


@pytest.mark.parametrize("form", FORMS)
def test_values_of_a_foreign_byte_order_are_kept(tmp_path, form):
    params = {"w": np.array([[1.0, -2.5]], ">f4"), "n": np.array(3, ">i8"), "b": np.ones(2, "<f8")}
    save_model(tmp_path / f"m{form}", params)
    same(
        load_model(tmp_path / f"m{form}"),
        {"w": np.float32([[1, -2.5]]), "n": np.array(3), "b": np.ones(2)},
    )


def test_the_libraries_of_the_formats_read_ours(tmp_path):
    params, flat = model(), flatten(model())
    save_model(tmp_path / "m.safetensors", params, metadata={"a": "b"})
    same(safetensors.numpy.load_file(tmp_path / "m.safetensors"), flat)
    save_model(tmp_path / "m.npz", params)
    with np.load(tmp_path / "m.npz") as found:
        same(dict(found), flat)
    save_model(tmp_path / "m.msgpack", params)
    same(serialization.msgpack_restore((tmp_path / "m.msgpack").read_bytes()), params)


def test_we_read_what_the_libraries_wrote(tmp_path, monkeypatch):
    params, flat = model(), flatten(model())
    safetensors.numpy.save_file(flat, tmp_path / "m.safetensors", {"a": "b"})
    same(load_model(tmp_path / "m.safetensors"), params)
    np.savez_compressed(tmp_path / "m.npz", **flat)
    same(load_model(tmp_path / "m.npz"), params)
    # Flax cuts large leaves into chunks: here those above 16 bytes.
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 16)
    (tmp_path / "m.msgpack").write_bytes(serialization.to_bytes(params))
    same(load_model(tmp_path / "m.msgpack"), params)
    order = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    np.savez(tmp_path / "f.npz", order)
    assert load_model(tmp_path / "f.npz")["arr_0"].tolist() == order.tolist()


@pytest.mark.parametrize("form", [".safetensors", ".npz", ".msgpack"])
def test_equal_models_are_equal_bytes(tmp_path, form):
    for name in "ab":
        save_model(tmp_path / f"{name}{form}", model(), metadata={"x": "1", "y": "2"})
    first, second = ((tmp_path / f"{name}{form}").read_bytes() for name in "ab")
    assert first == second


def test_shards_are_one_model(tmp_path):
    folder = tmp_path / "model"
    save_model(folder, model(), shard_bytes=300, metadata={"a": "b"})
    listing = json.loads((folder / INDEX).read_text())
    assert sorted(set(listing["weight_map"].values())) == [
        f"model-0000{i}-of-00002.safetensors" for i in (1, 2)
    ]
    assert listing["metadata"]["total_size"] == sum(
        leaf.nbytes for leaf in flatten(model()).values()
    )
    for path in (folder, folder / INDEX):
        same(load_model(path), model())
        file = open_model(path)
        assert file.metadata == {"a": "b"}
        for name, (path_of_shard, begin) in file.places.items():
            data = path_of_shard.read_bytes()[begin:][: file[name].nbytes]
            assert data == file[name].tobytes()
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelFileError, match=r"cannot read .*00002-of-00002.*give the path"):
        open_model(folder)
    save_model(folder / "model-00002-of-00002.safetensors", {"w": np.ones(2)})
    with pytest.raises(ModelFileError, match=r"the shards of .* lack params.Dense_0.bias"):
        open_model(folder)
    (folder / INDEX).write_text('{"weight_map": {"w": "../other.safetensors"}}')
    with pytest.raises(ModelFileError, match="is in another folder"):
        open_model(folder)


def test_a_tree_gives_structure_and_is_checked(tmp_path):
    shapes = equinox.filter_eval_shape(equinox.nn.MLP, 2, 3, 4, 1, key=jax.random.key(0))
    wider = equinox.filter_eval_shape(equinox.nn.MLP, 2, 3, 5, 1, key=jax.random.key(0))
    module = jax.tree.map(
        lambda leaf: np.ones(leaf.shape) if hasattr(leaf, "shape") else leaf, shapes
    )
    arrays = equinox.filter(module, equinox.is_array)
    save_model(tmp_path / "m.safetensors", arrays)
    assert "layers.0.weight" in open_model(tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors", like=module)
    assert isinstance(loaded, equinox.nn.MLP)
    same(equinox.filter(loaded, equinox.is_array), arrays)
    with pytest.raises(ModelFileError, match=r"it lacks b; it has layers.0.weight, .* and|has lay"):
        load_model(tmp_path / "m.safetensors", like={"b": np.ones(2)})
    with pytest.raises(ModelFileError, match=r"layers.0.weight \[4, 2\] for \[5, 2\]"):
        load_model(tmp_path / "m.safetensors", like=wider)


def test_a_manager_s_step_is_a_model(tmp_path):
    import orbax.checkpoint as ocp

    manager = ocp.CheckpointManager(tmp_path)
    state = {"layers": [{"w": np.ones((2, 2))}, {"w": np.zeros((3, 1))}]}
    manager.save(3, args=ocp.args.StandardSave(state))
    manager.wait_until_finished()
    file = open_model(tmp_path / "3")
    assert file["layers.1.w"].shape == (3, 1)
    same(load_model(tmp_path / "3", like=state), state)
    with pytest.raises(ModelFileError, match=r"checkpoints of steps 3; give one of them"):
        open_model(tmp_path)


@pytest.mark.parametrize("ending", [".pt", ".pth", ".bin", ".ckpt", ".pkl"])
def test_pickles_are_refused_with_the_way_out(tmp_path, ending):
    path = tmp_path / f"model{ending}"
    path.write_bytes(b"\x80\x04.")
    for use in (open_model, lambda path: save_model(path, model())):
        with pytest.raises(ModelFileError, match=r"is a pickle, .* convert it once: safetensors"):
            use(path)


def test_objects_in_npz_are_refused(tmp_path):
    np.savez(tmp_path / "m.npz", w=np.array([{}], object))
    with pytest.raises(ModelFileError, match=r"w.npy holds Python objects, whose reading would"):
        open_model(tmp_path / "m.npz")


def damaged(path, form):
    """The file's beginnings and a changed one, as broken downloads leave them."""
    whole = path.read_bytes()
    for cut in (0, 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        yield f"cut to {cut}"
    if form == ".msgpack":
        path.write_bytes(whole + b"\x00")
        yield "longer"


@pytest.mark.parametrize("params", [model(), np.arange(9.0)])
@pytest.mark.parametrize("form", [".safetensors", ".npz", ".msgpack"])
def test_a_damaged_file_is_one_line(tmp_path, form, params):
    path = tmp_path / f"model{form}"
    save_model(path, params)
    for how in damaged(path, form):
        with pytest.raises(ModelFileError) as error:
            load_model(path)
        assert str(path) in str(error.value), how
        assert "\n" not in str(error.value)


def test_other_refusals(tmp_path):
    cases = [
        (lambda: open_model(tmp_path / "no.npz"), "there is no model at .*no.npz"),
        (lambda: open_model(" "), "names no file"),
        (lambda: open_model(tmp_path), "holds neither model.safetensors.index.json"),
        (lambda: save_model(tmp_path / "m.npz", {"w": jnp.ones(2, jnp.bfloat16)}), "npz has no"),
        (lambda: save_model(tmp_path / "m.gguf", model()), "the ending of .*gguf names no format"),
        (lambda: save_model(tmp_path / "m.npz", {}), "the model has no leaf"),
        (lambda: save_model(tmp_path / "m.npz", {"f": jax.nn.relu}), "leaf f is the function"),
        (lambda: save_model(tmp_path / "m.npz", {"k": jax.random.key(0)}), "leaf k is an array"),
        (lambda: save_model(tmp_path / "m.npz", model(), metadata={"a": 1}), "'a': 1 is no text"),
        (lambda: save_model(tmp_path / "m", model(), shard_bytes=0), "shard_bytes 0 is not pos"),
        (lambda: flatten({"a": {"b": np.ones(1)}, "a.b": np.ones(1)}), "two leaves are named a.b"),
        (lambda: unflatten({"a": np.ones(1), "a.b": np.ones(1)}), "a.b is also the beginning"),
        (lambda: unflatten({"a.b": np.ones(1), "a": np.ones(1)}), "leaf a is also the beginning"),
    ]
    for call, message in cases:
        with pytest.raises(ModelFileError if "shard" not in message else ValueError, match=message):
            call()
    assert not list(tmp_path.iterdir())


def test_foreign_types_are_named(tmp_path):
    import ml_dtypes

    eighths = {"w": np.ones(4, ml_dtypes.float8_e4m3fn), "b": np.ones(2, np.float32)}
    safetensors.numpy.save_file(eighths, tmp_path / "m.safetensors")
    with pytest.raises(ModelFileError, match=r"holds F8_E4M3, which cannot be merged \(w\)"):
        open_model(tmp_path / "m.safetensors")
    save_model(tmp_path / "shards", model(), shard_bytes=300)
    before = tree_of(tmp_path)
    for name, shard_bytes in (("n.safetensors", None), ("shards", 300)):
        with pytest.raises(ModelFileError, match=r"safetensors has no type float8_e4m3fn"):
            save_model(tmp_path / name, eighths, shard_bytes=shard_bytes)
    assert tree_of(tmp_path) == before
    for other in (3, "text", [1.0]):
        (tmp_path / "m.msgpack").write_bytes(msgpack.packb(other))
        with pytest.raises(ModelFileError, match="it holds neither a dictionary nor an array"):
            open_model(tmp_path / "m.msgpack")
    (tmp_path / "m.msgpack").write_bytes(msgpack.packb({"w": "text"}))
    with pytest.raises(ModelFileError, match="leaf w is str, no array of numbers"):
        open_model(tmp_path / "m.msgpack")


def test_nothing_is_half_written(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    save_model(path, {"w": np.ones(2)})
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for name in ("m.safetensors", "m.npz", "m.msgpack"):
        with pytest.raises(ModelFileError, match=r"No space left on device\); free some space"):
            save_model(tmp_path / name, {"w": np.zeros(2)})
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_a_foreign_comment_is_no_metadata(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        archive.comment = b"made by hand"
        with archive.open("w.npy", "w") as member:
            np.lib.format.write_array(member, np.ones(2))
    assert open_model(tmp_path / "m.npz").metadata == {}
    with pytest.raises(ModelFileError, match=r"metadata has \d+ bytes, and npz has room for 65535"):
        save_model(tmp_path / "n.npz", {"w": np.ones(2)}, metadata={"long": "x" * 70000})
