"""Greedy soup: an independent choice in NumPy, on models whose soup is known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsa_jax.merging import greedy_soup
from wsa_jax.training import Metrics, Task, evaluate
from wsa_jax.tree import stack

TARGET = np.array([1.0, -2.0, 0.5])
RNG = np.random.default_rng(3)
INPUTS = RNG.normal(size=(30, 3)).astype(np.float32)
LABELS = (INPUTS @ TARGET + 0.1 * RNG.normal(size=30)).astype(np.float32)
MODELS = [{"w": (TARGET + RNG.normal(size=3)).astype(np.float32)} for _ in range(5)]


def metrics(params, model_state, batch):
    shift = model_state.get("shift", 0.0)
    errors = (batch.inputs @ params["w"] + shift - batch.labels) ** 2
    return Metrics(jnp.sum(errors * batch.mask), None, jnp.sum(batch.mask))


TASK = Task(lambda key: ({}, {}), lambda *_: (jnp.float32(0), {}), metrics)


def loss(weights):
    return np.mean((INPUTS.astype(np.float64) @ weights - LABELS) ** 2)


def test_the_choice_is_numpys():
    found = greedy_soup(TASK, MODELS, INPUTS, LABELS)
    weights = np.array([model["w"] for model in MODELS], np.float64)
    order = sorted(range(5), key=lambda i: loss(weights[i]))
    chosen = [order[0]]
    for i in order[1:]:
        if loss(weights[[*chosen, i]].mean(axis=0)) <= loss(weights[chosen].mean(axis=0)):
            chosen.append(i)
    assert found.info["chosen"] == chosen
    assert 1 < len(chosen) < 5  # or the example tells nothing
    np.testing.assert_allclose(found.params["w"], weights[chosen].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.info["score"], -loss(weights[chosen].mean(axis=0)), rtol=1e-4)
    np.testing.assert_allclose(found.info["scores"], [-loss(w) for w in weights], rtol=1e-4)


def test_is_never_worse_than_the_best_model():
    for pair in itertools.combinations(MODELS, 2):
        info = greedy_soup(TASK, stack(pair), INPUTS, LABELS).info
        assert info["score"] >= max(info["scores"])


def test_one_model_is_kept_bitwise():
    good, bad = {"w": TARGET.astype(np.float32)}, {"w": np.float32([50, 50, 50])}
    states = [{"shift": np.float32(0)}, {"shift": np.float32(9)}]
    found = greedy_soup(TASK, [bad, good], INPUTS, LABELS, model_states=states[::-1])
    assert found.info["chosen"] == [1]
    np.testing.assert_array_equal(found.params["w"], good["w"])
    assert found.model_state["shift"] == 0


def test_states_are_averaged_or_repaired_before_the_score():
    pair = [{"w": np.float32(TARGET + 1)}, {"w": np.float32(TARGET - 1)}]
    states = [{"shift": np.float32(-1)}, {"shift": np.float32(1)}]
    found = greedy_soup(TASK, pair, INPUTS, LABELS, model_states=states)
    assert float(found.model_state["shift"]) == 0
    repaired = greedy_soup(
        TASK,
        pair,
        INPUTS,
        LABELS,
        model_states=states,
        repair=lambda p, s: {"shift": s["shift"] * 0 + 9},
    )
    assert len(repaired.info["chosen"]) == 1  # such a shift makes the average worse than either
    sums = evaluate(TASK, repaired.params, repaired.model_state, INPUTS, LABELS)
    np.testing.assert_allclose(-float(sums.loss) / 30, repaired.info["score"], rtol=1e-5)


def test_a_classifier_is_scored_by_its_accuracy(tiny_task, tiny_data):
    models = [tiny_task.init(jax.random.key(seed))[0] for seed in range(2)]
    info = greedy_soup(tiny_task, models, *tiny_data).info
    sums = [evaluate(tiny_task, model, {}, *tiny_data) for model in models]
    np.testing.assert_allclose(info["scores"], [s.correct / s.count for s in sums], rtol=1e-6)


def test_errors():
    with pytest.raises(ValueError, match="no models to average; give at least one"):
        greedy_soup(TASK, [], INPUTS, LABELS)
    with pytest.raises(ValueError, match="1 model states for 2 models; give one per model"):
        greedy_soup(TASK, MODELS[:2], INPUTS, LABELS, model_states=[{}])
    with pytest.raises(ValueError, match="leaf w of model 2 holds 3 NaN"):
        greedy_soup(TASK, [MODELS[0], {"w": np.full(3, np.nan, np.float32)}], INPUTS, LABELS)
