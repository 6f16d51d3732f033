"""The proximal step against a numeric minimiser, and where the explicit step diverges."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import optimize

from wsa_jax import (
    constant_target,
    proximal_scope,
    proximal_scope_step,
    scope_gradient,
    stacked,
    weight_scope,
)
from wsa_jax.scope.layers import kernels

WEIGHTS = np.random.default_rng(0).normal(0.4, 0.3, (3, 2))
PARAMS = {"kernel": jnp.asarray(WEIGHTS, jnp.float32), "bias": jnp.ones(2)}
scope_jit = jax.jit(weight_scope, static_argnames="select")
TARGET = constant_target(scope_jit(PARAMS), mean=-0.2, std=0.8)
proximal = jax.jit(proximal_scope_step, static_argnames=("select", "scale"))


def scope_of(params):
    scope = scope_jit(params)
    return float(scope.mean[0]), float(scope.std[0])


class TestStep:
    @pytest.mark.parametrize("scale", ["sum", "size"])
    @pytest.mark.parametrize(("t", "s"), [(0.1, 1.0), (0.01, 20.0), (1.0, 0.3), (0.5, 40.0)])
    def test_minimises_the_objective_over_all_weights(self, t, s, scale):
        start, strength = WEIGHTS.ravel(), s * (6 if scale == "size" else 1)

        def objective(w):
            kl = np.log(0.8 / w.std()) + (w.var() + (w.mean() + 0.2) ** 2) / (2 * 0.8**2) - 0.5
            return strength * kl + np.sum((w - start) ** 2) / (2 * t)

        oracle = optimize.minimize(objective, start, method="BFGS", options={"gtol": 1e-9})
        moved = proximal(PARAMS, TARGET, step_size=t, strength=s, scale=scale)["kernel"]
        np.testing.assert_allclose(np.ravel(moved), oracle.x, atol=2e-5)
        assert objective(np.ravel(np.asarray(moved, np.float64))) <= oracle.fun + 1e-6

    def test_standardised_weights_stay(self):
        moved = proximal(PARAMS, TARGET, step_size=0.1, strength=5.0)["kernel"]
        standardised = [(w - w.mean()) / w.std() for w in (WEIGHTS, np.asarray(moved))]
        np.testing.assert_allclose(*standardised, rtol=1e-5)

    def test_unselected_leaves_stay(self):
        moved = proximal(PARAMS, TARGET, step_size=0.1, strength=5.0)
        np.testing.assert_array_equal(moved["bias"], PARAMS["bias"])

    def test_strength_0_changes_nothing(self):
        moved = proximal(PARAMS, TARGET, step_size=0.1, strength=0.0)["kernel"]
        np.testing.assert_array_equal(moved, PARAMS["kernel"])

    def test_float64_weights_are_not_rounded(self):
        with jax.enable_x64():
            params = {"kernel": jnp.asarray(WEIGHTS)}
            target = weight_scope(params)
            moved = proximal_scope_step(params, target, step_size=1.0, strength=1e-12)["kernel"]
            assert moved.dtype == jnp.float64
            np.testing.assert_allclose(moved - moved.mean(), WEIGHTS - WEIGHTS.mean(), rtol=1e-6)
            # Differences between weights far below float32's resolution stay.
            nudged = {"kernel": params["kernel"].at[0, 0].add(1e-11)}
            again = proximal_scope_step(nudged, target, step_size=1.0, strength=1e-12)["kernel"]
            assert float((again - moved)[0, 0]) == pytest.approx(1e-11, rel=0.01)

    @pytest.mark.parametrize("target_std", [0.05, 0.8])
    def test_monotone_in_strength_and_never_past_the_target(self, target_std):
        target = constant_target(TARGET, mean=-0.2, std=target_std)
        scopes = [
            scope_of(proximal(PARAMS, target, step_size=0.1, strength=float(s)))
            for s in 10.0 ** np.arange(-3, 13)
        ]
        distance = np.abs(np.array(scopes) - [-0.2, target_std])
        assert (np.diff(distance, axis=0) <= 1e-6).all()
        signs = np.sign(np.array(scopes) - [-0.2, target_std]) * (distance > 1e-6)
        assert (np.abs(np.diff(signs[distance.min(axis=1) > 1e-6], axis=0)) == 0).all()

    @pytest.mark.parametrize("strength", [1e6, 1e12, 1e30])
    def test_huge_strength_lands_on_the_target(self, strength):
        moved = proximal(PARAMS, TARGET, step_size=1.0, strength=strength)
        np.testing.assert_allclose(scope_of(moved), [-0.2, 0.8], rtol=1e-4)

    @pytest.mark.parametrize("target_std", [0.8, 0.0])
    def test_constant_layer_moves_its_mean_only(self, target_std):
        params = {"kernel": jnp.full((3, 2), 0.4)}
        target = scope_jit({"kernel": np.float32(target_std * np.sign(WEIGHTS - 0.4))})
        moved = proximal(params, target, step_size=1.0, strength=1.0)["kernel"]
        np.testing.assert_array_equal(moved, moved[0, 0])
        goal = float(target.mean[0])
        assert abs(moved[0, 0] - goal) < abs(0.4 - goal)

    def test_slices_of_a_stacked_leaf_move_on_their_own(self):
        leaf = jnp.stack([PARAMS["kernel"], 3 * PARAMS["kernel"]])
        rule = stacked(kernels, "kernel")
        target = constant_target(scope_jit({"kernel": leaf}, select=rule), mean=-0.2, std=0.8)
        settings = {"step_size": 0.1, "strength": 5.0}
        together = proximal({"kernel": leaf}, target, select=rule, **settings)["kernel"]
        for i in range(2):
            alone = proximal({"kernel": leaf[i]}, TARGET, **settings)["kernel"]
            np.testing.assert_allclose(together[i], alone, rtol=1e-5)

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
    def test_low_precision_keeps_its_dtype(self, dtype):
        moved = proximal(
            {"kernel": PARAMS["kernel"].astype(dtype)}, TARGET, step_size=1, strength=1e6
        )
        assert moved["kernel"].dtype == dtype
        np.testing.assert_allclose(scope_of(moved), [-0.2, 0.8], atol=0.01)

    def test_shape_mismatch_names_the_layer(self):
        with pytest.raises(ValueError, match=r"layer kernel has 4 weights, .* has 6"):
            proximal_scope_step({"kernel": jnp.eye(2)}, TARGET, step_size=0.1, strength=1.0)

    def test_a_target_of_several_models_is_refused(self):
        several = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), TARGET)
        with pytest.raises(ValueError, match=r"the target has mean of shape \(2, 1\)"):
            proximal_scope_step(PARAMS, several, step_size=0.1, strength=1.0)

    def test_converges_where_the_explicit_gradient_diverges(self):
        rate, strength = 1.0, 30.0  # a = rate · strength / (n · std²) = 7.8
        explicit = implicit = {"kernel": PARAMS["kernel"]}
        gradient = jax.jit(scope_gradient)
        for _ in range(10):
            pull = gradient(explicit, TARGET)["kernel"]
            explicit = {"kernel": explicit["kernel"] - rate * strength * pull}
            implicit = proximal(implicit, TARGET, step_size=rate, strength=strength)
        assert not abs(scope_of(explicit)[0] + 0.2) < 1e3
        np.testing.assert_allclose(scope_of(implicit), [-0.2, 0.8], atol=1e-5)


class TestTransform:
    def update(self, transform, grads, target=TARGET, params=PARAMS):
        return transform.update(grads, transform.init(PARAMS), params, target=target)

    def test_is_the_step_after_the_optimiser(self):
        grads = jax.tree.map(jnp.cos, PARAMS)
        chain = optax.chain(optax.sgd(0.1), proximal_scope(0.1, 5))
        updates, _ = jax.jit(lambda grads: self.update(chain, grads))(grads)
        stepped = jax.tree.map(lambda w, g: w - 0.1 * g, PARAMS, grads)
        expected = proximal(stepped, TARGET, step_size=0.1, strength=5)
        found = optax.apply_updates(PARAMS, updates)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)

    def test_schedules_count_the_updates(self):
        transform = proximal_scope(lambda n: 0.1 * (n + 1), lambda n: 5.0 * n)
        zeros = jax.tree.map(jnp.zeros_like, PARAMS)
        first, state = self.update(transform, zeros)
        np.testing.assert_allclose(first["kernel"], 0, atol=1e-6)
        second, _ = transform.update(zeros, state, PARAMS, target=TARGET)
        expected = proximal(PARAMS, TARGET, step_size=0.2, strength=5.0)["kernel"]
        np.testing.assert_allclose(PARAMS["kernel"] + second["kernel"], expected, rtol=1e-5)

    @pytest.mark.parametrize("missing", ["params", "target"])
    def test_missing_argument_says_how_to_call(self, missing):
        with pytest.raises(ValueError, match=f"proximal_scope got no {missing}: call update"):
            self.update(proximal_scope(0.1, 1.0), PARAMS, **{missing: None})

    @pytest.mark.parametrize(
        ("rate", "strength", "name"), [(-0.1, 1, "learning_rate"), (0.1, -1, "strength")]
    )
    def test_negative_settings(self, rate, strength, name):
        with pytest.raises(ValueError, match=f"{name} -.* is not a non-negative number"):
            proximal_scope(rate, strength)
