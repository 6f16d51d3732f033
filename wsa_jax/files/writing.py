"""What the writers of all formats share: leaves in pieces, so that none need be whole in memory."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from wsa_jax.files.model_file import ModelFileError, Shapes, size_in_bytes

Pieces: TypeAlias = Callable[[str], Iterable[np.ndarray]]
"""The values of the leaf of a name, in order, as one array or as several after one another."""


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


def content(leaves: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> Content:
    """Content of leaves that are in memory, or in an open file.

    >>> content({"w": np.ones(2)}).shapes["w"].shape
    (2,)
    """
    from jax import ShapeDtypeStruct

    shapes = getattr(leaves, "shapes", None) or {
        name: ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in leaves.items()
    }
    return Content(
        shapes=shapes,
        pieces=lambda name: [np.asarray(leaves[name])],
        metadata=metadata or {},
    )
