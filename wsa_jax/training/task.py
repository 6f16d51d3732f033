"""What a model is trained for, as pure functions, and its evaluation over a data set."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree, Shaped

from wsa_jax.data.augmentation import AugmentMode, augment, normalize
from wsa_jax.data.registry import DatasetInfo
from wsa_jax.runs.described import described
from wsa_jax.tree import wide

Apply = Callable[..., tuple[Array, PyTree]]
"""``(params, model_state, inputs, train, key) -> (logits, model_state)``; no key in evaluation."""


class Batch(NamedTuple):
    """A fixed number of examples; those whose mask is 0 are padding and enter no loss or metric.

    ``images`` are rows of whatever array a task takes as inputs. A layer that looks at the batch as
    a whole (BatchNorm in training) does see the padding.
    """

    images: Array
    labels: Shaped[Array, "*models batch"]
    mask: Float[Array, "*models batch"]


class Task(NamedTuple):
    """What a model is trained for, as pure functions.

    For classifiers, `classification` and `classification_task` make one; anything else, here a
    regression, is written out. Make it once: jitted callers identify it by its functions, and
    compile again for new ones.

    >>> def init(key):
    ...     return {"w": jnp.zeros(2)}, {}
    >>> def squared_errors(params, batch):
    ...     return (batch.images @ params["w"] - batch.labels) ** 2
    >>> def loss(key, params, model_state, batch):
    ...     total = jnp.sum(squared_errors(params, batch) * batch.mask)
    ...     return total / jnp.maximum(jnp.sum(batch.mask), 1.0), model_state
    >>> def metrics(params, model_state, batch):
    ...     errors, number = squared_errors(params, batch), jnp.sum(batch.mask)
    ...     return Metrics(jnp.sum(errors * batch.mask), jnp.zeros(()), number)
    >>> task = Task(init, loss, metrics, settings=(("loss", "squared error"),))
    >>> from wsa_jax.training.fit import FitSettings, fit
    >>> x = jax.random.normal(jax.random.key(0), (64, 2))
    >>> y = x @ jnp.array([1.0, -2.0])
    >>> fitted = fit(jax.random.key(1), task, x, y, settings=FitSettings(steps=100, batch_size=32))
    >>> fitted.params["w"].round(1).tolist()
    [1.0, -2.0]

    Attributes:
      init: ``key -> (params, model_state)``; parameters are floating-point arrays, model_state is
        state that is not trained by gradients (BatchNorm statistics), ``{}`` for none.
      loss: ``(key, params, model_state, batch) -> (mean loss, model_state)``, in training mode; the
        mean is over ``batch.mask``, which in `fit` is 1 and in a federated round may be 0, and the
        state it returns has the structure and dtypes of the one it was given.
      metrics: ``(params, model_state, batch) -> Metrics``, in evaluation mode: sums over the mask.
      settings: what distinguishes it, ``((name, value), ...)``; a run in a directory is resumed
        only by a task with the same settings, so name everything that matters.
      logits: ``(params, model_state, images) -> [batch, classes]``, in evaluation mode, for images
        as they are stored; None for a task without logits.
    """

    init: Callable[[Array], tuple[PyTree, PyTree]]
    loss: Callable[[Array, PyTree, PyTree, Batch], tuple[Array, PyTree]]
    metrics: Callable[[PyTree, PyTree, Batch], "Metrics"]
    settings: tuple[tuple[str, str], ...] = ()
    logits: Callable[[PyTree, PyTree, Array], Array] | None = None


class Metrics(NamedTuple):
    """Sums over examples of the loss and of correct answers (0 if undefined), and their number."""

    loss: Float[Array, "*models"]
    correct: Float[Array, "*models"]
    count: Float[Array, "*models"]


def classification(
    module: nn.Module, info: DatasetInfo, *, augmentation: AugmentMode = "none"
) -> Task:
    """Make the task of classifying uint8 images with a Linen module and mean cross-entropy.

    Normalisation and augmentation run inside the jitted step, one after the other: images stay
    uint8 in memory. Their results get the dtype of the parameters, so half-precision parameters
    compute in half precision; the loss is taken in float32. A module whose call takes ``train``
    gets it; collections other than params (BatchNorm statistics) are the model state; dropout draws
    from the step's key.

    Args:
      module: maps ``[batch, height, width, channels]`` to logits ``[batch, classes]``. For models
        that are not Linen modules, or data that are not images, see `classification_task`.
      info: shapes and normalisation of the data set (`wsa_jax.data.load_dataset` provides those
        of its data sets).
      augmentation: ``"none"``, ``"batch"`` (one crop and flip per batch) or ``"example"``.

    Guarantees: equal arguments return the same object, so jitted callers do not compile twice.
    """
    return _classification(module, info, augmentation)


@functools.lru_cache(maxsize=64)
def _classification(module: Any, info: DatasetInfo, augmentation: AugmentMode) -> Task:
    takes_train = "train" in inspect.signature(module.__call__).parameters

    def mode(train: bool) -> dict[str, Any]:
        return {"train": train} if takes_train else {}

    def init(key: Array) -> tuple[PyTree, PyTree]:
        images = jnp.zeros((1, *info.image_shape))
        variables = dict(module.init(key, images, **mode(False)))
        return variables.pop("params"), variables

    def apply(
        params: PyTree, model_state: PyTree, images: Array, train: bool, key: Array | None
    ) -> tuple[Any, PyTree]:
        variables = {"params": params, **model_state}
        # In the dtype of the parameters: float32 images would promote all that follows to float32.
        inputs = normalize(images, info).astype(jnp.result_type(*jax.tree.leaves(params)))
        if key is None:
            return module.apply(variables, inputs, **mode(train)), model_state
        augment_key, dropout_key = jax.random.split(key)
        logits, updated = module.apply(
            variables,
            augment(augment_key, inputs, mode=augmentation),
            mutable=list(model_state),
            rngs={"dropout": dropout_key},
            **mode(train),
        )
        return logits, dict(updated)

    settings = (
        ("module", described(module)),
        ("dataset", info.name),
        ("normalization", f"{info.mean} {info.std} {info.scale}"),
        ("augmentation", augmentation),
    )
    return classification_task(init, apply, settings=settings)


@functools.lru_cache(maxsize=64)
def classification_task(
    init: Callable[[Array], tuple[PyTree, PyTree]],
    apply: Apply,
    *,
    settings: tuple[tuple[str, str], ...] = (),
) -> Task:
    """Make the task of classifying with any JAX function (Equinox, nnx, plain) and cross-entropy.

    Args:
      init: ``key -> (params, model_state)``, see `Task`.
      apply: ``(params, model_state, inputs, train, key) -> (logits [batch, classes], model_state)``
        for inputs as they are stored; ``key`` is the step's in training and None in evaluation.
      settings: see `Task`; name the model and everything inside ``apply``.

    Guarantees: equal functions and settings return the same object, so jitted callers do not
    compile twice.

    >>> def init(key):
    ...     return {"w": 0.1 * jax.random.normal(key, (4, 3))}, {}
    >>> def apply(params, model_state, inputs, train, key):
    ...     return inputs @ params["w"], model_state
    >>> task = classification_task(init, apply, settings=(("model", "linear, 4 inputs"),))
    >>> params, model_state = task.init(jax.random.key(0))
    >>> float(evaluate(task, params, model_state, jnp.eye(4), jnp.zeros(4, int)).count)
    4.0
    """

    def loss(key: Array, params: PyTree, model_state: PyTree, batch: Batch) -> tuple[Array, PyTree]:
        logits, model_state = apply(params, model_state, batch.images, True, key)
        entropy = _cross_entropy(logits, batch.labels)
        mean = jnp.sum(entropy * batch.mask) / jnp.maximum(jnp.sum(batch.mask), 1.0)
        return mean, model_state

    def predict(params: PyTree, model_state: PyTree, images: Array) -> Any:
        return apply(params, model_state, images, False, None)[0]

    def metrics(params: PyTree, model_state: PyTree, batch: Batch) -> Metrics:
        logits = predict(params, model_state, batch.images)
        entropy = _cross_entropy(logits, batch.labels)
        correct = (jnp.argmax(logits, axis=-1) == batch.labels).astype(jnp.float32)
        return Metrics(
            loss=jnp.sum(entropy * batch.mask),
            correct=jnp.sum(correct * batch.mask),
            count=jnp.sum(batch.mask),
        )

    return Task(init, loss, metrics, settings, predict)


def _cross_entropy(logits: Array, labels: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(wide(logits), labels)


@functools.partial(jax.jit, static_argnames=("task", "batch_size"))
def evaluate(
    task: Task,
    params: PyTree,
    model_state: PyTree,
    images: Array,
    labels: Shaped[Array, " examples"],
    *,
    batch_size: int = 500,
) -> Metrics:
    """Sum a task's metrics over a data set, in batches of bounded memory.

    Accuracy is ``correct / count``, mean loss ``loss / count``; an empty data set counts 0.
    """
    count = labels.shape[0]
    zero = jnp.zeros(())
    if not count:
        return Metrics(zero, zero, zero)
    batch_size = max(1, min(batch_size, count))
    num_batches = -(-count // batch_size)

    def body(total: Metrics, index: Array) -> tuple[Metrics, None]:
        rows = index * batch_size + jnp.arange(batch_size)
        mask = (rows < count).astype(jnp.float32)
        batch = Batch(
            jnp.take(images, rows, 0, mode="clip"), jnp.take(labels, rows, 0, mode="clip"), mask
        )
        return jax.tree.map(jnp.add, total, task.metrics(params, model_state, batch)), None

    return jax.lax.scan(body, Metrics(zero, zero, zero), jnp.arange(num_batches))[0]


def check_statistics(params: PyTree, model_state: PyTree, initial_state: PyTree) -> None:
    """Raise a ValueError if parameters are given without the statistics they need."""
    if params is not None and model_state is None and jax.tree.leaves(initial_state):
        raise ValueError(
            "params are given and model_state is not, but this task has one; give both, or "
            "model_state=task.init(key)[1] for fresh statistics"
        )
