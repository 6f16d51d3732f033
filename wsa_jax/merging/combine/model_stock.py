"""Model Stock: how far to go from the base towards the average, by the angle between models."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from wsa_jax.door import door
from wsa_jax.leaves import is_inexact
from wsa_jax.merging.combine.task_vectors import add_to_base, checked_models
from wsa_jax.tree import unit, wide


@door
def model_stock(models: PyTree, base: PyTree, *, per: Literal["leaf", "model"] = "leaf") -> PyTree:
    r"""Go from the base to the average by a share that follows from the angle between the models.

    .. math:: W = t \bar W + (1 - t) B, \qquad t = \frac{N \cos\theta}{1 + (N - 1) \cos\theta},
              \qquad \cos\theta = \operatorname*{mean}_{m < k}
              \frac{\langle W_m - B, W_k - B \rangle}{\|W_m - B\| \|W_k - B\|}

    If fine-tuned models lie at one distance around a centre, this is the point nearest to the
    centre that lies on the plane through the models and the base.

    Args:
      models: at least two models fine-tuned from one base, a list or a stack ``[models, ...]``. A
        bare array is a model too, so a list of one leaf of each works leaf by leaf.
      base: the model that they were fine-tuned from, of their structure.
      per: measure the angle in each leaf (the paper's layers), or once over the whole model.

    Guarantees: as for `task_arithmetic`; right at every magnitude. Models of equal direction give
    their average, orthogonal ones the base.

    Edge cases: a mean cosine below 0 counts as 0, where the formula would leave the segment between
    base and average. A leaf that a model did not change has cosine 0 with all others.

    Raises:
      ValueError: as for `task_arithmetic`, or fewer than two models.

    >>> models = [{"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([1.0, 1.0])}]
    >>> [round(x, 4) for x in model_stock(models, {"w": jnp.zeros(2)})["w"].tolist()]
    [0.8284, 0.4142]

    Source: Jang et al., "Model Stock: All we need is just a few fine-tuned models", ECCV 2024,
    the interpolation ratio for N models; the mean over pairs is ours where they differ.
    """
    models = checked_models(models, base)
    if len(models) < 2:
        raise ValueError("model_stock takes at least two models, got 1; there is no angle")
    changes = [_changes(model, base) for model in models] if per == "model" else []
    whole = _share(changes) if changes else None

    def mix(name: str, leaf: Array, vectors: list[Array]) -> Array:
        del name, leaf
        share = _share(vectors) if whole is None else whole
        return share * (sum(vectors[1:], vectors[0]) / len(vectors))

    return add_to_base(mix, models, base)


def _changes(model: PyTree, base: PyTree) -> list[Array]:
    pairs = zip(jax.tree.leaves(model), jax.tree.leaves(base), strict=True)
    return [wide(leaf) - wide(origin) for leaf, origin in pairs if is_inexact(leaf)]


# Jitted as a whole: its many small operations would each compile for every shape of a leaf.
@jax.jit
def _share(vectors: list[PyTree]) -> Array:
    """The share t of the average, from the mean cosine of all pairs."""
    count = len(vectors)
    units = [unit(vector) for vector in vectors]
    cosines = [_product(units[i], units[j]) for i in range(count) for j in range(i)]
    cosine = jnp.clip(sum(cosines[1:], cosines[0]) / len(cosines), 0.0, 1.0)
    return count * cosine / (1 + (count - 1) * cosine)


def _product(first: PyTree, second: PyTree) -> Array:
    terms = jax.tree.map(lambda a, b: jnp.sum((jnp.conj(a) * b).real), first, second)
    return sum(jax.tree.leaves(terms), jnp.float32(0.0))
