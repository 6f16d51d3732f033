"""BatchNorm statistics of a merged model, estimated anew on calibration data."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree, Shaped

from wsa_jax import checks
from wsa_jax.door import door
from wsa_jax.leaves import is_traced, is_weight, key_path
from wsa_jax.merging.repair.moments import Layers, Moments, pooled_moments
from wsa_jax.merging.repair.momentum import FAULTS
from wsa_jax.merging.repair.statistics import Statistics, find_statistics
from wsa_jax.merging.repair.unknown import check_rest
from wsa_jax.scope.layers import Rule
from wsa_jax.training.checks import check_one_label_each, logits_shape
from wsa_jax.training.task import Batch, Task
from wsa_jax.types import Inputs, Labels, Leaf

Update = Callable[[PyTree, PyTree, Inputs], PyTree]
"""``(params, model_state, inputs) -> model_state``, a step in training mode."""


@door
def reset_batch_norm(
    task: Task | Update,
    params: PyTree,
    model_state: PyTree,
    inputs: Inputs,
    *,
    labels: Shaped[Array | np.ndarray, "examples ..."] | None = None,
    batch_size: int = 500,
    key: Key[Array, ""] | None = None,
    select: Rule | None = None,
) -> PyTree:
    r"""Estimate BatchNorm statistics anew: pooled mean and variance of calibration data.

    .. math:: \mu = \sum_b \frac{n_b}{n} \mu_b, \qquad
              \sigma^2 = \sum_b \frac{n_b}{n} \bigl[\sigma_b^2 + (\mu_b - \mu)^2\bigr]

    for batches b in training mode. A layer after another BatchNorm sees what it saw in training:
    inputs normalised by their own batch. So give shuffled inputs and batches of at least the
    training size.

    Args:
      task: what the model was trained for, or a step in training mode
        ``(params, model_state, inputs) -> model_state`` from any module system.
      params: parameters; map over a stack of models with `jax.vmap`.
      model_state: non-parameter collections; only structure and dtypes of the statistics count.
      inputs: calibration examples, ``[examples, ...]`` or a pytree of such arrays.
      labels: needed only where a task's loss asks for labels of a shape of its own; no statistic
        depends on them.
      batch_size: maximum examples at once. Batch sizes differ by at most one, so there is no
        short last batch, and each example counts once.
      key: for augmentation and dropout of the task; key 0 by default, unused without them.
      select: which leaves are statistics; each ``var`` is paired with the ``mean`` beside it. By
        default those of `running_statistics` (Flax, Keras, PyTorch, Haiku) and of Equinox.

    Guarantees: pure; neither momentum nor the old statistics have any effect; other leaves are
    returned as given, except the counters and flags of Haiku's and Equinox's averages, which say
    that these are no longer fresh. The model is compiled at most twice, and once if all batches
    are equal in size. Computed in at least float32, whatever statistics are kept in.

    How: running statistics are an affine function of their old values, ``new = m old + (1 - m)
    batch``, so no layer has to be known. Two probes of the first batch with large old values
    reveal m (derivatives do not: nnx stops gradients there); old = 0 then yields each batch. See
    `wsa_jax.merging.repair.momentum`.

    Edge cases: a state without floating-point leaves is returned as it is; so are statistics that
    a step does not move (a frozen layer, m = 1). Variances are biased, as in Flax: divided by n,
    not n - 1. Under a trace, values are not checked.

    Raises:
      ValueError: no inputs, batch_size below 1, a variance without its mean, a step that returns a
        different structure, a statistic that is no running average or whose dtype cannot tell its
        momentum, or no known statistic although a step changes a floating-point leaf; the leaf is
        named.
      UserWarning: a leaf that is left as it is, although it moves like a running statistic.

    >>> def step(params, model_state, inputs):
    ...     mean, var = inputs.mean(0), inputs.var(0)
    ...     return {"mean": 0.9 * model_state["mean"] + 0.1 * mean,
    ...             "var": 0.9 * model_state["var"] + 0.1 * var}
    >>> state = {"mean": jnp.zeros(()), "var": jnp.ones(())}
    >>> reset = reset_batch_norm(step, {}, state, jnp.array([1.0, 3.0, 5.0, 7.0]), batch_size=2)
    >>> round(float(reset["mean"]), 4), round(float(reset["var"]), 4)
    (4.0, 5.0)

    Source: Jordan et al., REPAIR, 2023, section 4, which uses the mean of the batches' variances.
    """
    count = _count(inputs, labels)
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size} is below 1; give a positive number")
    checks.count("batch_size", batch_size)
    if not any(map(is_weight, jax.tree.leaves(model_state))):
        return model_state
    key = jax.random.key(0) if key is None else key
    if labels is None:
        labels = _labels(task, params, model_state, inputs, count)
    data = jax.tree.map(jnp.asarray, (inputs, labels))

    # Names decide; what a step moves beside them is told.
    statistics = find_statistics(model_state, select)
    if select is None:
        first = jax.tree.map(lambda leaf: leaf[:batch_size], data)
        check_rest(functools.partial(_step, task, key), params, model_state, first, statistics)
    if not statistics.found:
        return model_state

    run = _jitted_reset(task, -(-count // batch_size), select)
    reset, faults = run(key, params, model_state, data)
    if not is_traced(faults):
        _check_faults(model_state, statistics, faults)
    return reset


def _count(inputs: Inputs, labels: Labels) -> int:
    """The number of examples, the same in all arrays."""
    leaves = jax.tree.leaves(inputs)
    if not leaves or not all(np.ndim(leaf) and len(leaf) for leaf in leaves):
        raise ValueError("no calibration images to estimate BatchNorm statistics from; give some")
    check_one_label_each(inputs, leaves[0] if labels is None else labels, "calibration data")
    return len(leaves[0])


def _labels(
    task: Task | Update, params: PyTree, model_state: PyTree, inputs: Inputs, count: int
) -> Array:
    """Labels of the shape that a task's loss takes; no statistic depends on them."""
    shape = None
    if isinstance(task, Task):
        shape = logits_shape(task, params, model_state, inputs, "calibration data")
    return jnp.zeros((count, *(shape or (0,))[:-1]), jnp.int32)


def _step(
    task: Task | Update,
    key: Array,
    params: PyTree,
    model_state: PyTree,
    data: tuple[Inputs, Array],
) -> PyTree:
    """The model state after a step in training mode, of the structure that it had."""
    inputs, labels = data
    if isinstance(task, Task):
        new = task.loss(key, params, model_state, Batch(inputs, labels, jnp.ones(len(labels))))[1]
    else:
        new = task(params, model_state, inputs)
    before, after = jax.tree.structure(model_state), jax.tree.structure(new)
    if before != after:
        raise ValueError(
            f"the step returns {after} for model_state {before}; both must have the same structure"
        )
    return new


@functools.lru_cache(maxsize=16)
def _jitted_reset(
    task: Task | Update, num_batches: int, select: Rule | None
) -> Callable[..., tuple[PyTree, list[Array]]]:
    @jax.jit
    def run(
        key: Array, params: PyTree, model_state: PyTree, data: tuple[Inputs, Array]
    ) -> tuple[PyTree, list[Array]]:
        statistics = find_statistics(model_state, select)

        def step(index: Array, state: PyTree, batch: tuple[Inputs, Array]) -> PyTree:
            return _step(task, jax.random.fold_in(key, index), params, state, batch)

        layers = Layers(step, *jax.tree.flatten(model_state), statistics)
        moments = pooled_moments(layers, data, num_batches)
        reset = _filled(layers, moments)
        return layers.structure.unflatten(reset), [jnp.max(fault) for fault in moments.faults]

    return run


def _filled(layers: Layers, moments: Moments) -> list[Leaf]:
    """The leaves of the state with pooled moments for statistics, and what goes with them."""
    leaves = list(layers.leaves)

    def put(position: int, moves: Array, value: Array) -> None:
        old = leaves[position]
        leaves[position] = jnp.where(moves, value, old).astype(old.dtype)

    each = zip(layers.statistics.found, moments.pooled, moments.shares, strict=True)
    for one, value, share in each:
        moves = share > 0
        if one.average is not None:
            put(one.average, moves, value)
        if one.counter is not None:
            # What is used is the leaf over 1 - momentum^counter. At least one update: none would
            # mean that the statistic is not used at all.
            counter = jnp.where(jnp.any(moves), jnp.maximum(layers.leaves[one.counter], 1), 0)
            put(one.counter, counter > 0, counter)
            value = value * (1 - (1 - share) ** leaves[one.counter])
        put(one.leaf, moves, value)
    for position in layers.statistics.first_time:
        moved = [
            jnp.any(share > 0)
            for one, share in zip(layers.statistics.found, moments.shares, strict=True)
            if one.leaf == position + 1
        ]
        put(position, moved[0], jnp.zeros_like(leaves[position]))
    return leaves


def _check_faults(model_state: PyTree, statistics: Statistics, faults: list[Array]) -> None:
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(model_state)]
    for one, fault in zip(statistics.found, faults, strict=True):
        if int(fault):
            raise ValueError(f"statistic {key_path(paths[one.leaf])} {FAULTS[int(fault)]}")
