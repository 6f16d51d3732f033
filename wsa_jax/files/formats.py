"""Which format a path is in: by its ending where it is written, by its content where it is read."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from wsa_jax.files.model_file import ModelFile, ModelFileError, told
from wsa_jax.files.msgpack_file import open_msgpack, write_msgpack
from wsa_jax.files.npz_file import open_npz, write_npz
from wsa_jax.files.orbax_file import is_orbax, open_orbax, write_orbax
from wsa_jax.files.safetensors_file import (
    INDEX,
    open_safetensors,
    open_sharded,
    write_safetensors,
)
from wsa_jax.files.writing import Content

Form = Literal["safetensors", "npz", "msgpack", "orbax"]
"""The formats."""

_ENDINGS: Mapping[str, Form] = {
    ".safetensors": "safetensors",
    ".npz": "npz",
    ".msgpack": "msgpack",
    "": "orbax",
}

_OPEN: Mapping[str, Callable[[Path], ModelFile]] = {
    "safetensors": open_safetensors,
    "npz": open_npz,
    "msgpack": open_msgpack,
}

_WRITE: Mapping[str, Callable[[Path, Content], None]] = {
    "safetensors": write_safetensors,
    "npz": write_npz,
    "msgpack": write_msgpack,
    "orbax": write_orbax,
}

_PICKLES = frozenset({".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".joblib"})

_KNOWN = ".safetensors, .npz, .msgpack, or a folder of orbax"


def model_path(path: str | os.PathLike[str]) -> Path:
    """A path as it is written, with ``~`` for the home folder.

    >>> model_path("models/a.npz").name
    'a.npz'
    """
    text = os.fspath(path)
    if not text.strip() or "\0" in text:
        raise ModelFileError(f"path {text!r} names no file; give the path of a model")
    return Path(text).expanduser()


def opened(path: Path) -> ModelFile:
    """Open a model by its content: a folder, an index, or a file whose ending names its format."""
    with told(path, "read"):
        if path.is_dir():
            return _opened_folder(path)
        if not path.exists():
            raise ModelFileError(f"there is no model at {path}; give the path of one")
    refuse_pickle(path)
    if path.name.endswith(".safetensors.index.json"):
        return open_sharded(path)
    form = _ENDINGS.get(path.suffix.lower())
    if form is None or form not in _OPEN:
        raise ModelFileError(
            f"the ending of {path} names no format; give a file that ends in {_KNOWN}"
        )
    return _OPEN[form](path)


def form_of(path: Path) -> Form:
    """The format that an output's ending asks for; none is a folder of orbax.

    >>> form_of(Path("merged.safetensors")), form_of(Path("merged"))
    ('safetensors', 'orbax')
    """
    refuse_pickle(path)
    form = _ENDINGS.get(path.suffix.lower())
    if form is None:
        raise ModelFileError(f"the ending of {path} names no format; end it in {_KNOWN}")
    return form


def write(path: Path, what: Content) -> None:
    """Write a model in the format of the path's ending, whole or not at all."""
    form = form_of(path)
    with told(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
    _WRITE[form](path, what)


def refuse_pickle(path: Path) -> None:
    """Raise a ModelFileError for the endings of pickles, with the reason and the way out.

    >>> refuse_pickle(Path("model.pth"))
    Traceback (most recent call last):
    wsa_jax.files.model_file.ModelFileError: model.pth is a pickle, which can run any code ...
    """
    if path.suffix.lower() in _PICKLES:
        raise ModelFileError(
            f"{path} is a pickle, which can run any code when it is read; where you trust it, "
            "convert it once: safetensors.torch.save_file(torch.load(PATH, weights_only=True), "
            "'model.safetensors')"
        )


def _opened_folder(path: Path) -> ModelFile:
    if (path / INDEX).is_file():
        return open_sharded(path / INDEX)
    if is_orbax(path):
        return open_orbax(path)
    single = path / "model.safetensors"
    if single.is_file():
        return open_safetensors(single)
    steps = sorted((one.name for one in path.iterdir() if one.name.isdigit()), key=int)
    if steps:
        raise ModelFileError(
            f"{path} holds checkpoints of steps {', '.join(steps)}; give one of them, such as "
            f"{path / steps[-1]}"
        )
    raise ModelFileError(
        f"{path} holds neither {INDEX}, nor model.safetensors, nor a checkpoint of orbax; "
        "give the path of a model"
    )
