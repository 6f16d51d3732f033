"""Pooled means and variances of what BatchNorm layers see, from their running statistics."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from wsa_jax.merging.repair.momentum import NO_AVERAGE, TOO_COARSE, probe_size, share_of
from wsa_jax.merging.repair.statistics import Statistics
from wsa_jax.tree import wide

# What an evaluation of a batch is for: to see which statistics are frozen, then what is left of a
# large old value, both on the first batch; then each batch's own part.
_FREEZING, _PROBING, _FIRST, _FURTHER = range(4)


class Moments(NamedTuple):
    """What is known of each statistic while batches go by.

    Attributes:
      pooled: the moments of the batches so far.
      shares: the batch's share 1 - momentum in a step; 0 for a frozen statistic.
      faults: what is wrong with a share, see `momentum.FAULTS`; 0 for nothing.
      high: what a step leaves of a large old value.
    """

    pooled: list[Array]
    shares: list[Array]
    faults: list[Array]
    high: list[Array]


class Layers(NamedTuple):
    """A step in training mode, seen as a function of the statistics alone.

    Attributes:
      step: ``(number of the batch, model_state, data) -> model_state``.
      leaves: the flattened model state.
      structure: its structure.
      statistics: which of the leaves are statistics.
    """

    step: Callable[[Array, PyTree, PyTree], PyTree]
    leaves: list[Any]
    structure: Any
    statistics: Statistics

    @property
    def given(self) -> list[Array]:
        """The statistics, in at least float32: m = 0.99 is 0.988 in bfloat16."""
        return [wide(self.leaves[one.leaf]) for one in self.statistics.found]

    def moved(self, index: Array, old: list[Array], data: PyTree) -> list[Array]:
        """The statistics that a batch leaves where they were ``old`` before."""
        leaves = list(self.leaves)
        for position in self.statistics.first_time:
            leaves[position] = jnp.ones_like(leaves[position])
        for one, value in zip(self.statistics.found, old, strict=True):
            leaves[one.leaf] = value
        after = jax.tree.leaves(self.step(index, self.structure.unflatten(leaves), data))
        return [after[one.leaf] for one in self.statistics.found]


def pooled_moments(layers: Layers, data: PyTree, num_batches: int) -> Moments:
    """Pool the statistics of all batches, whose sizes differ by at most one.

    Args:
      layers: the step and its statistics.
      data: pytree of arrays ``[examples, ...]``.
      num_batches: the number of batches.
    """
    size, longer = divmod(len(jax.tree.leaves(data)[0]), num_batches)
    # The dtypes in which the step returns statistics decide how large a probe may be.
    first = jax.tree.map(lambda leaf: leaf[:size], data)
    returned = jax.eval_shape(layers.moved, jnp.int32(0), layers.given, first)
    dtypes = [leaf.dtype for leaf in returned]
    zeros = [jnp.zeros_like(value) for value in layers.given]
    moments = Moments(
        pooled=zeros,
        shares=[jnp.ones_like(value) for value in layers.given],
        faults=[jnp.zeros(value.shape, jnp.int32) for value in layers.given],
        high=zeros,
    )
    # One loop for probes and batches, so that a model is compiled once for each size of batch.
    # Longer batches come first; each starts where the last one ends.
    order = np.concatenate([[0, 0], np.arange(num_batches)])
    purposes = np.minimum(np.arange(len(order)), _FURTHER)
    long = order < longer
    for part, offset, chosen in ((size + 1, 0, long), (size, longer, ~long)):
        if chosen.any():
            add = functools.partial(_add, layers, dtypes, data, part, offset)
            xs = jnp.asarray(order[chosen]), jnp.asarray(purposes[chosen])
            moments, _ = jax.lax.scan(add, moments, xs)
    return moments


def _add(
    layers: Layers,
    dtypes: list[Any],
    data: PyTree,
    size: int,
    offset: int,
    moments: Moments,
    xs: tuple[Array, Array],
) -> tuple[Moments, None]:
    """Learn from one batch what it is evaluated for."""
    index, purpose = xs
    start = index * size + offset
    batch = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size), data)
    probes = [probe_size(dtype) for dtype in dtypes]
    # Frozen layers, whose share is 0, normalise by the statistics they were given.
    old = [
        jnp.where(share > 0, jnp.where(purpose < _FIRST, probe, 0.0).astype(value.dtype), value)
        for share, probe, value in zip(moments.shares, probes, layers.given, strict=True)
    ]
    new = [
        after.astype(before.dtype)
        for before, after in zip(old, layers.moved(index, old, batch), strict=True)
    ]

    each = zip(moments.shares, moments.faults, moments.high, old, new, dtypes, probes, strict=True)
    learnt = [_learnt(purpose, *one) for one in each]
    shares, faults, high = (list(column) for column in zip(*learnt, strict=True))
    values = [
        jnp.where(share > 0, after / jnp.where(share > 0, share, 1.0), value)
        for share, after, value in zip(shares, new, layers.given, strict=True)
    ]
    pooled = _pool(layers.statistics, moments.pooled, values, size / (start + size))
    pooled = [
        jnp.where(purpose < _FIRST, before, after)
        for before, after in zip(moments.pooled, pooled, strict=True)
    ]
    return Moments(pooled, shares, faults, high), None


def _learnt(
    purpose: Array,
    share: Array,
    fault: Array,
    high: Array,
    old: Array,
    new: Array,
    dtype: DTypeLike,
    probe: float,
) -> tuple[Array, Array, Array]:
    """The share of one statistic, what is wrong with it, and the probe's result, after a batch."""
    frozen = jnp.where(new == old, 0.0, 1.0).astype(share.dtype)
    found, wrong = share_of(probe, high, new, dtype)
    # If a step moves a statistic from its own value and not from a large one, it rounds 1 - m away.
    rounded = TOO_COARSE if jnp.finfo(dtype).bits == 16 else NO_AVERAGE
    wrong = jnp.where(share > 0, wrong, jnp.where(new == old, 0, rounded))
    first = purpose == _FIRST
    share = jnp.where(purpose == _FREEZING, frozen, jnp.where(first & (share > 0), found, share))
    return (
        share,
        jnp.where(first, wrong, fault),
        jnp.where(purpose == _PROBING, new, high),
    )


def _pool(
    statistics: Statistics, total: list[Array], batch: list[Array], share: Array
) -> list[Array]:
    """Add a batch that holds ``share`` of all examples so far (Chan et al., 1979)."""
    pooled = []
    for old, new, one in zip(total, batch, statistics.found, strict=True):
        value = old + share * (new - old)
        if one.center is not None:
            value += share * (1 - share) * (batch[one.center] - total[one.center]) ** 2
        pooled.append(value)
    return pooled
