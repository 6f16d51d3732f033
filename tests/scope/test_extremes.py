"""Constant layers, extreme numbers, names of other frameworks, and arguments of a wrong type."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest

import wsa_jax
from wsa_jax import (
    all_leaves,
    check_stability,
    constant_layers,
    constant_target,
    fuse_scopes,
    kernels,
    matching,
    matrices,
    proximal_scope,
    proximal_scope_step,
    regularize_scope,
    scope_gradient,
    scope_penalty,
    scope_window,
    stability,
    stacked,
    weight_scope,
    without,
)
from wsa_jax.scope.layers import rule_name

ATTENTION = {
    "att": {
        "bias": jnp.zeros((4, 8)),
        "kernel": jnp.asarray(np.random.default_rng(0).normal(size=(8, 4, 8)), jnp.float32),
    }
}
TARGET = jax.jit(partial(weight_scope, select=matrices))(ATTENTION)
# Compiled whole: operation by operation the same tests spend several times as long compiling.
scope_jit = jax.jit(weight_scope, static_argnames="select")
OUT = r"^att/bias (of the target )?is constant .* give select=without\(matrices, \('att/bias',\)\)"


class TestConstantLayers:
    @pytest.mark.parametrize("form", [regularize_scope, proximal_scope])
    def test_a_transformation_refuses_a_constant_target(self, form):
        rates = (1.0,) if form is regularize_scope else (0.1, 1.0)
        with pytest.raises(ValueError, match=OUT):
            form(*rates, target=TARGET, select=matrices)
        transform = form(*rates, select=matrices)
        state = optax.EmptyState() if form is regularize_scope else transform.init(ATTENTION)
        with pytest.raises(ValueError, match=OUT):
            transform.update(ATTENTION, state, ATTENTION, target=TARGET)

    @pytest.mark.parametrize("loss", [scope_penalty, scope_gradient])
    def test_the_loss_term_refuses_a_constant_target(self, loss):
        def closed(params):
            return loss(params, TARGET, select=matrices)

        for call in (closed, jax.jit(closed)):
            with pytest.raises(ValueError, match=OUT):
                call(ATTENTION)

    def test_a_layer_that_starts_constant_is_refused(self):
        healthy = constant_target(TARGET, std=0.1)
        with pytest.raises(ValueError, match=OUT):
            regularize_scope(1.0, target=healthy, select=matrices).init(ATTENTION)

    @pytest.mark.parametrize("form", ["gradient", "penalty", "proximal"])
    def test_a_traced_constant_target_moves_nothing_of_its_layer(self, form):
        """Under a trace nothing can be named, so the layer is left out; its gradient stays."""
        rule = without(matrices, ("att/bias",))
        push = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.01), ATTENTION)

        def run(params, target, select):
            transform = {
                "gradient": optax.chain(regularize_scope(1.0, select=select), optax.sgd(0.1)),
                "penalty": optax.sgd(0.1),
                "proximal": optax.chain(optax.sgd(0.1), proximal_scope(0.1, 1.0, select=select)),
            }[form]
            transform = optax.with_extra_args_support(transform)
            state = transform.init(params)
            for _ in range(5):
                grads = push
                if form == "penalty":
                    pull = jax.grad(scope_penalty)(params, target, select=select)
                    grads = jax.tree.map(jnp.add, push, pull)
                updates, state = transform.update(grads, state, params, target=target)
                params = optax.apply_updates(params, updates)
            return params

        found = jax.jit(lambda p, t: run(p, t, matrices))(ATTENTION, TARGET)
        expected = jax.jit(lambda p: run(p, weight_scope(p, select=rule), rule))(ATTENTION)
        if form == "proximal":
            # The proximal step holds such a layer together at its mean, at every strength.
            assert np.abs(found["att"]["bias"]).max() <= 0.006
        else:
            np.testing.assert_allclose(found["att"]["bias"], expected["att"]["bias"], rtol=1e-6)
        np.testing.assert_allclose(found["att"]["kernel"], expected["att"]["kernel"], rtol=1e-5)

    def test_what_is_left_out_trains_as_without(self):
        rule = without(matrices, constant_layers(ATTENTION, matrices))
        target = weight_scope(ATTENTION, select=rule)
        transform = regularize_scope(1.0, target=target, select=rule)
        updates, _ = transform.update(ATTENTION, transform.init(ATTENTION), ATTENTION)
        np.testing.assert_array_equal(updates["att"]["bias"], 0)


class TestMagnitudes:
    @pytest.mark.parametrize("size", [1e-34, 1e-30, 1e-12, 1.0, 1e12, 1e25, 5e37])
    @pytest.mark.parametrize("axis", [None, 0])
    def test_moments_equal_numpy(self, size, axis):
        values = np.random.default_rng(1).normal(0.3, 1.0, size=(3, 50))
        leaf = np.asarray(size * values, np.float32)
        rule = kernels if axis is None else stacked(kernels, "w", axis=axis)
        found = scope_jit({"w": leaf}, select=rule)
        exact = leaf.astype(np.float64) / size
        reduced = None if axis is None else 1
        np.testing.assert_allclose(
            np.float64(found.mean) / size, np.atleast_1d(exact.mean(reduced)), rtol=1e-5
        )
        np.testing.assert_allclose(
            np.float64(found.std) / size, np.atleast_1d(exact.std(reduced)), rtol=1e-5
        )

    def test_float64_keeps_its_digits_until_the_end(self):
        with jax.enable_x64(True):
            values = 1e9 + np.random.default_rng(2).normal(size=(40, 5))
            found = scope_jit({"w": jnp.asarray(values)})
        assert found.mean.dtype == np.float32
        np.testing.assert_allclose(found.std, values.std(), rtol=1e-6)

    def test_an_outlier_as_first_weight_costs_no_digit(self):
        values = np.random.default_rng(3).normal(size=(200, 50)).astype(np.float32)
        values[0, 0] = 1e4
        found = scope_jit({"w": values})
        np.testing.assert_allclose(found.std, values.astype(np.float64).std(), rtol=1e-5)

    def test_a_training_step_reads_the_weights_twice(self):
        params = {"w": jnp.ones((64, 64)) + jnp.eye(64)}
        target = constant_target(weight_scope(params), std=0.1)
        jaxpr = str(jax.make_jaxpr(scope_gradient)(params, target))
        assert jaxpr.count("reduce_sum") == 2
        assert "reduce_max" not in jaxpr

    @pytest.mark.parametrize(("step_size", "strength"), [(1e20, 1e20), (1.0, 3e38), (1e-30, 1e30)])
    @pytest.mark.parametrize("scale", ["sum", "size"])
    def test_proximal_steps_of_every_size_are_finite(self, step_size, strength, scale):
        params = {"kernel": jnp.asarray(np.random.default_rng(4).normal(size=(6, 5)), jnp.float32)}
        target = constant_target(weight_scope(params), mean=-0.2, std=0.8)
        for call in (
            proximal_scope_step,
            jax.jit(proximal_scope_step, static_argnames=("select", "scale")),
        ):
            moved = call(params, target, step_size=step_size, strength=strength, scale=scale)
            assert np.isfinite(moved["kernel"]).all()
            if step_size * strength > 1e30:
                np.testing.assert_allclose(weight_scope(moved).std, 0.8, rtol=1e-4)

    @pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf, 1e39])
    def test_proximal_numbers_out_of_range_are_refused(self, bad):
        params = {"kernel": jnp.eye(3)}
        target = constant_target(weight_scope(params))
        for name in ("step_size", "strength"):
            numbers = {"step_size": 0.1, "strength": 1.0} | {name: bad}
            with pytest.raises(ValueError, match=f"^{name} [^\n]*(non-negative|beyond float32)"):
                proximal_scope_step(params, target, **numbers)


class TestNames:
    def test_dots_separate_names(self):
        ones = jnp.ones(3)
        flat = {"layers.0.weight": jnp.eye(3), "layers.0.bias": ones, "norm.weight": ones}
        assert weight_scope(flat).names == ("layers.0.weight",)

    def test_rules_have_the_names_of_code(self):
        rule = without(stacked(matching("a.*"), "b", axis=1), ("c", "d"))
        expected = "without(stacked(matching('a.*'), 'b', axis=1), ('c', 'd'))"
        assert rule_name(rule) == repr(rule) == expected
        assert rule_name(kernels) == "kernels"
        with pytest.raises(ValueError, match=r"^the rule kernels selects none of the 1 leaves"):
            weight_scope({"W1": jnp.eye(3)})

    def test_numpy_leaves_are_read(self):
        leaf = np.random.default_rng(5).normal(size=(4, 5))
        found = weight_scope({"w": leaf})
        np.testing.assert_allclose(found.std, leaf.std(), rtol=1e-6)


PARAMS = {"kernel": jnp.asarray(np.random.default_rng(6).normal(size=(6, 5)), jnp.float32)}
SCOPE = jax.jit(weight_scope)(PARAMS)
TRANSFORM = regularize_scope(1.0)
KEY = jax.random.key(0)

WRONG = {
    "select of weight_scope is 'kernel'; give a rule": lambda: weight_scope(
        PARAMS, select="kernel"
    ),
    "params of weight_scope is None": lambda: weight_scope(None),
    "leaf kernel of params of weight_scope is 'x'": lambda: weight_scope({"kernel": "x"}),
    "target of update is .0.0, 0.1.; give a WeightScope": lambda: TRANSFORM.update(
        PARAMS, TRANSFORM.init(PARAMS), PARAMS, target=(0.0, 0.1)
    ),
    "strength of regularize_scope is '0.1'; give": lambda: regularize_scope("0.1"),
    "strength of regularize_scope is .0.1.; give": lambda: regularize_scope([0.1]),
    "target of regularize_scope is .0.0, 0.1.": lambda: regularize_scope(1.0, target=(0.0, 0.1)),
    "learning_rate of proximal_scope is .0.1.": lambda: proximal_scope([0.1], 1.0),
    "scale 'mean' is unknown; give one of sum, size": lambda: regularize_scope(1.0, scale="mean"),
    "target of scope_penalty is 3": lambda: scope_penalty(PARAMS, 3),
    "target of scope_gradient is None": lambda: scope_gradient(PARAMS, None),
    "step_size of proximal_scope_step is '0.1'": lambda: proximal_scope_step(
        PARAMS, SCOPE, step_size="0.1", strength=1.0
    ),
    "scopes of fuse_scopes is 3": lambda: fuse_scopes(3),
    "scopes of fuse_scopes hold an array of keys": lambda: fuse_scopes(jax.random.split(KEY, 3)),
    "scopes of fuse_scopes is .'a'.; give a WeightScope": lambda: fuse_scopes(["a"]),
    "weights of fuse_scopes is 'a'": lambda: fuse_scopes([SCOPE], weights="a"),
    "start of scope_window is 1.5; give an integer": lambda: scope_window(1.0, start=1.5),
    "strength of scope_window is '1'": lambda: scope_window("1"),
    "std of constant_target is '1'": lambda: constant_target(SCOPE, std="1"),
    "scope of stability is ": lambda: stability(PARAMS, SCOPE, learning_rate=0.1, strength=1.0),
    "learning_rate of check_stability is '0.1'": lambda: check_stability(
        SCOPE, SCOPE, learning_rate="0.1", strength=1.0
    ),
    "pattern of matching is 3; give a string": lambda: matching(3),
    "names of without is 'bias'; give a": lambda: without(kernels, "bias"),
    "axis of stacked is '0'; give an integer": lambda: stacked(kernels, "w", axis="0"),
    "select of constant_layers is 3": lambda: constant_layers(PARAMS, 3),
}


@pytest.mark.parametrize("message", WRONG)
def test_arguments_of_a_wrong_type_are_named_in_one_line(message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as a user calls it
    with pytest.raises(ValueError, match=f"^{message}") as error:
        WRONG[message]()
    assert "\n" not in str(error.value)


def test_all_public_names_are_listed_and_exist():
    assert len(set(wsa_jax.__all__)) == len(wsa_jax.__all__)
    for name in wsa_jax.__all__:
        assert hasattr(wsa_jax, name)
    assert all_leaves.__name__ in wsa_jax.__all__


def test_a_good_call_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weight_scope({"w": np.eye(3), "half": jnp.eye(3, dtype=jnp.float16)}, select=all_leaves)
