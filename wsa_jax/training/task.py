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
from wsa_jax.data.checks import check_images
from wsa_jax.data.registry import DatasetInfo
from wsa_jax.door import door
from wsa_jax.runs.described import described
from wsa_jax.tree import wide
from wsa_jax.types import Inputs, Json

Apply = Callable[..., tuple[Array, PyTree]]
"""``(params, model_state, inputs, train, key) -> (logits, model_state)``; no key in evaluation."""


class Batch(NamedTuple):
    """A fixed number of examples; those whose mask is 0 are padding and enter no loss or metric.

    ``inputs`` are rows of whatever a task takes: an array ``[batch, ...]`` or a pytree of such
    arrays. Labels are ``[batch]``, or ``[batch, ...]`` where each example has several (tokens). A
    layer that looks at the batch as a whole (BatchNorm in training) does see the padding.
    """

    inputs: Inputs
    labels: Shaped[Array, "..."]
    mask: Float[Array, "*models batch"]

    @property
    def images(self) -> Inputs:
        """The inputs, by their earlier name."""
        return self.inputs


class Task(NamedTuple):
    """What a model is trained for, as pure functions.

    For classifiers, `classification` and `classification_task` make one; anything else, here a
    regression, is written out. Make it once: jitted callers identify it by its functions, and
    compile again for new ones.

    >>> def init(key):
    ...     return {"w": jnp.zeros(2)}, {}
    >>> def squared_errors(params, batch):
    ...     return (batch.inputs @ params["w"] - batch.labels) ** 2
    >>> def loss(key, params, model_state, batch):
    ...     total = jnp.sum(squared_errors(params, batch) * batch.mask)
    ...     return total / jnp.maximum(jnp.sum(batch.mask), 1.0), model_state
    >>> def metrics(params, model_state, batch):
    ...     errors, number = squared_errors(params, batch), jnp.sum(batch.mask)
    ...     own = {"absolute_error": jnp.sum(jnp.sqrt(errors) * batch.mask)}
    ...     return Metrics(jnp.sum(errors * batch.mask), None, number, own)
    >>> task = Task(init, loss, metrics, settings=(("loss", "squared error"),))
    >>> from wsa_jax.training import FitSettings, evaluate, fit
    >>> x = jax.random.normal(jax.random.key(0), (64, 2))
    >>> y = x @ jnp.array([1.0, -2.0])
    >>> fitted = fit(jax.random.key(1), task, x, y, settings=FitSettings(steps=100, batch_size=32))
    >>> fitted.params["w"].round(1).tolist()
    [1.0, -2.0]
    >>> list(evaluate(task, fitted.params, {}, x, y).means())
    ['loss', 'absolute_error']

    Attributes:
      init: ``key -> (params, model_state)``; parameters are floating-point arrays, model_state is
        state that is not trained by gradients (BatchNorm statistics), ``{}`` for none.
      loss: ``(key, params, model_state, batch) -> (mean loss, model_state)``, in training mode; the
        mean is over ``batch.mask``, which in `fit` is 1 and in a federated round may be 0, and the
        state it returns has the structure and dtypes of the one it was given.
      metrics: ``(params, model_state, batch) -> Metrics``, in evaluation mode: sums over the mask.
      settings: what distinguishes it, ``((name, value), ...)``; a run in a directory is resumed
        only by a task with the same settings, so name everything that matters. Without settings,
        only by functions of the same code, which call, read and hold the same.
      logits: ``(params, model_state, inputs) -> [batch, ..., classes]``, in evaluation mode, for
        inputs as they are stored; None for a task without logits.
      padding_label: label of positions that are in no loss and no metric; None for none.
      integer_labels: whether labels must be integers, one for each position of the logits.
      check_inputs: ``(inputs, what)``, raises a ValueError that names inputs which this task does
        not take, such as images in other units; None for no check.
    """

    init: Callable[[Array], tuple[PyTree, PyTree]]
    loss: Callable[[Array, PyTree, PyTree, Batch], tuple[Array, PyTree]]
    metrics: Callable[[PyTree, PyTree, Batch], "Metrics"]
    settings: tuple[tuple[str, str], ...] = ()
    logits: Callable[[PyTree, PyTree, Any], Array] | None = None
    padding_label: int | None = None
    integer_labels: bool = False
    check_inputs: Callable[[Any, str], None] | None = None


class Metrics(NamedTuple):
    """Sums over examples of the loss, of correct answers and of a task's own metrics.

    Attributes:
      loss: sum of the losses.
      correct: number of correct answers; None where the task has no such thing (regression).
      count: number of examples, or of labels where each example has several.
      own: sums of a task's own metrics, by name.

    >>> Metrics(jnp.float32(6.0), None, jnp.float32(3.0)).means()
    {'loss': Array(2., dtype=float32)}
    """

    loss: Float[Array, "*models"]
    correct: Float[Array, "*models"] | None
    count: Float[Array, "*models"]
    own: dict[str, Float[Array, "*models"]] | None = None

    def means(self) -> dict[str, Array]:
        """Means over the examples: ``loss``, ``accuracy`` if there is one, then the task's own."""
        sums = {"loss": self.loss}
        if self.correct is not None:
            sums["accuracy"] = self.correct
        return {name: total / self.count for name, total in (sums | (self.own or {})).items()}


@door
def classification(
    module: nn.Module, info: DatasetInfo, *, augmentation: AugmentMode = "none", padding: int = 4
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
      padding: pixels by which a crop moves at most.

    Guarantees: equal arguments return the same object, so jitted callers do not compile twice.
    `fit`, `simulate`, `evaluate` and `merge_table` refuse images whose dtype or range is not that
    of the info, 0 to its scale.
    """
    return _classification(module, info, augmentation, padding)


@functools.lru_cache(maxsize=64)
def _classification(
    module: Any, info: DatasetInfo, augmentation: AugmentMode, padding: int
) -> Task:
    takes_train = "train" in inspect.signature(module.__call__).parameters

    def mode(train: bool) -> Json:
        return {"train": train} if takes_train else {}

    def init(key: Array) -> tuple[PyTree, PyTree]:
        images = jnp.zeros((1, *info.image_shape))
        variables = dict(module.init(key, images, **mode(False)))
        return variables.pop("params"), variables

    def apply(
        params: PyTree, model_state: PyTree, images: Inputs, train: bool, key: Array | None
    ) -> tuple[PyTree, PyTree]:
        variables = {"params": params, **model_state}
        # In the dtype of the parameters: float32 images would promote all that follows to float32.
        inputs = normalize(images, info).astype(jnp.result_type(*jax.tree.leaves(params)))
        if key is None:
            return module.apply(variables, inputs, **mode(train)), model_state
        augment_key, dropout_key = jax.random.split(key)
        logits, updated = module.apply(
            variables,
            augment(augment_key, inputs, mode=augmentation, padding=padding),
            mutable=list(model_state),
            rngs={"dropout": dropout_key},
            **mode(train),
        )
        return logits, dict(updated)

    settings = (
        ("module", described(module)),
        ("dataset", info.name),
        ("normalization", f"{info.mean} {info.std} {info.scale}"),
        # Runs from before crops had a size of their own say the mode alone, and resume.
        ("augmentation", augmentation if padding == 4 else f"{augmentation}, padding {padding}"),
    )
    task = classification_task(init, apply, settings=settings)
    return task._replace(check_inputs=lambda images, what: check_images(images, info, what))


@door
@functools.lru_cache(maxsize=64)
def classification_task(
    init: Callable[[Array], tuple[PyTree, PyTree]],
    apply: Apply,
    *,
    settings: tuple[tuple[str, str], ...] = (),
    padding_label: int | None = None,
) -> Task:
    """Make the task of classifying with any JAX function (Equinox, nnx, plain) and cross-entropy.

    Args:
      init: ``key -> (params, model_state)``, see `Task`.
      apply: ``(params, model_state, inputs, train, key) -> (logits, model_state)`` for inputs as
        they are stored, an array or a pytree; ``key`` is the step's in training and None in
        evaluation. Logits are ``[batch, classes]`` for labels ``[batch]``, and
        ``[batch, ..., classes]`` for labels ``[batch, ...]``, such as one for each token.
      settings: see `Task`; name the model and everything inside ``apply``.
      padding_label: positions with this label enter no loss and no metric; None for none.

    Losses and accuracies are means over all labels that are not padding.

    Guarantees: equal functions and settings return the same object, so jitted callers do not
    compile twice.

    >>> def init(key):
    ...     return {"w": 0.1 * jax.random.normal(key, (4, 3))}, {}
    >>> def apply(params, model_state, inputs, train, key):
    ...     return inputs @ params["w"], model_state
    >>> task = classification_task(init, apply, settings=(("model", "linear, 4 inputs"),))
    >>> from wsa_jax.training import evaluate
    >>> params, model_state = task.init(jax.random.key(0))
    >>> float(evaluate(task, params, model_state, jnp.eye(4), jnp.zeros(4, int)).count)
    4.0
    """

    def weights_of(batch: Batch) -> Array:
        mask = batch.mask
        if batch.labels.ndim > 1:
            mask = jnp.broadcast_to(
                mask.reshape(mask.shape + (1,) * (batch.labels.ndim - 1)), batch.labels.shape
            )
        return mask if padding_label is None else mask * (batch.labels != padding_label)

    def loss(key: Array, params: PyTree, model_state: PyTree, batch: Batch) -> tuple[Array, PyTree]:
        logits, model_state = apply(params, model_state, batch.inputs, True, key)
        weights = weights_of(batch)
        entropy = _cross_entropy(logits, batch.labels, padding_label)
        mean = jnp.sum(entropy * weights) / jnp.maximum(jnp.sum(weights), 1.0)
        return mean, model_state

    def predict(params: PyTree, model_state: PyTree, inputs: Inputs) -> Any:
        return apply(params, model_state, inputs, False, None)[0]

    def metrics(params: PyTree, model_state: PyTree, batch: Batch) -> Metrics:
        logits = predict(params, model_state, batch.inputs)
        weights = weights_of(batch)
        entropy = _cross_entropy(logits, batch.labels, padding_label)
        correct = (jnp.argmax(logits, axis=-1) == batch.labels).astype(jnp.float32)
        return Metrics(
            loss=jnp.sum(entropy * weights),
            correct=jnp.sum(correct * weights),
            count=jnp.sum(weights),
        )

    return Task(init, loss, metrics, settings, predict, padding_label, integer_labels=True)


def _cross_entropy(logits: Array, labels: Array, padding_label: int | None) -> Array:
    if padding_label is not None:
        # A padding label is no class: any class will do, since the position has weight 0.
        labels = jnp.where(labels == padding_label, 0, labels)
    return optax.softmax_cross_entropy_with_integer_labels(wide(logits), labels)


def take(examples: PyTree, rows: Array, **how: Any) -> PyTree:
    """Take rows of inputs or labels, whatever their structure.

    >>> take({"x": jnp.arange(4), "y": jnp.ones((4, 2))}, jnp.array([1, 3]))["x"].tolist()
    [1, 3]
    """
    return jax.tree.map(lambda leaf: jnp.take(leaf, rows, 0, **how), examples)
