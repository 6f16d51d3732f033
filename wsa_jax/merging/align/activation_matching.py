"""Activation matching: pair units by how similar their activations are on the same inputs."""

import time

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from wsa_jax import checks
from wsa_jax.door import door
from wsa_jax.merging.align.activation_similarity import (
    Activations,
    ActivationSimilarity,
    count_examples,
)
from wsa_jax.merging.align.assignment import Matching
from wsa_jax.merging.align.weight_matching import by_bounds, descend, generator
from wsa_jax.merging.symmetry.spec import AxisSpec, check_spec
from wsa_jax.merging.symmetry.units import identity_permutations
from wsa_jax.types import Inputs

__all__ = ["activation_matching"]


@door
def activation_matching(
    key: Key[Array, ""],
    spec: AxisSpec,
    first: PyTree,
    second: PyTree,
    activations: Activations,
    inputs: Inputs,
    *,
    measure: str = "product",
    num_samples: int | None = None,
    batch_size: int = 500,
    max_sweeps: int = 100,
) -> Matching:
    r"""Pair the units whose activations are most alike on the same inputs, group by group.

    .. math:: \max_P \sum_u \mathrm{E}[a_u b_{P(u)}] \quad\text{or}\quad
              \max_P \sum_u \mathrm{corr}(a_u, b_{P(u)})

    A unit's activation is the same function of the input whatever the order of the units before
    it, so a group's pairs follow from the models as they are, unless its activations have an axis
    of another group (hidden units of a layer that mixes tokens, one for each channel): that axis
    is brought into the other group's order. Groups that wait for one another start from sorted
    activations (no order of the other can give more), and sweeps over the groups are repeated until
    nothing changes. A nested group is assigned within every pair of its parent's units, and its
    score counts in the parent's.

    Args:
      key: draws the samples, if there is ``num_samples``, and the order of groups in a sweep.
      spec: which axes move together.
      first: the model that stays fixed.
      second: the model to reorder to match ``first``.
      activations: ``(params, inputs) -> {group: [..., units]}``, with
        ``[..., parent's units, units]`` for a nested group. Leading axes are samples (examples,
        positions) or hold another group's units, each axis one group's; which it is, is found on 16
        examples. `taps` makes it from a model's function and its spec. A group that it leaves out
        keeps its order. Each function object is compiled once.
      inputs: calibration data, ``[examples, ...]`` or a pytree of such arrays; no labels are
        needed.
      measure: ``"product"`` (uncentred) or ``"correlation"`` (Pearson's; 0 for dead units).
      num_samples: number of examples, drawn without replacement; all by default.
      batch_size: examples at once; memory holds one batch and the moments of each group.
      max_sweeps: maximum number of sweeps.

    Returns:
      The permutations, and ``info`` with ``objective`` (the sum above, per group with those nested
      in it), ``samples``, ``sweeps``, ``converged`` (the last sweep changed nothing),
      ``assignments``, ``seconds`` and ``solver_seconds``.

    Guarantees: arguments are unchanged; moments are accumulated about running means, so
    correlations stay precise where means are large.

    Raises:
      NotAdmittedError: activations hold another group's units on no axis of its own.
      ValueError: there is no calibration data, architectures differ, the spec is for another model,
        a weight is not finite, activations belong to an unknown group or have the wrong width, or
        the measure is unknown.

    Source: Ainsworth et al., Git Re-Basin, ICLR 2023, section 3.1 (uncentred); the correlation is
    from Li et al., 2015.
    """
    begin = time.perf_counter()
    if measure not in ("product", "correlation"):
        raise ValueError(f"measure {measure!r} is unknown; give 'product' or 'correlation'")
    examples = count_examples(inputs)
    if batch_size < 1 or (num_samples is not None and not 1 <= num_samples <= examples):
        raise ValueError(
            f"batch_size {batch_size} must be at least 1, and num_samples {num_samples} between 1 "
            f"and the {examples} examples"
        )
    if max_sweeps < 1:
        raise ValueError(f"max_sweeps {max_sweeps} is below 1; give at least one sweep")
    checks.same_structure(first, second)
    check_spec(spec, first)
    checks.finite(first, "the first model")
    checks.finite(second, "the second model")
    if num_samples is not None:
        chosen = jax.random.choice(key, examples, (num_samples,), replace=False)
        inputs = jax.tree.map(lambda leaf: leaf[chosen], inputs)
    similarity = ActivationSimilarity(
        spec,
        first,
        second,
        activations,
        jax.tree.map(jnp.asarray, inputs),
        measure=measure,
        batch_size=batch_size,
    )
    # Where no activation has another group's axis, the bounds are the scores, and this is the end.
    start, assigned, seconds = by_bounds(similarity, identity_permutations(spec))
    end = descend(generator(key), similarity, start, max_sweeps=max_sweeps)
    info = {
        "objective": similarity.objectives(end.permutations),
        "samples": examples if num_samples is None else num_samples,
        "sweeps": end.sweeps,
        "converged": end.converged,
        "assignments": assigned + end.assignments,
        "seconds": time.perf_counter() - begin,
        "solver_seconds": seconds + end.solver_seconds,
    }
    return Matching(end.permutations, info)
