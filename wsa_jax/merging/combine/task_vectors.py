"""Task arithmetic: models fine-tuned from one base, combined by what they changed in it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree, Real

from wsa_jax import checks
from wsa_jax.door import door
from wsa_jax.leaves import is_array, is_inexact, is_traced, key_path
from wsa_jax.tree import at_least_one, wide
from wsa_jax.types import Leaf

Mix = Callable[[str, Array, list[Array]], Array]
"""``(name, base leaf, task vectors of the leaf) -> what is added to the base``, all in at least
float32."""


@door
def task_arithmetic(
    models: PyTree,
    base: PyTree,
    *,
    scale: float | int | Real[ArrayLike, "*models"] | Sequence[float | int] = 0.4,
) -> PyTree:
    r"""Add to the base what its fine-tuned models changed, scaled.

    .. math:: W = B + \sum_m \lambda_m (W_m - B)

    Args:
      models: models fine-tuned from one base, a list or a stack ``[models, ...]``. A bare array is
        a model too, so a list of one leaf of each works leaf by leaf.
      base: the model that they were fine-tuned from, of their structure.
      scale: :math:`\lambda`, one number for all or one for each model; a negative one makes the
        model forget. One over the number of models gives the average; several tasks at once ask for
        more. The default is what Yadav et al. use where there is nothing to choose it on.

    Guarantees: computed in at least float32, leaf by leaf, in the leaves' dtypes at the end; a
    scale of 0 gives the base bitwise. Leaves that are no floating-point or complex arrays are the
    first model's. Traceable.

    Raises:
      ValueError: no models; models or a base that differ in a leaf or its dtype, or hold NaN (the
        leaf is named); scales that are not finite or of another number.

    >>> models = [{"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([0.0, 2.0])}]
    >>> task_arithmetic(models, {"w": jnp.zeros(2)}, scale=0.5)["w"].tolist()
    [0.5, 1.0]

    Source: Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023: addition, and
    negation.
    """
    models = checked_models(models, base)
    scales = model_scales(scale, len(models))

    def mix(name: str, leaf: Array, vectors: list[Array]) -> Array:
        del name
        terms = [factor * vector for factor, vector in zip(scales, vectors, strict=True)]
        return sum(terms[1:], terms[0])

    return add_to_base(mix, models, base)


def checked_models(models: PyTree, base: PyTree) -> list[PyTree]:
    """Return the models as a list, if each of them may have been fine-tuned from the base.

    >>> checked_models([jnp.ones(2)], jnp.ones(3))
    Traceback (most recent call last):
    ValueError: a leaf has shape (3,) in the base and (2,) in model 1; give the model that ...
    """
    models = at_least_one(models)
    checks.models(models)
    check_base(base, models[0])
    return models


def check_base(base: PyTree, model: PyTree) -> None:
    """Raise a ValueError that names the first leaf in which a base is no base of a model.

    >>> check_base({"w": jnp.ones(2)}, {"w": jnp.ones(2), "b": jnp.ones(1)})
    Traceback (most recent call last):
    ValueError: leaf b is only in model 1, not in the base; give the model that all were ...
    """
    ours, theirs = _leaves(base), _leaves(model)
    way_out = "give the model that all were fine-tuned from"
    for name in [*ours, *theirs]:
        if (name in ours) != (name in theirs):
            only, other = ("the base", "model 1") if name in ours else ("model 1", "the base")
            raise ValueError(f"{name} is only in {only}, not in {other}; {way_out}")
    for name, leaf in ours.items():
        for what, asked in (("has shape", np.shape), ("is", _kind)):
            found, other = asked(leaf), asked(theirs[name])
            if found != other:
                raise ValueError(
                    f"{name} {what} {found} in the base and {other} in model 1; {way_out}"
                )
    checks.weights(base, "the base")


def model_scales(scale: Any, count: int) -> list[Any]:
    """One factor for each model.

    >>> model_scales(0.5, 2), model_scales([1, 2], 2)
    ([0.5, 0.5], [1.0, 2.0])
    >>> model_scales([1, 2], 3)
    Traceback (most recent call last):
    ValueError: scale has shape (2,) for 3 models; give one number, or one per model
    """
    if np.shape(scale) not in ((), (count,)):
        raise ValueError(
            f"scale has shape {np.shape(scale)} for {count} models; give one number, or one per "
            "model"
        )
    if is_traced(scale):
        return [scale] * count if np.ndim(scale) == 0 else list(scale)
    values = np.broadcast_to(np.asarray(scale, np.float64), count).tolist()
    largest = float(np.finfo(np.float32).max)
    bad = [value for value in values if not abs(value) <= largest]
    if bad:
        raise ValueError(f"scale {bad[0]} is not finite in float32; give numbers of ordinary size")
    return values


def add_to_base(mix: Mix, models: Sequence[PyTree], base: PyTree) -> PyTree:
    """Add to each leaf of a base what ``mix`` makes of the models' task vectors there.

    >>> add_to_base(lambda name, leaf, vectors: vectors[0], [{"w": jnp.ones(1)}], {"w": np.ones(1)})
    {'w': Array([1.], dtype=float32)}
    """

    def merged(path: tuple, first: Leaf, origin: Leaf, *others: Leaf) -> Leaf:
        if not is_inexact(first):
            return first
        start = wide(origin)
        vectors = [wide(leaf) - start for leaf in (first, *others)]
        return (start + mix(key_path(path), start, vectors)).astype(jnp.result_type(first))

    return jax.tree_util.tree_map_with_path(merged, models[0], base, *models[1:])


def _leaves(model: PyTree) -> dict[str, Leaf]:
    named = jax.tree_util.tree_leaves_with_path(model)
    return {f"leaf {key_path(path)}" if path else "a leaf": leaf for path, leaf in named}


def _kind(leaf: Leaf) -> str:
    return str(jnp.result_type(leaf)) if is_array(leaf) else "no array"
