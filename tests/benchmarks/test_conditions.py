"""Training conditions: worsened data, initial weights, Adam, equal stds, how rows are judged."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from benchmarks.merging.adam import fit_by_adam
from benchmarks.merging.fig3_gaussianity import LAWS, distances, shapes_of
from benchmarks.merging.model_cell import (
    ModelCell,
    cell_task,
    check_cells,
    initial_params,
    train_model,
    worsened,
)
from benchmarks.merging.pairs import apply_fn, with_equal_stds
from benchmarks.merging.table1_conditions import correlation, correlation_verdict
from benchmarks.record.ledger import Ledger, cell_id
from benchmarks.refused import RefusedError
from wsa_jax.data import dataset_info
from wsa_jax.scope.scope import weight_scope
from wsa_jax.training import FitSettings, Task

CELL = ModelCell(dataset="digits", model="mlp", width=0.25)
LABELS = np.arange(5_000) % 10
INFO = dataset_info("cifar10")
PIXELS = np.full((5_000, 2, 2, 1), 128, np.uint8)


def test_later_fields_of_a_model_leave_its_id_alone():
    assert cell_id(ModelCell(seed=1)) == cell_id(
        ModelCell(seed=1, initialization="normal", optimizer="sgd", imbalance=1.0)
    )


def test_a_layer_is_nearest_the_law_that_it_is_of():
    shares = (np.arange(20_000) + 0.5) / 20_000
    for name, law in zip(LAWS, (stats.norm, stats.laplace, stats.uniform), strict=True):
        found = distances(law.ppf(shares))
        assert min(found, key=found.get) == name
        assert found[name] < 1e-3
    # Of a normal from a uniform law of its moments: |Φ(z) - U(z)| at the uniform's end, or inside.
    z = np.linspace(-5, 5, 100_001)
    uniform = np.clip(0.5 + z / (2 * np.sqrt(3)), 0, 1)
    expected = np.abs(stats.norm.cdf(z) - uniform).max()
    assert distances(stats.norm.ppf(shares))["uniform"] == pytest.approx(expected, abs=1e-3)


def test_histograms_are_densities_of_standardised_weights():
    weights = np.random.default_rng(0).normal(0.3, 0.02, (200, 100))
    (layer,) = shapes_of({"Dense_0": {"kernel": weights, "bias": np.zeros(100)}}, 61)
    assert layer["layer"] == "Dense_0/kernel"
    assert sum(layer["density"]) * 8 / 61 == pytest.approx(1, abs=1e-3)
    assert layer["mean"] == pytest.approx(0.3, abs=1e-3)


def test_uniform_initial_weights_have_the_variance_of_the_normal_ones():
    normal = initial_params(CELL)
    uniform = initial_params(dataclasses.replace(CELL, initialization="uniform"))
    for layer, fan_in in (("Dense_0", 64), ("Dense_1", 16)):
        kernel, bound = np.asarray(uniform[layer]["kernel"]), np.sqrt(6 / fan_in)
        assert 0.95 * bound < np.abs(kernel).max() <= bound
        assert kernel.std() == pytest.approx(np.sqrt(2 / fan_in), rel=0.08)
        # Each draw keeps its rank.
        order = np.argsort(np.asarray(normal[layer]["kernel"]), axis=None)
        assert (np.diff(kernel.ravel()[order]) >= 0).all()
        np.testing.assert_array_equal(uniform[layer]["bias"], 0)


def test_imbalance_keeps_a_falling_share_of_each_class():
    images, labels = worsened(ModelCell(imbalance=0.01), PIXELS, LABELS, INFO)
    shares = np.bincount(labels, minlength=10) / 500
    np.testing.assert_allclose(shares, 0.01 ** (np.arange(10) / 9), atol=0.07)
    assert shares[0] == 1 and len(images) == len(labels)


def test_label_noise_draws_a_share_of_the_labels_anew():
    images, labels = worsened(ModelCell(label_noise=0.4), PIXELS, LABELS, INFO)
    # A tenth of those drawn anew are what they were.
    assert np.mean(labels != LABELS) == pytest.approx(0.36, abs=0.02)
    assert images is PIXELS and labels.dtype == LABELS.dtype


def test_feature_noise_has_its_std_and_stays_in_the_range_of_pixels():
    images, labels = worsened(ModelCell(feature_noise=0.1), PIXELS, LABELS, INFO)
    assert (images.astype(float) - 128).std() == pytest.approx(25.5, rel=0.02)
    assert images.dtype == np.uint8 and labels is LABELS
    bright = worsened(ModelCell(feature_noise=0.5), PIXELS + np.uint8(127), LABELS, INFO)[0]
    # Half of the noise is upwards and cut off; nothing wraps around.
    assert np.mean(bright == 255) == pytest.approx(0.5, abs=0.02)


def test_equal_stds_multiply_the_logits_by_one_number():
    task, apply = cell_task(CELL), apply_fn(CELL)
    first, second = ({"params": task.init(jax.random.key(seed))[0]} for seed in (0, 1))
    second = jax.tree.map(lambda leaf: 0.7 * leaf + 0.01, second)
    moved, temperature = with_equal_stds(CELL, first, second)
    stds = [weight_scope(tree["params"]).std for tree in (first, moved)]
    np.testing.assert_allclose(*stds, rtol=1e-5)
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
    np.testing.assert_allclose(
        apply(moved, images), temperature * apply(second, images), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(ValueError, match="ResNet8 LN x1, 10 epochs: stds are made equal in plain"):
        with_equal_stds(ModelCell(depth=8, norm="layer"), first, second)


def linear_task():
    def init(key):
        return {"w": jax.random.normal(key, (3,))}, {}

    def loss(key, params, model_state, batch):
        return jnp.mean((batch.inputs @ params["w"] - batch.labels) ** 2), model_state

    return Task(init, loss, lambda *given: None, settings=(("loss", "squares"),))


def test_adams_first_step_is_the_rate_in_each_weight_and_a_model_kept_is_read(tmp_path):
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((20, 3)).astype(np.float32)
    labels = inputs @ np.array([3.0, -4.0, 5.0], np.float32)
    key, task = jax.random.key(0), linear_task()

    def fitted(folder):
        return fit_by_adam(
            key,
            task,
            inputs,
            labels,
            settings=FitSettings(steps=1, batch_size=20),
            learning_rate=optax.constant_schedule(0.01),
            directory=folder,
        )

    found = fitted(tmp_path / "run")
    begin = np.asarray(task.init(jax.random.split(key, 3)[0])[0]["w"])
    gradient = 2 * inputs.T @ (inputs @ begin - labels) / 20
    np.testing.assert_allclose(found.params["w"], begin - 0.01 * np.sign(gradient), atol=1e-5)
    labels = -labels
    again = fitted(tmp_path / "run")
    np.testing.assert_array_equal(again.params["w"], found.params["w"])
    assert (again.model_state, again.loss.shape) == ({}, (1,))


def test_adam_takes_uniform_weights_and_a_strength_that_sgd_refuses(tmp_path):
    strong = {"strength": 1e6, "target": "fixed", "target_std": 0.05, "learning_rate": 1e-3}
    cell = dataclasses.replace(
        CELL, width=0.0625, epochs=1, batch_size=500, augmentation="none", **strong
    )
    with pytest.raises(RefusedError, match="of the stable range"):
        check_cells([cell])
    cell = dataclasses.replace(cell, optimizer="adam", initialization="uniform")
    check_cells([cell])
    found = train_model(cell, Ledger(tmp_path / "models.jsonl"), tmp_path)
    # Two steps, the first of rate 0: one step of the rate against the sign of the gradient, which
    # is WSA's at this strength: (mean / target² + (w - mean) (1 / target² - 1 / std²)) / n.
    assert found.row["steps"] == 2
    begin = initial_params(cell)
    for name in ("Dense_0", "Dense_1", "Dense_2"):
        w = np.asarray(begin[name]["kernel"], np.float64)
        slope = w.mean() / 0.05**2 + (w - w.mean()) * (1 / 0.05**2 - 1 / w.var())
        expected = w - 1e-3 * np.sign(slope)
        np.testing.assert_allclose(found.params[name]["kernel"], expected, atol=1e-5)


def test_correlations_are_scipys_and_their_interval_decides():
    values = np.random.default_rng(0).normal(size=(8, 2)).round(1)
    found = correlation([tuple(point) for point in values])
    assert found.value == pytest.approx(stats.spearmanr(*values.T).statistic)
    low, high = found.interval
    assert -1 <= low <= found.value <= high <= 1
    unrelated = list(zip(range(8), (3, 6, 1, 4, 7, 0, 5, 2), strict=True))
    assert correlation_verdict(correlation(unrelated)) == "undecided"
    rising = [(x, x**3) for x in range(8)]
    assert correlation_verdict(correlation(rising)) == "confirmed"
    assert correlation_verdict(correlation([(x, -y) for x, y in rising])) == "the reverse"
    assert correlation(rising[:4]).interval is None
    assert correlation_verdict(correlation(rising[:4])) == "not run yet"
