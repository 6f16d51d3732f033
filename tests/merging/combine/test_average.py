"""Averages of models, against NumPy, SciPy and geometry."""

import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import geometric_slerp

from wsa_jax.merging.combine import average, slerp
from wsa_jax.tree import lerp, stack

RNG = np.random.default_rng(0)


def model(scale=1.0, dtype=jnp.float32):
    return {
        "a": jnp.asarray(scale * RNG.normal(size=(3, 4)), dtype),
        "b": jnp.asarray(RNG.normal(size=5), jnp.float32),
        "steps": jnp.int32(scale),
    }


FIRST, SECOND, THIRD = model(1.0), model(2.0), model(3.0)


def flat(tree):
    return np.concatenate([np.asarray(tree[k], np.float64).ravel() for k in ("a", "b")])


class TestAverage:
    def test_weighted_equals_numpy(self):
        models = [FIRST, SECOND, THIRD]
        merged = average(models, weights=np.array([1.0, 0.5, 2.0]))
        expected = np.average([flat(m) for m in models], axis=0, weights=[1.0, 0.5, 2.0])
        np.testing.assert_allclose(flat(merged), expected, rtol=1e-6, atol=1e-7)
        assert int(merged["steps"]) == 1

    def test_stack_tuple_and_list_agree(self):
        results = [average(m) for m in ([FIRST, SECOND], (FIRST, SECOND), stack([FIRST, SECOND]))]
        for other in results[1:]:
            np.testing.assert_array_equal(flat(results[0]), flat(other))
        np.testing.assert_allclose(
            flat(results[0]), (flat(FIRST) + flat(SECOND)) / 2, rtol=1e-6, atol=1e-7
        )

    def test_copies_average_to_themselves(self):
        np.testing.assert_array_equal(flat(average([FIRST] * 4)), flat(FIRST))

    def test_functions_of_a_module_are_the_first_models(self):
        modules = [eqx.nn.MLP(2, 2, 2, 1, key=jax.random.key(i)) for i in range(2)]
        for models in (modules, stack(modules)):
            found = average(models, weights=[0, 1])
            assert found.activation is modules[0].activation
            np.testing.assert_array_equal(found.layers[0].weight, modules[1].layers[0].weight)

    def test_under_jit(self):
        models = stack([FIRST, SECOND])
        merged = jax.jit(lambda m, w: average(m, weights=w))(models, jnp.array([3.0, 1.0]))
        expected = 0.75 * flat(FIRST) + 0.25 * flat(SECOND)
        np.testing.assert_allclose(flat(merged), expected, rtol=1e-6, atol=1e-7)

    def test_nan_in_a_model_of_weight_zero(self):
        broken = FIRST | {"b": jnp.full(5, jnp.nan)}
        np.testing.assert_array_equal(flat(average([broken, SECOND], weights=[0, 1])), flat(SECOND))
        with pytest.raises(ValueError, match="leaf b of the models holds 5 NaN"):
            average([broken, SECOND])

    @pytest.mark.parametrize("weights", [[1, -1, 1], [0, 0, 0], [1, np.inf, 1]])
    def test_bad_weights(self, weights):
        with pytest.raises(ValueError, match="are not shares; give finite numbers >= 0"):
            average([FIRST, SECOND, THIRD], weights=weights)

    def test_number_of_weights(self):
        with pytest.raises(ValueError, match=r"weights has shape \(2,\) for 3 models"):
            average([FIRST, SECOND, THIRD], weights=[1, 1])

    def test_different_architectures(self):
        with pytest.raises(ValueError, match="leaf b has shape"):
            average([FIRST, SECOND | {"b": jnp.ones(4)}])

    def test_dtypes_of_one_leaf(self):
        message = "leaf a is float32 in the first model and bfloat16 in the second; convert one"
        for merge in (lambda *models: average(models), lambda *models: slerp(*models, 0.5)):
            with pytest.raises(ValueError, match=message):
                merge(FIRST, model(dtype=jnp.bfloat16))
        # Whatever JAX has no dtype for is what it becomes in JAX.
        wide = FIRST | {"b": np.asarray(FIRST["b"], np.float64)}
        np.testing.assert_array_equal(flat(average([FIRST, wide])), flat(FIRST))

    def test_complex_weights(self):
        first, second = (RNG.normal(size=(4, 2)) @ [1, 1j] for _ in range(2))
        models = [{"w": jnp.asarray(w, jnp.complex64)} for w in (first, second)]
        np.testing.assert_allclose(average(models)["w"], (first + second) / 2, rtol=1e-6)
        found = slerp(*models, 0.3)["w"]
        parts = [{"w": jnp.stack([m["w"].real, m["w"].imag])} for m in models]
        expected = slerp(*parts, 0.3)["w"]
        np.testing.assert_allclose(found, expected[0] + 1j * expected[1], rtol=1e-5, atol=1e-6)

    def test_weights_by_place_and_what_no_models_are(self):
        pair = [FIRST, SECOND]
        np.testing.assert_array_equal(
            flat(average(pair, [0.25, 0.75])), flat(average(pair, weights=[0.25, 0.75]))
        )
        for given, message in [
            ((FIRST, SECOND, THIRD), "average: too many positional arguments"),
            ((None,), "models of average is None; give a pytree of arrays"),
            ((["a", "b"],), "leaf 0 of models of average is 'a'; give a pytree of arrays"),
            (((m for m in pair),), "models of average is a generator; give a pytree of arrays"),
            (([],), "no models to average; give at least one"),
            ((-1,), "models of average is -1; give a list of models, or a stack"),
            ((np.array(["a", "b"]),), "models of average is an array of <U1 of shape"),
        ]:
            with pytest.raises(ValueError, match=message):
                average(*given)

    def test_text_of_a_module_is_the_first_models(self):
        norms = [eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, "batch", mode="batch")[0]] * 2
        assert average(norms).axis_name == "batch"

    def test_no_stack(self):
        with pytest.raises(ValueError, match="models is not a stack"):
            average(FIRST)


class TestSlerp:
    def test_equals_scipy_on_the_sphere(self):
        first, second = (RNG.normal(size=7) for _ in range(2))
        first, second = first / np.linalg.norm(first), second / np.linalg.norm(second)
        expected = geometric_slerp(first, second, np.array([0.3, 0.5, 0.9]))
        for t, want in zip((0.3, 0.5, 0.9), expected, strict=True):
            got = slerp({"w": jnp.float32(first)}, {"w": jnp.float32(second)}, t)["w"]
            np.testing.assert_allclose(got, want, atol=5e-7)

    def test_leaves_have_angles_of_their_own_and_models_one(self):
        per_leaf, per_model = (slerp(FIRST, SECOND, 0.3, per=per) for per in ("leaf", "model"))

        def by_arccos(a, b):
            angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            return (np.sin(0.7 * angle) * a + np.sin(0.3 * angle) * b) / np.sin(angle)

        np.testing.assert_allclose(
            flat(per_model), by_arccos(flat(FIRST), flat(SECOND)), rtol=1e-5, atol=1e-6
        )
        b = by_arccos(*(np.asarray(m["b"], np.float64) for m in (FIRST, SECOND)))
        np.testing.assert_allclose(per_leaf["b"], b, rtol=1e-5, atol=1e-6)
        assert int(per_leaf["steps"]) == 1

    @pytest.mark.parametrize("per", ["leaf", "model"])
    def test_exact_at_both_ends(self, per):
        for t, end in ((0.0, FIRST), (1.0, SECOND)):
            np.testing.assert_array_equal(flat(slerp(FIRST, SECOND, t, per=per)), flat(end))

    @pytest.mark.parametrize("factor", [2.0, 1 + 1e-6, -1.0, 0.0])
    def test_lerp_where_the_circle_is_undetermined(self, factor):
        first = {"w": FIRST["b"]}
        second = {"w": factor * FIRST["b"]}
        np.testing.assert_allclose(
            slerp(first, second, 0.25)["w"], lerp(first, second, 0.25)["w"], rtol=1e-6
        )

    @pytest.mark.parametrize("per", ["leaf", "model"])
    def test_gradients_are_finite_where_leaves_are_zero_or_equal(self, per):
        first = {"w": jnp.array([1.0, 0.0]), "zero": jnp.zeros(2), "same": jnp.ones(2)}
        second = {"w": jnp.array([0.0, 1.0]), "zero": jnp.zeros(2), "same": jnp.ones(2)}

        def total(models):
            return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(slerp(*models, 0.25, per=per)))

        for leaf in jax.tree.leaves(jax.jit(jax.grad(total))((first, second))):
            assert np.isfinite(leaf).all()

    def test_no_step_where_it_turns_into_lerp(self):
        a = {"w": jnp.array([1.0, 0.0])}
        for angle in (0.9e-4, 1.1e-4, 1e-2):
            b = {"w": jnp.array([np.cos(angle), np.sin(angle)], jnp.float32)}
            want = [np.cos(angle / 4), np.sin(angle / 4)]
            np.testing.assert_allclose(slerp(a, b, 0.25)["w"], want, rtol=2e-6)

    def test_keeps_dtype(self):
        halves = [model(dtype=jnp.bfloat16) for _ in range(2)]
        assert slerp(*halves, 0.5)["a"].dtype == jnp.bfloat16

    def test_errors(self):
        with pytest.raises(ValueError, match="leaf b of the second model holds 1 NaN"):
            slerp(FIRST, SECOND | {"b": SECOND["b"].at[2].set(jnp.inf)}, 0.5)
        with pytest.raises(ValueError, match="only in the first model"):
            slerp(FIRST, {"a": SECOND["a"], "b": SECOND["b"]}, 0.5)
        with pytest.raises(ValueError, match="per 'layer' is unknown"):
            inspect.unwrap(slerp)(FIRST, SECOND, 0.5, per="layer")
