"""NumPy's npz: a zip of arrays, without pickled objects; metadata in the comment of the zip."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from wsa_jax.files.model_file import ModelFile, ModelFileError, Shapes, listed, told
from wsa_jax.files.writing import Content
from wsa_jax.runs.files import atomic_file

# What zipfile and NumPy raise for bytes that are not what they should be.
_DAMAGED = (ValueError, LookupError, EOFError, RuntimeError, zipfile.BadZipFile)

_COMMENT = 65535
"""The longest comment that a zip can have, in bytes."""


def open_npz(path: Path) -> ModelFile:
    """Open a zip of arrays; the header of each is read now, its values later."""
    shapes = {}
    with told(path, "read", *_DAMAGED), zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            shapes[member.removesuffix(".npy")] = _shape(archive, member)
        metadata = _metadata(archive.comment)
    if odd := _odd(shapes):
        raise ModelFileError(
            f"{path} holds what is no array of numbers ({listed(odd)}); bfloat16 and text have no "
            "place in npz: save the model as safetensors"
        )
    return ModelFile(
        path=path,
        form="npz",
        shapes=shapes,
        read=lambda name: _read(path, name),
        metadata=metadata,
        parts=(path,),
    )


def write_npz(path: Path, what: Content) -> None:
    """Write a zip of arrays without compression, as `numpy.savez` does; the same at every time."""
    if odd := _odd(what.shapes):
        raise ModelFileError(
            f"npz has no type {what.shapes[odd[0]].dtype} ({listed(odd)}); end the output in "
            ".safetensors, or convert to float32"
        )
    with told(path, "write"), atomic_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name in sorted(what.shapes):
            shape = what.shapes[name]
            # Sizes are unknown to zipfile before the end: leave room for those of large leaves.
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                header = {
                    "descr": np.lib.format.dtype_to_descr(np.dtype(shape.dtype)),
                    "fortran_order": False,
                    "shape": tuple(shape.shape),
                }
                np.lib.format.write_array_header_1_0(member, header)
                for data in what.bytes_of(name):
                    member.write(data)
        archive.comment = _comment({**what.metadata, **what.late()})


def _odd(shapes: Shapes) -> list[str]:
    """Leaves that NumPy would write as plain bytes, or not at all; bfloat16's kind is V, too."""
    return [name for name, one in shapes.items() if np.dtype(one.dtype).kind not in "fiubc"]


def _shape(archive: zipfile.ZipFile, member: str) -> jax.ShapeDtypeStruct:
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    if dtype.hasobject:
        raise ValueError(f"{member} holds Python objects, whose reading would run code")
    return jax.ShapeDtypeStruct(shape, _native(dtype))


def _read(path: Path, name: str) -> np.ndarray:
    with told(path, "read", *_DAMAGED), zipfile.ZipFile(path) as archive:
        member = f"{name}.npy" if f"{name}.npy" in archive.namelist() else name
        with archive.open(member) as file:
            leaf = np.lib.format.read_array(file, allow_pickle=False)
    return leaf.astype(_native(leaf.dtype), copy=False)


def _native(dtype: np.dtype) -> np.dtype:
    """The type in this machine's byte order: JAX takes no other."""
    return dtype.newbyteorder("=")


def _metadata(comment: bytes) -> Mapping[str, str]:
    """What was written by `write_npz`; a comment of another kind is no metadata."""
    try:
        found = json.loads(comment)
    except ValueError:
        return {}
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def _comment(metadata: Mapping[str, str]) -> bytes:
    text = json.dumps(dict(sorted(metadata.items()))).encode() if metadata else b""
    if len(text) > _COMMENT:
        raise ModelFileError(
            f"the metadata has {len(text)} bytes, and npz has room for {_COMMENT}; end the output "
            "in .safetensors"
        )
    return text
