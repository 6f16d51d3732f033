"""An ensemble: the models side by side, as a reference for merging."""

import functools
from collections.abc import Callable
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, PyTree

from wsa_jax import checks
from wsa_jax.door import door
from wsa_jax.training.checks import check_evaluable
from wsa_jax.training.evaluation import evaluate
from wsa_jax.training.task import Batch, Metrics, Task
from wsa_jax.tree import as_stack
from wsa_jax.types import Inputs

LogitsFn = Callable[[PyTree, PyTree, Array], Float[Array, "batch classes"]]
"""``(params, model_state, inputs) -> logits``, in evaluation mode."""


@door
def ensemble(
    logits_fn: LogitsFn,
    models: PyTree,
    inputs: Inputs,
    labels: Integer[Array | np.ndarray, " examples"],
    *,
    model_states: PyTree = None,
    batch_size: int = 500,
) -> Metrics:
    r"""Evaluate the mean of the models' class probabilities.

    .. math:: p(y \mid x) = \frac1M \sum_i \mathrm{softmax}(f_{w_i}(x))_y, \qquad
              \text{loss} = -\sum \log p(y \mid x)

    Args:
      logits_fn: ``(params, model_state, inputs) -> [batch, classes]``, in evaluation mode; use
        one function object for all calls, since a new one compiles again.
      models: parameters, a stack ``[models, ...]`` or a plain list or tuple of models; a list is
        never taken for a stack.
      inputs: examples, as logits_fn takes them.
      labels: their labels.
      model_states: non-parameter collections, stacked or listed like the models; none by default.
      batch_size: examples at once.

    Returns:
      Sums over the examples: the mean loss is ``loss / count``, the accuracy ``correct / count``.

    Guarantees: one model and one batch run at a time; a single model gives its own cross-entropy;
    the loss is finite even where the probability underflows.

    Raises:
      ValueError: no models, models that differ in a leaf or hold NaN (the leaf is named), or no
        examples.

    >>> linear = lambda params, model_state, inputs: inputs @ params
    >>> models = [jnp.array([[2.0, 0.0]]), jnp.array([[-1.0, 0.0]])]
    >>> sums = ensemble(linear, models, jnp.array([[1.0]]), jnp.array([0]))
    >>> round(float(jnp.exp(-sums.loss)), 4), float(sums.correct)
    (0.5749, 1.0)

    Source: Lakshminarayanan et al., 2017, section 2.4.
    """
    models = as_stack(models)
    checks.weights(models, "the models")
    check_evaluable(labels, None, "the ensemble")
    states = {} if model_states is None else as_stack(model_states)
    task = _ensemble_task(logits_fn)
    return evaluate(task, models, states, inputs, labels, batch_size=batch_size)


@functools.lru_cache(maxsize=16)
def _ensemble_task(logits_fn: LogitsFn) -> Task:
    """A task whose model is the stack, so that it is evaluated like any other."""

    def log_mean(params: PyTree, model_state: PyTree, inputs: Inputs) -> Array:
        def one(model: tuple[PyTree, PyTree]) -> Array:
            return jax.nn.log_softmax(logits_fn(*model, inputs).astype(jnp.float32))

        each = jax.lax.map(one, (params, model_state))
        return jax.nn.logsumexp(each, axis=0) - jnp.log(len(each))

    def metrics(params: PyTree, model_state: PyTree, batch: Batch) -> Metrics:
        averaged = log_mean(params, model_state, batch.inputs)
        chosen = jnp.take_along_axis(averaged, batch.labels[:, None], axis=-1)[:, 0]
        correct = (jnp.argmax(averaged, axis=-1) == batch.labels).astype(jnp.float32)
        return Metrics(
            loss=-jnp.sum(chosen * batch.mask),
            correct=jnp.sum(correct * batch.mask),
            count=jnp.sum(batch.mask),
        )

    return Task(_untrained, _untrained, metrics, logits=log_mean)


def _untrained(*_: object) -> NoReturn:
    raise TypeError("an ensemble can only be evaluated; train its models")
