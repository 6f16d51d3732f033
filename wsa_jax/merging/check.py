"""Checks of models that all public functions of merging share."""

from collections.abc import Sequence

import jax
from jaxtyping import PyTree

from wsa_jax.tree import check_finite, check_same_structure, is_array, stack, unstack


def check_weights(params: PyTree, what: str) -> None:
    """Raise a ValueError that names the first leaf holding NaN or infinity; skipped under a trace.

    >>> check_weights({"w": jax.numpy.array([jax.numpy.nan])}, "the first model")
    Traceback (most recent call last):
    ValueError: leaf w of the first model holds 1 NaN or infinite value of 1; ...
    """
    if not is_traced(params):
        check_finite(params, what)


def check_models(models: Sequence[PyTree]) -> None:
    """Raise a ValueError where models differ in a leaf, or where one holds NaN or infinity.

    >>> check_models([{"w": jax.numpy.ones(1)}, {"w": jax.numpy.array([jax.numpy.inf])}])
    Traceback (most recent call last):
    ValueError: leaf w of model 2 holds 1 NaN or infinite value of 1; ...
    """
    for index, model in enumerate(models):
        check_same_structure(models[0], model)
        check_weights(model, f"model {index + 1}")


def as_list(models: PyTree) -> list[PyTree]:
    """Return a plain list or tuple of models as a list, and split a stack ``[models, ...]``.

    Raises:
      ValueError: leading axes of unequal length, or no array that tells the number of models.

    >>> [model["w"].item() for model in as_list({"w": jax.numpy.arange(2.0)})]
    [0.0, 1.0]
    """
    return list(models) if type(models) in (list, tuple) else unstack(as_stack(models))


def is_traced(tree: PyTree) -> bool:
    """Whether any leaf has no value yet (inside jit, vmap or grad)."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def as_stack(models: PyTree) -> PyTree:
    """Return a stack ``[models, ...]`` as it is, and stack a plain list or tuple of models.

    A list is always taken for a list of models: a stack of models that are themselves lists of
    layers has to be given as a list of models (see `wsa_jax.tree.unstack`).

    Raises:
      ValueError: no models, models that differ (the leaf is named), or leading axes of unequal
        length.

    >>> as_stack([{"w": jax.numpy.zeros(2)}] * 3)["w"].shape
    (3, 2)
    """
    if type(models) in (list, tuple):
        return stack(models)
    leaves = filter(is_array, jax.tree.leaves(models))
    lengths = {jax.numpy.shape(leaf)[:1] for leaf in leaves}
    if len(lengths) > 1 or lengths & {(), (0,)}:
        raise ValueError(
            f"models is not a stack: its leaves' leading axes are {sorted(lengths)}; "
            "give leaves [models, ...] or a list of models"
        )
    return models
