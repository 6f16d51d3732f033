"""Reductions over the client axis: means as sums, and rules that a few bad clients cannot move."""

import functools
import numbers
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from wsa_jax import checks
from wsa_jax.door import check_fields, shown
from wsa_jax.federated.krum import krum
from wsa_jax.federated.robust_rules import check_trim, coordinate_median, trimmed_mean
from wsa_jax.tree import clip_by_norm, wide
from wsa_jax.types import Leaf

RULES = ("mean", "median", "trimmed_mean", "krum", "multi_krum")
MergeRule = Callable[[Array, PyTree, Array, Any], PyTree]
"""``(key, models, weights, evidence) -> model``, a server that merges by a rule of your own."""


@dataclass(frozen=True, kw_only=True)
class Aggregation:
    """How the server combines what the clients send.

    Attributes:
      rule: ``"mean"``, weighted by sample counts; ``"median"`` or ``"trimmed_mean"`` of each
        coordinate; ``"krum"``, the client whose update has the nearest neighbours, or
        ``"multi_krum"``, the mean of all but the ``faulty`` last by that score. Only the mean looks
        at sample counts. A rule applies to updates, messages, statistics and weight scopes alike,
        Krum's choice by updates. Or a function, see below. Only the mean is a sum; the others need
        every update on every device.
      trim: share of the clients that the trimmed mean leaves out at each end, in [0, 0.5).
      faulty: how many participants Krum must withstand, f: at least ``2 f + 3`` take part.
      clip_norm: bound on the norm of each client's update, None for no clipping. The client clips,
        so its state and its scope agree with what it sends.
      drop_nonfinite: leave out a client that sends NaN, infinity or an update whose squared norm is
        infinite, and keep its state; and refuse a round whose sums, parameters or server state
        would no longer be finite, so that it changes nothing but the round number.

    A function as rule is called inside the jitted round as ``rule(key, models, weights, evidence)``
    and returns the merged model, any merging method's or one of your own:

    * ``key``: the server's own in this round.
    * ``models``: the participants' models after local training, stacked ``[participants, ...]``, in
      at least float32.
    * ``weights``: their shares of the samples, ``[participants]``, which sum to 1. A client that is
      not accepted has weight 0, and the global model in its place: a rule must leave it out.
    * ``evidence``: what `simulate` was given as such (proxy examples), None otherwise.

    What the algorithm's server sees as the clients' mean update is the merged model minus the
    global one, so FedAvg takes the merged model and other servers step towards it. Messages,
    statistics and scopes are averaged. A run is resumed only with an equal rule: what it closes
    over counts, a module-level function counts by its name.

    A server that takes the client whose update is the shortest, and NP Merge as a server:

    >>> from wsa_jax.federated import iid, simulate
    >>> from wsa_jax.merging import LearningSettings, labelled_examples, np_merge_joint
    >>> from wsa_jax.training import classification_task
    >>> def shortest(key, models, weights, evidence):
    ...     spread = jnp.var(models["w"], axis=(1, 2))
    ...     chosen = jnp.argmin(jnp.where(weights > 0, spread, jnp.inf))
    ...     return jax.tree.map(lambda leaf: leaf[chosen], models)
    >>> task = classification_task(
    ...     lambda key: ({"w": 0.1 * jax.random.normal(key, (4, 2))}, {}),
    ...     lambda params, state, x, train, key: (x @ params["w"], state),
    ... )
    >>> settings = LearningSettings(steps=3, batch_size=10)
    >>> def np_merge_server(key, models, weights, evidence):
    ...     return np_merge_joint(
    ...         key, task.loss, models, evidence, settings=settings, init=weights, model_state={}
    ...     ).params
    >>> x = jax.random.normal(jax.random.key(1), (40, 4))
    >>> y = (x[:, 0] > 0).astype(int)
    >>> for rule, evidence in ((shortest, None), (np_merge_server, labelled_examples(x, y))):
    ...     result = simulate(
    ...         jax.random.key(0), task, (x, y), iid(y, clients=4, seed=0), rounds=5,
    ...         learning_rate=0.1, test=(x, y), aggregation=Aggregation(rule=rule),
    ...         evidence=evidence,
    ...     )
    ...     print(result.history[-1]["test_accuracy"] > 0.8)
    True
    True
    """

    rule: Literal["mean", "median", "trimmed_mean", "krum", "multi_krum"] | MergeRule = "mean"
    trim: float = 0.1
    clip_norm: float | int | None = None
    drop_nonfinite: bool = True
    faulty: int = 1

    def __post_init__(self):
        if not callable(self.rule) and self.rule not in RULES:
            raise ValueError(
                f"rule {shown(self.rule)} is unknown; give {', '.join(map(repr, RULES))}, "
                "or a function of (key, models, weights, evidence)"
            )
        check_trim(self.trim)
        if not isinstance(self.faulty, numbers.Integral) or self.faulty < 0:
            raise ValueError(f"faulty {shown(self.faulty)} is no integer of 0 or more; give one")
        if self.clip_norm is not None:
            checks.positive("clip_norm", self.clip_norm, "None for no clipping")
        check_fields(self)


class BySamples(NamedTuple):
    """What is weighted by sample count: the update, the algorithm's message, the statistics."""

    update: PyTree
    message: PyTree
    model_state: PyTree


class Sent(NamedTuple):
    """What a client sends, a sum over clients, or an aggregate.

    Attributes:
      by_samples: `BySamples`, weighted by sample count.
      by_client: scope mean and variance, weighted equally: their means give Eq. 4.
      weight: share of all samples, 0 for a client that is not accepted.
      count: 1, or 0 for a client that is not accepted.
    """

    by_samples: PyTree
    by_client: PyTree
    weight: Array
    count: Array


def term(sent: Sent) -> Sent:
    """One client's term of the sums: 0 if the client is not accepted, even where it sends NaN."""

    def times(tree: PyTree, weight: Array) -> PyTree:
        return jax.tree.map(lambda x: jnp.where(weight > 0, weight * wide(x), 0.0), tree)

    return Sent(
        times(sent.by_samples, sent.weight),
        times(sent.by_client, sent.count),
        sent.weight,
        sent.count,
    )


def aggregate(sent: Sent, aggregation: Aggregation) -> Sent:
    """Means from sums of terms, or a robust rule over stacked clients; weight and count are sums.

    Edge case: if no client is accepted, the result is zeros.
    """
    if aggregation.rule == "mean":

        def ratio(tree: PyTree, weight: Array) -> PyTree:
            return jax.tree.map(lambda x: x / jnp.where(weight > 0, weight, 1.0), tree)

        return Sent(
            ratio(sent.by_samples, sent.weight),
            ratio(sent.by_client, sent.count),
            sent.weight,
            sent.count,
        )
    keep = sent.count > 0
    if aggregation.rule in ("krum", "multi_krum"):
        many = aggregation.rule == "multi_krum"
        chosen = krum(sent.by_samples.update, keep, aggregation.faulty, many=many)

    def rule(models: PyTree) -> PyTree:
        if aggregation.rule in ("krum", "multi_krum"):
            return trimmed_mean(models, chosen, 0.0)
        if aggregation.rule == "median":
            return coordinate_median(models, keep)
        return trimmed_mean(models, keep, aggregation.trim)

    return Sent(rule(sent.by_samples), rule(sent.by_client), sent.weight.sum(), sent.count.sum())


def merge_by_rule(
    rule: MergeRule, key: Array, params: PyTree, sent: Sent, evidence: PyTree
) -> Sent:
    """Merge stacked clients by a function, and average what they sent besides their updates.

    Raises:
      ValueError: the merged model has other leaves or shapes than ``params``.
    """
    sums = jax.tree.map(lambda x: x.sum(axis=0), jax.vmap(term)(sent))
    mean = aggregate(sums, Aggregation())
    weights = sent.weight / jnp.where(mean.weight > 0, mean.weight, 1.0)

    def model(old: Array, updates: Array) -> Array:
        # What was not accepted may hold NaN, which a weight of 0 would not remove.
        kept = (weights > 0).reshape((-1,) + (1,) * old.ndim)
        return wide(old)[None] + jnp.where(kept, wide(updates), 0.0)

    models = jax.tree.map(model, params, sent.by_samples.update)
    merged = rule(key, models, weights, evidence)
    checks.same_structure(params, merged)
    update = jax.tree.map(lambda new, old: wide(new) - wide(old), merged, params)
    return mean._replace(by_samples=mean.by_samples._replace(update=update))


def to_numbers(tree: PyTree, old: PyTree) -> PyTree:
    """Return the model state a client sends, as numbers that can be averaged; see `from_numbers`.

    Integers are sent as their change, so that counters stay exact beyond what a float holds; what
    is not a number (a key) is sent as 0.

    >>> sent = to_numbers({"key": jax.random.key(0), "step": jnp.int32(7)},
    ...                   {"key": jax.random.key(0), "step": jnp.int32(4)})
    >>> sent["key"].item(), sent["step"].item()
    (0.0, 3)
    """

    def number(new: Any, old: Any) -> Array:
        if not _is_number(new):
            return jnp.zeros(())
        new = jnp.asarray(new)
        if not jnp.issubdtype(new.dtype, jnp.integer):
            return new
        # A decrease of unsigned integers wraps around, and back again as a signed number.
        signed = jnp.dtype(f"int{8 * new.dtype.itemsize}")
        return jax.lax.bitcast_convert_type(new - jnp.asarray(old), signed)

    return jax.tree.map(number, tree, old)


def clip_update(update: PyTree, clip_norm: float | int | None) -> PyTree:
    """Scale an update down to a norm of at most ``clip_norm``; None leaves it, NaN stays NaN.

    >>> [round(x, 4) for x in clip_update(jnp.array([3.0, 4.0]), 1.0).tolist()]
    [0.6, 0.8]
    """
    return update if clip_norm is None else clip_by_norm(update, clip_norm)


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether no floating-point leaf holds NaN or infinity.

    >>> bool(all_finite({"w": jnp.ones(2), "step": 3})), bool(all_finite(jnp.inf))
    (True, False)
    """
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree) if _is_number(leaf)]
    return _all(jnp.isfinite(leaf).all() for leaf in leaves)


def stays_finite(new: PyTree, old: PyTree) -> Bool[Array, ""]:
    """Whether every number that is finite in ``old`` is finite in ``new``, a tree like it.

    >>> bool(stays_finite({"w": jnp.inf, "b": 1.0}, {"w": -jnp.inf, "b": 0.0}))
    True
    >>> bool(stays_finite({"w": jnp.inf}, {"w": 1.0}))
    False
    """
    pairs = zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)
    return _all(
        jnp.all(jnp.isfinite(leaf) | ~jnp.isfinite(before))
        for leaf, before in pairs
        if _is_number(leaf)
    )


def from_numbers(values: PyTree, old: PyTree) -> PyTree:
    """Make a model state from aggregated numbers, in the dtypes of ``old``; see `to_numbers`.

    An integer is ``old`` plus the rounded mean change; what is not a number is taken from ``old``.

    >>> from_numbers({"step": jnp.float32(2.9999)}, {"step": jnp.int32(4)})["step"].item()
    7
    """

    def convert(value: Array, leaf: Leaf) -> Any:
        if not _is_number(leaf):
            return leaf
        leaf = jnp.asarray(leaf)
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            return value.astype(leaf.dtype)
        change = jnp.round(value).astype(int)
        return change.astype(bool) if leaf.dtype == bool else leaf + change.astype(leaf.dtype)

    return jax.tree.map(convert, values, old)


def _all(flags: Iterable[Array]) -> Bool[Array, ""]:
    """Whether all scalars hold; one after another, which XLA fuses, where an array is filled."""
    return functools.reduce(jnp.logical_and, flags, jnp.array(True))


def _is_number(leaf: Leaf) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.number) or jnp.issubdtype(
        jnp.result_type(leaf), jnp.bool_
    )
