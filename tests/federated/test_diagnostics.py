"""The divergence between clients against all pairs in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from wsa_jax import WeightScope
from wsa_jax.federated.diagnostics import mean_divergence


def pairs(mean, std):
    total = np.zeros(mean.shape[1])
    for i in range(len(mean)):
        for j in range(len(mean)):
            ratio = std[i] / std[j]
            shift = (mean[i] - mean[j]) / std[j]
            total += 0.5 * (ratio**2 + shift**2 - 1) - np.log(ratio)
    return total / max(len(mean) * (len(mean) - 1), 1)


@pytest.mark.parametrize("spread", [1e-4, 1e-2, 0.5])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_equals_all_pairs(spread, count):
    rng = np.random.default_rng(0)
    std = 0.05 * np.exp(spread * rng.normal(size=(9, 3)))
    mean = 0.01 + 0.05 * spread * rng.normal(size=(9, 3))
    keep = np.arange(9) < count
    mean, std = (values.astype(np.float32) for values in (mean, std))
    expected = pairs(mean[:count].astype(np.float64), std[:count].astype(np.float64))
    mean[count:], std[count:] = np.nan, np.nan
    scopes = WeightScope(
        mean=jnp.asarray(mean), std=jnp.asarray(std), names=("a", "b", "c"), sizes=(4, 4, 4)
    )
    found = mean_divergence(scopes, jnp.asarray(keep))
    # Nearly equal clients are told apart to the rounding of their float32 scopes.
    np.testing.assert_allclose(found, expected, rtol=2e-2 if spread == 1e-4 else 1e-3, atol=1e-12)
