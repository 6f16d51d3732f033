"""Leaves of several files into one, by every method; where it can be, piece by piece."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NoReturn

import jax
import numpy as np
from jaxtyping import Array

from wsa_jax.commands.recipe import Recipe
from wsa_jax.commands.smallest_kept import smallest_kept
from wsa_jax.commands.sources import Source, all_finite, check_finite, refuse_infinite
from wsa_jax.files import ModelFileError
from wsa_jax.files.model_file import size_in_bytes
from wsa_jax.files.names import flatten, unflatten
from wsa_jax.leaves import is_inexact
from wsa_jax.merging.combine import dare, model_stock, slerp, task_arithmetic
from wsa_jax.merging.combine.ties import merge_trimmed
from wsa_jax.reductions import shares

# Numbers in a piece: few calls, and a piece of each model stays in the cache.
_PIECE = 1 << 18

# Numbers that averages read at a time: they are quick, so that asking the threads would tell.
_READ = 1 << 19

# The smallest number of elements that is compiled for.
_SMALLEST = 1 << 12


class Merging:
    """A recipe at work on open files: the models and, for methods that ask for it, their base.

    Args:
      recipe: the method.
      given: a source of each model, and then of the base.
      advance: called with the number of bytes that were read, after each leaf.
    """

    def __init__(self, recipe: Recipe, given: Sequence[Source], advance: Callable[[int], object]):
        self._recipe, self._given, self._advance = recipe, given, advance
        self._shapes = given[0].file.shapes
        self._limits: Sequence[Any] = ()
        if recipe.method == "ties":
            # What is kept depends on the whole model: a look at all leaves, before any is merged.
            numbers = dict(recipe.numbers)
            merged = [name for name, shape in self._shapes.items() if is_inexact(shape)]
            self._limits = smallest_kept(given, merged, numbers["keep"], _PIECE)

    def leaf(self, name: str) -> Iterator[np.ndarray]:
        """The merged values of a leaf, in pieces of its dtype, each valid until the next.

        Averages, task arithmetic and TIES take a piece of each model at a time; the other methods
        look at a leaf as a whole. Integers and flags are the first model's.

        Raises:
          ModelFileError: a value of a model that counts is not finite.
        """
        shape = self._shapes[name]
        if not is_inexact(shape) or 0 in shape.shape:
            yield self._given[0].leaf(name).result()
        elif self._recipe.method in ("average", "weighted"):
            yield from _averaged(name, self._given, self._recipe.weights_of(name))
        elif self._recipe.method in ("task-arithmetic", "ties"):
            yield from self._from_base(name)
        else:
            reading = [source.leaf(name) for source in self._given]
            leaves = [leaf.result() for leaf in reading]
            check_finite(name, leaves)
            with _precision(leaves[0]):
                whole = _whole(self._recipe, name, leaves)
            self._check_range(name, whole)
            yield whole
        self._advance(len(self._given) * size_in_bytes(shape))

    def _from_base(self, name: str) -> Iterator[np.ndarray]:
        """Methods that treat every weight of a leaf alike, on the models and then their base."""
        weights = self._recipe.weights_of(name)
        scale = dict(self._recipe.numbers).get("scale", 1.0)
        for pieces in _pieces(name, self._given, _PIECE):
            check_finite(name, pieces)
            # Where nothing changed, nothing is added: zeros do for fewer sizes to compile.
            *models, base = (_padded(piece) for piece in pieces)
            with _precision(*self._limits, base):
                if self._recipe.method == "ties":
                    found = merge_trimmed(models, base, self._limits, scale)
                else:
                    found = task_arithmetic(models, base, scale=weights)
                merged = np.asarray(found)[: pieces[0].size]
            self._check_range(name, merged)
            yield merged

    def _check_range(self, name: str, merged: np.ndarray) -> None:
        """Refuse what finite models merge to beyond the range of their type."""
        if not all_finite(merged):
            raise ModelFileError(
                f"{self._recipe.method} of leaf {name} is too large for {merged.dtype}; give files "
                "of a wider type, or smaller weights"
            )


def _averaged(name: str, given: Sequence[Source], weights: Sequence[float]) -> Iterator[np.ndarray]:
    """The weighted mean, as `average` computes it; a model of weight 0 is not even read."""
    kept = [index for index, weight in enumerate(weights) if weight]
    share = np.asarray(shares([weights[index] for index in kept]))
    dtype = np.dtype(given[0].file.shapes[name].dtype)
    wide = np.promote_types(dtype, np.float32)
    # In NumPy and in two buffers: pieces stay in the cache, and no memory is asked for anew.
    total, term = np.empty(_PIECE, wide), np.empty(_PIECE, wide)
    for read in _pieces(name, [given[index] for index in kept], _READ):
        for start in range(0, read[0].size, _PIECE):
            pieces = [one[start : start + _PIECE] for one in read]
            mean = total[: pieces[0].size]
            if not _mean(pieces, share, mean, term):
                _refuse_mean(name, dict(zip(kept, pieces, strict=True)))
            yield mean.astype(dtype, copy=False)


def _mean(
    pieces: Sequence[np.ndarray], share: np.ndarray, total: np.ndarray, term: np.ndarray
) -> bool:
    """Fill the total with the sum of the pieces times their shares; whether all of it is finite."""
    with np.errstate(over="ignore", invalid="ignore"):  # the error says more than a warning
        _scaled(pieces[0], share[0], total)
        for factor, piece in zip(share[1:], pieces[1:], strict=True):
            _scaled(piece, factor, term[: piece.size])
            total += term[: piece.size]
    # Not `all_finite`: the mask of a piece stays in the cache, and is quicker than its sum.
    return bool(np.isfinite(total).all())


def _refuse_mean(name: str, pieces: Mapping[int, np.ndarray]) -> NoReturn:
    """Name the first model that is not finite; if all are, their sum rounded beyond the type."""
    for index, piece in pieces.items():
        if not np.isfinite(piece).all():
            refuse_infinite(name, index)
    kind = next(iter(pieces.values())).dtype
    raise ModelFileError(f"the mean of leaf {name} is too large for {kind}; give it in float64")


def _scaled(piece: np.ndarray, factor: Any, out: np.ndarray) -> None:
    """A piece times a factor, rounded to the type of the result as `average` does it."""
    if piece.dtype == out.dtype:
        np.multiply(piece, out.dtype.type(factor), out=out)
    else:
        out[:] = piece
        out *= out.dtype.type(factor)


def _whole(recipe: Recipe, name: str, leaves: Sequence[np.ndarray]) -> np.ndarray:
    """A method that looks at the whole leaf, of the models and then of their base."""
    weights, numbers = recipe.weights_of(name), dict(recipe.numbers)
    if recipe.method == "slerp":
        # Zeros change neither norm nor angle.
        ends = [_padded(leaf.reshape(-1)) for leaf in leaves]
        circle = np.asarray(_slerp(*ends, weights[1] / sum(weights)))
        return circle[: leaves[0].size]
    *models, base = leaves
    if recipe.method == "model-stock":
        return np.asarray(model_stock(models, base))
    # What is dropped is drawn by the leaf's path: that of the whole model.
    trees = [unflatten({name: leaf}) for leaf in models]
    key = jax.random.key(int(numbers["seed"]))
    found = dare(key, trees, unflatten({name: base}), drop=numbers["drop"], scale=weights)
    return np.asarray(flatten(found)[name])


@partial(jax.jit, static_argnums=2)
def _slerp(first: Array, second: Array, t: float) -> Array:
    return slerp(first, second, t)


def _padded(vector: np.ndarray) -> np.ndarray:
    """A vector with zeros up to a power of two: few sizes, so few programs to compile."""
    size = max(_SMALLEST, 1 << (vector.size - 1).bit_length())
    return vector if size == vector.size else np.pad(vector, (0, size - vector.size))


def _precision(*arrays: Any) -> AbstractContextManager[Any]:
    """JAX in double precision where the file is."""
    double = any(array.dtype.itemsize >= 8 for array in arrays)
    return jax.enable_x64(True) if double else nullcontext()


def _pieces(name: str, given: Iterable[Source], count: int) -> Iterator[tuple[np.ndarray, ...]]:
    return zip(*(source.pieces(name, count) for source in given), strict=True)
