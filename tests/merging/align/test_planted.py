"""Every group of many kinds of networks is moved, and both matchings bring every unit back.

Activation matching is long where another network has the same kinds of groups and taps; weight
matching meets all of them.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.merging.align.networks import NETWORKS, derangements, draw_weights
from wsa_jax.merging import (
    activation_matching,
    align,
    check_equivalence,
    permute_units,
    taps,
    trace_spec,
    weight_matching,
)
from wsa_jax.merging.align.assignment import permuted

KEY = jax.random.key(5)


# Like fused_query, attention, three_deep, mlp and depthwise.
ALIKE = ("grouped_query", "rotary", "three_deep_residual", "low_rank", "squeezed")


@functools.cache
def planted(name):
    """A network's function, its spec, a model, the model with all units elsewhere, inputs."""
    apply_fn, shapes, example = NETWORKS[name]
    first = draw_weights(0, shapes)
    inputs = jnp.asarray(np.random.default_rng(1).normal(size=(64, *example)), jnp.float32)
    spec = trace_spec(apply_fn, first, inputs[:2])
    return apply_fn, spec, first, permute_units(spec, first, derangements(0, spec)), inputs


def assert_undone(first, aligned):
    for leaf, values in first.items():
        np.testing.assert_array_equal(aligned[leaf], values)


@pytest.mark.parametrize("name", NETWORKS)
def test_weight_matching_brings_every_unit_back(name):
    apply_fn, spec, first, second, inputs = planted(name)
    assert spec.groups and not any(np.array_equal(second[n], first[n]) for n in first)
    assert check_equivalence(jax.jit(apply_fn), first, second, inputs) < 1e-4
    found = weight_matching(KEY, spec, first, second)
    assert_undone(first, align(spec, second, found))
    assert found.info["converged"] and found.info["distance"] == 0.0


@pytest.mark.parametrize("name", ["low_rank", "fused_query"])
def test_one_start_is_not_enough_and_two_are(name):
    _, shapes, _ = NETWORKS[name]
    spec, distances = planted(name)[1], []
    for seed in range(6):
        first = draw_weights(seed, shapes)
        second = permute_units(spec, first, derangements(seed, spec))
        starts = (weight_matching(KEY, spec, first, second, restarts=n).info for n in (1, 2))
        distances.append([info["distance"] for info in starts])
    one, two = np.transpose(distances)
    assert np.sum(one > 0) >= 2 and not two.any()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name in ALIKE)) for name in NETWORKS]
)
def test_activation_matching_brings_every_unit_back(name):
    apply_fn, spec, first, second, inputs = planted(name)
    found = activation_matching(KEY, spec, first, second, taps(apply_fn, spec), inputs)
    assert_undone(first, align(spec, second, found))
    assert found.info["converged"]


@pytest.mark.parametrize(
    "name",
    ["attention", "grouped_query", "fused_query", "three_deep", "both_hidden", "grouped_norm"],
)
def test_converged_means_that_no_two_units_of_a_group_want_to_change_places(name):
    _, spec, first, _, _ = planted(name)
    second = draw_weights(1, NETWORKS[name][1])
    found = weight_matching(KEY, spec, first, second)
    assert found.info["converged"]
    wide = {leaf: np.asarray(values, np.float64) for leaf, values in first.items()}

    def objective(permutations):
        moved = permuted(spec, second, permutations)
        return sum(np.vdot(wide[leaf], np.asarray(moved[leaf], np.float64)) for leaf in wide)

    best, changes = objective(found.permutations), []
    np.testing.assert_allclose(best, found.info["objective"], rtol=1e-12)
    for group, order in found.permutations.items():
        for above in np.ndindex(order.shape[:-1]):
            for one, other in itertools.combinations(range(order.shape[-1]), 2):
                swapped = order.copy()
                swapped[*above, [one, other]] = order[*above, [other, one]]
                changes.append(objective(found.permutations | {group: swapped}) - best)
    assert len(changes) > 8 and max(changes) <= 1e-5 * best
    assert min(changes) < -1e-3 * best
