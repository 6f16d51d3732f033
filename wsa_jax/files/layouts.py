"""How an array lies in a file of another library and in ours: pairs of inverse functions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from wsa_jax.door import door

Change: TypeAlias = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Layout:
    """A change of an array's axes, and its inverse: nothing is rounded.

    Attributes:
      to_ours: from the file's array to ours.
      to_theirs: back.
    """

    to_ours: Change
    to_theirs: Change


@door
def transposed(*axes: int) -> Layout:
    """Axis i of ours is axis ``axes[i]`` of theirs.

    >>> transposed(2, 3, 1, 0).to_ours(np.zeros((64, 3, 5, 5))).shape
    (5, 5, 3, 64)
    """
    back = tuple(int(axis) for axis in np.argsort(axes))
    return Layout(lambda a: a.transpose(axes), lambda a: a.transpose(back))


SAME = Layout(lambda a: a, lambda a: a)
"""Biases, norms, embeddings: as they are."""

DENSE = transposed(1, 0)
"""PyTorch's linear ``[out, in]`` and ours ``[in, out]``."""

CONV = transposed(2, 3, 1, 0)
"""PyTorch's convolution ``[out, in, height, width]`` and ours ``[height, width, in, out]``."""


@door
def flattened(channels: int, height: int, width: int) -> Layout:
    """The first dense layer behind a flatten: their inputs lie by channel, height, width.

    Theirs ``[out, channels · height · width]``, ours ``[height · width · channels, out]``.

    >>> flattened(2, 1, 3).to_ours(np.arange(6)[None])[:, 0].tolist()
    [0, 3, 1, 4, 2, 5]
    """
    return Layout(
        lambda a: a.reshape(-1, channels, height, width).transpose(2, 3, 1, 0).reshape(-1, len(a)),
        lambda a: (
            a.reshape(height, width, channels, -1).transpose(3, 2, 0, 1).reshape(a.shape[1], -1)
        ),
    )


@door
def heads_out(heads: int) -> Layout:
    """Queries, keys and values, or their biases: theirs make all heads at once.

    Theirs ``[heads · size, in]``, ours ``[in, heads, size]``; theirs ``[heads · size]``, ours
    ``[heads, size]``.

    >>> heads_out(3).to_ours(np.zeros((12, 5))).shape, heads_out(3).to_ours(np.zeros(12)).shape
    ((5, 3, 4), (3, 4))
    """
    return Layout(
        lambda a: np.moveaxis(a.reshape(heads, -1, *a.shape[1:]), (0, 1), (-2, -1)),
        lambda a: np.moveaxis(a, (-2, -1), (0, 1)).reshape(-1, *a.shape[:-2]),
    )


@door
def heads_in(heads: int) -> Layout:
    """The projection behind attention: theirs ``[out, heads · size]``, ours ``[heads, size, out]``.

    >>> heads_in(3).to_ours(np.zeros((5, 12))).shape
    (3, 4, 5)
    """
    return Layout(
        lambda a: a.T.reshape(heads, -1, len(a)),
        lambda a: a.reshape(-1, a.shape[-1]).T,
    )


@door
def chained(layouts: Sequence[Layout]) -> Layout:
    """One layout after another, from theirs to ours.

    >>> chained([DENSE, DENSE]).to_ours(np.zeros((2, 3))).shape
    (2, 3)
    """

    def to_ours(array: np.ndarray) -> np.ndarray:
        for layout in layouts:
            array = layout.to_ours(array)
        return array

    def to_theirs(array: np.ndarray) -> np.ndarray:
        for layout in reversed(layouts):
            array = layout.to_theirs(array)
        return array

    return Layout(to_ours, to_theirs)
