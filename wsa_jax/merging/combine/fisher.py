"""Fisher-weighted averaging: models count by how sharply their likelihood depends on a weight."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree, Real

from wsa_jax import checks
from wsa_jax.door import door, taken_by
from wsa_jax.leaves import is_traced, is_weight, key_path
from wsa_jax.merging.combine.coefficients import (
    replace_weights,
    weights_by_name,
)
from wsa_jax.merging.combine.examples import check_examples, check_learnable
from wsa_jax.merging.result import MergeResult
from wsa_jax.training.task import Task
from wsa_jax.tree import as_list, shares, wide
from wsa_jax.types import Numbers

LogLikelihood = Callable[[PyTree, PyTree, PyTree], Array]
"""``(params, model_state, example) -> scalar``; an example keeps its leading axis, of size 1."""


@door
def diagonal_fisher(
    log_likelihood: LogLikelihood,
    params: PyTree,
    examples: PyTree,
    *,
    model_state: PyTree = None,
    batch_size: int = 1,
) -> PyTree:
    r"""Estimate the diagonal of the empirical Fisher information from squared gradients.

    .. math:: F_i = \frac1n \sum_{k=1}^n
              \Bigl(\frac{\partial \log p(y_k \mid x_k, w)}{\partial w_i}\Bigr)^2

    Args:
      log_likelihood: the log-likelihood of one example, in nats; its sign does not matter.
        `task_log_likelihood` makes it from a `training.Task`.
      params: any pytree of arrays.
      examples: pytree of arrays ``[examples, ...]``.
      model_state: non-parameter collections, passed on.
      batch_size: examples whose gradients are in memory at once; the result is the same
        up to rounding.

    Returns:
      A tree of the structure of ``params``, at least float32 and never negative; leaves that are
      not floating-point arrays are kept.

    Guarantees: every example counts once. The observed labels are used, so this is the empirical
    Fisher: at a poor fit it differs from the expectation over the model's own labels.

    Raises:
      ValueError: no examples, or fewer than batch_size.

    >>> def log_likelihood(params, model_state, example):  # Gaussian of unit variance
    ...     return -0.5 * jnp.sum((example - params["mean"]) ** 2)
    >>> examples = jnp.array([1.0, -1.0, 3.0])
    >>> round(float(diagonal_fisher(log_likelihood, {"mean": jnp.zeros(())}, examples)["mean"]), 3)
    3.667

    Source: Matena and Raffel, "Merging Models with Fisher-Weighted Averaging", 2022, with the
    observed labels in place of the model's.
    """
    check_learnable([params])
    check_examples(examples, batch_size)
    examples = jax.tree.map(jnp.asarray, examples)
    state = {} if model_state is None else model_state
    with taken_by("log_likelihood", "these parameters and examples"):
        squares = _jitted_fisher(log_likelihood, batch_size)(params, state, examples)
    return replace_weights(params, squares)


@door
def task_log_likelihood(task: Task) -> LogLikelihood:
    """Return the log-likelihood of a task's example, from its metrics, in evaluation mode.

    Guarantees: equal tasks give the same function, so jitted callers do not compile twice.
    Examples are those of `labelled_examples`.
    """
    return _task_log_likelihood(task)


@door
def fisher_merge(
    models: PyTree,
    fishers: PyTree,
    *,
    weights: Sequence[float | int] | Real[ArrayLike, " models"] | None = None,
    floor: Real[ArrayLike, ""] = 1e-6,
    model_state: PyTree = None,
) -> MergeResult:
    r"""Average aligned models, weighting each parameter by its Fisher information.

    .. math:: W = \frac{\sum_m \lambda_m \max(F_m, f) \odot W_m}{\sum_m \lambda_m \max(F_m, f)}

    Args:
      models: aligned models of one structure, a list or a stack ``[models, ...]``.
      fishers: results of `diagonal_fisher`, one per model, also a list or a stack.
      weights: non-negative weights of the models, with any sum; equal if None.
      floor: least Fisher information. Where no model reaches it, the result is the weighted
        average; a large floor gives the average everywhere.
      model_state: non-parameter collections of the result, passed on.

    Returns:
      The merged model, in the models' dtypes; ``info["shares"]`` holds each model's share of each
      leaf, ``[models, ...]`` by key path.

    Guarantees: exact where all models agree. A model of weight 0 is left out.

    Raises:
      ValueError: no models, a different number of fishers or weights, models or fishers that differ
        in a leaf (which is named) or hold NaN, negative Fisher information, a negative weight, all
        weights 0, or a floor that is not positive.

    >>> models = {"w": jnp.array([0.0, 0.0])}, {"w": jnp.array([4.0, 4.0])}
    >>> fishers = {"w": jnp.array([3.0, 0.0])}, {"w": jnp.array([1.0, 0.0])}
    >>> fisher_merge(models, fishers).params["w"].tolist()
    [1.0, 2.0]

    Source: Matena and Raffel, 2022; the floor keeps weights without information well defined.
    """
    models, fishers = as_list(models), as_list(fishers)
    if not models or len(models) != len(fishers):
        raise ValueError(f"{len(models)} models and {len(fishers)} fishers; give one per model")
    check_learnable(models)
    for index, fisher in enumerate(fishers):
        checks.same_structure(models[0], fisher)
        checks.weights(fisher, f"fisher {index + 1}")
        _check_not_negative(fisher, f"fisher {index + 1}")
    scale = np.ones(len(models), np.float32) if weights is None else weights
    if np.shape(scale) != (len(models),):
        raise ValueError(
            f"weights of shape {np.shape(scale)} for {len(models)} models; give one per model"
        )
    checks.shares(scale, "weights")
    if not isinstance(floor, jax.core.Tracer) and not np.asarray(floor) > 0:
        raise ValueError(f"floor {floor} is not positive; the default is 1e-6")
    return merge_by_fisher(models, fishers, scale, floor, model_state)


def merge_by_fisher(
    models: Sequence[PyTree],
    fishers: Sequence[PyTree],
    scale: Numbers,
    floor: Real[ArrayLike, ""] = 1e-6,
    model_state: PyTree = None,
) -> MergeResult:
    """Average models and Fisher information that are known to fit, as `fisher_merge` does."""
    params, by_leaf = _jitted_merge(
        tuple(models), tuple(fishers), jnp.asarray(shares(scale), float), jnp.asarray(floor, float)
    )
    state = {} if model_state is None else model_state
    return MergeResult(params, state, {"shares": by_leaf})


def _check_not_negative(fisher: PyTree, what: str) -> None:
    """Raise a ValueError that names the first leaf that no mean of squares can be."""
    if is_traced(fisher):
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(fisher):
        least = np.min(np.asarray(leaf, np.float64), initial=0.0) if is_weight(leaf) else 0.0
        if least < 0:
            raise ValueError(
                f"leaf {key_path(path)} of {what} holds {least:g}; Fisher information is a mean of "
                "squares, so give numbers of at least 0"
            )


@functools.lru_cache(maxsize=64)
def _task_log_likelihood(task: Task) -> LogLikelihood:
    def log_likelihood(params: PyTree, model_state: PyTree, example: PyTree) -> Array:
        return -task.metrics(params, model_state, example).loss

    return log_likelihood


@functools.lru_cache(maxsize=16)
def _jitted_fisher(
    log_likelihood: LogLikelihood, batch_size: int
) -> Callable[..., dict[str, Array]]:
    @jax.jit
    def run(params: PyTree, model_state: PyTree, examples: PyTree) -> dict[str, Array]:
        weights = weights_by_name(params)
        count = jax.tree.leaves(examples)[0].shape[0]

        def gradient(row: Array) -> dict[str, Array]:
            example = jax.tree.map(lambda leaf: leaf[row][None], examples)

            def value(weights: dict[str, Array]) -> Array:
                return log_likelihood(replace_weights(params, weights), model_state, example)

            return jax.grad(value)(weights)

        def add(total: dict[str, Array], start: Array) -> tuple[dict[str, Array], None]:
            rows = start + jnp.arange(batch_size)
            inside = rows < count
            grads = jax.vmap(gradient)(jnp.minimum(rows, count - 1))

            def sum_squares(sum_so_far: Array, grad: Array) -> Array:
                kept = inside.reshape(-1, *(1,) * (grad.ndim - 1))
                squares = jnp.square(wide(grad))
                return sum_so_far + jnp.sum(jnp.where(kept, squares, 0.0), axis=0)

            return jax.tree.map(sum_squares, total, grads), None

        zeros = {name: jnp.zeros_like(wide(leaf)) for name, leaf in weights.items()}
        sums, _ = jax.lax.scan(add, zeros, jnp.arange(0, count, batch_size))
        return jax.tree.map(lambda total: total / count, sums)

    return run


@jax.jit
def _jitted_merge(
    models: tuple[PyTree, ...], fishers: tuple[PyTree, ...], scale: Array, floor: Array
) -> tuple[PyTree, dict[str, Array]]:
    named = [weights_by_name(model) for model in models]
    information = [weights_by_name(fisher) for fisher in fishers]
    merged, by_leaf = {}, {}
    for name, first in named[0].items():
        precision = jnp.stack(
            [
                # Exactly 0 for a weight of 0, whatever the Fisher information is under a trace.
                jnp.where(weight > 0, weight * jnp.maximum(wide(fisher[name]), floor), 0.0)
                for weight, fisher in zip(scale, information, strict=True)
            ]
        )
        share = jnp.asarray(shares(precision), precision.dtype)
        # A floor below the least number of this type leaves nothing to share by but the weights.
        column = scale.astype(share.dtype).reshape(-1, *(1,) * first.ndim)
        share = jnp.where(jnp.sum(share, axis=0, keepdims=True) > 0, share, column)
        # Relative to the first model, so that equal models give exactly themselves; in halves,
        # since the difference of two large numbers would be infinite.
        origin = 0.5 * wide(first)
        terms = (
            part * (0.5 * wide(model[name]) - origin)
            for part, model in zip(share, named, strict=True)
        )
        merged[name] = (2 * (origin + sum(terms))).astype(first.dtype)
        by_leaf[name] = share
    return replace_weights(models[0], merged), by_leaf
