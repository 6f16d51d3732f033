"""One leaf of several files into one, by every method; where it can be, piece by piece."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from wsa_jax.commands.recipe import Recipe
from wsa_jax.files import ModelFile, ModelFileError
from wsa_jax.files.names import flatten, unflatten
from wsa_jax.leaves import is_inexact
from wsa_jax.merging.combine import dare, model_stock, slerp, task_arithmetic, ties
from wsa_jax.reductions import shares

# Numbers in a piece: few calls, and a piece of each model stays in the cache.
_PIECE = 1 << 18

# The smallest number of elements that is compiled for.
_SMALLEST = 1 << 12


def merged_leaf(
    recipe: Recipe, name: str, files: Sequence[ModelFile], base: ModelFile | None
) -> Iterator[np.ndarray]:
    """The merged values of a leaf, in pieces of its dtype.

    Averages and task arithmetic take a piece of each model at a time; the other methods look at a
    leaf as a whole. Integers and flags are the first model's.

    Raises:
      ModelFileError: a value of a model that counts is not finite.
    """
    weights = recipe.weights_of(name)
    shape = files[0].shapes[name]
    given = [*files, *([] if base is None else [base])]
    if not is_inexact(shape) or 0 in shape.shape:
        yield files[0][name]
    elif recipe.method in ("average", "weighted"):
        yield from _averaged(name, files, weights)
    elif recipe.method == "task-arithmetic":
        for *models, start in _pieces(name, given):
            _check_finite(name, [*models, start])
            with _precision(start):
                piece = np.asarray(task_arithmetic(models, start, scale=weights))
            yield piece
    else:
        leaves = [file[name] for file in given]
        _check_finite(name, leaves)
        with _precision(leaves[0]):
            whole = _whole(recipe, name, leaves, weights)
        yield whole


def _averaged(
    name: str, files: Sequence[ModelFile], weights: Sequence[float]
) -> Iterator[np.ndarray]:
    """The weighted mean, as `average` computes it; a model of weight 0 is not even read."""
    kept = [index for index, weight in enumerate(weights) if weight]
    share = np.asarray(shares([weights[index] for index in kept]))
    for pieces in _pieces(name, [files[index] for index in kept]):
        # In NumPy: a piece is two passes through the cache, less than handing it to JAX and back.
        wide = np.promote_types(pieces[0].dtype, np.float32)
        total = pieces[0].astype(wide) * wide.type(share[0])
        for factor, piece in zip(share[1:], pieces[1:], strict=True):
            total += piece.astype(wide, copy=False) * wide.type(factor)
        if not np.isfinite(total).all():
            bad = next(i for i, one in zip(kept, pieces, strict=True) if not np.isfinite(one).all())
            _refuse_infinite(name, bad)
        yield total.astype(pieces[0].dtype, copy=False)


def _whole(
    recipe: Recipe, name: str, leaves: Sequence[np.ndarray], weights: Sequence[float]
) -> np.ndarray:
    """A method that looks at the whole leaf, of the models and then of their base."""
    numbers = dict(recipe.numbers)
    if recipe.method == "slerp":
        # Zeros change neither norm nor angle.
        ends = [_padded(leaf.reshape(-1)) for leaf in leaves]
        circle = np.asarray(_slerp(*ends, weights[1] / sum(weights)))
        return circle[: leaves[0].size]
    *models, base = leaves
    if recipe.method == "ties":
        found = ties(models, base, keep=numbers["keep"], scale=numbers["scale"], per="leaf")
        return np.asarray(found)
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
    return np.pad(vector, (0, size - vector.size))


def _precision(leaf: np.ndarray) -> AbstractContextManager[Any]:
    """JAX in double precision where the file is."""
    return jax.enable_x64(True) if leaf.dtype.itemsize >= 8 else nullcontext()


def _pieces(name: str, files: Sequence[ModelFile]) -> Iterator[tuple[np.ndarray, ...]]:
    return zip(*(file.in_pieces(name, _PIECE) for file in files), strict=True)


def _check_finite(name: str, leaves: Sequence[np.ndarray]) -> None:
    for index, leaf in enumerate(leaves):
        if not np.isfinite(leaf).all():
            _refuse_infinite(name, index)


def _refuse_infinite(name: str, index: int) -> None:
    raise ModelFileError(
        f"leaf {name} of file {index + 1} holds NaN or infinite values; give finite weights"
    )
