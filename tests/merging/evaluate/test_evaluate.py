"""Paths, barriers, planes and ensembles of models, against evaluation point by point."""

import dataclasses
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsa_jax.merging import Path, interpolate_path, loss_barrier
from wsa_jax.merging.evaluate.ensemble import ensemble
from wsa_jax.merging.evaluate.path import accuracy_barrier
from wsa_jax.merging.evaluate.plane import loss_plane
from wsa_jax.merging.repair.batch_norm import reset_batch_norm
from wsa_jax.training import Metrics, Task, evaluate
from wsa_jax.tree import lerp, stack


def linear_loss(params, model_state, batch):
    """The loss is known in closed form: (w·image - state)²; correct where w0 > 0."""
    error = jnp.sum(batch.inputs * params["w"][None], axis=-1) - model_state.get("shift", 0.0)
    return Metrics(
        loss=jnp.sum(error**2 * batch.mask),
        correct=jnp.sum((params["w"][0] > 0) * batch.mask),
        count=jnp.sum(batch.mask),
    )


LINEAR = Task(None, None, linear_loss)
IMAGES = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
LABELS = np.zeros(7, np.int32)
MODELS = [
    {"w": jnp.array(w), "kind": jnp.int32(i)}
    for i, w in enumerate(([1.0, 0.0, 0.0], [-1.0, 2.0, 0.0], [0.5, 0.5, 3.0]))
]
run_path = {"batch_size": 3}


def exact_loss(w, shift=0.0):
    return np.mean((IMAGES.astype(np.float64) @ np.asarray(w, np.float64) - shift) ** 2)


def path_of(loss, accuracy=None, t=None):
    loss = jnp.asarray(loss)
    t = jnp.linspace(0.0, 1.0, len(loss)) if t is None else jnp.asarray(t)
    return Path(t=t, loss=loss, accuracy=loss if accuracy is None else jnp.asarray(accuracy))


class TestPath:
    def test_equals_the_closed_form(self):
        path = interpolate_path(LINEAR, *MODELS[:2], IMAGES, LABELS, num_points=5, **run_path)
        np.testing.assert_array_equal(path.t, [0, 0.25, 0.5, 0.75, 1])
        expected = [exact_loss([1 - 2 * t, 2 * t, 0]) for t in np.asarray(path.t)]
        np.testing.assert_allclose(path.loss, expected, rtol=1e-6)
        np.testing.assert_array_equal(path.accuracy, [1, 1, 0, 0, 0])

    def test_any_points(self):
        points = [1.0, -0.5, 0.25, 1.5, 0.0]
        path = interpolate_path(LINEAR, *MODELS[:2], IMAGES, LABELS, t=points, **run_path)
        np.testing.assert_array_equal(path.t, points)
        expected = [exact_loss([1 - 2 * t, 2 * t, 0]) for t in points]
        np.testing.assert_allclose(path.loss, expected, rtol=1e-6)

    def test_states_are_interpolated_with_the_models(self):
        states = {"shift": jnp.float32(1.0)}, {"shift": jnp.float32(3.0)}
        path = interpolate_path(
            LINEAR, *MODELS[:2], IMAGES, LABELS, model_state=states[0], second_state=states[1],
            num_points=5, **run_path,
        )  # fmt: skip
        expected = [exact_loss([1 - 2 * t, 2 * t, 0], 1 + 2 * t) for t in np.asarray(path.t)]
        np.testing.assert_allclose(path.loss, expected, rtol=1e-6)

    def test_statistics_are_reset_at_every_point(self, normed_task, normed_models, tiny_data):
        first, second, state = normed_models
        images, labels = map(jnp.asarray, tiny_data)
        path = interpolate_path(
            normed_task, first, second, images, labels, model_state=state, calibration=images[:20],
            num_points=3,
        )  # fmt: skip
        for t, loss in zip((0.0, 0.5, 1.0), np.asarray(path.loss), strict=True):
            params = lerp(first, second, t)
            reset = reset_batch_norm(normed_task, params, state, images[:20])
            sums = evaluate(normed_task, params, reset, images, labels)
            np.testing.assert_allclose(loss, sums.loss / 60, rtol=1e-5)

    def test_errors(self, normed_task, normed_models):
        first, second = MODELS[:2]
        call = lambda *models, **options: interpolate_path(  # noqa: E731
            LINEAR, *models, IMAGES, LABELS, **options
        )
        with pytest.raises(ValueError, match="leaf w has shape"):
            call(first, second | {"w": jnp.ones(2)})
        with pytest.raises(ValueError, match="leaf w of the second model holds 1 NaN"):
            call(first, second | {"w": jnp.array([1, jnp.nan, 0])})
        with pytest.raises(ValueError, match="leaf shift of the first model's state holds 1 NaN"):
            call(first, second, model_state={"shift": jnp.float32(jnp.nan)})
        with pytest.raises(ValueError, match="leaf shift is only in the second model"):
            call(first, second, second_state={"shift": jnp.float32(1)})
        with pytest.raises(ValueError, match="num_points 1 is below 2"):
            call(first, second, num_points=1)
        with pytest.raises(ValueError, match="t is empty"):
            call(first, second, t=[])
        with pytest.raises(ValueError, match="no calibration images"):
            call(first, second, calibration=IMAGES[:0])
        with pytest.raises(ValueError, match="no examples to evaluate the path on"):
            interpolate_path(LINEAR, first, second, IMAGES[:0], LABELS[:0])
        first, second, state = normed_models
        with pytest.raises(ValueError, match="t from 0 to 1.5 would extrapolate variances"):
            interpolate_path(
                normed_task, first, second, IMAGES, LABELS, model_state=state,
                second_state=jax.tree.map(jnp.copy, state), t=[0, 1.5],
            )  # fmt: skip


class TestBarrier:
    PATH = path_of([1.0, 2.5, 4.0, 4.5, 3.0], [0.9, 0.5, 0.4, 0.35, 0.5])

    def test_paper_and_endpoints(self):
        assert float(loss_barrier(self.PATH)) == pytest.approx(2.0)  # at both t = 0.5 and 0.75
        assert float(loss_barrier(self.PATH, definition="endpoints")) == pytest.approx(2.5)
        assert float(accuracy_barrier(self.PATH)) == pytest.approx(0.3)
        drop = accuracy_barrier(self.PATH, definition="endpoints")
        assert float(drop) == pytest.approx(0.35)

    def test_is_zero_without_a_barrier(self):
        convex = path_of(np.linspace(-1, 1, 9) ** 2, 1 - np.linspace(-1, 1, 9) ** 2)
        assert float(loss_barrier(convex)) == 0
        assert float(accuracy_barrier(convex)) == 0

    def test_many_paths(self):
        paths = stack([self.PATH, path_of(2 * self.PATH.loss)])
        np.testing.assert_allclose(jax.vmap(loss_barrier)(paths), [2.0, 4.0], rtol=1e-6)

    @pytest.mark.parametrize("definition", ["paper", "endpoints"])
    @pytest.mark.parametrize("barrier", [loss_barrier, accuracy_barrier])
    def test_of_paths_side_by_side_is_one_each(self, barrier, definition):
        losses = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
        t = np.broadcast_to(np.linspace(0, 1, 5, dtype=np.float32), losses.shape)
        paths = Path(t=jnp.array(t), loss=jnp.array(losses), accuracy=jnp.array(losses))
        expected = jax.vmap(jax.vmap(lambda path: barrier(path, definition=definition)))(paths)
        np.testing.assert_array_equal(barrier(paths, definition=definition), expected)
        with pytest.raises(ValueError, match="goes from t = 0 to 0.5; a barrier needs 0 to 1"):
            barrier(dataclasses.replace(paths, t=paths.t.at[1, 2, -1].set(0.5)))

    def test_nan_on_the_path_is_not_hidden(self):
        assert math.isnan(loss_barrier(path_of([1.0, math.nan, 1.0])))

    @pytest.mark.parametrize("barrier", [loss_barrier, accuracy_barrier])
    def test_errors(self, barrier):
        with pytest.raises(ValueError, match="goes from t = 0 to 0.5; a barrier needs 0 to 1"):
            barrier(path_of([1.0, 2.0], t=[0.0, 0.5]))
        with pytest.raises(ValueError, match="definition 'max' is unknown"):
            inspect.unwrap(barrier)(self.PATH, definition="max")


@pytest.fixture(scope="module")
def plane():
    return loss_plane(LINEAR, *MODELS, IMAGES, LABELS, resolution=5, margin=0.0)


class TestPlane:
    def test_coordinates_keep_distances(self, plane):
        models = np.asarray(plane.models, np.float64)
        for i, j in ((0, 1), (0, 2), (1, 2)):
            distance = np.linalg.norm(np.asarray(MODELS[i]["w"] - MODELS[j]["w"], np.float64))
            assert np.linalg.norm(models[i] - models[j]) == pytest.approx(distance, rel=1e-6)
        np.testing.assert_array_equal(models[[0, 0, 1], [0, 1, 1]], 0)
        assert models[2, 1] > 0

    def test_equals_the_closed_form_in_an_orthonormal_basis(self, plane):
        w = np.stack([np.asarray(m["w"], np.float64) for m in MODELS])
        basis, _ = np.linalg.qr((w[1:] - w[0]).T)
        basis *= np.sign(np.diag(basis.T @ (w[1:] - w[0]).T))
        expected = [
            [exact_loss(w[0] + x * basis[:, 0] + y * basis[:, 1]) for x in np.asarray(plane.x)]
            for y in np.asarray(plane.y)
        ]
        np.testing.assert_allclose(plane.loss, expected, rtol=2e-5)
        # The first two models are corners; w0 falls from 1 to -1 between them.
        np.testing.assert_allclose(plane.loss[0, 0], exact_loss(w[0]), rtol=1e-6)
        np.testing.assert_allclose(plane.loss[0, -1], exact_loss(w[1]), rtol=1e-6)
        np.testing.assert_array_equal(plane.accuracy[0, jnp.array([0, 1, 3, 4])], [1, 1, 0, 0])

    def test_margin_goes_beyond_the_models(self, plane):
        wide = loss_plane(LINEAR, *MODELS, IMAGES, LABELS, resolution=5, margin=0.5)
        low, high = np.asarray(plane.models).min(0), np.asarray(plane.models).max(0)
        for axis, i in ((wide.x, 0), (wide.y, 1)):
            ends = low[i] - 0.5 * (high[i] - low[i]), high[i] + 0.5 * (high[i] - low[i])
            np.testing.assert_allclose(axis[np.array([0, -1])], ends, rtol=1e-5, atol=1e-6)
        # Its middle rows and columns, at 1/4 and 3/4 of twice the extent, are the narrow grid's.
        np.testing.assert_allclose(wide.loss[1, 1], plane.loss[0, 0], rtol=1e-5)
        np.testing.assert_allclose(wide.loss[3, 3], plane.loss[-1, -1], rtol=1e-5)

    def test_complex_weights(self):
        """The plane of ``a + bi`` is that of ``[a, b]``, and no real leaf is needed."""

        def loss(params, model_state, batch):
            w = params["w"]
            parts = {"w": jnp.concatenate([w.real, w.imag]) if jnp.iscomplexobj(w) else w}
            return linear_loss(parts, model_state, batch)

        task, images = Task(None, None, loss), np.concatenate([IMAGES, IMAGES[::-1]], axis=1)
        pairs = np.random.default_rng(2).normal(size=(3, 2, 3)).astype(np.float32)
        real = [{"w": jnp.asarray(pair.reshape(-1))} for pair in pairs]
        joined = [{"w": jnp.asarray(re + 1j * im, jnp.complex64)} for re, im in pairs]
        expected = loss_plane(task, *real, images, LABELS, resolution=3, margin=0.0)
        found = loss_plane(task, *joined, images, LABELS, resolution=3, margin=0.0)
        for own, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-5)

    def test_statistics_are_reset_at_every_point(self, normed_task, normed_models, tiny_data):
        first, second, state = normed_models
        images, labels = map(jnp.asarray, tiny_data)
        third = jax.tree.map(lambda leaf: leaf + 0.1, first)
        got = loss_plane(
            normed_task, first, second, third, images, labels, model_state=state,
            calibration=images, resolution=2, margin=0.0,
        )  # fmt: skip
        for model, (x, _) in zip((first, second), np.asarray(got.models), strict=False):
            reset = reset_batch_norm(normed_task, model, state, images)
            sums = evaluate(normed_task, model, reset, images, labels)
            column = int(np.argmin(np.abs(got.x - x)))
            np.testing.assert_allclose(got.x[column], x, rtol=1e-5)
            np.testing.assert_allclose(got.loss[0, column], sums.loss / 60, rtol=1e-5)
        with pytest.raises(ValueError, match="the models have BatchNorm statistics"):
            loss_plane(normed_task, first, second, third, images, labels, model_state=state)

    def test_errors(self):
        first, second, third = MODELS
        call = lambda *models, **options: loss_plane(  # noqa: E731
            LINEAR, *models, IMAGES, LABELS, **options
        )
        with pytest.raises(ValueError, match="the first and second model are equal"):
            call(first, first, third)
        for t in (0.0, 1.0, 0.3, -7.0):
            with pytest.raises(ValueError, match="the third model lies on the line"):
                call(first, second, lerp(first, second, t))
        with pytest.raises(ValueError, match="leaf w of the third model holds 1 NaN"):
            call(first, second, third | {"w": jnp.array([1, jnp.inf, 0])})
        with pytest.raises(ValueError, match="leaf kind is only in the first model"):
            call(first, second, {"w": third["w"]})
        with pytest.raises(ValueError, match="resolution 1 is below 2"):
            call(*MODELS, resolution=1)
        with pytest.raises(ValueError, match="margin -1 is negative"):
            call(*MODELS, margin=-1)
        with pytest.raises(ValueError, match="no examples to evaluate the plane on"):
            loss_plane(LINEAR, *MODELS, IMAGES[:0], LABELS[:0])


def logits_fn(params, model_state, images):
    return images @ params["kernel"] + model_state.get("bias", 0.0)


class TestEnsemble:
    KERNELS = np.random.default_rng(1).normal(size=(3, 3, 4)).astype(np.float32)
    LABELS = np.array([0, 3, 1, 2, 0, 1, 2], np.int32)

    def test_equals_the_mean_of_probabilities(self):
        bias = np.array([0.5, -1.0, 2.0], np.float32)
        sums = ensemble(
            logits_fn, {"kernel": jnp.asarray(self.KERNELS)}, IMAGES, self.LABELS,
            model_states=[{"bias": jnp.float32(b)} for b in bias], batch_size=3,
        )  # fmt: skip
        logits = np.einsum("bi,mik->mbk", IMAGES.astype(np.float64), self.KERNELS)
        probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        mean = probabilities.mean(0)
        loss = -np.log(mean[np.arange(7), self.LABELS]).sum()
        np.testing.assert_allclose(sums.loss, loss, rtol=1e-5)
        assert float(sums.correct) == (mean.argmax(-1) == self.LABELS).sum()
        assert float(sums.count) == 7

    def test_is_no_better_than_the_loss_of_one_and_finite_far_out(self):
        # Both are wrong by 2,000 nats and 1,000 nats: exp underflows, the loss is 1,000 + log 2.
        models = [{"kernel": jnp.array([[0.0, scale]])} for scale in (1000.0, 2000.0)]
        sums = ensemble(logits_fn, models, np.ones((1, 1), np.float32), np.zeros(1, np.int32))
        assert float(sums.loss) == pytest.approx(1000 + math.log(2), rel=1e-6)

    def test_errors(self):
        with pytest.raises(ValueError, match="leaf kernel of the models holds 1 NaN"):
            ensemble(logits_fn, [{"kernel": jnp.array([[jnp.nan]])}], IMAGES, LABELS)
        with pytest.raises(ValueError, match="no examples to evaluate the ensemble on"):
            ensemble(logits_fn, [{"kernel": jnp.ones((3, 4))}], IMAGES[:0], LABELS[:0])
        with pytest.raises(ValueError, match="stack was given no model"):
            ensemble(logits_fn, [], IMAGES, LABELS)
