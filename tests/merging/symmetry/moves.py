"""Random moves of all that a spec allows, and a check that they keep the function."""

import jax
import numpy as np

from wsa_jax.merging.symmetry.equivalence import check_equivalence
from wsa_jax.merging.symmetry.tracing import trace_spec
from wsa_jax.merging.symmetry.units import identity_permutations, permute_units, scale_units


def move_at_random(rng, spec, params):
    """Each group in a random order, and scaled by random factors where it admits them."""
    orders = {n: rng.permuted(o, axis=-1) for n, o in identity_permutations(spec).items()}
    scales = {
        group.name: np.exp(0.5 * rng.normal(size=orders[group.name].shape)).astype(np.float32)
        for group in spec.groups
        if group.admits != "permutation"
    }
    move = jax.jit(lambda params: permute_units(spec, scale_units(spec, params, scales), orders))
    return move(params)


def checked_spec(function, params, *inputs, rtol=2e-4):
    """Trace a function, and check that random moves of its units keep it."""
    function, rng = jax.jit(function), np.random.default_rng(0)
    spec = trace_spec(function, params, *inputs)
    for _ in range(2):
        moved = move_at_random(rng, spec, params)
        check_equivalence(function, params, moved, *inputs, rtol=rtol)
    return spec


def summary(spec):
    return {group.name: (group.size, group.admits, group.parent) for group in spec.groups}
