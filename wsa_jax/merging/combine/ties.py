"""TIES-Merging: trim small changes, elect a sign for each weight, average what agrees with it."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree, Real

from wsa_jax.door import door
from wsa_jax.leaves import is_inexact, is_traced
from wsa_jax.merging.combine.task_vectors import add_to_base, checked_models, model_scales
from wsa_jax.merging.result import check_real
from wsa_jax.tree import wide


@door
def ties(
    models: PyTree,
    base: PyTree,
    *,
    keep: float | int = 0.2,
    scale: Real[ArrayLike, ""] = 1.0,
    per: Literal["model", "leaf"] = "model",
) -> PyTree:
    r"""Merge fine-tuned models without letting small or opposite changes cancel large ones.

    .. math:: \tau_m = \operatorname{trim}_k(W_m - B), \qquad
              \gamma = \operatorname{sign} \sum_m \tau_m, \qquad
              W = B + \lambda \operatorname{mean}_{m:\, \operatorname{sign} \tau_m = \gamma} \tau_m

    Args:
      models: models fine-tuned from one base, a list or a stack ``[models, ...]``. A bare array is
        a model too, so a list of one leaf of each works leaf by leaf, as ``per="leaf"`` does.
      base: the model that they were fine-tuned from, of their structure.
      keep: the share of each model's changes that is kept, the largest ones; in (0, 1].
      scale: :math:`\lambda`, what the merged change is multiplied by.
      per: whether the largest changes are those of the whole model (the paper's) or of each leaf.

    Guarantees: as for `task_arithmetic`. One model with ``keep=1`` is itself up to rounding, and so
    is a weight that a single model changes.

    Edge cases: where the changes sum to 0, no sign wins and the base stays. A change as large as
    the smallest that is kept is kept too. Biases and norms count as weights.

    Raises:
      ValueError: as for `task_arithmetic`, or ``keep`` outside (0, 1].
      NotAdmittedError: complex weights, which have no sign.

    >>> models = [{"w": jnp.array([3.0, 1.0, -2.0])}, {"w": jnp.array([1.0, -4.0, 0.1])}]
    >>> ties(models, {"w": jnp.zeros(3)}, keep=1)["w"].tolist()
    [2.0, -4.0, -2.0]

    Source: Yadav et al., "TIES-Merging: Resolving Interference When Merging Models", NeurIPS 2023,
    Algorithm 1, with a tie between signs left open.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep {keep} is not a share in (0, 1]; 0.2 is the default")
    models = checked_models(models, base)
    check_real(models[0], "a sign")
    (factor,) = model_scales(scale, 1)
    if per == "leaf":
        return add_to_base(
            lambda name, leaf, vectors: factor * _trimmed(vectors, _limits(vectors, keep)),
            models,
            base,
        )
    # What is kept depends on the whole model: one pass before any leaf can be merged.
    limits = [_threshold(_changes(model, base), keep) for model in models]
    return merge_trimmed(models, base, limits, factor)


def merge_trimmed(
    models: Sequence[PyTree], base: PyTree, limits: Sequence[Any], scale: Any
) -> PyTree:
    """Merge what models changed by at least a limit each; nothing is checked.

    Weights do not look at each other, so a part of a leaf can be merged alone.

    >>> models, base = [jnp.array([3.0, 1.0]), jnp.array([5.0, 2.0])], jnp.zeros(2)
    >>> merge_trimmed(models, base, limits=[2.0, 2.0], scale=1.0).tolist()
    [4.0, 2.0]
    """
    return add_to_base(lambda name, leaf, vectors: scale * _trimmed(vectors, limits), models, base)


def kept_from(size: int, keep: float | int) -> int:
    """The place, in rising order, of the smallest of so many changes that is kept.

    >>> kept_from(10, 0.2), kept_from(3, 0.01)
    (8, 2)
    """
    return size - max(1, min(size, math.floor(keep * size + 0.5)))


def _trimmed(vectors: list[Array], limits: Sequence[Any]) -> Array:
    return merge_signs(
        [
            jnp.where(jnp.abs(vector) >= limit, vector, 0.0)
            for vector, limit in zip(vectors, limits, strict=True)
        ]
    )


def _limits(vectors: list[Array], keep: float | int) -> list[Any]:
    return [_threshold([jnp.abs(vector)], keep) for vector in vectors]


# Jitted as a whole: operation by operation, each would compile for every shape of a leaf.
@jax.jit
def merge_signs(vectors: list[Array]) -> Array:
    """Average, at each weight, the changes that have the sign of their sum.

    >>> merge_signs([jnp.array([1.0, 2.0]), jnp.array([3.0, -1.0])]).tolist()
    [2.0, 2.0]
    """
    elected = jnp.sign(sum(vectors[1:], vectors[0]))
    agreeing = [jnp.where(jnp.sign(vector) == elected, vector, 0.0) for vector in vectors]
    # A change of 0 is no vote, whatever was elected.
    count = sum((jnp.abs(jnp.sign(vector)) for vector in agreeing), jnp.zeros_like(elected))
    return sum(agreeing[1:], agreeing[0]) / jnp.maximum(count, 1)


def _changes(model: PyTree, base: PyTree) -> list[Array]:
    pairs = zip(jax.tree.leaves(model), jax.tree.leaves(base), strict=True)
    return [jnp.abs(wide(leaf) - wide(origin)) for leaf, origin in pairs if is_inexact(leaf)]


def _threshold(magnitudes: list[Array], keep: float | int) -> Any:
    """The smallest magnitude among the share that is kept."""
    size = sum(magnitude.size for magnitude in magnitudes)
    if not size:
        return 0.0
    place = kept_from(size, keep)
    if is_traced(magnitudes):
        return jnp.sort(jnp.concatenate([m.ravel() for m in magnitudes]))[place]
    # On the host: a selection there is linear, a sort under XLA is not.
    values = np.concatenate([np.asarray(magnitude).ravel() for magnitude in magnitudes])
    values.partition(place)
    return values[place]
