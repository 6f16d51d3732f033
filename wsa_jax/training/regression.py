"""The task of regression with any JAX function."""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from wsa_jax.door import door
from wsa_jax.training.task import Apply, Batch, Metrics, Task
from wsa_jax.tree import wide


@door
@functools.lru_cache(maxsize=64)
def regression_task(
    init: Callable[[Array], tuple[PyTree, PyTree]],
    apply: Apply,
    *,
    settings: tuple[tuple[str, str], ...] = (),
) -> Task:
    """Make the task of predicting numbers with any JAX function, and the mean squared error.

    Args:
      init: ``key -> (params, model_state)``, see `Task`.
      apply: ``(params, model_state, inputs, train, key) -> (predictions, model_state)``, see
        `classification_task`. Predictions have the shape of the labels, or one more axis of size 1.
      settings: see `Task`; name the model and everything inside ``apply``.

    The loss of an example is the mean over its labels; `evaluate` gives the loss and the mean
    ``absolute_error``, and no accuracy.

    Guarantees: equal functions and settings return the same object. Errors are taken in float32 at
    least.

    Raises:
      ValueError: predictions of another shape than the labels, when it is first traced.

    >>> import jax
    >>> from wsa_jax.training import evaluate
    >>> def apply(params, model_state, inputs, train, key):
    ...     return inputs @ params["w"], model_state
    >>> task = regression_task(lambda key: ({"w": jnp.ones(2)}, {}), apply)
    >>> inputs, labels = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([2.0, 7.0])
    >>> sums = evaluate(task, *task.init(jax.random.key(0)), inputs, labels)
    >>> {name: float(value) for name, value in sums.means().items()}
    {'loss': 0.5, 'absolute_error': 0.5}
    """

    def errors_of(predictions: Array, labels: Array) -> Array:
        """By example and label, ``[batch, labels]``."""
        if predictions.ndim == labels.ndim + 1 and predictions.shape[-1] == 1:
            predictions = predictions[..., 0]
        if predictions.shape != labels.shape:
            raise ValueError(
                f"predictions have shape {predictions.shape[1:]} and labels {labels.shape[1:]} for "
                "each example; give a model whose outputs are of the labels' shape"
            )
        errors = wide(predictions) - labels
        return errors.reshape(len(errors), -1)

    def loss(key: Array, params: PyTree, model_state: PyTree, batch: Batch) -> tuple[Array, PyTree]:
        predictions, model_state = apply(params, model_state, batch.inputs, True, key)
        squares = jnp.mean(jnp.square(errors_of(predictions, batch.labels)), axis=1)
        mean = jnp.sum(squares * batch.mask) / jnp.maximum(jnp.sum(batch.mask), 1.0)
        return mean, model_state

    def metrics(params: PyTree, model_state: PyTree, batch: Batch) -> Metrics:
        predictions, _ = apply(params, model_state, batch.inputs, False, None)
        errors = errors_of(predictions, batch.labels)
        absolute = jnp.mean(jnp.abs(errors), axis=1)
        return Metrics(
            loss=jnp.sum(jnp.mean(jnp.square(errors), axis=1) * batch.mask),
            correct=None,
            count=jnp.sum(batch.mask),
            own={"absolute_error": jnp.sum(absolute * batch.mask)},
        )

    return Task(init, loss, metrics, settings)
