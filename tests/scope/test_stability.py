"""The bound of the explicit step is sharp, and outside of it the check refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsa_jax import WeightScope, check_stability, constant_target, stability, weight_scope
from wsa_jax.scope.regularization import scope_gradient

SIZE = 40


def scope_of(mean, std, names=("kernel",), sizes=(SIZE,)):
    return WeightScope(
        mean=jnp.asarray(mean, jnp.float32),
        std=jnp.asarray(std, jnp.float32),
        names=names,
        sizes=sizes,
    )


def weights_with(mean, std):
    draws = np.random.default_rng(0).normal(size=(8, 5))
    return {"kernel": mean + std * (draws - draws.mean()) / draws.std()}


@jax.jit
def explicit_steps(params, target, rate):
    """50 steps of plain gradient descent on the penalty alone; all scopes on the way."""

    def body(params, _):
        pull = scope_gradient(params, target)
        params = jax.tree.map(lambda w, g: w - rate * g, params, pull)
        scope = weight_scope(params)
        return params, (scope.mean[0], scope.std[0])

    return jax.lax.scan(body, params, length=50)[1]


@pytest.mark.parametrize(
    ("used", "mean_factor", "std_factor"), [(0.3, 0.7, 0.4), (0.97, 0.03, -0.94)]
)
def test_below_the_bound_the_scope_shrinks_by_the_stated_factors(used, mean_factor, std_factor):
    target = scope_of([0.3], [0.5])
    rate = used * SIZE * 0.5**2
    share = stability(target, target, learning_rate=rate, strength=1)
    np.testing.assert_allclose(share, used, rtol=1e-6)
    params = jax.tree.map(lambda w: jnp.asarray(w, "f4"), weights_with(0.31, 0.502))
    means, stds = explicit_steps(params, target, rate)
    np.testing.assert_allclose(means[0] - 0.3, 0.01 * mean_factor, atol=1e-5)
    np.testing.assert_allclose(stds[0] - 0.5, 0.002 * std_factor, atol=5e-5)
    assert abs(stds[-1] - 0.5) < 0.1 * 0.002


def test_just_above_the_bound_the_std_leaves_its_target():
    target = scope_of([0.3], [0.5])
    params = jax.tree.map(lambda w: jnp.asarray(w, "f4"), weights_with(0.3, 0.502))
    _, below = explicit_steps(params, target, 0.97 * SIZE * 0.5**2)
    _, above = explicit_steps(params, target, 1.03 * SIZE * 0.5**2)
    assert abs(below[-1] - 0.5) < 0.002 < 0.004 < abs(above[-1] - 0.5)


def test_away_from_the_target_both_precisions_count():
    share = stability(scope_of([0.0], [0.1]), scope_of([0.0], [0.4]), learning_rate=2, strength=3)
    np.testing.assert_allclose(share, 0.5 * 6 / SIZE * (1 / 0.4**2 + 1 / 0.1**2), rtol=1e-5)


class TestOtherDirection:
    """`direction="target||weights"`."""

    def used(self, mean, std, rate, target=(0.3, 0.5)):
        settings = {"learning_rate": rate, "strength": 1, "direction": "target||weights"}
        target = scope_of([target[0]], [target[1]])
        return float(stability(scope_of([mean], [std]), target, **settings)[0])

    def steps(self, mean, std, rate, count):
        """Descent of weights in float64, on the divergence alone: mean, std and divergence."""
        w, rows = weights_with(mean, std)["kernel"], []
        for _ in range(count):
            m, v = w.mean(), w.var()
            wanted = 0.5**2 + (m - 0.3) ** 2
            rows.append((m, v**0.5, 0.5 * (wanted / v - 1 + np.log(v / 0.5**2))))
            w = w - rate / SIZE * ((m - 0.3) / v + (w - m) * (1 / v - wanted / v**2))
        return np.array(rows).T

    def test_is_its_formula_and_the_papers_near_the_target(self):
        wanted = np.hypot(0.5, 0.2)
        expected = 0.5 * 2 / SIZE * (1 / 0.1**2 + wanted / 0.1**3)
        np.testing.assert_allclose(self.used(0.5, 0.1, 2.0), expected, rtol=1e-5)
        papers = stability(
            scope_of([0.3], [0.5]), scope_of([0.3], [0.5]), learning_rate=2, strength=1
        )
        np.testing.assert_allclose(self.used(0.3, 0.5, 2.0), papers[0], rtol=1e-6)

    @pytest.mark.parametrize("start", [(0.3, 0.1), (0.3, 3.0), (-1.2, 0.2), (1.0, 0.6)])
    def test_below_the_bound_the_divergence_falls_to_0(self, start):
        at_target = 0.9 * SIZE * 0.5**2
        rate = min(at_target, 0.9 / self.used(*start, 1.0))
        _, stds, divergence = self.steps(*start, rate, 4_000)
        assert (np.diff(divergence) <= 1e-12).all()
        assert divergence[-1] < 1e-3 * max(divergence[0], 1.0)
        assert (stds > 0).all()

    def test_just_above_the_bound_the_std_leaves_its_target(self):
        below, above = (self.steps(0.3, 0.502, a * SIZE * 0.5**2, 50)[1][-1] for a in (0.97, 1.03))
        assert abs(below - 0.5) < 0.002 < 0.004 < abs(above - 0.5)

    def test_narrow_weights_are_refused_where_the_papers_direction_is_not(self):
        narrow, target = scope_of([0.3], [0.1]), scope_of([0.3], [0.5])
        settings = {"learning_rate": 0.1, "strength": 3.0}
        check_stability(narrow, target, **settings)
        with pytest.raises(ValueError, match="unstable in layer kernel.* uses 2.25 of"):
            check_stability(narrow, target, direction="target||weights", **settings)


def test_scale_size_drops_the_n():
    scope = scope_of([0.0], [0.5])
    settings = {"learning_rate": 0.1, "strength": 1.0}
    by_sum, by_size = (stability(scope, scope, **settings, scale=s) for s in ("sum", "size"))
    np.testing.assert_allclose(by_size, SIZE * by_sum, rtol=1e-6)


def test_models_against_one_target():
    models, target = scope_of([[0.0], [0.0]], [[0.1], [0.2]]), scope_of([0.0], [0.3])
    share = stability(models, target, learning_rate=0.1, strength=1.0)
    assert share.shape == (2, 1)
    assert share[0, 0] > share[1, 0]


def test_constant_layer_is_bound_by_its_mean():
    scope, target = scope_of([0.0], [0.0]), scope_of([0.0], [0.5])
    share = stability(scope, target, learning_rate=1.0, strength=1.0)
    np.testing.assert_allclose(share, 1 / (SIZE * 0.25), rtol=1e-6)


class TestCheck:
    SCOPE = scope_of([0.0, 0.0], [0.5, 0.1], names=("conv/kernel", "conv/bias"), sizes=(1000, 10))

    def test_names_worst_layer_value_and_the_ways_out(self):
        with pytest.raises(ValueError, match="unstable in layer conv/bias") as error:
            check_stability(self.SCOPE, self.SCOPE, learning_rate=0.01, strength=50.0)
        message = str(error.value)
        assert "\n" not in message
        for part in ("learning_rate 0.01", "strength 50", "uses 5 ", "n = 10", "proximal", "< 10,"):
            assert part in message

    def test_the_strength_it_offers_is_the_bound(self):
        settings = {"learning_rate": 0.01, "scale": "sum"}
        check_stability(self.SCOPE, self.SCOPE, strength=9.99, **settings)
        with pytest.raises(ValueError, match="unstable"):
            check_stability(self.SCOPE, self.SCOPE, strength=10.01, **settings)

    def test_strength_0_passes(self):
        check_stability(self.SCOPE, self.SCOPE, learning_rate=0.01, strength=0)

    def test_any_of_several_models(self):
        models = scope_of([[0.0], [0.0]], [[0.5], [1e-3]])
        with pytest.raises(ValueError, match="unstable in layer kernel"):
            check_stability(models, scope_of([0.0], [0.5]), learning_rate=0.01, strength=1.0)

    def test_nan_is_named(self):
        scope = scope_of([0.0, jnp.nan], [0.5, jnp.nan], self.SCOPE.names, self.SCOPE.sizes)
        with pytest.raises(ValueError, match="layer conv/bias holds NaN"):
            check_stability(scope, self.SCOPE, learning_rate=0.01, strength=1.0)

    def test_other_layers(self):
        with pytest.raises(ValueError, match="only in the scope"):
            check_stability(
                self.SCOPE,
                constant_target(scope_of([0.0], [1.0], ("conv/kernel",), (1000,))),
                learning_rate=0.01,
                strength=1.0,
            )
