"""ZipIt!: clusters against a naive search, planted copies, own tails, refusals."""

import numpy as np
import pytest

from tests.merging.align.architectures import draw, plant
from tests.merging.align.widths import (
    INPUTS,
    SHAPES,
    SPEC,
    duplicated,
    mlp_activations,
    mlp_function,
)
from wsa_jax.merging.align import align, zip_merge, zip_units
from wsa_jax.merging.align.feature_moments import FeatureMoments
from wsa_jax.merging.align.zip_units import _clusters


def naive(moments, repeat, within):
    """Look at all pairs of clusters, again after every merge."""
    norm = np.sqrt(np.outer(*[np.diag(moments.covariance)] * 2))
    alike = dict(np.ndenumerate(moments.covariance / norm))
    model = [i for i, size in enumerate(moments.sizes) for _ in range(size)]
    clusters = {unit: [unit] for unit in range(len(norm))}
    left = [int(within * size) for size in moments.sizes]
    used = set()
    while len(clusters) > moments.sizes[0]:

        def allowed(a, b):
            owners = {model[unit] for unit in clusters[a] + clusters[b]}
            return (len(owners) > 1 or left[min(owners)] > 0) and not (
                repeat == 0 and {a, b} & used
            )

        pairs = [(a, b) for a in clusters for b in clusters if a < b and allowed(a, b)]
        keep, gone = max(pairs, key=lambda pair: alike[pair])
        owners = {model[unit] for unit in clusters[keep] + clusters[gone]}
        if len(owners) == 1:
            left[min(owners)] -= 1
        for other in clusters:
            lesser = min(alike[keep, other], alike[gone, other]) * repeat
            alike[keep, other] = alike[other, keep] = lesser
        clusters[keep] += clusters.pop(gone)
        used.add(keep)
    return sorted(map(sorted, clusters.values()))


# Pairs alone (repeat 0) leave as many clusters as the first model has units in one case only.
CASES = [((8, 8), 0.0)] + [(sizes, r) for sizes in [(8, 8), (6, 11), (5, 6, 7)] for r in (0.3, 1.0)]


@pytest.mark.parametrize("within", [0.0, 0.25, 1.0])
@pytest.mark.parametrize(("sizes", "repeat"), CASES)
def test_clusters_are_those_of_a_naive_search(sizes, repeat, within):
    features = np.random.default_rng([*sizes]).normal(size=(30, sum(sizes)))
    moments = FeatureMoments(30, sizes, features.mean(0), np.cov(features.T, bias=True))
    labels, inside = _clusters(moments, repeat, within, "group")
    found = sorted(np.flatnonzero(labels == label).tolist() for label in range(sizes[0]))
    assert found == naive(moments, repeat, within)
    assert inside == 0 if within == 0 else inside <= sum(int(within * n) for n in sizes)


@pytest.mark.parametrize("copies", [1, 2])
def test_copies_in_other_orders_come_back_as_the_model(copies):
    first = draw(2, SHAPES)
    models = [first, *(plant(seed, SPEC, first) for seed in range(copies))]
    maps = zip_units(SPEC, models, mlp_activations, INPUTS, batch_size=15)
    moved = [align(SPEC, model, own) for model, own in zip(models, maps, strict=True)]
    mean = {name: np.mean([model[name] for model in moved], axis=0) for name in first}
    np.testing.assert_allclose(
        mlp_function(mean, INPUTS), mlp_function(first, INPUTS), rtol=1e-4, atol=1e-4
    )
    assert maps[0].info["within"].keys() == set(SPEC.names)


def test_a_copy_with_units_doubled_is_the_model():
    first, second = duplicated(np.full(7, 2), np.array([1, 3, 1, 1, 2, 1]))
    # Clusters of several copies merge several times.
    maps = zip_units(SPEC, [first, second], mlp_activations, INPUTS, repeat=1)
    moved = [align(SPEC, m, own) for m, own in zip((first, second), maps, strict=True)]
    mean = {name: (np.asarray(moved[0][name]) + moved[1][name]) / 2 for name in first}
    np.testing.assert_allclose(
        mlp_function(mean, INPUTS), mlp_function(first, INPUTS), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("groups", [["first"], ["first", "second"]])
def test_a_shared_trunk_keeps_each_models_own_tail(groups):
    first = draw(2, SHAPES)
    second = plant(1, SPEC, first)
    # Five other classes, and another second layer where that is not zipped.
    second["c"] = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    if groups == ["first"]:
        second["b/bias"] = second["b/bias"] + 1.0
    maps = zip_units(SPEC, [first, second], mlp_activations, INPUTS, groups=groups)
    zipped = zip_merge(SPEC, [first, second], maps)
    assert set(zipped.shared) == {"a", "a/bias", *(["b", "b/bias"] * (len(groups) == 2))}
    for name in zipped.shared:
        np.testing.assert_array_equal(zipped.models[0][name], zipped.models[1][name])
    for merged, model in zip(zipped.models, (first, second), strict=True):
        np.testing.assert_allclose(
            mlp_function(merged, INPUTS), mlp_function(model, INPUTS), rtol=1e-3, atol=1e-3
        )


def test_what_is_refused_is_one_line():
    first, second = draw(2, SHAPES), draw(3, SHAPES)

    def attempt(models=(first, second), **settings):
        zip_units(SPEC, list(models), mlp_activations, INPUTS, **settings)

    with pytest.raises(ValueError, match=r"repeat 2 is not in \[0, 1\]; give a number in it"):
        attempt(repeat=2)
    with pytest.raises(ValueError, match="group second is made from group first by leaf b; zip gr"):
        attempt(groups=["second"])
    with pytest.raises(ValueError, match="group third is not in the spec; it has first, second"):
        attempt(groups=["third"])
    with pytest.raises(ValueError, match="group first cannot be zipped to 7 units: no more clust"):
        attempt((first, second, draw(4, SHAPES)), repeat=0)
    heads = second | {"c": np.ones((6, 5), np.float32)}
    with pytest.raises(ValueError, match="axis 1 of leaf c has size 3 in the first model and 5 in"):
        attempt((first, heads))
    with pytest.raises(ValueError, match="0 maps were given for 1 models; give one for each"):
        zip_merge(SPEC, [first], [])
