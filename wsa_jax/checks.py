"""Checks at the door of public functions: each raises one line with the culprit and the way out.

The first argument of a check is what the user calls the thing, so that a message can name it.
"""

import math
import numbers
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, PyTree, Real

from wsa_jax.door import shown
from wsa_jax.leaves import is_inexact, is_key, is_traced, is_weight, key_path
from wsa_jax.types import Leaf


def one_of(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise a ValueError unless a setting is one of a few words.

    >>> one_of("per", "row", ("leaf", "model"))
    Traceback (most recent call last):
    ValueError: per 'row' is unknown; give 'leaf' or 'model'
    """
    known = list(choices)
    if isinstance(value, str) and value in known:
        return
    words = [repr(choice) for choice in known]
    listed = " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
    if len(known) > 3:
        listed = f"one of {', '.join(known)}"
    raise ValueError(f"{name} {shown(value)} is unknown; give {listed}")


def count(name: str, value: object) -> None:
    """Raise a ValueError unless a setting is a positive integer.

    >>> count("steps", 0)
    Traceback (most recent call last):
    ValueError: steps must be a positive integer, got 0
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {shown(value)}")
    if int(value) >= 2**31:
        raise ValueError(f"{name} {value} is too large a size or number; give one below 2**31")


def number(name: str, value: object, low: float | int, high: float | int, way_out: str) -> None:
    """Raise a ValueError unless a setting is a number in ``[low, high)``; NaN never is.

    >>> number("momentum", -0.9, 0, 1, "0 for none")
    Traceback (most recent call last):
    ValueError: momentum -0.9 is not in [0, 1); give 0 for none
    """
    if not _is_number(value) or not low <= value < high:
        raise ValueError(f"{name} {shown(value)} is not in [{low:g}, {high:g}); give {way_out}")


def positive(name: str, value: object, way_out: str = "a number above 0") -> None:
    """Raise a ValueError unless a setting is a number above 0, infinity included.

    >>> positive("clip_norm", 0.0, "None for no clipping")
    Traceback (most recent call last):
    ValueError: clip_norm 0.0 is not positive; give None for no clipping
    """
    if not _is_number(value) or not value > 0:
        raise ValueError(f"{name} {shown(value)} is not positive; give {way_out}")


def sgd_settings(settings: Any, counts: Sequence[str] = ("steps", "batch_size")) -> None:
    """Raise a ValueError if a count, clip_norm, weight_decay or momentum is invalid.

    >>> from wsa_jax.training.fit import FitSettings
    >>> FitSettings(steps=10, momentum=-0.9)
    Traceback (most recent call last):
    ValueError: momentum -0.9 is not in [0, 1); give 0 for none
    """
    for name in counts:
        count(name, getattr(settings, name))
    if settings.clip_norm is not None:
        positive("clip_norm", settings.clip_norm, "None for no clipping")
    number("weight_decay", settings.weight_decay, 0, math.inf, "0 for none")
    number("momentum", settings.momentum, 0, 1, "0 for none")


def key(key: Any) -> None:
    """Raise a ValueError unless this is a JAX key or an array of them, not a legacy key.

    >>> key(0)
    Traceback (most recent call last):
    ValueError: key is an array of int32, not of keys; give jax.random.key(seed), ...
    """
    if is_key(key):
        if not key.size:
            raise ValueError(f"key is an array of keys of shape {key.shape}, which holds none")
        return
    kind = getattr(key, "dtype", None) or (
        jnp.result_type(key) if _is_number(key) else type(key).__name__
    )
    raise ValueError(
        f"key is an array of {kind}, not of keys; give jax.random.key(seed), "
        "or jax.random.split of it for several models"
    )


def same_structure(first: PyTree, second: PyTree) -> None:
    """Raise a ValueError that names the first leaf in which two models differ in path or shape.

    >>> same_structure({"w": jnp.ones(2)}, {"w": jnp.ones(3)})
    Traceback (most recent call last):
    ValueError: leaf w has shape (2,) in the first model and (3,) in the second; ...
    """
    ours = {key_path(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(first)}
    theirs = {key_path(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(second)}
    for name in [*ours, *theirs]:
        if name in ours and name in theirs:
            continue
        where = "first" if name in ours else "second"
        raise ValueError(
            f"leaf {name} is only in the {where} model; the architectures must be equal"
        )
    for name, leaf in ours.items():
        shape, other = _shape(leaf), _shape(theirs[name])
        if shape != other:
            raise ValueError(
                f"leaf {name} has shape {shape} in the first model and {other} in the second; "
                "the architectures must be equal"
            )


def same_dtypes(first: PyTree, second: PyTree) -> None:
    """Raise a ValueError that names the first leaf whose type differs between models.

    >>> same_dtypes({"w": jnp.ones(2)}, {"w": jnp.ones(2, jnp.float16)})
    Traceback (most recent call last):
    ValueError: leaf w is float32 in the first model and float16 in the second; ...
    """
    theirs = jax.tree.leaves(second)
    for (path, leaf), other in zip(jax.tree_util.tree_leaves_with_path(first), theirs, strict=True):
        ours, found = _kind(leaf), _kind(other)
        if ours != found:
            raise ValueError(
                f"leaf {key_path(path)} is {ours} in the first model and {found} in the second; "
                "convert one of them, for example by leaf.astype"
            )


def pair(first: PyTree, second: PyTree) -> None:
    """Refuse two models that differ in structure, shapes or types; name what is only the first's.

    Plain numbers of Python are no weights: combinations keep the first model's, and a warning names
    one that differs.
    """
    same_structure(first, second)
    same_dtypes(first, second)
    others = jax.tree.leaves(second)
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(first), others, strict=True
    ):
        if isinstance(ours, int | float | complex) and ours != theirs:
            warnings.warn(
                f"leaf {key_path(path)} is a number of Python, {ours} in the first model and "
                f"{theirs} in another; the first model's is kept: give arrays to combine them",
                stacklevel=3,
            )


def finite(params: PyTree, what: str = "params") -> None:
    """Raise a ValueError that names the first leaf holding NaN or infinity: a host check.

    >>> finite({"w": jnp.array([1.0, jnp.nan])})
    Traceback (most recent call last):
    ValueError: leaf w of params holds 1 NaN or infinite value of 2; ...
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not is_inexact(leaf):
            continue
        values = np.asarray(leaf)
        # NumPy knows bfloat16 by its bytes alone; float64 has numbers that float32 has not.
        known = values if values.dtype.kind in "fc" else values.astype(np.float32)
        bad = int(values.size - np.isfinite(known).sum())
        if bad:
            raise ValueError(
                f"leaf {key_path(path)} of {what} holds {bad} NaN or infinite "
                f"value{'s' if bad > 1 else ''} of {np.size(leaf)}; give finite weights"
            )


def floating(params: PyTree) -> None:
    """Raise a ValueError that names the first leaf that a gradient step cannot move.

    >>> floating({"w": np.ones(2), "count": np.arange(2, dtype=np.int32)})
    Traceback (most recent call last):
    ValueError: leaf count of params is of type int32; ...
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if isinstance(leaf, float) or is_weight(leaf):
            continue
        kind = getattr(leaf, "dtype", type(leaf).__name__)
        raise ValueError(
            f"leaf {key_path(path)} of params is of type {kind}; give floating-point arrays only, "
            "and keep what is not trained in the model state or inside the task's functions"
        )


def shares(weights: Sequence[float | int] | Real[ArrayLike, " models"], what: str) -> None:
    """Raise a ValueError if concrete weights of models are negative, not finite or all 0.

    >>> shares([-1.0, 2.0], "weights")
    Traceback (most recent call last):
    ValueError: weights [-1.0, 2.0] are not shares; give finite numbers >= 0, not all 0
    """
    if isinstance(weights, jax.core.Tracer):
        return
    values = np.asarray(weights, np.float64)
    if not (np.isfinite(values).all() and (values >= 0).all() and values.any()):
        raise ValueError(
            f"{what} {values.tolist()} are not shares; give finite numbers >= 0, not all 0"
        )


def weights(params: PyTree, what: str) -> None:
    """Raise a ValueError that names the first leaf holding NaN or infinity; skipped under a trace.

    >>> weights({"w": jnp.array([jax.numpy.nan])}, "the first model")
    Traceback (most recent call last):
    ValueError: leaf w of the first model holds 1 NaN or infinite value of 1; ...
    """
    if not is_traced(params):
        finite(params, what)


def models(models: Sequence[PyTree]) -> None:
    """Raise a ValueError where models differ in a leaf, or where one holds NaN or infinity.

    >>> models([{"w": jnp.ones(1)}, {"w": jnp.array([jax.numpy.inf])}])
    Traceback (most recent call last):
    ValueError: leaf w of model 2 holds 1 NaN or infinite value of 1; ...
    """
    for index, model in enumerate(models):
        same_structure(models[0], model)
        same_dtypes(models[0], model)
        weights(model, f"model {index + 1}")


def _is_number(value: object) -> TypeGuard[float]:
    """Whether a value is one real number, of Python or NumPy; a string or a flag is none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _kind(leaf: Leaf) -> str:
    """The type of an array as JAX holds it; of anything else, whether it is a number of Python."""
    if hasattr(leaf, "dtype"):
        return str(jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True))
    return "a number of Python" if isinstance(leaf, numbers.Number) else "no array"


def _shape(leaf: Leaf) -> tuple[int, ...]:
    """The shape of an array; () for anything else, such as a function in an Equinox module."""
    return tuple(getattr(leaf, "shape", ()))
