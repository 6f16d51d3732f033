"""Weight scopes against float64 NumPy, quadrature, and the paper's identities."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from scipy import integrate, stats

from wsa_jax import (
    WeightScope,
    all_leaves,
    constant_target,
    fuse_scopes,
    kernels,
    matching,
    scope_divergence,
    stacked,
    weight_scope,
)
from wsa_jax.models import MLP

# Compiled whole: operation by operation the same tests spend several times as long compiling.
scope_jit = jax.jit(weight_scope, static_argnames="select")
DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]


def scope_of(mean, std, names=None, sizes=None):
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    count = mean.shape[-1]
    return WeightScope(
        mean=mean,
        std=std,
        names=names or tuple(f"layer{i}" for i in range(count)),
        sizes=sizes or (10,) * count,
    )


def moments(leaf):
    """The oracle: float64, two passes."""
    values = np.asarray(leaf, np.float64)
    return values.mean(), values.std()


@pytest.fixture(scope="module")
def linen():
    params = jax.jit(MLP(features=(4, 2)).init)(jax.random.key(0), jnp.ones((1, 3)))["params"]
    return dict(params)


@pytest.fixture(scope="module")
def models(linen):
    first, second = linen["Dense_0"], linen["Dense_1"]

    class Pair(nnx.Module):
        def __init__(self):
            self.first = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
            self.second = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
            for layer, values in ((self.first, first), (self.second, second)):
                layer.kernel[...] = values["kernel"]
                layer.bias[...] = values["bias"]

    module = eqx.tree_at(
        lambda m: [x for layer in m.layers for x in (layer.weight, layer.bias)],
        eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0)),
        [first["kernel"].T, first["bias"], second["kernel"].T, second["bias"]],
    )
    return {
        "linen": (linen, ["Dense_0/kernel", "Dense_1/kernel"]),
        "nnx": (nnx.state(Pair(), nnx.Param), ["first/kernel", "second/kernel"]),
        "nnx with rngs": (nnx.state(Pair()), ["first/kernel", "second/kernel"]),
        "equinox": (eqx.filter(module, eqx.is_array), ["layers/0/weight", "layers/1/weight"]),
        "equinox with functions": (module, ["layers/0/weight", "layers/1/weight"]),
        "plain": (
            [{"w": np.asarray(first["kernel"])}, {"w": np.asarray(second["kernel"])}],
            ["0/w", "1/w"],
        ),
    }


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(1)
    return [{"w": jnp.asarray(rng.normal(m, 2, (30, 20)), jnp.float32)} for m in (0.5, -1.0)]


class TestMoments:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("shape", [(7, 3), (3, 3, 2, 5), (1, 2), (40, 50)])
    def test_equal_to_float64_numpy(self, shape, dtype):
        rng = np.random.default_rng(sum(shape))
        leaf = jnp.asarray(rng.normal(0.3, 2.0, shape), dtype)
        scope = scope_jit({"kernel": leaf})
        mean, std = moments(leaf)
        assert scope.mean.dtype == scope.std.dtype == jnp.float32
        np.testing.assert_allclose(scope.mean[0], mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(scope.std[0], std, rtol=1e-5)

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
    def test_low_precision_accumulates_in_float32(self, dtype):
        # 90,000 ones and twos: a half-precision sum would stop near 2,048 (float16 overflows).
        leaf = jnp.asarray(np.where(np.arange(300) % 2, 1.0, 2.0)[:, None].repeat(300, 1), dtype)
        scope = scope_jit({"kernel": leaf})
        np.testing.assert_allclose(scope.mean, 1.5, rtol=1e-6)
        np.testing.assert_allclose(scope.std, 0.5, rtol=1e-6)

    @pytest.mark.parametrize("mean", [1e4, -1e4])
    def test_no_cancellation_where_the_mean_is_far_larger(self, mean):
        rng = np.random.default_rng(0)
        leaf = jnp.asarray(mean + rng.normal(0, 1.0, (200, 100)), jnp.float32)
        _, std = moments(leaf)
        np.testing.assert_allclose(scope_jit({"w": leaf}).std[0], std, rtol=1e-5)

    @pytest.mark.parametrize("leaf", [jnp.full((3, 4), 0.1), jnp.array([[1e4 + 0.7]])])
    def test_equal_weights_have_std_exactly_0_and_gradient_0(self, leaf):
        scope = scope_jit({"w": leaf})
        assert scope.std[0] == 0
        np.testing.assert_allclose(scope.mean[0], leaf[0, 0], rtol=1e-7)
        gradient = jax.jit(jax.grad(lambda leaf: weight_scope({"w": leaf}).std[0]))(leaf)
        np.testing.assert_array_equal(gradient, 0)

    def test_gradients_are_those_of_mean_and_std(self):
        leaf = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
        mean, std = moments(leaf)
        by_mean = jax.jit(jax.grad(lambda leaf: weight_scope({"w": leaf}).mean[0]))(leaf)
        by_std = jax.jit(jax.grad(lambda leaf: weight_scope({"w": leaf}).std[0]))(leaf)
        np.testing.assert_allclose(by_mean, 1 / 12, rtol=1e-5)
        np.testing.assert_allclose(
            by_std, (np.asarray(leaf) - mean) / (12 * std), rtol=1e-4, atol=1e-7
        )

    def test_nan_affects_its_layer_only(self):
        params = {"a": {"w": jnp.eye(2)}, "b": {"w": jnp.eye(2).at[0, 0].set(jnp.nan)}}
        scope = weight_scope(params)
        assert np.isnan([scope.mean[1], scope.std[1]]).all()
        assert np.isfinite([scope.mean[0], scope.std[0]]).all()

    def test_jit_equals_no_jit(self):
        params = {"w": jnp.arange(20.0).reshape(5, 4)}
        np.testing.assert_allclose(
            jax.jit(weight_scope)(params).std, weight_scope(params).std, rtol=1e-6
        )

    def test_vmap_stacks_models_on_the_leading_axis(self):
        models = {"w": np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)}
        scope = jax.jit(jax.vmap(weight_scope))(models)
        assert (scope.mean.shape, scope.names, scope.sizes) == ((3, 1), ("w",), (20,))
        for i in range(3):
            mean, std = moments(models["w"][i])
            np.testing.assert_allclose(scope.mean[i, 0], mean, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(scope.std[i, 0], std, rtol=1e-5)

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_stacked_leaf_gives_one_scope_a_slice(self, axis):
        leaf = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32) * np.arange(1, 5)
        params = {"blocks": {"kernel": jnp.asarray(leaf, jnp.float32)}}
        scope = scope_jit(params, select=stacked(kernels, ".*", axis=axis))
        for i, layer in enumerate(np.moveaxis(leaf, axis, 0)):
            mean, std = moments(layer)
            np.testing.assert_allclose(scope.mean[i], mean, rtol=1e-5, atol=1e-7)
            np.testing.assert_allclose(scope.std[i], std, rtol=1e-5)


class TestTrees:
    """One model in four clothes: the same layers, sizes and numbers."""

    @pytest.mark.parametrize(
        "kind", ["linen", "nnx", "nnx with rngs", "equinox", "equinox with functions", "plain"]
    )
    def test_equal_scopes(self, models, linen, kind):
        model, names = models[kind]
        scope = (weight_scope if "functions" in kind else scope_jit)(model)
        assert list(scope.names) == names
        assert scope.sizes == (12, 8)
        for i, layer in enumerate(("Dense_0", "Dense_1")):
            mean, std = moments(linen[layer]["kernel"])
            np.testing.assert_allclose(scope.mean[i], mean, rtol=1e-5)
            np.testing.assert_allclose(scope.std[i], std, rtol=1e-5)

    def test_boxed_linen_parameters_have_plain_names(self):
        kernel_init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, None))
        params = nn.Dense(2, kernel_init=kernel_init).init(jax.random.key(0), jnp.ones((1, 3)))
        assert weight_scope(params["params"]).names == ("kernel",)

    def test_scope_survives_the_host_and_a_tree_map(self):
        scope = weight_scope({"w": jnp.eye(2)})
        host = jax.device_get(scope)
        assert scope_divergence(scope, host) == 0
        assert jax.tree.map(jnp.zeros_like, scope).names == ("w",)


class TestIdentities:
    """How the paper writes norms by scopes."""

    def test_eq_5(self, pair):
        scope = scope_jit(pair[0])
        squared = np.sum(np.asarray(pair[0]["w"], np.float64) ** 2)
        np.testing.assert_allclose(600 * (scope.std[0] ** 2 + scope.mean[0] ** 2), squared, 1e-5)

    def test_eq_6(self, pair):
        w, v = (np.asarray(p["w"], np.float64) for p in pair)
        scopes = [scope_jit(p) for p in pair]
        by_scope = sum(600 * float(s.std[0] ** 2 + s.mean[0] ** 2) for s in scopes)
        np.testing.assert_allclose(by_scope - 2 * np.sum(w * v), np.sum((w - v) ** 2), rtol=1e-5)


class TestFusion:
    MEAN = np.array([[0.0, 1.0], [2.0, 5.0], [4.0, -3.0]])
    STD = np.array([[1.0, 2.0], [2.0, 0.5], [3.0, 4.0]])

    @pytest.mark.parametrize("weights", [None, [1, 1, 1], [3.0, 1.0, 0.0], np.array([1, 5, 4])])
    def test_closed_form(self, weights):
        fused = fuse_scopes(scope_of(self.MEAN, self.STD), weights=weights)
        np.testing.assert_allclose(
            fused.mean, np.average(self.MEAN, axis=0, weights=weights), rtol=1e-6
        )
        np.testing.assert_allclose(
            fused.std, np.sqrt(np.average(self.STD**2, axis=0, weights=weights)), rtol=1e-6
        )

    def test_sequence_equals_stack(self):
        rows = [scope_of(m, s) for m, s in zip(self.MEAN, self.STD, strict=True)]
        np.testing.assert_array_equal(
            fuse_scopes(rows).std, fuse_scopes(scope_of(self.MEAN, self.STD)).std
        )

    def test_model_of_weight_0_is_left_out_even_with_nan(self):
        mean = np.concatenate([self.MEAN, [[np.nan, np.nan]]])
        std = np.concatenate([self.STD, [[np.nan, np.inf]]])
        fused = fuse_scopes(scope_of(mean, std), weights=jnp.array([1.0, 1.0, 1.0, 0.0]))
        np.testing.assert_allclose(fused.mean, self.MEAN.mean(axis=0), rtol=1e-6)
        assert np.isfinite(fused.std).all()

    def test_inner_axes_are_kept(self):
        stacks = scope_of(np.stack([self.MEAN] * 4), np.stack([self.STD] * 4))
        np.testing.assert_allclose(fuse_scopes(stacks).std, self.STD, rtol=1e-6)

    def test_no_model_axis(self):
        with pytest.raises(ValueError, match=r"leading model axis, given mean of shape \(2,\)"):
            fuse_scopes(scope_of([0.0, 1.0], [1.0, 1.0]))

    def test_empty_sequence(self):
        with pytest.raises(ValueError, match="given no scope"):
            fuse_scopes([])

    def test_wrong_number_of_weights(self):
        with pytest.raises(ValueError, match=r"shape \(2,\) for 3 models"):
            fuse_scopes(scope_of(self.MEAN, self.STD), weights=[1.0, 2.0])

    @pytest.mark.parametrize("weights", [[-1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [1.0, np.inf, 1.0]])
    def test_weights_that_are_not_shares(self, weights):
        with pytest.raises(ValueError, match="are not shares; give finite numbers >= 0, not all 0"):
            fuse_scopes(scope_of(self.MEAN, self.STD), weights=weights)

    def test_other_layers(self):
        with pytest.raises(ValueError, match="layer a has 10 weights, but layer layer0"):
            fuse_scopes([scope_of([0.0], [1.0]), scope_of([0.0], [1.0], names=("a",))])


class TestDivergence:
    @pytest.mark.parametrize(
        ("mean", "std", "target_mean", "target_std"),
        [(0, 1, 0, 1), (0, 1, 1, 2), (0.5, 0.1, 0.4, 0.3), (-2, 3, 2, 1), (0, 0.01, 0, 0.03)],
    )
    def test_equal_to_the_integral(self, mean, std, target_mean, target_std):
        p, q = stats.norm(mean, std), stats.norm(target_mean, target_std)

        def integral(p, q):
            def integrand(x):
                return p.pdf(x) * (p.logpdf(x) - q.logpdf(x))

            wide = 12 * p.std()
            return integrate.quad(integrand, p.mean() - wide, p.mean() + wide, limit=200)[0]

        scope, target = scope_of([mean], [std]), scope_of([target_mean], [target_std])
        found = scope_divergence(scope, target)
        np.testing.assert_allclose(found[0], integral(p, q), rtol=1e-5, atol=1e-7)
        other = scope_divergence(scope, target, direction="target||weights")
        np.testing.assert_allclose(other[0], integral(q, p), rtol=1e-5, atol=1e-7)

    def test_zero_at_the_target_and_positive_elsewhere(self):
        rng = np.random.default_rng(0)
        mean, std = rng.normal(size=50), rng.uniform(0.01, 3, 50)
        scope = scope_of(mean, std)
        assert (scope_divergence(scope, scope) == 0).all()
        moved = scope_of(mean + 0.1, std * 1.1)
        assert (scope_divergence(moved, scope) > 0).all()

    def test_gradient_vanishes_at_the_target(self):
        scope = weight_scope({"w": jax.random.normal(jax.random.key(0), (6, 5))})
        gradient = jax.grad(lambda s: scope_divergence(s, scope).sum(), allow_int=True)(scope)
        np.testing.assert_allclose([gradient.mean, gradient.std], 0, atol=1e-6)

    def test_models_against_one_target(self):
        stack = scope_of([[0.0, 1.0], [2.0, 3.0]], [[1.0, 2.0], [3.0, 4.0]])
        target = scope_of([0.5, 0.5], [1.0, 1.0])
        found = scope_divergence(stack, target)
        other = scope_divergence(stack, target, direction="target||weights")
        for i in range(2):
            row = scope_of(stack.mean[i], stack.std[i])
            np.testing.assert_array_equal(found[i], scope_divergence(row, target))
            np.testing.assert_array_equal(other[i], scope_divergence(target, row))

    @pytest.mark.parametrize(("std", "target_std"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
    def test_constant_layers_are_finite_and_move_the_mean_only(self, std, target_std):
        target = scope_of([0.25], [target_std])

        def divergence(mean, std):
            return scope_divergence(scope_of(mean, std), target)[0]

        value, (by_mean, by_std) = jax.value_and_grad(divergence, (0, 1))(
            jnp.array([0.5]), jnp.array([std])
        )
        assert np.isfinite([value, by_mean[0], by_std[0]]).all()
        assert by_mean[0] > 0
        if std == 0:
            assert by_std[0] == 0

    def test_nan_affects_its_layer_only(self):
        found = scope_divergence(scope_of([jnp.nan, 0.0], [1.0, 1.0]), scope_of([0, 0], [1, 1]))
        assert np.isnan(found).tolist() == [True, False]


PARAMS = {"a": {"w": jnp.eye(3)}, "b": {"w": jnp.eye(2), "bias": jnp.ones(2)}}


class TestLayerMismatch:
    @pytest.mark.parametrize(
        ("other", "message"),
        [
            (
                weight_scope({"a": {"w": jnp.eye(3)}, "b": {"w": jnp.ones((2, 5))}}),
                "layer b/w has 4 weights, but layer b/w of the target has 10",
            ),
            (
                weight_scope(PARAMS, select=matching("a/w")),
                r"layer b/w is only in the scope \(2 ag",
            ),
            (
                weight_scope(PARAMS, select=all_leaves),
                "layer b/w has 4 .* layer b/bias of the .* 2",
            ),
        ],
    )
    def test_one_line_names_the_layer(self, other, message):
        with pytest.raises(ValueError, match=message) as error:
            scope_divergence(weight_scope(PARAMS), other)
        assert "\n" not in str(error.value)

    def test_layer_only_in_the_target(self):
        short = weight_scope(PARAMS, select=matching("a/w"))
        with pytest.raises(ValueError, match=r"layer b/w is only in the target \(1 against 2"):
            scope_divergence(short, weight_scope(PARAMS))


class TestConstantTarget:
    def test_one_gaussian_in_all_layers(self):
        target = constant_target(weight_scope(PARAMS), mean=1, std=2)
        assert (target.mean.tolist(), target.std.tolist()) == ([1.0, 1.0], [2.0, 2.0])

    @pytest.mark.parametrize("std", [0.0, -1.0, float("nan")])
    def test_std_must_be_positive(self, std):
        with pytest.raises(ValueError, match="is not positive"):
            constant_target(weight_scope({"w": jnp.eye(2)}), std=std)
