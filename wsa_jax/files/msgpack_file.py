"""Flax's msgpack (`flax.serialization.to_bytes`): nested maps of arrays, or one array.

The format has no table of contents. A file is walked once when it is opened, and where each leaf
lies is kept; metadata, for which the format has no place either, lie in a file beside it.
"""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import msgpack
import numpy as np
from flax import serialization

from wsa_jax.files.model_file import ModelFile, told
from wsa_jax.files.names import unflatten
from wsa_jax.files.writing import Content
from wsa_jax.runs.files import atomic_file, write_atomically
from wsa_jax.types import Json

# The key by which flax tells a leaf that it cut into chunks.
_CHUNKED = "__msgpack_chunked_array__"

# The first bytes of a map: short ones, and those with a length of 2 and of 4 bytes.
_MAPS = (*range(0x80, 0x90), 0xDE, 0xDF)

# Those of an extension, which is how flax stores an array.
_EXTENSIONS = (*range(0xD4, 0xD9), 0xC7, 0xC8, 0xC9)

_DAMAGED = (ValueError, LookupError, TypeError, AttributeError, msgpack.UnpackException)


class _Place(NamedTuple):
    """Where a leaf lies."""

    begin: int
    end: int


def open_msgpack(path: Path) -> ModelFile:
    """Walk the file once; of each leaf, keep its place, shape and dtype."""
    places: dict[str, _Place] = {}
    shapes: dict[str, jax.ShapeDtypeStruct] = {}
    with told(path, "read", *_DAMAGED), path.open("rb") as file, path.open("rb") as stream:
        unpacker = msgpack.Unpacker(stream, max_buffer_size=path.stat().st_size, raw=False)
        if _begins(file, 0, _MAPS):
            _walk(unpacker, file, "", places)
        elif _begins(file, 0, _EXTENSIONS):
            unpacker.skip()
            places[""] = _Place(0, unpacker.tell())
        else:
            raise ValueError("it holds neither a dictionary nor an array")
        if unpacker.tell() != path.stat().st_size:
            raise ValueError("something follows the model")
        for name, place in places.items():
            leaf = _decoded(file, place, name)
            shapes[name] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return ModelFile(
        path=path,
        form="msgpack",
        shapes=shapes,
        read=lambda name: _read(path, places[name], name),
        metadata=_metadata(path),
        parts=(path,),
    )


def write_msgpack(path: Path, what: Content) -> None:
    """Write nested maps, leaf after leaf, and the metadata, if any, in ``NAME.metadata.json``."""
    what = what.native()  # flax stores the bytes, and not their order
    packer = msgpack.Packer(use_bin_type=True)
    beside = _beside(path)
    with told(path, "write"), atomic_file(path) as file:
        _write(file, packer, _tree(what), what)
    metadata = {**what.metadata, **what.late()}
    with told(beside, "write"):
        beside.unlink(missing_ok=True)
        if metadata:
            write_atomically(beside, json.dumps(dict(sorted(metadata.items())), indent=2) + "\n")


def _walk(unpacker: Any, file: BinaryIO, prefix: str, places: dict[str, _Place]) -> None:
    begin = unpacker.tell()
    for index in range(count := unpacker.read_map_header()):
        key = str(unpacker.unpack())
        if key == _CHUNKED and not index:
            for _ in range(2 * count - 1):
                unpacker.skip()
            places[prefix] = _Place(begin, unpacker.tell())
            return
        name = f"{prefix}.{key}" if prefix else key
        start = unpacker.tell()
        if _begins(file, start, _MAPS):
            _walk(unpacker, file, name, places)
            continue
        unpacker.skip()
        if name in places:
            raise ValueError(f"two leaves are named {name}")
        places[name] = _Place(start, unpacker.tell())


def _begins(file: BinaryIO, position: int, kinds: tuple[int, ...]) -> bool:
    file.seek(position)
    return file.read(1) in (bytes([first]) for first in kinds)


def _decoded(file: BinaryIO, place: _Place, name: str) -> np.ndarray:
    file.seek(place.begin)
    leaf = serialization.msgpack_restore(file.read(place.end - place.begin))
    if isinstance(leaf, int | float | complex | np.generic):
        return np.asarray(leaf)
    if not isinstance(leaf, np.ndarray):
        raise ValueError(f"leaf {name} is {type(leaf).__name__}, no array of numbers")
    return leaf


def _read(path: Path, place: _Place, name: str) -> np.ndarray:
    with told(path, "read", *_DAMAGED), path.open("rb") as file:
        return _decoded(file, place, name)


def _tree(what: Content) -> Json | str:
    """Names by the nested keys that they stand for; of one array, its name."""
    return unflatten({name: name for name in sorted(what.shapes)})


def _write(file: BinaryIO, packer: Any, tree: Json | str, what: Content) -> None:
    if isinstance(tree, str):
        # One leaf, whole: flax's own writer cuts it where it is beyond the format's limit.
        file.write(serialization.msgpack_serialize(what.leaf(tree)))
        return
    file.write(packer.pack_map_header(len(tree)))
    for key, value in tree.items():
        file.write(packer.pack(key))
        _write(file, packer, value, what)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.metadata.json")


def _metadata(path: Path) -> Mapping[str, str]:
    with contextlib.suppress(FileNotFoundError, ValueError):
        found = json.loads(_beside(path).read_text(encoding="utf-8"))
        return {str(key): str(value) for key, value in found.items()}
    return {}
