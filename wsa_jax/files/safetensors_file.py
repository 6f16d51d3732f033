"""The safetensors format: one file, or shards with an index as Hugging Face writes them.

The package reads it. Its writer wants the whole model in memory and orders the metadata by chance,
so the header (a length, a JSON object) is written here: sorted, and followed by leaf after leaf.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from wsa_jax.extras import require
from wsa_jax.files.model_file import (
    ModelFile,
    ModelFileError,
    Place,
    Shapes,
    listed,
    size_in_bytes,
    told,
)
from wsa_jax.files.writing import Content, on_the_way
from wsa_jax.runs.files import atomic_file
from wsa_jax.types import Json

INDEX = "model.safetensors.index.json"
"""The name of an index; its shards lie beside it."""

# Names of types in the format; the package gives no others as arrays of NumPy.
_DTYPES = {
    **{f"F{bits}": np.dtype(f"float{bits}") for bits in (64, 32, 16)},
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (64, 32, 16, 8)},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (64, 32, 16, 8)},
    "BF16": np.dtype(jnp.bfloat16),
    "BOOL": np.dtype(np.bool_),
    "C64": np.dtype(np.complex64),
}
_NAMES = {dtype: code for code, dtype in _DTYPES.items()}


def open_safetensors(path: Path) -> ModelFile:
    """Open one file, which the package checks: offsets, lengths and the size of the file."""
    file = _open(path)
    kinds = {name: file.get_slice(name) for name in file.offset_keys()}
    unknown = [name for name, kind in kinds.items() if kind.get_dtype() not in _DTYPES]
    if unknown:
        types = ", ".join(sorted({str(kinds[name].get_dtype()) for name in unknown}))
        raise ModelFileError(
            f"{path} holds {types}, which cannot be merged ({listed(unknown)}); convert them to "
            "float32, float16 or bfloat16"
        )
    shapes = {
        name: jax.ShapeDtypeStruct(tuple(kind.get_shape()), _DTYPES[kind.get_dtype()])
        for name, kind in kinds.items()
    }
    return ModelFile(
        path=path,
        form="safetensors",
        shapes=shapes,
        read=lambda name: _read(file, path, name),
        places=_places(path, shapes),
        metadata=file.metadata() or {},
        parts=(path,),
    )


def open_sharded(index: Path) -> ModelFile:
    """Open the shards that an index lists as one model."""
    with told(index, "read", ValueError, LookupError, TypeError):
        listing = json.loads(index.read_text(encoding="utf-8"))
        places = {str(name): str(shard) for name, shard in listing["weight_map"].items()}
        metadata = {k: v for k, v in listing.get("metadata", {}).items() if isinstance(v, str)}
    # An index from elsewhere must not name files of other folders.
    outside = [shard for shard in places.values() if Path(shard).name != shard]
    if outside:
        raise ModelFileError(f"{index} names {outside[0]}, which is in another folder; move it")
    shards = {
        name: open_safetensors(index.with_name(name)) for name in sorted(set(places.values()))
    }
    # A download that broke off is told now, not when its last leaf is read.
    absent = [name for name, shard in places.items() if name not in shards[shard]]
    if absent:
        raise ModelFileError(
            f"the shards of {index} lack {listed(absent)}; take a whole copy of the folder"
        )
    starts = {shard: file.places or {} for shard, file in shards.items()}
    return ModelFile(
        path=index,
        form="safetensors",
        shapes={name: shards[shard].shapes[name] for name, shard in places.items()},
        read=lambda name: shards[places[name]].read(name),
        places={name: starts[shard][name] for name, shard in places.items()},
        metadata=metadata,
        parts=(index, *(shard.path for shard in shards.values())),
    )


def write_safetensors(path: Path, what: Content) -> None:
    """Write one file: the widest types first, so that all lie aligned, then by name."""
    what = what.native()
    _check_types(what.shapes)
    order = sorted(what.shapes, key=lambda name: (-what.shapes[name].dtype.itemsize, name))
    with told(path, "write"), atomic_file(path) as file:
        header = _header(what, order, what.metadata)
        with on_the_way(file) as write:
            write(header)
            for name in order:
                for data in what.bytes_of(name):
                    write(data)
        _write_late(file, header, _header(what, order, {**what.metadata, **what.late()}))


def write_sharded(folder: Path, what: Content, shard_bytes: int) -> None:
    """Write shards of at most so many bytes (or one leaf), and then the index that names them.

    An index that was there goes first: a folder that was not finished has none, and cannot be read
    as a whole model.
    """
    what = what.native()
    _check_types(what.shapes)
    shards = _shards(what, shard_bytes)
    places = {}
    with told(folder, "write in"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / INDEX).unlink(missing_ok=True)
    for number, names in enumerate(shards, 1):
        shard = f"model-{number:05}-of-{len(shards):05}.safetensors"
        places |= dict.fromkeys(names, shard)
        part = Content(shapes={name: what.shapes[name] for name in names}, pieces=what.pieces)
        write_safetensors(folder / shard, part)
    total = sum(map(size_in_bytes, what.shapes.values()))
    listing: Json = {
        "metadata": {"total_size": total, **what.metadata, **what.late()},
        "weight_map": dict(sorted(places.items())),
    }
    with told(folder, "write in"), atomic_file(folder / INDEX) as file:
        file.write((json.dumps(listing, indent=2) + "\n").encode())


def _open(path: Path) -> Any:
    require("safetensors", f"reading {path}")
    from safetensors import SafetensorError, safe_open

    with told(path, "read", SafetensorError):
        # Read, not mapped: mapped pages would count as memory of the process.
        return safe_open(path, framework="numpy", backend="pread")


def _read(file: Any, path: Path, name: str) -> np.ndarray:
    from safetensors import SafetensorError

    with told(path, "read", SafetensorError):
        return file.get_tensor(name)


def _places(path: Path, shapes: Shapes) -> dict[str, Place]:
    """Where each leaf begins: behind the header without gaps, as the package has checked."""
    with told(path, "read"), path.open("rb") as file:
        begin = 8 + int.from_bytes(file.read(8), "little")
    places = {}
    for name, shape in shapes.items():
        places[name] = Place(path, begin)
        begin += size_in_bytes(shape)
    return places


def _header(what: Content, order: list[str], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON object, padded so that the leaves begin at a multiple of 8 bytes."""
    entries: Json = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in order:
        shape = what.shapes[name]
        begin, end = end, end + size_in_bytes(shape)
        entries[name] = {
            "dtype": _NAMES[np.dtype(shape.dtype)],
            "shape": list(shape.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_late(file: BinaryIO, first: bytes, last: bytes) -> None:
    if len(first) != len(last):
        raise ModelFileError("late metadata is longer or shorter than its stand-in")
    file.seek(0)
    file.write(last)


def _check_types(shapes: Shapes) -> None:
    unknown = {str(shape.dtype) for shape in shapes.values()} - {str(one) for one in _NAMES}
    if unknown:
        raise ModelFileError(f"safetensors has no type {', '.join(sorted(unknown))}; convert it")


def _shards(what: Content, limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name in sorted(what.shapes):
        size = size_in_bytes(what.shapes[name])
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards
