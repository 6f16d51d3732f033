"""A model in a file: names, shapes and metadata at once, every leaf when it is asked for."""

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from wsa_jax.runs.files import FULL, READ_ONLY, first_line

LISTED = 10
"""So many names of a long list are shown."""

Shapes = Mapping[str, jax.ShapeDtypeStruct]
"""Shape and dtype of each leaf, by its name."""


class ModelFileError(ValueError):
    """A model's file cannot be read or written; the message is one line with the way out."""


class Place(NamedTuple):
    """Where the bytes of a leaf begin: the file, and how many bytes stand before them."""

    path: Path
    begin: int


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ModelFile(Mapping[str, np.ndarray]):
    """An open file as a dictionary of arrays, of which each is read when it is asked for.

    Nothing is kept: asked twice, a leaf is read twice. Arrays are NumPy's, so that dtypes are the
    file's (JAX would make float32 of float64); every function of wsa_jax takes them.

    Attributes:
      path: the file or folder.
      form: ``safetensors``, ``npz``, ``msgpack`` or ``orbax``.
      shapes: shape and dtype of each leaf, without reading it.
      metadata: text that was saved beside the leaves; ``{}`` for none.
      read: reads one leaf.
      places: where the bytes of each leaf lie, in formats that store them plain and in one piece;
        None in others, whose leaves are read as a whole.
      parts: the files that hold the bytes, those of all shards.
    """

    path: Path
    form: str
    shapes: Shapes
    read: Callable[[str], np.ndarray]
    places: Mapping[str, Place] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[Path, ...] = ()

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.shapes:
            raise KeyError(name)
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes  # a Mapping would read the leaf

    def __repr__(self) -> str:
        return f"ModelFile({str(self.path)!r}, {self.form}, {len(self)} leaves)"


def size_in_bytes(shape: jax.ShapeDtypeStruct) -> int:
    """How many bytes a leaf has.

    >>> size_in_bytes(jax.ShapeDtypeStruct((2, 3), np.float16))
    12
    """
    return int(np.prod(shape.shape, dtype=np.int64)) * np.dtype(shape.dtype).itemsize


def read_bytes(path: Path, begin: int, out: np.ndarray) -> None:
    """Fill an array of bytes with those of a file from a place on.

    Raises:
      ModelFileError: the file cannot be read, or ends before the array is full.
    """
    done = 0
    with told(path, "read"), path.open("rb", buffering=0) as file:
        file.seek(begin)
        while done < out.size and (more := file.readinto(out[done:].data)):
            done += more
    if done < out.size:
        raise ModelFileError(f"{path} ends too early; take a whole copy")


def listed(names: Iterable[object]) -> str:
    """The first ten names, and how many more there are.

    >>> listed(range(12))
    '0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more'
    """
    words = [str(name) for name in names]
    rest = f" and {len(words) - LISTED} more" if len(words) > LISTED else ""
    return ", ".join(words[:LISTED]) + rest


@contextlib.contextmanager
def told(path: Path, doing: str, *others: type[Exception]) -> Generator[None]:
    """Turn what the system, or a library, refuses into one line with the path and the way out.

    >>> with told(Path("model.npz"), "read", KeyError):
    ...     raise KeyError("kernel")
    Traceback (most recent call last):
    wsa_jax.files.model_file.ModelFileError: cannot read model.npz ('kernel'); it is damaged or ...
    """
    try:
        yield
    except ModelFileError:
        raise
    except (OSError, *others) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        way_out = _way_out(error, doing)
        raise ModelFileError(f"cannot {doing} {path} ({reason}); {way_out}") from error


def _way_out(error: Exception, doing: str) -> str:
    code = getattr(error, "errno", None)
    if code in FULL:
        return "free some space and start again"
    if code in READ_ONLY:
        return "give a place that can be read and written"
    if isinstance(error, FileNotFoundError) and doing == "read":
        return "give the path of a file that exists"
    if code is not None:
        return "move it away, or give another path"
    if doing != "read":
        return "make room there, or end the path in .safetensors"
    return "it is damaged or of another format; take a whole copy"
