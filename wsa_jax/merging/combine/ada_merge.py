"""AdaMerging: learn how much of each task vector to add, from examples without labels."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key, PyTree, Real

from wsa_jax.door import door
from wsa_jax.leaves import is_weight, key_path
from wsa_jax.merging.combine.coefficients import Coefficients, coefficient_shapes, of_leaf
from wsa_jax.merging.combine.examples import check_learnable
from wsa_jax.merging.combine.gradient_steps import learn
from wsa_jax.merging.combine.learning import (
    Learning,
    LearningSettings,
    LearningState,
    LossFn,
    Objective,
    Repair,
)
from wsa_jax.merging.combine.task_vectors import check_base
from wsa_jax.merging.result import MergeResult
from wsa_jax.tree import at_least_one, is_traced, wide
from wsa_jax.types import Inputs, Leaf, LearningRate, Numbers

LogitsFn = Callable[[PyTree, PyTree, Inputs], Float[Array, "batch ... classes"]]
"""``(params, model_state, inputs) -> logits``, in evaluation mode."""


@door
def ada_merge(
    key: Key[Array, ""],
    logits_fn: LogitsFn,
    models: PyTree,
    base: PyTree,
    inputs: Inputs,
    *,
    settings: LearningSettings,
    learning_rate: LearningRate = 1e-3,
    init: Real[ArrayLike, "*models"] | Sequence[float | int] = 0.3,
    model_state: PyTree = None,
    held_out: Inputs | None = None,
    repair: Repair | None = None,
    state: LearningState | None = None,
) -> MergeResult:
    r"""Learn the scales of task vectors that make the merged model sure of its answers.

    .. math:: W = B + \sum_m \lambda_m \odot (W_m - B), \qquad
              \min_{0 \le \lambda \le 1} \; \operatorname*{mean}_x H\bigl(\mathrm{softmax}
              f_W(x)\bigr)

    the entropy H in nats. The steps are `np_merge`'s; what differs is the loss, which asks for no
    labels, and that shares need not sum to 1.

    Args:
      key: draws the order of examples.
      logits_fn: ``(params, model_state, inputs) -> [batch, ..., classes]`` in evaluation mode, for
        example ``task.logits``; make it once, since each function object is compiled once.
      models: models fine-tuned from one base, a list or a stack ``[models, ...]``.
      base: the model that they were fine-tuned from, of their structure.
      inputs: unlabelled examples, ``[examples, ...]`` or a pytree of such arrays.
      settings: as of `np_merge`. The granularity ``"layer"`` is the paper's layer-wise AdaMerging,
        ``"scalar"`` (one number for each model) its task-wise one.
      learning_rate: a number or an optax schedule, for the scales themselves.
      init: the scales at the start, one number or one for each model, in [0, 1].
      model_state: non-parameter collections; they stay as they are while scales are learnt.
      held_out: further inputs, to select the best scales on.
      repair: ``(params, model_state) -> model_state``, applied at the end.
      state: ``info["state"]`` of an earlier call, to take ``settings.steps`` more steps; donated.

    Returns:
      The merged model; ``info`` as of `np_merge`, but ``loss`` is the entropy and ``coefficients``
      are the scales, ``[models, ...]`` of each leaf.

    Guarantees and edge cases: those of `np_merge`; scales of 0 give the base bitwise. Low entropy
    is not accuracy: a model that gives one answer to everything is sure of it, too.

    Raises:
      ValueError: as for `np_merge`, a base of another shape, or an ``init`` outside [0, 1] or of
        another number.

    >>> models = [{"w": jnp.array([[4.0, 0.0]])}, {"w": jnp.array([[0.0, 0.1]])}]
    >>> found = ada_merge(
    ...     jax.random.key(0), lambda params, state, x: x @ params["w"], models,
    ...     {"w": jnp.zeros((1, 2))}, jnp.ones((4, 1)), learning_rate=0.1,
    ...     settings=LearningSettings(steps=30, batch_size=4, granularity="scalar"),
    ... )
    >>> found.info["coefficients"]["all"].round(2).tolist()
    [1.0, 0.0]

    Source: Yang et al., "AdaMerging: Adaptive Model Merging for Multi-Task Learning", ICLR 2024;
    granularities other than layer-wise and task-wise are ours.
    """
    models = at_least_one(models)
    check_learnable(models)
    check_base(base, models[0])
    scales = _initial(init, len(models))
    learning = Learning(
        loss_fn=entropy_loss(logits_fn),
        examples=inputs,
        settings=settings,
        learning_rate=learning_rate,
        model_state=model_state,
        held_out=held_out,
        repair=repair,
    )
    return merge_adaptively(key, learning, models, base, scales, state)


def merge_adaptively(
    key: Key[Array, ""],
    learning: Learning,
    models: Sequence[PyTree],
    base: PyTree,
    scales: Array,
    state: LearningState | None = None,
) -> MergeResult:
    """Merge models that are known to fit, as `ada_merge` does; ``scales`` are ``[models]``."""
    shapes = coefficient_shapes(base, learning.settings.granularity)
    variables = {
        name: jnp.broadcast_to(scales.reshape(-1, *(1,) * len(shape)), (len(models), *shape))
        for name, shape in shapes.items()
    }
    objective = Objective(_combine, None, _clipped)
    return learn(key, learning, objective, variables, (base, *models), state=state)


@functools.lru_cache(maxsize=64)
def entropy_loss(logits_fn: LogitsFn) -> LossFn:
    """The mean entropy of a model's predictions: one loss for each function of logits.

    >>> loss_fn = entropy_loss(lambda params, model_state, inputs: inputs)
    >>> round(float(loss_fn(jax.random.key(0), {}, {}, jnp.zeros((3, 2)))[0]), 4)
    0.6931
    """

    def loss(
        key: Array, params: PyTree, model_state: PyTree, batch: PyTree
    ) -> tuple[Array, PyTree]:
        del key
        logs = jax.nn.log_softmax(wide(logits_fn(params, model_state, batch)))
        # The gradient of exp(log) log is finite where a probability underflows.
        return -jnp.mean(jnp.sum(jnp.exp(logs) * logs, axis=-1)), model_state

    return loss


def _initial(init: Numbers, count: int) -> Array:
    if np.shape(init) not in ((), (count,)):
        raise ValueError(
            f"init of shape {np.shape(init)} for {count} models; give one scale, or one per model"
        )
    if not is_traced(init):
        values = np.asarray(init, np.float64)
        bad = values[~((values >= 0) & (values <= 1))]
        if bad.size:
            raise ValueError(f"init {bad.ravel()[0]} is not a scale in [0, 1]; 0.3 is the default")
    return jnp.broadcast_to(jnp.asarray(init, jnp.float32), (count,))


def _combine(scales: Coefficients, models: tuple[PyTree, ...]) -> PyTree:
    base, *others = models
    clipped = _clipped(scales)

    def mix(path: tuple, origin: Leaf, *leaves: Leaf) -> Leaf:
        if not is_weight(origin):
            return leaves[0]
        return _add(of_leaf(clipped, key_path(path)), origin, *leaves)

    return jax.tree_util.tree_map_with_path(mix, base, *others)


# Recomputed in the backward pass, as in `coefficients`: task vectors are as large as the models.
@jax.checkpoint
def _add(scales: Array, origin: Array, *leaves: Array) -> Array:
    start = wide(origin)
    terms = (s * (wide(leaf) - start) for s, leaf in zip(scales, leaves, strict=True))
    return (start + sum(terms)).astype(leaves[0].dtype)


def _clipped(scales: Coefficients) -> Coefficients:
    return {name: jnp.clip(scale, 0.0, 1.0) for name, scale in scales.items()}
