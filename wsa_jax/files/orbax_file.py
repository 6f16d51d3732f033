"""Orbax checkpoints: a folder, whose leaves are restored one at a time."""

import contextlib
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from wsa_jax.files.model_file import ModelFile, ModelFileError, listed, told
from wsa_jax.files.names import unflatten
from wsa_jax.files.writing import Content
from wsa_jax.leaves import key_path
from wsa_jax.runs.checkpoint import FAILURES, quiet
from wsa_jax.runs.files import sync_folder
from wsa_jax.runs.interrupts import interrupts_wait
from wsa_jax.runs.processes import barrier, said_by_first, writes
from wsa_jax.types import Json, KeyPath

# The file that describes the tree; where a manager saved one tree, it is a folder further down.
_TREE = "_METADATA"

# What orbax puts into the folder of one tree, beside folders of its processes.
_OWN = {_TREE, "_CHECKPOINT_METADATA", "_sharding", "array_metadatas", "checkpoint"}
_OWN |= {"commit_success.txt", "d", "manifest.ocdbt"}

# What wsa_jax seals its own checkpoints with is no part of the model.
_SEAL = "__seal__"


def is_orbax(folder: Path) -> bool:
    """Whether a folder is a checkpoint of orbax, or of its manager."""
    return _checkpoint(folder) is not None or (folder / "_CHECKPOINT_METADATA").is_file()


def open_orbax(folder: Path) -> ModelFile:
    """Read the description of the tree; the seal of wsa_jax's own checkpoints is left out."""
    import orbax.checkpoint as ocp

    place = _checkpoint(folder)
    if place is None:
        items = sorted(one.name for one in folder.iterdir() if _checkpoint(one) is not None)
        raise ModelFileError(
            f"{folder} holds no single tree; give one of its items: {', '.join(items) or 'none'}"
        )
    place = place.absolute()
    checkpointer = ocp.PyTreeCheckpointer()
    with told(folder, "read", *FAILURES), quiet():
        described: Any = checkpointer.metadata(place).item_metadata
        if described is None:
            raise ValueError("it does not describe its tree")
        tree, custom = described.tree, described.custom_metadata or {}
    paths, shapes = {}, {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = key_path(path, ".")
        if getattr(leaf, "shape", None) is None or leaf.dtype is None:
            raise ModelFileError(
                f"leaf {name} of {folder} is no array; save a checkpoint of arrays only"
            )
        if name != _SEAL:
            paths[name] = path
            shapes[name] = jax.ShapeDtypeStruct(tuple(leaf.shape), jnp.dtype(leaf.dtype))

    def read(name: str) -> np.ndarray:
        # One leaf of the tree is asked for: orbax leaves the others alone.
        item = _only(tree, paths[name], 0)
        arguments = _only(tree, paths[name], ocp.RestoreArgs(restore_type=np.ndarray))
        with told(folder, "read", *FAILURES), quiet():
            restored = checkpointer.restore(
                place,
                args=ocp.args.PyTreeRestore(
                    item=item, restore_args=arguments, partial_restore=True
                ),
            )
        return np.asarray(jax.tree.leaves(restored)[0])

    return ModelFile(
        path=folder,
        form="orbax",
        shapes=shapes,
        read=read,
        metadata={str(key): str(value) for key, value in custom.items()},
        parts=tuple(sorted(one for one in place.rglob("*") if one.is_file())),
    )


def check_replaceable(folder: Path) -> None:
    """Raise a ModelFileError for what a checkpoint must not replace: all but one, or nothing.

    A folder that holds one checkpoint, and not a file more, may go; so may an empty folder. A file,
    a folder of anything else (shards, a run and its steps) and the working folder may not.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> check_replaceable(folder)
    >>> _ = (folder / "notes.txt").write_text("mine")
    >>> check_replaceable(folder)
    Traceback (most recent call last):
    wsa_jax.files.model_file.ModelFileError: ... holds other things than one checkpoint of orbax ...
    """
    with told(folder, "write", RuntimeError):
        if not folder.exists():
            return
        if not folder.is_dir():
            raise ModelFileError(
                f"{folder} is a file, and a path without an ending names a folder of orbax; give "
                "another path, or an ending"
            )
        held = sorted(one.name for one in folder.iterdir())
        own = {name for name in held if name in _OWN or name.startswith("ocdbt.process_")}
        if held and (_TREE not in held or own != set(held)):
            others = [name for name in held if name not in own] or held
            raise ModelFileError(
                f"{folder} holds other things than one checkpoint of orbax ({listed(others)}), "
                "which would be lost; give another path"
            )
        if Path.cwd().is_relative_to(folder.resolve()):
            raise ModelFileError(f"{folder} is the folder that this runs in; give another path")


def write_orbax(folder: Path, what: Content) -> None:
    """Write a checkpoint; orbax wants the whole model in memory.

    What is there stays until the new one is whole, and where that fails.
    """
    import orbax.checkpoint as ocp

    check_replaceable(folder)
    if empty := [name for name, shape in what.shapes.items() if 0 in shape.shape]:
        raise ModelFileError(
            f"orbax keeps no leaf without elements ({listed(empty)}); leave it out, or end the "
            "path in .safetensors"
        )
    tree = unflatten({name: what.leaf(name) for name in sorted(what.shapes)})
    metadata: Json = {**what.metadata, **what.late()}
    with told(folder, "write", *FAILURES), interrupts_wait(), quiet(), _taking_over(folder) as new:
        ocp.PyTreeCheckpointer().save(
            new, args=ocp.args.PyTreeSave(tree, custom_metadata=metadata or None)
        )


@contextlib.contextmanager
def _taking_over(folder: Path) -> Generator[Path]:
    """Where to write what then takes a folder's place; every process writes there."""
    folder = folder.resolve()  # a link stays one
    made = tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent) if writes() else ""
    beside = Path(said_by_first(made))
    new, old = beside / "new", beside / "old"
    try:
        yield new
        if writes():
            check_replaceable(folder)  # again: writing takes long
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
            sync_folder(folder.parent)
    finally:
        if writes():
            if old.exists() and not folder.exists():
                old.rename(folder)
            shutil.rmtree(beside, ignore_errors=True)
        barrier(str(beside))


def _checkpoint(folder: Path) -> Path | None:
    """The folder that describes a tree: this one, or the item of a manager."""
    return next((one for one in (folder, folder / "default") if (one / _TREE).is_file()), None)


def _only(tree: PyTree, path: KeyPath, value: object) -> PyTree:
    """A tree of one leaf at a place of another tree; lists keep their length."""
    if not path:
        return value
    first, *rest = path
    if isinstance(first, jax.tree_util.SequenceKey):
        return [
            _only(child, tuple(rest), value) if index == first.idx else None
            for index, child in enumerate(tree)
        ]
    return {first.key: _only(tree[first.key], tuple(rest), value)}
