"""What the tracer can do with a model: trace it, move all its units, and match them back."""

import time
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tests.zoo import equinox_and_haiku, hugging_face
from wsa_jax.leaves import key_path
from wsa_jax.merging import (
    activation_matching,
    align,
    check_equivalence,
    permute_units,
    taps,
    trace_spec,
    weight_matching,
)

BUILDERS = (
    dict.fromkeys(hugging_face.MODELS, hugging_face.build)
    | dict.fromkeys(equinox_and_haiku.EQUIMO, equinox_and_haiku.build_equimo)
    | dict.fromkeys(equinox_and_haiku.HAIKU, equinox_and_haiku.build_haiku)
)
PACKAGES = (
    dict.fromkeys(hugging_face.MODELS, "transformers")
    | dict.fromkeys(equinox_and_haiku.EQUIMO, "equimo")
    | dict.fromkeys(equinox_and_haiku.HAIKU, "haiku")
)


class Row(NamedTuple):
    """One model's line in the table.

    Attributes:
      name: the architecture.
      groups: number of groups of units.
      covered: share of the weights that lie in at least one group.
      seconds: time to trace it.
      deviation: largest change of the function when every group is deranged.
      weights: share of the moved weights that weight matching puts back.
      activations: the same for activation matching.
    """

    name: str
    groups: int
    covered: float
    seconds: float
    deviation: float
    weights: float
    activations: float


class Planted(NamedTuple):
    """A traced model with strong weights, and its copy in another order."""

    apply: object
    spec: object
    params: object
    moved: object
    draw: object
    seconds: float


def plant(name, seed=0):
    """Trace a model, draw strong weights, and move every group by a derangement."""
    apply, shapes, draw = BUILDERS[name](name)
    rng = np.random.default_rng(seed)
    start = time.perf_counter()
    spec = trace_spec(apply, shapes, jax.eval_shape(lambda: jnp.asarray(draw(rng, 2))))
    seconds = time.perf_counter() - start
    params = jax.tree_util.tree_map_with_path(lambda path, leaf: _strong(rng, path, leaf), shapes)
    orders = {}
    for group in spec.groups:
        outer = 1 if group.parent is None else spec[group.parent].size
        rows = np.stack([_derangement(rng, group.size) for _ in range(outer)])
        orders[group.name] = rows[0] if group.parent is None else rows
    return Planted(apply, spec, params, permute_units(spec, params, orders), draw, seconds)


def measure(name):
    """The line of one model; raises if the moved model is another function."""
    planted = plant(name)
    apply, spec, params, moved, draw, seconds = planted
    rng = np.random.default_rng(1)
    deviation = check_equivalence(apply, params, moved, jnp.asarray(draw(rng, 3)), rtol=1e-3)
    matched = weight_matching(jax.random.key(0), spec, params, moved, restarts=3)
    weights = _undone(spec, params, moved, align(spec, moved, matched))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # groups without a tap keep their order
        seen = jnp.asarray(draw(rng, 256))
        matched = activation_matching(
            jax.random.key(0), spec, params, moved, taps(apply, spec), seen, batch_size=64
        )
    activations = _undone(spec, params, moved, align(spec, moved, matched))
    covered = _covered(spec, params)
    return Row(name, len(spec.groups), covered, seconds, deviation, weights, activations)


def _strong(rng, path, leaf):
    """Weights at which no unit is like another and no layer fades out."""
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return leaf
    values = rng.normal(size=leaf.shape)
    last = key_path(path).rsplit("/", 1)[-1]
    if last in ("scale", "var", "average") or (last == "weight" and leaf.ndim == 1):
        return jnp.asarray(np.exp(0.3 * values), leaf.dtype)
    if leaf.ndim > 1:
        # Fans are of the order of the larger axis.
        values *= 1.5 / np.sqrt(max(1, np.prod(leaf.shape) / max(leaf.shape)))
    return jnp.asarray(values, leaf.dtype)


def _derangement(rng, size):
    """An order in which no unit keeps its place, where there is one."""
    while True:
        order = rng.permutation(size)
        if size == 1 or (order != np.arange(size)).all():
            return order


def _leaves(params):
    return {
        key_path(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    }


def _covered(spec, params):
    leaves = _leaves(params)
    held = {tie.leaf for group in spec.groups for tie in group.ties}
    return sum(v.size for n, v in leaves.items() if n in held) / sum(
        v.size for v in leaves.values()
    )


def _undone(spec, params, moved, back):
    """Of the weights that the planted order moved, the share that is back in its place."""
    first, second, third = map(_leaves, (params, moved, back))
    away = {name: first[name] != second[name] for name in first}
    right = sum((first[n] == third[n])[away[n]].sum() for n in first)
    return float(right / max(1, sum(mask.sum() for mask in away.values())))
