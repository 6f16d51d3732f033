"""The smallest change that TIES keeps of each model, found in files, a piece at a time."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from wsa_jax.commands.sources import Source, check_finite
from wsa_jax.files import ModelFileError
from wsa_jax.files.model_file import listed
from wsa_jax.merging.combine.ties import kept_from

# Bits that a scan of the files settles: 2^16 counts a model.
_BITS = 16
_DIGITS = 1 << _BITS


def smallest_kept(
    given: Sequence[Source], names: Sequence[str], keep: float, piece: int
) -> list[Any]:
    """The magnitude at the edge of the kept share of each model's changes, over all its leaves.

    Magnitudes in order are their bits in order, so a scan counts them by their first 16 bits, and
    the next ones, among those that begin like the magnitude that is looked for, by 16 bits more:
    exact, two scans in float32 and four in float64, and half a megabyte a model.

    Args:
      given: a source of each model, and then of the base.
      names: the leaves that are merged.
      keep: the share that is kept, in (0, 1].
      piece: how many numbers of a leaf to look at at a time.

    Raises:
      ModelFileError: a leaf is complex, or holds NaN or infinite values.
    """
    shapes = given[0].file.shapes
    types = [np.dtype(shapes[name].dtype) for name in names]
    if odd := [n for n, kind in zip(names, types, strict=True) if kind.kind == "c"]:
        raise ModelFileError(
            f"ties elects a sign, and complex weights have none: {listed(odd)}; give another method"
        )
    kind = np.result_type(np.float32, *(np.float64 for one in types if one.itemsize == 8))
    bits = np.dtype(f"u{kind.itemsize}")
    size = sum(int(np.prod(shapes[name].shape)) for name in names)
    if not size:
        return [kind.type(0)] * (len(given) - 1)
    first = [0] * (len(given) - 1)
    places = [kept_from(size, keep)] * len(first)
    for shift in range(bits.itemsize * 8 - _BITS, -1, -_BITS):
        counts = np.zeros((len(first), _DIGITS), np.int64)
        for changes in _changes(given, names, kind, piece):
            for index, change in enumerate(changes):
                keys = change.view(bits)
                if shift + _BITS < bits.itemsize * 8:
                    keys = keys[keys >> bits.type(shift + _BITS) == bits.type(first[index])]
                digits = (keys >> bits.type(shift)) & bits.type(_DIGITS - 1)
                counts[index] += np.bincount(digits.astype(np.intp), minlength=_DIGITS)
        for index, found in enumerate(np.cumsum(counts, axis=1)):
            digit = int(np.searchsorted(found, places[index], side="right"))
            places[index] -= int(found[digit - 1]) if digit else 0
            first[index] = first[index] << _BITS | digit
    return [np.array(one, bits).view(kind)[()] for one in first]


def _changes(
    given: Sequence[Source], names: Sequence[str], kind: Any, piece: int
) -> Iterator[list[np.ndarray]]:
    """Magnitudes of what each model changed, piece by piece."""
    for name in names:
        for pieces in zip(*(one.pieces(name, piece) for one in given), strict=True):
            check_finite(name, pieces)
            # In the leaf's own precision first, as `ties` subtracts.
            wide = np.promote_types(pieces[0].dtype, np.float32)
            *models, base = (one.astype(wide) for one in pieces)
            yield [np.abs(model - base).astype(kind, copy=False) for model in models]
