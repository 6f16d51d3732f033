"""MergeMany: permuted copies become one model, and the spread falls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.merging.align.architectures import draw, mlp, plant
from wsa_jax.merging.align import align, weight_matching_many
from wsa_jax.merging.symmetry.tracing import trace_spec

KEY = jax.random.key(0)


def test_permuted_copies_of_one_model_become_one():
    shapes, spec = mlp()
    first = draw(1, shapes)
    # The mean of orders drawn apart says little; a copy in place gives the others a hold.
    models = [first, plant(1, spec, first), first]
    matchings = weight_matching_many(KEY, spec, models)
    aligned = [align(spec, *pair) for pair in zip(models, matchings, strict=True)]
    for other in aligned[1:]:
        for name, value in aligned[0].items():
            np.testing.assert_array_equal(other[name], value)
    assert matchings[0].info["spread"][-1] == 0.0


def test_spread_falls_to_what_the_aligned_models_have():
    shapes, spec = mlp()
    models = [draw(seed, shapes) for seed in range(4)]
    before = [{n: np.array(v) for n, v in model.items()} for model in models]
    found = weight_matching_many(KEY, spec, models)
    again = weight_matching_many(KEY, spec, models)
    spread = found[0].info["spread"]
    assert all(np.diff(spread) <= 1e-9)
    assert spread[-1] < 0.95 * spread[0]
    assert found[0].info["converged"]
    aligned = [align(spec, *pair) for pair in zip(models, found, strict=True)]
    total = 0.0
    for name in shapes:
        values = np.stack([model[name] for model in aligned]).astype(np.float64)
        total += np.square(values - values.mean(0)).sum()
    np.testing.assert_allclose(spread[-1], np.sqrt(total), rtol=1e-12)
    for one, other, model, copy in zip(found, again, models, before, strict=True):
        for name in spec.names:
            np.testing.assert_array_equal(one.permutations[name], other.permutations[name])
        for name, value in copy.items():
            np.testing.assert_array_equal(model[name], value)


def test_errors_name_the_setting():
    shapes, spec = mlp()
    model = draw(0, shapes)
    with pytest.raises(ValueError, match="1 models were given; give at least two"):
        weight_matching_many(KEY, spec, [model])
    with pytest.raises(ValueError, match="max_rounds 0 and max_sweeps 100 must both be at least"):
        weight_matching_many(KEY, spec, [model, model], max_rounds=0)
    with pytest.raises(ValueError, match="leaf a of the second model holds 28 NaN"):
        weight_matching_many(KEY, spec, [model, model, model | {"a": model["a"] * jnp.nan}])


def test_layers_stacked_in_one_leaf_are_matched_each_for_itself():
    shapes = {"start": (4, 6), "up": (3, 6, 8), "down": (3, 8, 6), "end": (6, 2)}

    def apply_fn(params, x):
        def layer(h, kernels):
            return h + jnp.tanh(h @ kernels[0]) @ kernels[1], None

        h, _ = jax.lax.scan(layer, x @ params["start"], (params["up"], params["down"]))
        return h @ params["end"]

    first = draw(1, shapes)
    spec = trace_spec(apply_fn, first, jnp.ones((2, 4)))
    assert [group.size for group in spec.groups].count(8) == 3
    models = [first, plant(1, spec, first), first]
    matchings = weight_matching_many(KEY, spec, models)
    for model, matching in zip(models, matchings, strict=True):
        moved = align(spec, model, matching)
        for name, value in align(spec, first, matchings[0]).items():
            np.testing.assert_array_equal(moved[name], value)
    assert matchings[0].info["spread"][-1] == 0.0
