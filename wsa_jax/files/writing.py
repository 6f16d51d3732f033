"""What the writers of all formats share: leaves in pieces, so that none need be whole in memory."""

import contextlib
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import ShapeDtypeStruct

from wsa_jax.files.model_file import ModelFileError, Shapes, size_in_bytes

Pieces: TypeAlias = Callable[[str], Iterable[np.ndarray]]
"""The values of the leaf of a name, in order, as one array or as several after one another; each is
used up before the next one is asked for, so that all may be one buffer."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """What is to be written.

    Attributes:
      shapes: shape and dtype of each leaf.
      pieces: called once for each leaf, in the order in which the writer wants them.
      metadata: text beside the leaves.
      late: metadata that is known only when all leaves are written, such as the digest of what they
        were read from; ``metadata`` holds stand-ins of the same lengths.
    """

    shapes: Shapes
    pieces: Pieces
    metadata: Mapping[str, str] = field(default_factory=dict)
    late: Callable[[], Mapping[str, str]] = dict

    def bytes_of(self, name: str) -> Iterator[memoryview]:
        """The bytes of a leaf, which must be as many as its shape says."""
        shape = self.shapes[name]
        written = 0
        for piece in self.pieces(name):
            if piece.dtype != shape.dtype:
                raise ModelFileError(f"leaf {name} is {piece.dtype}, announced as {shape.dtype}")
            # Half precision of JAX has no buffer of its own: seen as plain bytes.
            data = np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
            written += len(data)
            yield data
        if written != size_in_bytes(shape):
            raise ModelFileError(f"leaf {name} has {written} bytes, of {size_in_bytes(shape)}")

    def leaf(self, name: str) -> np.ndarray:
        """A leaf as a whole, for formats that have no other way."""
        shape, data = self.shapes[name], bytearray()
        for piece in self.bytes_of(name):
            data += piece
        return np.frombuffer(data, jnp.dtype(shape.dtype)).reshape(shape.shape)

    def native(self) -> "Content":
        """The same values in this machine's byte order, for formats that store no other.

        >>> content({"w": np.ones(2, ">f4")}).native().shapes["w"].dtype.isnative
        True
        """

        def ordered(name: str) -> Iterator[np.ndarray]:
            for piece in self.pieces(name):
                yield piece.astype(piece.dtype.newbyteorder("="), copy=False)

        shapes = {
            name: ShapeDtypeStruct(shape.shape, np.dtype(shape.dtype).newbyteorder("="))
            for name, shape in self.shapes.items()
        }
        return replace(self, shapes=shapes, pieces=ordered)


# So many bytes go to the disk at a time.
_HANDED_OVER = 1 << 26


@contextlib.contextmanager
def on_the_way(file: BinaryIO) -> Generator[Callable[[Any], None]]:
    """Bring bytes to the disk while more are made, rather than all of them at the end.

    The system keeps what is written in memory for seconds; a disk that could have worked meanwhile
    is then waited for.

    >>> import tempfile
    >>> with tempfile.TemporaryFile() as file:
    ...     with on_the_way(file) as write:
    ...         write(b"bytes")
    ...     file.tell()
    5
    """
    fresh, handed = 0, None
    with ThreadPoolExecutor(max_workers=1) as thread:

        def write(data: Any) -> None:
            nonlocal fresh, handed
            file.write(data)
            fresh += len(data)
            if fresh < _HANDED_OVER or (handed is not None and not handed.done()):
                return
            if handed is not None:
                handed.result()  # raises what the disk refused
            file.flush()
            fresh, handed = 0, thread.submit(os.fsync, file.fileno())

        yield write
        if handed is not None:
            handed.result()


def content(leaves: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> Content:
    """Content of leaves that are in memory, or in an open file.

    >>> content({"w": np.ones(2)}).shapes["w"].shape
    (2,)
    """
    shapes = getattr(leaves, "shapes", None) or {
        name: ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in leaves.items()
    }
    return Content(
        shapes=shapes,
        pieces=lambda name: [np.asarray(leaves[name])],
        metadata=metadata or {},
    )
