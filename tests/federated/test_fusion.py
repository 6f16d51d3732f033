"""The fusion of scopes: pooled moments are those of all weights together."""

import jax.numpy as jnp
import numpy as np
import pytest

from wsa_jax.federated.fusion import fused_moments, scope_moments
from wsa_jax.scope.scope import weight_scope


def fuse(models, target, fusion):
    """Mean and std of the next target, from each model's own kernel."""
    sent = [scope_moments(weight_scope({"kernel": model}), target, fusion) for model in models]
    averages = [jnp.mean(jnp.stack(values), axis=0) for values in zip(*sent, strict=True)]
    mean, std = fused_moments(tuple(averages), jnp.float32(len(models)), target, fusion)
    return float(mean[0]), float(std[0])


# Far from 0, squares about 0 would keep three digits of the variance.
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_pooled_moments_are_those_of_all_weights_together(shift):
    rng = np.random.default_rng(0)
    models = [shift + rng.normal(0.1 * k, 0.5 + 0.1 * k, (20, 30)).astype("f4") for k in range(5)]
    target = weight_scope({"kernel": jnp.asarray(models[0])})
    mean, std = fuse(models, target, "pooled")
    together = np.concatenate(models).astype("f8")
    np.testing.assert_allclose([mean, std], [together.mean(), together.std()], rtol=1e-4)


def test_fusions_of_equal_models():
    model = np.random.default_rng(1).normal(0.1, 0.5, (20, 30)).astype("f4")
    target = weight_scope({"kernel": jnp.zeros((20, 30))})
    spread = {fusion: fuse([model] * 4, target, fusion)[1] for fusion in ("pooled", "sum")}
    np.testing.assert_allclose(spread["pooled"], model.std(), rtol=1e-5)
    np.testing.assert_allclose(spread["sum"], 2 * model.std(), rtol=1e-5)


def test_a_layer_without_spread_is_no_nan():
    target = weight_scope({"kernel": jnp.zeros((2, 2))})
    assert fuse([np.full((2, 2), 0.1, "f4")] * 3, target, "pooled")[1] == pytest.approx(0, abs=1e-4)
