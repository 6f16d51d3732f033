"""What a model is trained for, as pure functions, and its evaluation over a data set."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Integer, PyTree

from wsa_jax.data.augmentation import AugmentMode, augment, normalize
from wsa_jax.data.registry import DatasetInfo
from wsa_jax.described import described
from wsa_jax.tree import wide


class Batch(NamedTuple):
    """Examples of fixed number; those whose mask is 0 fill up, and count in no loss or metric.

    A layer that looks at the batch as a whole (BatchNorm in training) does see them.
    """

    images: Array
    labels: Integer[Array, "*models batch"]
    mask: Float[Array, "*models batch"]


class Task(NamedTuple):
    """What a model is trained for, as pure functions.

    Attributes:
      init: ``key -> (params, model_state)``; model_state holds what no gradient moves (BatchNorm).
      loss: ``(key, params, model_state, batch) -> (mean loss, model_state)``, in training mode.
      metrics: ``(params, model_state, batch) -> Metrics``, in evaluation mode.
      settings: what distinguishes it, ``((name, value), ...)``; a run is resumed only by the same.
      logits: ``(params, model_state, images) -> [batch, classes]``, in evaluation mode, of images
        as they are stored; None for a task that has none.
    """

    init: Callable[[Array], tuple[PyTree, PyTree]]
    loss: Callable[[Array, PyTree, PyTree, Batch], tuple[Array, PyTree]]
    metrics: Callable[[PyTree, PyTree, Batch], "Metrics"]
    settings: tuple[tuple[str, str], ...] = ()
    logits: Callable[[PyTree, PyTree, Array], Array] | None = None


class Metrics(NamedTuple):
    """Sums over examples: of the loss, of correct answers, and their number."""

    loss: Float[Array, "*models"]
    correct: Float[Array, "*models"]
    count: Float[Array, "*models"]


def classification(
    module: nn.Module, info: DatasetInfo, *, augmentation: AugmentMode = "none"
) -> Task:
    """Make the task of classifying uint8 images by a Linen module and the mean cross-entropy.

    Normalisation and augmentation run inside the jitted step, after one another: images stay uint8
    in memory. They get the dtype of the parameters, so that half-precision parameters compute in
    half precision; the loss is taken in float32. A module whose call takes ``train`` gets it;
    collections other than params (BatchNorm statistics) are the model state; dropout draws from the
    step's key.

    Args:
      module: maps ``[batch, height, width, channels]`` to logits ``[batch, classes]``.
      info: shapes and normalisation of the data set.
      augmentation: ``"none"``, ``"batch"`` (one crop and flip a batch) or ``"example"``.

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

    def inputs(params: PyTree, images: Array) -> Array:
        # In the dtype of the parameters: float32 images would raise all that follows to float32.
        return normalize(images, info).astype(jnp.result_type(*jax.tree.leaves(params)))

    def loss(key: Array, params: PyTree, model_state: PyTree, batch: Batch) -> tuple[Array, PyTree]:
        augment_key, dropout_key = jax.random.split(key)
        images = augment(augment_key, inputs(params, batch.images), mode=augmentation)
        logits, updated = module.apply(
            {"params": params, **model_state},
            images,
            mutable=list(model_state),
            rngs={"dropout": dropout_key},
            **mode(True),
        )
        entropy = _cross_entropy(logits, batch.labels)
        mean = jnp.sum(entropy * batch.mask) / jnp.maximum(jnp.sum(batch.mask), 1.0)
        return mean, dict(updated)

    def predict(params: PyTree, model_state: PyTree, images: Array) -> Any:
        variables = {"params": params, **model_state}
        return module.apply(variables, inputs(params, images), **mode(False))

    def metrics(params: PyTree, model_state: PyTree, batch: Batch) -> Metrics:
        logits = predict(params, model_state, batch.images)
        entropy = _cross_entropy(logits, batch.labels)
        correct = (jnp.argmax(logits, axis=-1) == batch.labels).astype(jnp.float32)
        return Metrics(
            loss=jnp.sum(entropy * batch.mask),
            correct=jnp.sum(correct * batch.mask),
            count=jnp.sum(batch.mask),
        )

    settings = (
        ("module", described(module)),
        ("dataset", info.name),
        ("normalization", f"{info.mean} {info.std} {info.scale}"),
        ("augmentation", augmentation),
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
    labels: Integer[Array, " examples"],
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
