"""Task arithmetic, TIES, DARE and Model Stock against float64 NumPy, on planted task vectors."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsa_jax.merging import dare, drop_and_rescale, model_stock, task_arithmetic, ties
from wsa_jax.tree import stack

RNG = np.random.default_rng(0)
SHAPES = {"a": (4, 5), "b": (7,), "c": ()}
BASE = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
COMMON = {name: RNG.normal(size=shape) for name, shape in SHAPES.items()}
# A common direction and an own one, so that signs agree in places and angles are neither 0 nor 90.
MODELS = [
    {
        name: (BASE[name] + COMMON[name] + RNG.normal(size=shape)).astype(np.float32)
        for name, shape in SHAPES.items()
    }
    | {"steps": np.int32(number)}
    for number in range(3)
]
BASE["steps"] = np.int32(7)
VECTORS = [{name: m[name].astype(np.float64) - BASE[name] for name in SHAPES} for m in MODELS]


def flat(model):
    return np.concatenate([np.ravel(np.asarray(model[name], np.float64)) for name in SHAPES])


def numpy_ties(vectors, keep, scale):
    """Rows of changes, one a model, by loops over single weights."""
    count = max(1, round(keep * vectors.shape[1]))
    merged = np.zeros(vectors.shape[1])
    trimmed = np.zeros_like(vectors)
    for row, vector in zip(trimmed, vectors, strict=True):
        largest = np.argsort(-np.abs(vector))[:count]
        row[largest] = vector[largest]
    for weight in range(vectors.shape[1]):
        values = trimmed[:, weight]
        sign = np.sign(values.sum())
        agreeing = [value for value in values if np.sign(value) == sign and value != 0]
        merged[weight] = np.mean(agreeing) if agreeing else 0.0
    return scale * merged


def numpy_stock(vectors):
    """Rows of changes, one a model: the share by the formula, with angles from arccos."""
    angles = [
        np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        for a, b in itertools.combinations(vectors, 2)
    ]
    cosine = max(0.0, np.mean(np.cos(angles)))
    share = len(vectors) * cosine / (1 + (len(vectors) - 1) * cosine)
    return share * vectors.mean(axis=0)


def matrix(name=None):
    if name is None:
        return np.array([flat(vector) for vector in VECTORS])
    return np.array([vector[name].ravel() for vector in VECTORS])


class TestTaskArithmetic:
    @pytest.mark.parametrize("scale", [0.4, -1.0, [0.2, 0.0, 1.5]])
    def test_equals_numpy(self, scale):
        merged = task_arithmetic(MODELS, BASE, scale=scale)
        expected = flat(BASE) + np.broadcast_to(scale, 3) @ matrix()
        np.testing.assert_allclose(flat(merged), expected, rtol=1e-5, atol=1e-6)
        assert int(merged["steps"]) == 0

    def test_one_over_the_number_is_the_average_and_0_is_the_base(self):
        mean = np.mean([flat(model) for model in MODELS], axis=0)
        np.testing.assert_allclose(
            flat(task_arithmetic(stack(MODELS), BASE, scale=1 / 3)), mean, rtol=1e-5, atol=1e-6
        )
        np.testing.assert_array_equal(flat(task_arithmetic(MODELS, BASE, scale=0)), flat(BASE))

    def test_keeps_half_precision_and_functions(self):
        half = [{"w": jnp.full(2, value, jnp.bfloat16)} for value in (1.0, 2.0, 4.0)]
        assert task_arithmetic(half[1:], half[0])["w"].dtype == jnp.bfloat16
        modules = [eqx.nn.MLP(2, 2, 2, 1, key=jax.random.key(i)) for i in range(2)]
        merged = task_arithmetic([modules[1]], modules[0], scale=1)
        assert merged.activation is modules[1].activation
        np.testing.assert_allclose(
            merged.layers[0].weight, modules[1].layers[0].weight, rtol=1e-5, atol=1e-6
        )

    def test_under_jit(self):
        pair = [{"w": jnp.array([1.0, 3.0])}, {"w": jnp.array([2.0, -1.0])}]
        for merge in (task_arithmetic, ties, model_stock):
            found = jax.jit(lambda models, base, merge=merge: merge(models, base))(pair, pair[0])
            np.testing.assert_allclose(found["w"], merge(pair, pair[0])["w"], rtol=1e-6)


class TestTies:
    @pytest.mark.parametrize(("keep", "scale"), [(0.2, 1.0), (0.5, 0.3), (1, 1.0)])
    def test_of_the_model_equals_numpy(self, keep, scale):
        merged = ties(MODELS, BASE, keep=keep, scale=scale)
        expected = flat(BASE) + numpy_ties(matrix(), keep, scale)
        np.testing.assert_allclose(flat(merged), expected, rtol=1e-5, atol=1e-5)

    def test_leaf_by_leaf_equals_numpy_and_single_leaves(self):
        merged = ties(MODELS, BASE, keep=0.3, per="leaf")
        for name in SHAPES:
            expected = BASE[name].ravel() + numpy_ties(matrix(name), 0.3, 1.0)
            np.testing.assert_allclose(merged[name].ravel(), expected, rtol=1e-5, atol=1e-5)
            alone = ties([model[name] for model in MODELS], BASE[name], keep=0.3)
            np.testing.assert_array_equal(alone, merged[name])

    def test_disjoint_task_vectors_add_up(self):
        # Each model changes other weights, which is what averaging and task arithmetic dilute.
        base = np.arange(6, dtype=np.float32)
        models = [base + 2 * (np.arange(6) == place).astype(np.float32) for place in (1, 4)]
        np.testing.assert_array_equal(
            ties(models, base, keep=0.2), base + np.float32([0, 2, 0, 0, 2, 0])
        )

    def test_no_sign_wins(self):
        merged = ties([np.float32([1, 3]), np.float32([-1, 3])], np.float32([0, 0]), keep=1)
        np.testing.assert_array_equal(merged, [0, 3])


class TestDare:
    def test_what_is_kept_is_scaled_and_the_mean_is_task_arithmetic(self):
        base, model = {"w": np.ones(40, np.float32)}, {"w": np.full(40, 3, np.float32)}
        found = np.array(
            [drop_and_rescale(jax.random.key(s), model, base, drop=0.75)["w"] for s in range(60)]
        )
        assert set(np.unique(found)) == {1.0, 9.0}
        # 2,400 draws of 2 or nothing: four standard errors.
        assert abs(found.mean() - 3) < 4 * 8 * np.sqrt(0.75 * 0.25 / found.size)

    def test_equals_numpy_on_what_was_drawn(self):
        key = jax.random.key(1)
        scales = [0.5, 1.0, 0.0]
        merged = dare(key, MODELS, BASE, drop=0.5, scale=scales)
        sparse = [
            drop_and_rescale(jax.random.fold_in(key, i), model, BASE, drop=0.5)
            for i, model in enumerate(MODELS)
        ]
        kept = np.array([flat(model) != flat(BASE) for model in sparse])
        assert 0.2 < kept.mean() < 0.8
        expected = flat(BASE) + np.array(scales) @ (kept * matrix() / 0.5)
        np.testing.assert_allclose(flat(merged), expected, rtol=1e-5, atol=1e-5)

    def test_a_leaf_alone_draws_what_it_draws_in_the_model(self):
        whole = dare(jax.random.key(2), MODELS, BASE)
        alone = dare(jax.random.key(2), [{"a": m["a"]} for m in MODELS], {"a": BASE["a"]})
        np.testing.assert_array_equal(alone["a"], whole["a"])

    def test_nothing_dropped_is_task_arithmetic(self):
        np.testing.assert_array_equal(
            flat(dare(jax.random.key(0), MODELS, BASE, drop=0)), flat(task_arithmetic(MODELS, BASE))
        )


class TestModelStock:
    def test_of_each_leaf_equals_numpy_and_single_leaves(self):
        merged = model_stock(MODELS, BASE)
        for name in SHAPES:
            expected = BASE[name].ravel() + numpy_stock(matrix(name))
            np.testing.assert_allclose(merged[name].ravel(), expected, rtol=1e-5, atol=1e-6)
            alone = model_stock([model[name] for model in MODELS], BASE[name])
            np.testing.assert_array_equal(alone, merged[name])

    def test_of_the_model_equals_numpy(self):
        expected = flat(BASE) + numpy_stock(matrix())
        found = flat(model_stock(MODELS, BASE, per="model"))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

    def test_is_the_foot_of_the_perpendicular_from_the_centre(self):
        # Models around a centre at one distance, in directions orthogonal to it and to each other.
        centre = np.zeros(5)
        centre[0] = 2.0
        models = [(centre + 3 * np.eye(5)[place]).astype(np.float32) for place in (1, 2, 3)]
        foot = np.asarray(model_stock(models, np.zeros(5, np.float32)), np.float64)
        for model in models:
            assert abs((centre - foot) @ (model - foot)) < 1e-5

    def test_angles_and_magnitudes_at_the_edges(self):
        zero = np.zeros(2, np.float32)
        first, second = np.float32([1e25, 0]), np.float32([0, 1e25])
        np.testing.assert_array_equal(model_stock([first, second], zero), zero)
        np.testing.assert_array_equal(model_stock([first, -first], zero), zero)
        np.testing.assert_array_equal(model_stock([zero, zero], zero), zero)
        np.testing.assert_allclose(model_stock([first, first], zero), first, rtol=1e-6)


def test_errors_name_the_leaf_and_the_setting():
    key = jax.random.key(0)
    other = BASE | {"b": np.ones(3, np.float32)}
    for merge in (task_arithmetic, ties, model_stock, lambda m, b: dare(key, m, b)):
        with pytest.raises(ValueError, match=r"leaf b has shape \(3,\) in the base and \(7,\) in"):
            merge(MODELS, other)
        with pytest.raises(ValueError, match="leaf c is only in model 1, not in the base"):
            merge(MODELS, {name: leaf for name, leaf in BASE.items() if name != "c"})
        with pytest.raises(ValueError, match="leaf a is float16 in the base and float32 in model"):
            merge(MODELS, BASE | {"a": BASE["a"].astype(np.float16)})
        with pytest.raises(ValueError, match="leaf a of the base holds 20 NaN"):
            merge(MODELS, BASE | {"a": BASE["a"] * np.nan})
        with pytest.raises(ValueError, match="leaf b of model 2 holds 7 NaN"):
            merge([MODELS[0], MODELS[1] | {"b": np.full(7, np.nan, np.float32)}], BASE)
        with pytest.raises(ValueError, match="no models to merge; give at least one"):
            merge([], BASE)
    with pytest.raises(ValueError, match=r"scale has shape \(2,\) for 3 models"):
        task_arithmetic(MODELS, BASE, scale=[1, 2])
    with pytest.raises(ValueError, match="scale inf is not finite in float32; give numbers"):
        dare(key, MODELS, BASE, scale=np.inf)
    with pytest.raises(ValueError, match=r"scale 1e\+39 is not finite in float32"):
        ties(MODELS, BASE, scale=1e39)
    for keep in (0, 1.5):
        with pytest.raises(ValueError, match=rf"keep {keep} is not a share in \(0, 1\]"):
            ties(MODELS, BASE, keep=keep)
    with pytest.raises(ValueError, match=r"drop 1 is not a share in \[0, 1\)"):
        drop_and_rescale(key, MODELS[0], BASE, drop=1)
    with pytest.raises(ValueError, match="model_stock takes at least two models, got 1"):
        model_stock(MODELS[:1], BASE)
    phases = [{"w": np.ones(2, np.complex64)}] * 2
    with pytest.raises(ValueError, match="is of type complex64, and a sign is of real numbers"):
        ties(phases, phases[0])
