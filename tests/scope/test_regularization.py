"""The loss term and the optax transformation: one gradient, by autodiff and in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import trees
from wsa_jax import (
    all_leaves,
    constant_target,
    regularize_scope,
    scope_gradient,
    scope_penalty,
    scope_window,
    stacked,
    weight_scope,
)
from wsa_jax.scope.layers import kernels
from wsa_jax.scope.transformation import layer_weights

PARAMS = {
    "a": {"kernel": jnp.asarray(np.random.default_rng(0).normal(0.2, 0.5, (6, 4)), jnp.float32)},
    "b": {
        "kernel": jnp.asarray(np.random.default_rng(1).normal(-0.1, 2.0, (3, 4, 2)), jnp.float32),
        "bias": jnp.asarray(np.random.default_rng(2).normal(0, 1, 4), jnp.float32),
    },
}
GRADS = jax.tree.map(jnp.sin, PARAMS)
RULES = {"kernels": kernels, "all": all_leaves, "stacked": stacked(kernels, "b/kernel", axis=0)}


# Compiled whole: operation by operation the same tests spend several times as long compiling.
gradient_jit = jax.jit(scope_gradient, static_argnames=("select", "scale", "direction"))
scope_jit = jax.jit(weight_scope, static_argnames="select")
assert_close = functools.partial(trees.assert_close, rtol=1e-5, atol=1e-6)


def target_for(rule=kernels):
    return constant_target(scope_jit(PARAMS, select=rule), mean=0.1, std=0.7)


def step(transform, params=PARAMS, grads=GRADS, target=None):
    """One jitted update from a fresh state."""
    target = target_for() if target is None else target

    @jax.jit
    def run(params, grads, target):
        return transform.update(grads, transform.init(params), params, target=target)[0]

    return run(params, grads, target)


class TestPenalty:
    def test_scales_weight_the_layers_by_1_or_n(self):
        target = target_for()
        scope = weight_scope(PARAMS)
        m, s = np.asarray(scope.mean, np.float64), np.asarray(scope.std, np.float64)
        kl = np.log(0.7 / s) + (s**2 + (m - 0.1) ** 2) / (2 * 0.7**2) - 0.5
        np.testing.assert_allclose(scope_penalty(PARAMS, target), kl.sum(), rtol=1e-5)
        by_size = scope_penalty(PARAMS, target, scale="size")
        np.testing.assert_allclose(by_size, (kl * [24, 24]).sum(), rtol=1e-5)

    def test_the_other_direction_is_the_targets_divergence_from_the_weights(self):
        scope = weight_scope(PARAMS)
        m, s = np.asarray(scope.mean, np.float64), np.asarray(scope.std, np.float64)
        kl = np.log(s / 0.7) + (0.7**2 + (m - 0.1) ** 2) / (2 * s**2) - 0.5
        found = scope_penalty(PARAMS, target_for(), direction="target||weights", scale="size")
        np.testing.assert_allclose(found, (kl * [24, 24]).sum(), rtol=1e-5)

    @pytest.mark.parametrize("function", [scope_penalty, scope_gradient])
    def test_unknown_direction(self, function):
        message = r"direction 'reverse' is unknown; give .*target\|\|weights"
        with pytest.raises(ValueError, match=message):
            function(PARAMS, target_for(), direction="reverse")
        with pytest.raises(ValueError, match=message):
            regularize_scope(1.0, direction="reverse")

    def test_shape_mismatch_names_the_layer_and_both_sizes(self):
        other = PARAMS | {"a": {"kernel": jnp.ones((6, 5))}}
        with pytest.raises(ValueError, match=r"layer a/kernel has 30 weights, .* has 24"):
            scope_penalty(other, target_for())
        with pytest.raises(ValueError, match=r"layer a/kernel has 30 weights, .* has 24"):
            scope_gradient(other, target_for())

    @pytest.mark.parametrize("function", [scope_penalty, scope_gradient])
    def test_a_target_of_several_models_is_refused(self, function):
        several = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf + 1]), target_for())
        message = r"the target has mean of shape \(2, 2\), .* give one, such as fuse_scopes\(scop"
        for call in (function, jax.jit(function)):
            with pytest.raises(ValueError, match=message):
                call(PARAMS, several)
        # Each of several is one, in vmap.
        jax.eval_shape(jax.vmap(function, (None, 0)), PARAMS, several)

    def test_unknown_scale(self):
        with pytest.raises(ValueError, match="scale 'mean' is unknown"):
            layer_weights((4, 9), "mean")


class TestOneGradient:
    @pytest.mark.parametrize("scale", ["sum", "size"])
    @pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
    def test_closed_form_equals_autodiff(self, rule, scale):
        target = target_for(rule)
        settings = {"select": rule, "scale": scale}
        by_autodiff = jax.jit(jax.grad(lambda p: scope_penalty(p, target, **settings)))(PARAMS)
        assert_close(gradient_jit(PARAMS, target, **settings), by_autodiff)

    def test_closed_form_equals_autodiff_in_the_other_direction(self):
        settings = {"select": RULES["stacked"], "scale": "size", "direction": "target||weights"}
        target = target_for(settings["select"])
        by_autodiff = jax.jit(jax.grad(lambda p: scope_penalty(p, target, **settings)))(PARAMS)
        assert_close(gradient_jit(PARAMS, target, **settings), by_autodiff)
        settings.pop("select")
        transform = regularize_scope(3.0, select=RULES["stacked"], **settings)
        added = step(transform, grads=jax.tree.map(jnp.zeros_like, GRADS), target=target)
        assert_close(added, jax.tree.map(lambda g: 3 * g, by_autodiff))

    @pytest.mark.parametrize("direction", ["weights||target", "target||weights"])
    def test_closed_form_equals_finite_differences_in_float64(self, direction):
        w = np.asarray(PARAMS["a"]["kernel"], np.float64)

        def kl(w):
            one, other = (w.mean(), w.std()), (0.1, 0.7)
            (m, s), (q, r) = (one, other) if direction == "weights||target" else (other, one)
            return np.log(r / s) + (s**2 + (m - q) ** 2) / (2 * r**2) - 0.5

        found = gradient_jit(PARAMS, target_for(), direction=direction)["a"]["kernel"]
        for place in [(0, 0), (3, 2), (5, 3)]:
            shift = np.zeros_like(w)
            shift[place] = 1e-5
            oracle = (kl(w + shift) - kl(w - shift)) / 2e-5
            np.testing.assert_allclose(found[place], oracle, rtol=1e-4)

    def test_unselected_leaves_get_zeros(self):
        np.testing.assert_array_equal(scope_gradient(PARAMS, target_for())["b"]["bias"], 0)

    @pytest.mark.parametrize("std", [0.0, 1e-7])
    def test_constant_layer_moves_its_mean_only(self, std):
        params = {"w": 0.5 + std * jnp.array([[1.0, -1.0], [1.0, -1.0]])}
        target = constant_target(scope_jit(params), std=0.1)
        found = gradient_jit(params, target)["w"]
        np.testing.assert_allclose(found, np.full_like(found, found[0, 0]), rtol=1e-6)
        assert found[0, 0] > 0
        assert_close({"w": found}, jax.jit(jax.grad(scope_penalty))(params, target))

    def test_constant_layer_stays_in_the_other_direction(self):
        params = {"w": jnp.full((2, 2), 0.5)}
        target = constant_target(scope_jit(params), std=0.1)
        settings = {"direction": "target||weights"}
        loss = jax.jit(jax.value_and_grad(lambda p: scope_penalty(p, target, **settings)))
        value, by_autodiff = loss(params)
        assert np.isfinite(value)
        for found in (by_autodiff, gradient_jit(params, target, **settings)):
            np.testing.assert_array_equal(found["w"], 0)

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
    def test_low_precision_weights_keep_their_dtype(self, dtype):
        params = jax.tree.map(lambda w: w.astype(dtype), PARAMS)
        updates = step(regularize_scope(2.0), params, params)
        assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
        exact = step(regularize_scope(2.0), *[jax.tree.map(lambda w: w.astype("f4"), params)] * 2)
        for a, b in zip(jax.tree.leaves(updates), jax.tree.leaves(exact), strict=True):
            np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=0.02, atol=0.02)


class TestTransform:
    def test_half_precision_equals_autodiff(self):
        # 1/n alone is below float16's smallest number, strength times 1/n is not.
        weights = np.random.default_rng(0).normal(0, 0.02, (512, 512))
        params = {"kernel": jnp.asarray(weights, jnp.float16)}
        target = constant_target(scope_jit(params), mean=0.0, std=0.02005)
        zeros = jax.tree.map(jnp.zeros_like, params)
        found = step(regularize_scope(1e4), params, zeros, target)
        wide = {"kernel": params["kernel"].astype(jnp.float32)}
        exact = 1e4 * np.asarray(jax.jit(jax.grad(scope_penalty))(wide, target)["kernel"])
        error = np.abs(np.asarray(found["kernel"], np.float32) - exact).max()
        assert error < 1e-3 * np.abs(exact).max()

    @pytest.mark.parametrize("scale", ["sum", "size"])
    def test_adds_strength_times_the_gradient_of_the_loss_term(self, scale):
        target = target_for()
        by_autodiff = jax.jit(jax.grad(lambda p: 3 * scope_penalty(p, target, scale=scale)))(PARAMS)
        expected = jax.tree.map(jnp.add, GRADS, by_autodiff)
        assert_close(step(regularize_scope(3, scale=scale)), expected)

    def test_strength_0_is_the_identity(self):
        jax.tree.map(np.testing.assert_array_equal, step(regularize_scope(0.0)), GRADS)

    def test_acts_before_the_clip(self):
        chain = optax.chain(regularize_scope(1e4), optax.clip_by_global_norm(1.0))
        updates = step(chain)
        np.testing.assert_allclose(optax.tree.norm(updates), 1.0, rtol=1e-5)
        raw = step(regularize_scope(1e4))
        assert_close(updates, jax.tree.map(lambda u: u / optax.tree.norm(raw), raw))

    def test_three_lines_in_an_optax_loop_equal_the_penalised_loss(self):
        target = target_for()

        def loss(params):
            return optax.tree.norm(params)

        def train(optimizer, loss):
            @jax.jit
            def run(params):
                state = optimizer.init(params)
                for _ in range(3):
                    grads = jax.grad(loss)(params)
                    updates, state = optimizer.update(grads, state, params, target=target)
                    params = optax.apply_updates(params, updates)
                return params

            return run(PARAMS)

        with_transform = train(optax.chain(regularize_scope(2.0), optax.adam(0.1)), loss)
        plain = optax.with_extra_args_support(optax.adam(0.1))
        with_term = train(plain, lambda p: loss(p) + 2.0 * scope_penalty(p, target))
        assert_close(with_transform, with_term, rtol=1e-4)

    def test_scan_equals_a_loop_and_follows_the_schedule(self):
        transform = optax.chain(regularize_scope(lambda count: 1.0 * count), optax.sgd(0.5))
        target = target_for()

        def body(carry, _):
            params, state = carry
            zeros = jax.tree.map(jnp.zeros_like, params)
            updates, state = transform.update(zeros, state, params, target=target)
            return (optax.apply_updates(params, updates), state), None

        carry = (PARAMS, transform.init(PARAMS))
        scanned = jax.jit(lambda c: jax.lax.scan(body, c, length=3)[0])(carry)[0]
        params = PARAMS
        for count in range(3):
            gradient = gradient_jit(params, target)
            params = jax.tree.map(lambda w, g, c=count: w - 0.5 * c * g, params, gradient)
        assert_close(scanned, params)

    def test_vmap_over_models_and_strengths_equals_one_at_a_time(self):
        models = jax.tree.map(lambda w: jnp.stack([w, 2 * w]), PARAMS)
        target = target_for()

        def one(params, strength):
            transform = regularize_scope(strength)
            return transform.update(params, transform.init(params), params, target=target)[0]

        together = jax.jit(jax.vmap(one))(models, jnp.array([0.5, 2.0]))
        for i, strength in enumerate((0.5, 2.0)):
            alone = one(jax.tree.map(lambda w, i=i: w[i], models), strength)
            assert_close(jax.tree.map(lambda w, i=i: w[i], together), alone)

    @pytest.mark.parametrize(
        ("missing", "settings"), [("params", {"target": target_for()}), ("target", {})]
    )
    def test_missing_argument_says_how_to_call(self, missing, settings):
        transform = regularize_scope(1.0)
        params = None if missing == "params" else PARAMS
        with pytest.raises(ValueError, match=f"got no {missing}: call update"):
            transform.update(GRADS, transform.init(PARAMS), params, **settings)

    @pytest.mark.parametrize("strength", [-1.0, -1, float("nan"), float("inf"), np.float32(-2)])
    def test_bad_strength(self, strength):
        with pytest.raises(ValueError, match="is not a non-negative number"):
            regularize_scope(strength)

    def test_init_lists_the_leaves_where_none_is_selected(self):
        with pytest.raises(ValueError, match=r"selects none .*bias\[3\]"):
            regularize_scope(1.0).init({"bias": jnp.ones(3)})


class TestWindow:
    @pytest.mark.parametrize(
        ("window", "on"),
        [
            ({}, [0, 1, 2, 3, 4]),
            ({"stop": 2}, [0, 1]),
            ({"start": 3}, [3, 4]),
            ({"start": 1, "stop": 3}, [1, 2]),
        ],
    )
    def test_on_inside_and_off_outside(self, window, on):
        schedule = scope_window(5, **window)
        assert [i for i in range(5) if schedule(i) == 5.0] == on
        assert [i for i in range(5) if schedule(i) == 0.0] == [i for i in range(5) if i not in on]

    def test_traced(self):
        assert jax.jit(scope_window(2.0, start=1))(jnp.int32(1)) == 2.0

    @pytest.mark.parametrize("window", [{"start": -1}, {"start": 3, "stop": 3}, {"stop": 0}])
    def test_empty_or_negative_window(self, window):
        with pytest.raises(ValueError, match="is empty or negative"):
            scope_window(1.0, **window)

    def test_negative_strength(self):
        with pytest.raises(ValueError, match=r"strength -1.0 is not"):
            scope_window(-1.0)
