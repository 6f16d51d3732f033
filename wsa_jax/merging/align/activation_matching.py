"""Activation matching: pair units by how similar their activations are on the same inputs."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from wsa_jax import checks
from wsa_jax.merging.align.assignment import Matching, assign
from wsa_jax.merging.symmetry.spec import AxisSpec, check_spec
from wsa_jax.merging.symmetry.units import identity_permutations

Activations = Callable[[PyTree, Array], Mapping[str, Float[Array, "..."]]]


class Moments(NamedTuple):
    """Means, sums of squared deviations, and sums of products of deviations, for one group.

    ``parents`` is 1 for a group that is not nested; in each pair of axes of ``cross``, the first
    model's axis precedes the second's.
    """

    count: Array
    first_mean: Float[Array, "parents units"]
    second_mean: Float[Array, "parents units"]
    first_square: Float[Array, "parents units"]
    second_square: Float[Array, "parents units"]
    cross: Float[Array, "parents parents units units"]


def activation_matching(
    key: Key[Array, ""],
    spec: AxisSpec,
    first: PyTree,
    second: PyTree,
    activations: Activations,
    inputs: Array | np.ndarray,
    *,
    measure: str = "product",
    num_samples: int | None = None,
    batch_size: int = 500,
) -> Matching:
    r"""Pair the units whose activations are most alike on the same inputs, group by group.

    .. math:: \max_P \sum_u \mathrm{E}[a_u b_{P(u)}] \quad\text{or}\quad
              \max_P \sum_u \mathrm{corr}(a_u, b_{P(u)})

    Groups are independent: a unit's activation is the same function of the input whatever the
    order of the units before it, so each group's pairs follow from the models as they are. A nested
    group is assigned within every pair of its parent's units, and its score counts in the parent's.

    Args:
      key: draws the samples; has no effect without ``num_samples``.
      spec: which axes move together.
      first: the model that stays fixed.
      second: the model to reorder to match ``first``.
      activations: ``(params, inputs) -> {group: [..., units]}``, with
        ``[..., parent's units, units]`` for a nested group; all leading axes (examples, positions)
        count as samples. `taps` makes it from a model's function and its spec. A group that it
        leaves out keeps its order. Each function object is compiled once.
      inputs: ``[examples, ...]``: calibration data; no labels are needed.
      measure: ``"product"`` (uncentred) or ``"correlation"`` (Pearson's; 0 for dead units).
      num_samples: number of examples, drawn without replacement; all by default.
      batch_size: examples at once; memory holds one batch and the moments of each group.

    Returns:
      The permutations, and ``info`` with ``objective`` (the sum above, per group), ``samples``,
      ``seconds`` and ``solver_seconds``.

    Guarantees: arguments are unchanged; moments are accumulated about running means, so
    correlations stay precise where means are large.

    Raises:
      ValueError: there is no calibration data, architectures differ, the spec is for another model,
        a weight is not finite, activations belong to an unknown group or have the wrong width, or
        the measure is unknown.

    Source: Ainsworth et al., Git Re-Basin, ICLR 2023, section 3.1 (uncentred); the correlation is
    from Li et al., 2015.
    """
    begin = time.perf_counter()
    if measure not in ("product", "correlation"):
        raise ValueError(f"measure {measure!r} is unknown; give 'product' or 'correlation'")
    if len(inputs) == 0:
        raise ValueError("no calibration data: inputs are empty; give at least one example")
    if batch_size < 1 or (num_samples is not None and not 1 <= num_samples <= len(inputs)):
        raise ValueError(
            f"batch_size {batch_size} must be at least 1, and num_samples {num_samples} between 1 "
            f"and the {len(inputs)} examples"
        )
    checks.same_structure(first, second)
    check_spec(spec, first)
    checks.finite(first, "the first model")
    checks.finite(second, "the second model")
    if num_samples is not None:
        inputs = inputs[jax.random.choice(key, len(inputs), (num_samples,), replace=False)]
    moments = _moments(activations, spec, batch_size)(first, second, jnp.asarray(inputs))
    scores = {name: _scores(value, measure) for name, value in moments.items()}
    permutations, objectives = identity_permutations(spec), {}
    start = time.perf_counter()
    for group in spec.groups:
        if group.parent is not None:
            continue
        inside = {g.name: scores[g.name] for g in spec.groups
                  if g.parent == group.name and g.name in scores}  # fmt: skip
        orders = {name: assign(value) for name, value in inside.items()}
        matched = permutations[group.name]
        if group.name in scores or inside:
            total = sum(values for _, values in orders.values())
            total = total + (scores[group.name][0, 0] if group.name in scores else 0.0)
            matched, best = assign(np.asarray(total))
            permutations[group.name], objectives[group.name] = matched, best.item()
        for name, (order, _) in orders.items():
            permutations[name][matched] = order[np.arange(group.size), matched]
    end = time.perf_counter()
    info = {
        "objective": objectives,
        "samples": len(inputs),
        "seconds": end - begin,
        "solver_seconds": end - start,
    }
    return Matching(permutations, info)


def _scores(moments: Moments, measure: str) -> np.ndarray:
    """``[parents, parents, units, units]`` in float64."""
    count, mean_a, mean_b, square_a, square_b, cross = (
        np.asarray(value, np.float64) for value in moments
    )
    if measure == "product":
        return cross / count + np.einsum("ui,vj->uvij", mean_a, mean_b)
    norm = np.sqrt(np.einsum("ui,vj->uvij", square_a, square_b))
    return np.divide(cross, norm, out=np.zeros_like(cross), where=norm > 0)


@functools.lru_cache(maxsize=16)
def _moments(
    activations: Activations, spec: AxisSpec, batch_size: int
) -> Callable[[PyTree, PyTree, Array], dict[str, Moments]]:
    @jax.jit
    def run(first: PyTree, second: PyTree, inputs: Array) -> dict[str, Moments]:
        def batch(rows: Array) -> dict[str, Moments]:
            ours, theirs = activations(first, rows), activations(second, rows)
            return {
                name: _of_batch(_rows(spec, name, ours[name]), _rows(spec, name, theirs[name]))
                for name in ours
            }

        size = min(batch_size, inputs.shape[0])
        whole = inputs.shape[0] // size * size
        batches = inputs[:whole].reshape(-1, size, *inputs.shape[1:])
        total = batch(batches[0])
        if batches.shape[0] > 1:

            def body(total: dict, rows: Array) -> tuple[dict, None]:
                return _joined(total, batch(rows)), None

            total, _ = jax.lax.scan(body, total, batches[1:])
        if whole < inputs.shape[0]:
            total = _joined(total, batch(inputs[whole:]))
        return total

    return run


def _rows(spec: AxisSpec, name: str, value: Array) -> Float[Array, "samples parents units"]:
    group = spec[name]
    outer = 1 if group.parent is None else spec[group.parent].size
    expected = (group.size,) if group.parent is None else (outer, group.size)
    if value.shape[-len(expected) :] != expected:
        raise ValueError(
            f"activations of group {name} have shape {value.shape}; expected them to end in "
            f"{expected}"
        )
    return jnp.asarray(value, jnp.float32).reshape(-1, outer, group.size)


def _of_batch(ours: Array, theirs: Array) -> Moments:
    mean_a, mean_b = ours.mean(0), theirs.mean(0)
    ours, theirs = ours - mean_a[None], theirs - mean_b[None]
    cross = jnp.einsum("sui,svj->uvij", ours, theirs, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.square(ours).sum(0), jnp.square(theirs).sum(0)
    return Moments(jnp.float32(ours.shape[0]), mean_a, mean_b, *squares, cross)


def _joined(total: dict[str, Moments], more: dict[str, Moments]) -> dict[str, Moments]:
    """Combine the moments of two samples (Chan, Golub and LeVeque, 1983)."""

    def join(a: Moments, b: Moments) -> Moments:
        count = a.count + b.count
        share, weight = b.count / count, a.count * b.count / count
        ours, theirs = b.first_mean - a.first_mean, b.second_mean - a.second_mean
        between = ours[:, None, :, None] * theirs[None, :, None, :]
        return Moments(
            count,
            a.first_mean + share * ours,
            a.second_mean + share * theirs,
            a.first_square + b.first_square + weight * jnp.square(ours),
            a.second_square + b.second_square + weight * jnp.square(theirs),
            a.cross + b.cross + weight * between,
        )

    return {name: join(total[name], more[name]) for name in total}
