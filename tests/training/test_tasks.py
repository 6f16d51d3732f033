"""Tasks that are not the classification of images: tokens, pytrees, regressions, own metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsa_jax.merging import accuracy_barrier, ensemble, interpolate_path, loss_barrier, loss_plane
from wsa_jax.training import (
    Batch,
    FitSettings,
    Metrics,
    Task,
    classification_task,
    evaluate,
    fit,
)

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 5, (40, 6)).astype(np.int32)
PADDED = RNG.random((40, 6)) < 0.3
LABELS = np.where(PADDED, -1, (TOKENS * 2) % 5).astype(np.int32)  # a class for each token
SETTINGS = FitSettings(steps=150, batch_size=20)


def _init(key):
    return {"embedding": 0.1 * jax.random.normal(key, (5, 5))}, {}


def _apply(params, model_state, inputs, train, key):
    return params["embedding"][inputs], model_state


TAGGER = classification_task(_init, _apply, padding_label=-1)
INIT = jax.jit(TAGGER.init)


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


class TestTokens:
    def test_metrics_are_sums_over_tokens_that_are_no_padding(self):
        params, _ = INIT(jax.random.key(0))
        sums = evaluate(TAGGER, params, {}, TOKENS, LABELS, batch_size=7)
        logits = np.float64(params["embedding"])[TOKENS]
        picked = np.take_along_axis(log_softmax(logits), np.maximum(LABELS, 0)[..., None], -1)
        assert sums.count == (~PADDED).sum()
        np.testing.assert_allclose(sums.loss, -picked[..., 0][~PADDED].sum(), rtol=1e-5)
        assert sums.correct == (logits.argmax(-1) == LABELS)[~PADDED].sum()

    def test_loss_is_a_mean_over_tokens_and_its_gradient_leaves_padding_out(self):
        params, _ = INIT(jax.random.key(0))
        batch = Batch(jnp.asarray(TOKENS[:4]), jnp.asarray(LABELS[:4]), jnp.array([1.0, 1, 0, 1]))
        loss, _ = jax.jit(TAGGER.loss)(jax.random.key(1), params, {}, batch)
        kept = ~PADDED[:4] & np.array([[True], [True], [False], [True]])
        logits = np.float64(params["embedding"])[TOKENS[:4]]
        picked = np.take_along_axis(log_softmax(logits), np.maximum(LABELS[:4], 0)[..., None], -1)
        np.testing.assert_allclose(loss, -picked[..., 0][kept].mean(), rtol=1e-5)

    def test_fit_learns_them_and_paths_count_them(self):
        keys = jax.random.split(jax.random.key(0), 2)
        fitted = fit(keys, TAGGER, TOKENS, LABELS, settings=SETTINGS, learning_rate=1.0)
        first, second = (jax.tree.map(lambda leaf, i=i: leaf[i], fitted.params) for i in (0, 1))
        sums = evaluate(TAGGER, first, {}, TOKENS, LABELS)
        assert sums.means()["accuracy"] == 1
        path = interpolate_path(TAGGER, first, second, TOKENS, LABELS, num_points=3)
        np.testing.assert_allclose(path.accuracy, 1)
        both = ensemble(TAGGER.logits, [first, second], TOKENS[:, 0], np.maximum(LABELS[:, 0], 0))
        assert both.count == 40

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (LABELS[:, :3], r"labels of the training data are int32 of shape \(40, 3\); give int"),
            (LABELS[:, 0], r"int32 of shape \(40,\); give integers of shape \(40, 6\), each a cla"),
            (LABELS.astype(np.float32), "are float32 of shape"),
            (np.eye(5, dtype=np.float32)[np.maximum(LABELS, 0)], "the argmax over the last axis"),
            (np.where(LABELS < 0, -2, LABELS), "label -2 of the training data is out of range"),
            (LABELS[:30], "the training data has 40 images and 30 labels"),
        ],
    )
    def test_labels_that_do_not_fit_are_named_before_the_first_step(self, labels, message):
        with pytest.raises(ValueError, match=message):
            fit(jax.random.key(0), TAGGER, TOKENS, labels, settings=SETTINGS)


PAIRS = {
    "x": RNG.normal(size=(60, 3)).astype(np.float32),
    "y": RNG.normal(size=(60, 2)).astype(np.float32),
}
SUMS = (PAIRS["x"] @ [1.0, -1.0, 2.0] + PAIRS["y"] @ [0.5, -3.0]).astype(np.float32)


def _pair_init(key):
    return {"x": jnp.zeros(3), "y": jnp.zeros(2)}, {}


def _predict(params, inputs):
    return inputs["x"] @ params["x"] + inputs["y"] @ params["y"]


def _squared_error(key, params, model_state, batch):
    errors = (_predict(params, batch.inputs) - batch.labels) ** 2
    return jnp.sum(errors * batch.mask) / jnp.maximum(jnp.sum(batch.mask), 1.0), model_state


def _regression(correct):
    def metrics(params, model_state, batch):
        errors = _predict(params, batch.inputs) - batch.labels
        own = {"absolute_error": jnp.sum(jnp.abs(errors) * batch.mask)}
        return Metrics(jnp.sum(errors**2 * batch.mask), correct(batch), jnp.sum(batch.mask), own)

    return Task(_pair_init, _squared_error, metrics)


REGRESSION = _regression(lambda batch: None)


class TestRegressionOfPytrees:
    def test_fit_takes_a_pytree_of_inputs(self):
        fitted = fit(
            jax.random.key(0), REGRESSION, PAIRS, SUMS, settings=SETTINGS, learning_rate=0.05
        )
        np.testing.assert_allclose(fitted.params["x"], [1, -1, 2], atol=1e-3)
        np.testing.assert_allclose(fitted.params["y"], [0.5, -3], atol=1e-3)

    @pytest.mark.parametrize("correct", [lambda batch: None, lambda batch: jnp.zeros(())])
    def test_an_accuracy_that_is_not_defined_is_absent_not_0(self, correct):
        task = _regression(correct)
        params = {"x": jnp.ones(3), "y": jnp.ones(2)}
        sums = evaluate(task, params, {}, PAIRS, SUMS, batch_size=7)
        assert sums.correct is None
        jitted = task._replace(metrics=jax.jit(jax.jit(task.metrics)))
        assert evaluate(jitted, params, {}, PAIRS, SUMS).correct is None
        assert list(sums.means()) == ["loss", "absolute_error"]
        errors = PAIRS["x"].sum(1) + PAIRS["y"].sum(1) - SUMS
        np.testing.assert_allclose(sums.means()["absolute_error"], np.abs(errors).mean(), rtol=1e-5)
        path = interpolate_path(task, params, {"x": jnp.zeros(3), "y": jnp.ones(2)}, PAIRS, SUMS)
        assert path.accuracy is None
        assert path.own["absolute_error"].shape == path.t.shape
        assert loss_barrier(path) >= -1e-6
        with pytest.raises(ValueError, match="the path has no accuracy"):
            accuracy_barrier(path)

    def test_a_count_that_depends_on_the_batch_is_an_accuracy_even_where_it_is_0(self):
        task = _regression(lambda batch: jnp.sum((batch.labels > 1e9) * batch.mask))
        for metrics in (task.metrics, jax.jit(jax.jit(task.metrics))):
            params = {"x": jnp.ones(3), "y": jnp.ones(2)}
            sums = evaluate(task._replace(metrics=metrics), params, {}, PAIRS, SUMS)
            assert sums.means()["accuracy"] == 0

    def test_a_plane_without_accuracy(self):
        rng = np.random.default_rng(0)
        corners = [
            {"x": jnp.asarray(rng.normal(size=3), "f4"), "y": jnp.asarray(rng.normal(size=2), "f4")}
            for _ in range(3)
        ]
        plane = loss_plane(REGRESSION, *corners, PAIRS, SUMS, resolution=3)
        assert plane.accuracy is None
        assert plane.loss.shape == (3, 3)

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            (PAIRS | {"y": PAIRS["y"][:50]}, "has 50 rows of y and 60 labels; give one label per"),
            ({}, "the data has no inputs; give at least one array"),
        ],
    )
    def test_arrays_of_unequal_length_are_named(self, inputs, message):
        with pytest.raises(ValueError, match=message):
            evaluate(REGRESSION, {"x": jnp.ones(3), "y": jnp.ones(2)}, {}, inputs, SUMS)


class TestEvaluateRefuses:
    @pytest.mark.parametrize(
        ("rows", "labels", "message"),
        [
            (7, 60, "the data has 7 images and 60 labels"),
            (60, 7, "the data has 60 images and 7 labels"),
        ],
    )
    def test_unequal_numbers(self, tiny_task, tiny_data, rows, labels, message):
        params, _ = tiny_task.init(jax.random.key(0))
        with pytest.raises(ValueError, match=message):
            evaluate(tiny_task, params, {}, tiny_data[0][:rows], tiny_data[1][:labels])

    def test_labels_out_of_range_and_batches_of_none(self, tiny_task, tiny_data):
        params, _ = tiny_task.init(jax.random.key(0))
        with pytest.raises(ValueError, match="label 3 of the data is out of range"):
            evaluate(tiny_task, params, {}, tiny_data[0], tiny_data[1] + 1)
        with pytest.raises(ValueError, match="batch_size must be a positive integer, got 0"):
            evaluate(tiny_task, params, {}, *tiny_data, batch_size=0)

    def test_an_ensemble_refuses_the_same(self, tiny_task, tiny_data):
        models = [tiny_task.init(jax.random.key(seed))[0] for seed in (0, 1)]
        with pytest.raises(ValueError, match="label 3 of the data is out of range"):
            ensemble(tiny_task.logits, models, tiny_data[0], tiny_data[1] + 1)
        with pytest.raises(ValueError, match="the data has 60 images and 7 labels"):
            ensemble(tiny_task.logits, models, tiny_data[0], tiny_data[1][:7])

    def test_images_of_another_size(self, tiny_task, tiny_data):
        params, _ = tiny_task.init(jax.random.key(0))
        with pytest.raises(
            ValueError, match=r"does not take examples of shape \(2, 3, 1\), which the d"
        ):
            evaluate(tiny_task, params, {}, tiny_data[0][:, :2], tiny_data[1])
