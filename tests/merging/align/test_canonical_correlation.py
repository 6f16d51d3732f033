"""CCA Merge: moments against NumPy, correlations against scikit-learn, planted answers."""

import numpy as np
import pytest
from sklearn.cross_decomposition import CCA

from tests.merging.align.architectures import draw, plant
from tests.merging.align.widths import SHAPES, SPEC, duplicated, mlp_activations, mlp_function
from wsa_jax.merging.align import align, canonical_correlation
from wsa_jax.merging.align.feature_moments import features_of
from wsa_jax.merging.result import NotAdmittedError
from wsa_jax.merging.symmetry.spec import Tie, hand_written

INPUTS = np.random.default_rng(1).normal(size=(120, 4)).astype(np.float32)


def alive(seed):
    """A model all of whose units are alive on most inputs, so that covariances have full rank."""
    model = draw(seed, SHAPES)
    return model | {"a/bias": np.full(7, 0.5, np.float32), "b/bias": np.full(6, 0.5, np.float32)}


@pytest.fixture(scope="module")
def planted():
    first = alive(2)
    models = [first, plant(0, SPEC, first), plant(1, SPEC, first)]
    return models, canonical_correlation(SPEC, models, mlp_activations, INPUTS, batch_size=50)


def test_moments_of_three_models_are_float64_numpys():
    models = [alive(seed) for seed in (2, 3, 4)]
    # Means a thousand times the deviations: uncentred sums would lose the covariance.
    models[1] = models[1] | {"b/bias": np.full(6, 3e3, np.float32)}
    found = features_of(SPEC, models, mlp_activations, INPUTS, batch_size=50)
    for name in SPEC.names:
        rows = [np.asarray(mlp_activations(model, INPUTS)[name], np.float64) for model in models]
        moments = found.moments[name]
        assert moments.count == 120 and moments.sizes == (SPEC[name].size,) * 3
        both = np.concatenate(rows, axis=1)
        np.testing.assert_allclose(moments.mean, both.mean(0), rtol=1e-6)
        expected = np.cov(both.T, bias=True)
        np.testing.assert_allclose(
            moments.covariance, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max()
        )
        np.testing.assert_array_equal(
            moments.covariance[moments.part(1), moments.part(1)],
            moments.covariance[SPEC[name].size : 2 * SPEC[name].size][:, moments.part(1)],
        )


def test_correlations_are_scikit_learns():
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(400, 3))
    ours = latent @ rng.normal(size=(3, 3)) + 0.5 * rng.normal(size=(400, 3))
    theirs = latent @ rng.normal(size=(3, 3)) + 0.5 * rng.normal(size=(400, 3))
    leaves = {"in": np.eye(3, dtype=np.float32), "out": np.eye(3, dtype=np.float32)}
    ties = [Tie(leaf="in", axis=1), Tie(leaf="out", axis=0, role="consumed")]
    spec = hand_written({"hidden": ties}, leaves)
    _, maps = canonical_correlation(
        spec,
        [leaves, leaves],
        [lambda p, x: {"hidden": x[:, :3]}, lambda p, x: {"hidden": x[:, 3:]}],
        np.concatenate([ours, theirs], axis=1).astype(np.float32),
        regularization=1e-9,
    )
    scores = CCA(n_components=3, scale=False, max_iter=5000, tol=1e-10).fit_transform(ours, theirs)
    expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(scores[0].T, scores[1].T, strict=True)]
    np.testing.assert_allclose(maps.info["correlations"]["hidden"], expected, rtol=1e-4)
    # What is mapped has the first model's covariance, and the second map undoes the first.
    mapped = theirs @ maps.forward["hidden"].T
    np.testing.assert_allclose(np.cov(mapped.T), np.cov(ours.T), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(
        maps.forward["hidden"] @ maps.backward["hidden"], np.eye(3), atol=1e-6
    )


def test_permuted_copies_come_back(planted):
    models, maps = planted
    for model, found in zip(models, maps, strict=True):
        for name, value in align(SPEC, model, found).items():
            np.testing.assert_allclose(value, models[0][name], atol=2e-3)


def test_a_copy_with_units_doubled_is_the_model():
    first, second = duplicated(np.full(7, 2), np.array([1, 3, 1, 1, 2, 1]))
    _, maps = canonical_correlation(
        SPEC, [first, second], mlp_activations, INPUTS, regularization=1e-7
    )
    moved = align(SPEC, second, maps)
    expected = mlp_function(first, INPUTS)
    error = np.abs(mlp_function(moved, INPUTS) - expected).max() / np.abs(expected).max()
    assert error < 1e-2


def test_dead_units_and_features_of_low_rank_stay_finite():
    first, second = alive(2), alive(3)
    dead = second | {"a/bias": np.full(7, -1e3, np.float32)}
    same = second | {"b": np.repeat(np.asarray(second["b"])[:, :1], 6, axis=1)}
    for other in (dead, same):
        _, maps = canonical_correlation(SPEC, [first, other], mlp_activations, INPUTS)
        for value in (*maps.forward.values(), *maps.backward.values()):
            assert np.isfinite(value).all() and np.abs(value).max() < 1e3


def test_what_is_refused_is_one_line():
    models = [alive(2), alive(3)]
    message = "group first has 7 units and 7 calibration samples, too few for the covariance that"
    with pytest.raises(NotAdmittedError, match=message):
        canonical_correlation(SPEC, models, mlp_activations, INPUTS[:7])
    with pytest.raises(ValueError, match="regularization 0 is not positive"):
        canonical_correlation(SPEC, models, mlp_activations, INPUTS, regularization=0)
    with pytest.raises(ValueError, match=r"activations of group first of model 1 hold NaN or inf"):
        canonical_correlation(SPEC, models, mlp_activations, np.full((20, 4), np.nan, np.float32))
    broken = models[1] | {"b/bias": np.full(6, np.nan, np.float32)}
    with pytest.raises(ValueError, match="leaf b/bias of model 2 holds 6 NaN or infinite values"):
        canonical_correlation(SPEC, [models[0], broken], mlp_activations, INPUTS)
