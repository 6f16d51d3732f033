"""The best of a run of steps, against NumPy on the scores before the first that is not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsa_jax.merging.combine.best_so_far import BestSoFar


def scan(scores, looked_at):
    """Offer all steps inside a `lax.scan`; step i has the variables i and the state 10 i."""

    def offer(best, step):
        score, looks = scores[step], looked_at[step]
        finite = ~looks | jnp.isfinite(score)
        score = jnp.where(looks, score, jnp.nan)
        variables, state = {"w": jnp.float32(step)}, {"mean": 10.0 * step}
        return best.seen(step, score, variables, state, finite=finite), None

    start = BestSoFar.start({"w": jnp.float32(-1.0)}, {"mean": jnp.float32(-1.0)})
    return jax.jit(lambda: jax.lax.scan(offer, start, jnp.arange(len(scores)))[0])()


@pytest.mark.parametrize("seed", range(8))
def test_is_the_lowest_finite_score_before_a_divergence(seed):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=12).astype(np.float32)
    looked_at = rng.random(12) < 0.7
    bad = rng.integers(0, 12, 2) if seed % 2 else np.zeros(0, int)
    scores[bad] = rng.choice([np.nan, np.inf, -np.inf], len(bad))
    best = scan(jnp.asarray(scores), jnp.asarray(looked_at))

    failed = np.flatnonzero(looked_at & ~np.isfinite(scores))
    end = failed[0] if len(failed) else 12
    assert int(best.diverged_step) == (end if len(failed) else -1)
    assert bool(best.diverged) == bool(len(failed))
    seen = np.where(looked_at, scores, np.inf)[:end]
    if np.isfinite(seen).any():
        assert int(best.step) == np.argmin(seen) == int(best.variables["w"])
        assert float(best.model_state["mean"]) == 10 * np.argmin(seen)
        assert float(best.score) == seen.min()
    else:
        assert (float(best.variables["w"]), float(best.score)) == (-1.0, np.inf)


def test_equal_scores_keep_the_first():
    best = scan(jnp.ones(4), jnp.ones(4, bool))
    assert int(best.step) == 0
