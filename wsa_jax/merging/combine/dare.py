"""DARE: drop most of what fine-tuning changed at random, and scale up what is left."""

import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Key, PyTree, Real

from wsa_jax.door import door
from wsa_jax.merging.combine.task_vectors import (
    add_to_base,
    checked_models,
    model_scales,
    task_arithmetic,
)


@door
def dare(
    key: Key[Array, ""],
    models: PyTree,
    base: PyTree,
    *,
    drop: float | int = 0.9,
    scale: float | int | Real[ArrayLike, "*models"] | Sequence[float | int] = 0.4,
) -> PyTree:
    r"""Merge fine-tuned models by `task_arithmetic` after `drop_and_rescale` of each.

    .. math:: W = B + \sum_m \lambda_m \frac{z_m}{1 - p} \odot (W_m - B), \qquad
              z_m \sim \mathrm{Bernoulli}(1 - p)

    Args:
      key: draws what is dropped.
      models: models fine-tuned from one base, a list or a stack ``[models, ...]``.
      base: the model that they were fine-tuned from, of their structure.
      drop: the share p that is dropped, in [0, 1).
      scale: :math:`\lambda`, as in `task_arithmetic`.

    Guarantees: as for `task_arithmetic`, whose result is the mean over keys; with ``drop=0`` it is
    that result. A leaf's draw depends on the key, the model's number and the leaf's key path only:
    one leaf of each model, ``[{name: leaf}, ...]``, gives what the whole models give there.

    Raises:
      ValueError: as for `task_arithmetic`, or ``drop`` outside [0, 1).

    >>> models, base = [{"w": jnp.full(1000, 2.0)}], {"w": jnp.ones(1000)}
    >>> merged = dare(jax.random.key(0), models, base, drop=0.75, scale=1)["w"]
    >>> sorted(set(merged.tolist())), bool(abs(merged.mean() - 2) < 0.2)
    ([1.0, 5.0], True)

    Source: Yu et al., "Language Models are Super Mario", ICML 2024 (DARE).
    """
    _check_drop(drop)
    models = checked_models(models, base)
    model_scales(scale, len(models))
    sparse = [_sparse(jax.random.fold_in(key, i), m, base, drop) for i, m in enumerate(models)]
    return task_arithmetic(sparse, base, scale=scale)


@door
def drop_and_rescale(
    key: Key[Array, ""], model: PyTree, base: PyTree, *, drop: float | int = 0.9
) -> PyTree:
    r"""Drop each change of a fine-tuned model with probability p; multiply the rest by 1 / (1 - p).

    What comes out is a model of the same mean over keys, for `ties`, `average` or any other merge.

    Args:
      key: draws what is dropped.
      model: a model fine-tuned from the base.
      base: the model that it was fine-tuned from.
      drop: the share p that is dropped, in [0, 1).

    Raises:
      ValueError: as for `dare`.

    >>> base = {"w": jnp.zeros(4)}
    >>> sparse = drop_and_rescale(jax.random.key(0), {"w": jnp.ones(4)}, base, drop=0.5)
    >>> set(sparse["w"].tolist()) <= {0.0, 2.0}
    True

    Source: as for `dare`.
    """
    _check_drop(drop)
    (model,) = checked_models([model], base)
    return _sparse(key, model, base, drop)


def _sparse(key: Array, model: PyTree, base: PyTree, drop: float | int) -> PyTree:
    def mix(name: str, leaf: Array, vectors: list[Array]) -> Array:
        # By name, not by place: a leaf alone draws what it draws inside its model.
        own = jax.random.fold_in(key, zlib.crc32(name.encode()))
        kept = jax.random.bernoulli(own, float(1 - drop), leaf.shape)
        return jnp.where(kept, vectors[0] / (1 - drop), 0.0)

    return add_to_base(mix, [model], base)


def _check_drop(drop: float | int) -> None:
    if not 0 <= drop < 1:
        raise ValueError(f"drop {drop} is not a share in [0, 1); 0.9 is the default")
