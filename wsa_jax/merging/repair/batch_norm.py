"""BatchNorm statistics of a merged model, estimated anew on calibration data."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from wsa_jax.scope.layers import Rule
from wsa_jax.training.task import Batch, Task
from wsa_jax.tree import is_weight, key_path

Update = Callable[[PyTree, PyTree, Array], PyTree]
"""``(params, model_state, images) -> model_state``, a step in training mode."""

# Old statistics of a probe: float32 rounds the batch's part away, and squares are finite.
_LARGE = 2.0**60

_NAMES = frozenset({"mean", "var", "running_mean", "running_var"})


class _Statistics(NamedTuple):
    """Leaves that are statistics, and for a variance the position of its mean among them."""

    leaves: tuple[int, ...]
    centers: tuple[int | None, ...]


def running_statistics(name: str, leaf: Any) -> bool:
    """Select what BatchNorm keeps: leaves named mean or var, running_mean or running_var.

    >>> running_statistics("batch_stats/BatchNorm_0/var", jnp.ones(2))
    True
    """
    del leaf
    return name.rsplit("/", 1)[-1] in _NAMES


def find_statistics(model_state: PyTree, select: Rule = running_statistics) -> _Statistics:
    """Find the statistics in a model state; a variance belongs to the mean beside it.

    Raises:
      ValueError: a variance has no mean beside it; the message names it.
    """
    named = [
        (index, key_path(path))
        for index, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(model_state))
        if is_weight(leaf) and select(key_path(path), leaf)
    ]
    places = {name: place for place, (_, name) in enumerate(named)}
    centers: list[int | None] = []
    for _, name in named:
        layer, slash, last = name.rpartition("/")
        mean = f"{layer}{slash}{last.replace('var', 'mean')}"
        if mean not in places:
            raise ValueError(f"variance {name} has no {mean} beside it; select both or neither")
        centers.append(None if mean == name else places[mean])
    return _Statistics(tuple(index for index, _ in named), tuple(centers))


def reset_batch_norm(
    task: Task | Update,
    params: PyTree,
    model_state: PyTree,
    images: Array | np.ndarray,
    *,
    batch_size: int = 500,
    key: Key[Array, ""] | None = None,
    select: Rule = running_statistics,
) -> PyTree:
    r"""Estimate BatchNorm statistics anew: pooled mean and variance of calibration data.

    .. math:: \mu = \sum_b \frac{n_b}{n} \mu_b, \qquad
              \sigma^2 = \sum_b \frac{n_b}{n} \bigl[\sigma_b^2 + (\mu_b - \mu)^2\bigr]

    for batches b in training mode. A layer after another BatchNorm sees what it saw in training:
    inputs normalised by their own batch. So give shuffled images and batches of at least the
    training size.

    Args:
      task: what the model was trained for, or a step in training mode
        ``(params, model_state, images) -> model_state`` from any module system.
      params: parameters; map over a stack of models with `jax.vmap`.
      model_state: non-parameter collections; only structure and dtypes of the statistics count.
      images: calibration examples, ``[examples, ...]``; labels are not needed.
      batch_size: maximum examples at once. Batch sizes differ by at most one, so there is no
        short last batch, and each example counts once.
      key: for augmentation and dropout of the task; key 0 by default, unused without them.
      select: which leaves are statistics; each ``var`` is paired with the ``mean`` beside it.

    Guarantees: pure; neither momentum nor the old statistics have any effect; other leaves are
    returned as given. The model is compiled at most twice, and once if all batches are equal in
    size.

    How: running statistics are an affine function of their old values, ``new = m old + (1 - m)
    batch``, so no layer has to be known. Two probes of the first batch, with old values so large
    that the batch is negligible, reveal m (derivatives do not: nnx stops gradients there); old = 0
    then yields each batch. m comes rounded to float32, which for m = 0.999 is an error of 3e-5
    relative to 1 - m; rounding 1 - m to seven decimals removes it.

    Edge cases: a model without statistics is returned as it is; so are statistics that a step does
    not move (a frozen layer, m = 1). Variances are biased, as in Flax: divided by n, not n - 1.

    Raises:
      ValueError: no images, batch_size below 1, a variance without its mean (which is named),
        or a step that returns a different structure.

    >>> def step(params, model_state, images):
    ...     mean, var = images.mean(0), images.var(0)
    ...     return {"mean": 0.9 * model_state["mean"] + 0.1 * mean,
    ...             "var": 0.9 * model_state["var"] + 0.1 * var}
    >>> state = {"mean": jnp.zeros(()), "var": jnp.ones(())}
    >>> reset = reset_batch_norm(step, {}, state, jnp.array([1.0, 3.0, 5.0, 7.0]), batch_size=2)
    >>> round(float(reset["mean"]), 4), round(float(reset["var"]), 4)
    (4.0, 5.0)

    Source: Jordan et al., REPAIR, 2023, section 4, which uses the mean of the batches' variances.
    """
    count = len(images)
    if not count:
        raise ValueError("no calibration images to estimate BatchNorm statistics from; give some")
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size} is below 1; give a positive number")
    if not find_statistics(model_state, select).leaves:
        return model_state
    num_batches = -(-count // batch_size)
    run = _reset_fn(task, num_batches, select)
    return run(jax.random.key(0) if key is None else key, params, model_state, jnp.asarray(images))


@functools.lru_cache(maxsize=16)
def _reset_fn(task: Task | Update, num_batches: int, select: Rule) -> Callable[..., PyTree]:
    @jax.jit
    def run(key: Array, params: PyTree, model_state: PyTree, images: Array) -> PyTree:
        leaves, structure = jax.tree.flatten(model_state)
        statistics = find_statistics(model_state, select)

        def filled(values: list[Array]) -> list[Any]:
            by_leaf = dict(zip(statistics.leaves, values, strict=True))
            return [by_leaf.get(index, leaf) for index, leaf in enumerate(leaves)]

        given = [jnp.asarray(leaves[i], jnp.float32) for i in statistics.leaves]

        def step(index: Array, old: list[Array], batch: Array) -> list[Array]:
            state = structure.unflatten(filled(old))
            new = _step(task, jax.random.fold_in(key, index), params, state, batch)
            if jax.tree.structure(new) != structure:
                raise ValueError(
                    f"the step returns {jax.tree.structure(new)} for model_state {structure}; "
                    "both must have the same structure"
                )
            new = jax.tree.leaves(new)
            return [jnp.asarray(new[i], jnp.float32) for i in statistics.leaves]

        size, longer = divmod(len(images), num_batches)

        def add(
            size: int, offset: int, carry: tuple[list, list], xs: tuple[Array, Array]
        ) -> tuple[tuple[list, list], None]:
            (shares, pooled), (index, probe) = carry, xs
            start = index * size + offset
            batch = jax.lax.dynamic_slice_in_dim(images, start, size)
            # float32 even where statistics are kept in less: m = 0.99 is 0.988 in bfloat16.
            # Frozen layers, whose share is 0, normalise by the statistics they were given.
            values = [jnp.where(s > 0, probe, v) for s, v in zip(shares, given, strict=True)]
            new = step(index, values, batch)
            learnt = [_share(old, after) for old, after in zip(values, new, strict=True)]
            moments = [
                jnp.where(s > 0, n / jnp.where(s > 0, s, 1.0), v)
                for s, n, v in zip(shares, new, given, strict=True)
            ]
            total = _pool(statistics, pooled, moments, size / (start + size))
            probing = probe > 0
            shares, pooled = jax.tree.map(
                lambda a, b: jnp.where(probing, a, b), (learnt, pooled), (shares, total)
            )
            return (shares, pooled), None

        carry = [jnp.ones_like(v) for v in given], [jnp.zeros_like(v) for v in given]
        # The first batch comes three times: one probe finds what is frozen; another, with that at
        # rest, finds the shares. Longer batches come first; each starts where the last one ends.
        order = np.concatenate([[0, 0], np.arange(num_batches)])
        probes = np.where(np.arange(len(order)) < 2, _LARGE, 0.0).astype(np.float32)
        long = order < longer
        for part, offset, chosen in ((size + 1, 0, long), (size, longer, ~long)):
            if chosen.any():
                xs = jnp.asarray(order[chosen]), jnp.asarray(probes[chosen])
                carry, _ = jax.lax.scan(functools.partial(add, part, offset), carry, xs)
        result = [
            value.astype(leaves[i].dtype)
            for i, value in zip(statistics.leaves, carry[1], strict=True)
        ]
        return structure.unflatten(filled(result))

    return run


def _share(old: Array, new: Array) -> Array:
    """Find the batch's share 1 - m of a statistic from a large old value; 0 for a frozen one."""
    share = jnp.round((1 - new / _LARGE) * 1e7) / 1e7
    return jnp.where(new == old, 0.0, jnp.where(share > 0, share, 1e-7))


def _step(
    task: Task | Update, key: Array, params: PyTree, model_state: PyTree, images: Array
) -> PyTree:
    if not isinstance(task, Task):
        return task(params, model_state, images)
    # No statistic depends on the labels.
    labels = jnp.zeros(len(images), jnp.int32)
    return task.loss(key, params, model_state, Batch(images, labels, jnp.ones(len(images))))[1]


def _pool(
    statistics: _Statistics, total: list[Array], batch: list[Array], share: Array
) -> list[Array]:
    """Add a batch that holds ``share`` of all examples so far (Chan et al., 1979)."""
    pooled = []
    for old, new, center in zip(total, batch, statistics.centers, strict=True):
        value = old + share * (new - old)
        if center is not None:
            value += share * (1 - share) * (batch[center] - total[center]) ** 2
        pooled.append(value)
    return pooled
