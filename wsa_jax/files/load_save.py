"""Open, load and save models in files."""

import os
from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import PyTree

from wsa_jax import checks
from wsa_jax.door import door, shown
from wsa_jax.files.formats import form_of, model_path, opened, write
from wsa_jax.files.model_file import ModelFile, ModelFileError
from wsa_jax.files.name_map import NameMap
from wsa_jax.files.names import filled, flatten, unflatten
from wsa_jax.files.safetensors_file import write_sharded
from wsa_jax.files.writing import content

__all__ = ["load_model", "open_model", "save_model"]


@door
def open_model(path: str | os.PathLike) -> ModelFile:
    """Open a model in a file as a dictionary of arrays that are read when they are asked for.

    Formats, by the path: ``.safetensors``; ``*.safetensors.index.json``, or a folder with one, for
    shards; ``.npz``; ``.msgpack`` of flax; a folder of orbax, also one step of its manager or of a
    run of wsa_jax.

    Guarantees: names and shapes are known without reading a value (msgpack is walked once, a leaf
    at a time). Nothing in a file is run: pickles are refused, and NumPy reads no objects.

    Raises:
      ModelFileError: there is no such file, it is damaged, a pickle, or holds what is no array of
        numbers.

    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/model.npz"
    >>> save_model(path, {"dense": {"kernel": np.ones((3, 2), np.float16)}})
    >>> with_names = open_model(path)
    >>> list(with_names), with_names.shapes["dense.kernel"].shape, with_names["dense.kernel"].sum()
    (['dense.kernel'], (3, 2), np.float16(6.0))
    """
    return opened(model_path(path))


@door
def load_model(
    path: str | os.PathLike, *, like: PyTree | None = None, names: NameMap | None = None
) -> PyTree:
    """Load a model: nested dictionaries of arrays, or the structure of another tree.

    Args:
      path: see `open_model`.
      like: a tree whose structure, names and shapes the file must have, such as a model, or
        ``jax.eval_shape`` of one's ``init``; without it, names are nested at their dots.
      names: a map from the file's names to ours (`NameMap`), as from PyTorch's.

    Returns:
      Arrays of NumPy with the file's dtypes, bfloat16 and float64 included, in this machine's byte
      order.

    Raises:
      ModelFileError: the file cannot be read, or its names or shapes are not those of ``like`` or
        ``names``; up to ten are listed.

    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/model.msgpack"
    >>> save_model(path, [{"w": np.ones(2)}, {"w": np.zeros(3)}])
    >>> load_model(path)["0"]["w"]
    array([1., 1.])
    >>> load_model(path, like=[{"w": np.ones(2)}, {"w": np.ones(3)}])[1]["w"]
    array([0., 0., 0.])
    """
    file = open_model(path)
    if names is None:
        return unflatten(file, like)
    ours = names.to_ours(file)
    return ours if like is None else filled(flatten(ours), like, f"{file.path}, renamed,")


@door
def save_model(
    path: str | os.PathLike,
    params: PyTree,
    *,
    metadata: Mapping | None = None,
    names: NameMap | None = None,
    shard_bytes: int | None = None,
) -> None:
    """Save a model in the format of the path's ending, whole or not at all.

    ``.safetensors``, ``.npz``, ``.msgpack`` (of flax), or none for a folder of orbax. Leaves are
    named by their paths, joined by dots: ``layers.0.weight``. A file that is there is replaced, and
    so is a folder that holds one checkpoint of orbax and nothing else.

    Args:
      path: where to.
      params: any pytree of arrays.
      metadata: text beside the leaves, which `open_model` gives back. For msgpack, which has no
        room for it, it is in ``NAME.metadata.json``.
      names: a map from our names to others (`NameMap`), as to PyTorch's.
      shard_bytes: if given, the path is a folder, and the model is written in shards of at most
        so many bytes (a larger leaf has one of its own) with an index, as Hugging Face does.

    Guarantees: atomic, on disk when it returns; dtypes are kept; equal models give equal bytes,
    except for orbax. What is there stays where saving fails. A process killed while a checkpoint of
    orbax takes another's place can leave the two in ``.NAME.*`` beside it, as ``old`` and ``new``.
    Shards replaced by others are unreadable until the last is written.

    Raises:
      ModelFileError: a leaf is no array, two have one name, the format has no such type (npz has
        no bfloat16, orbax no leaf without elements), the path of a checkpoint is a file or a folder
        with other things in it, or the file cannot be written.

    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/model.safetensors"
    >>> save_model(path, {"layers.0.weight": np.ones(2)}, metadata={"source": "example"})
    >>> open_model(path).metadata
    {'source': 'example'}
    """
    place = model_path(path)
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ModelFileError(f"metadata {shown(key)}: {shown(value)} is no text; give strings")
    leaves = flatten(params if names is None else names.to_theirs(params))
    if not leaves:
        raise ModelFileError("the model has no leaf; give a pytree of arrays")
    what = content(jax.tree.map(np.asarray, leaves), metadata)
    if shard_bytes is None:
        form_of(place)
        write(place, what)
        return
    checks.positive("shard_bytes", shard_bytes, "the largest size of a shard, such as 5 * 10**9")
    write_sharded(place, what, shard_bytes)
