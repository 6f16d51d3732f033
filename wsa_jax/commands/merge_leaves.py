"""One leaf of several models into one, by every method; large leaves piece by piece."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from wsa_jax.commands.recipe import Recipe
from wsa_jax.files.model_file import ModelFileError
from wsa_jax.files.names import flatten, unflatten
from wsa_jax.leaves import is_inexact
from wsa_jax.merging.combine import dare, model_stock, slerp, task_arithmetic, ties
from wsa_jax.reductions import weighted_mean

# Elements of a piece: enough for all cores, and small beside a leaf that matters.
_PIECE = 1 << 20

# The smallest number of elements that is compiled for.
_SMALLEST = 1 << 12


def merged_leaf(
    recipe: Recipe, name: str, leaves: Sequence[np.ndarray], base: np.ndarray | None
) -> Iterator[np.ndarray]:
    """The merged values of a leaf, in pieces of its dtype.

    Averages and task arithmetic take a piece of each model at a time; the other methods look at a
    leaf as a whole. Integers and flags are the first model's.

    Raises:
      ModelFileError: a value of a model that counts is not finite.
    """
    weights = recipe.weights_of(name)
    given = leaves if base is None else [*leaves, base]
    if not is_inexact(leaves[0]) or not leaves[0].size:
        yield leaves[0]
    elif recipe.method in ("average", "weighted"):
        yield from _averaged(name, leaves, weights)
    elif recipe.method == "task-arithmetic":
        for *models, start in _pieces(given):
            _check_finite(name, [*models, start])
            with _precision(start):
                piece = np.asarray(task_arithmetic(models, start, scale=weights))
            yield piece
    else:
        _check_finite(name, given)
        with _precision(leaves[0]):
            whole = _whole(recipe, name, leaves, base, weights)
        yield whole


def _whole(
    recipe: Recipe,
    name: str,
    leaves: Sequence[np.ndarray],
    base: np.ndarray | None,
    weights: Sequence[float],
) -> np.ndarray:
    numbers = dict(recipe.numbers)
    if recipe.method == "slerp":
        # Zeros change neither norm nor angle.
        ends = [_padded([leaf.reshape(-1)])[0] for leaf in leaves]
        circle = np.asarray(_slerp(*ends, weights[1] / sum(weights)))
        return circle[: leaves[0].size]
    if recipe.method == "ties":
        merge = partial(ties, keep=numbers["keep"], scale=numbers["scale"], per="leaf")
        return np.asarray(merge(list(leaves), base))
    if recipe.method == "model-stock":
        return np.asarray(model_stock(list(leaves), base))
    # What is dropped is drawn by the leaf's path: that of the whole model.
    trees = [unflatten({name: leaf}) for leaf in leaves]
    key = jax.random.key(int(numbers["seed"]))
    found = dare(key, trees, unflatten({name: base}), drop=numbers["drop"], scale=weights)
    return np.asarray(flatten(found)[name])


def _averaged(
    name: str, leaves: Sequence[np.ndarray], weights: Sequence[float]
) -> Iterator[np.ndarray]:
    """The weighted mean; a model of weight 0 is left out, whatever it holds."""
    kept = [index for index, weight in enumerate(weights) if weight]
    share = tuple(weights[index] for index in kept)
    for pieces in _pieces([leaves[index] for index in kept]):
        stack = _padded(pieces)
        with _precision(stack):
            mean, finite = map(np.asarray, _mean(stack, share))
        for index, fine in zip(kept, finite, strict=True):
            if not fine:
                _refuse_infinite(name, index)
        yield mean[: len(pieces[0])]


@partial(jax.jit, static_argnums=1)
def _mean(stack: Array, weights: tuple[float, ...]) -> tuple[Array, Array]:
    return weighted_mean(stack, weights), jnp.isfinite(stack).all(axis=1)


@partial(jax.jit, static_argnums=2)
def _slerp(first: Array, second: Array, t: float) -> Array:
    return slerp(first, second, t)


def _padded(pieces: Sequence[np.ndarray]) -> np.ndarray:
    """Vectors of one length as rows, filled with zeros: few sizes, so few programs to compile."""
    count = len(pieces[0])
    size = max(_SMALLEST, 1 << (count - 1).bit_length())
    stack = np.zeros((len(pieces), size), pieces[0].dtype)
    for row, piece in zip(stack, pieces, strict=True):
        row[:count] = piece
    return stack


def _precision(leaf: np.ndarray) -> AbstractContextManager[Any]:
    """JAX in double precision where the file is."""
    return jax.enable_x64(True) if leaf.dtype.itemsize >= 8 else nullcontext()


def _pieces(leaves: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    flat = [leaf.reshape(-1) for leaf in leaves]
    for start in range(0, len(flat[0]), _PIECE):
        yield [one[start : start + _PIECE] for one in flat]


def _check_finite(name: str, leaves: Sequence[np.ndarray]) -> None:
    for index, leaf in enumerate(leaves):
        if not all(np.isfinite(piece).all() for [piece] in _pieces([leaf])):
            _refuse_infinite(name, index)


def _refuse_infinite(name: str, index: int) -> None:
    raise ModelFileError(
        f"leaf {name} of file {index + 1} holds NaN or infinite values; give finite weights"
    )
