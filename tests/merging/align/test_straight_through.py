"""Straight-through matching: its first step, its gradient, and that the best is kept."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsa_jax.merging.align import align, straight_through, weight_matching
from wsa_jax.merging.align.straight_through import _step
from wsa_jax.merging.symmetry.spec import Tie, hand_written
from wsa_jax.merging.symmetry.units import permute_units
from wsa_jax.training import Batch
from wsa_jax.tree import lerp

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def models(tiny_task):
    first, second = (tiny_task.init(jax.random.key(seed))[0] for seed in range(2))
    ties = [Tie(leaf="Dense_0/kernel", axis=1), Tie(leaf="Dense_0/bias", axis=0),
            Tie(leaf="Dense_1/kernel", axis=0, role="consumed")]  # fmt: skip
    return hand_written({"hidden": ties}, first), first, second


def test_the_best_permutations_are_kept(models, tiny_task, tiny_data):
    spec, first, second = models
    before = jax.tree.map(np.array, (first, second))

    def search():
        return straight_through(
            KEY, spec, first, second, tiny_task, *tiny_data,
            steps=12, batch_size=60, learning_rate=100.0,
        )  # fmt: skip

    found, again = search(), search()
    loss = found.info["loss"]
    assert loss[found.info["best_step"]] == loss.min() < loss[0]
    assert loss.min() < loss[-1]  # Else keeping the last would do as well.
    batch = Batch(*map(jnp.asarray, tiny_data), jnp.ones(60))
    midpoint = lerp(first, align(spec, second, found), 0.5)
    np.testing.assert_allclose(tiny_task.loss(KEY, midpoint, {}, batch)[0], loss.min(), rtol=1e-5)
    np.testing.assert_array_equal(loss, again.info["loss"])
    np.testing.assert_array_equal(found.permutations["hidden"], again.permutations["hidden"])
    jax.tree.map(np.testing.assert_array_equal, (first, second), before)


def test_variables_are_searched_like_their_parameters(models, tiny_task, tiny_data):
    spec, first, second = models
    ties = [dataclasses.replace(tie, leaf=f"params/{tie.leaf}") for tie in spec["hidden"].ties]
    whole = hand_written({"hidden": ties}, {"params": first})
    settings = {"steps": 2, "batch_size": 60, "learning_rate": 100.0}
    expected = straight_through(KEY, spec, first, second, tiny_task, *tiny_data, **settings)
    pair = ({"params": first}, {"params": second})
    found = straight_through(KEY, whole, *pair, tiny_task, *tiny_data, **settings)
    np.testing.assert_array_equal(found.info["loss"], expected.info["loss"])
    np.testing.assert_array_equal(found.permutations["hidden"], expected.permutations["hidden"])


def test_its_first_step_is_weight_matching(models, tiny_task, tiny_data):
    spec, first, second = models
    found = straight_through(KEY, spec, first, second, tiny_task, *tiny_data, steps=1)
    expected = weight_matching(KEY, spec, first, second, restarts=1)
    np.testing.assert_array_equal(found.permutations["hidden"], expected.permutations["hidden"])


def test_the_gradient_passes_the_projection_unchanged(models, tiny_task, tiny_data):
    spec, first, second = models
    projected = permute_units(spec, second, {"hidden": np.arange(72)[::-1]})
    batch = Batch(*map(jnp.asarray, tiny_data), jnp.ones(60))

    def loss(free):
        through = jax.tree.map(lambda f, p: f + jax.lax.stop_gradient(p - f), free, projected)
        return tiny_task.loss(KEY, lerp(first, through, 0.5), {}, batch)[0]

    free = jax.tree.map(lambda w: 1.1 * w, first)
    zeros = jax.tree.map(jnp.zeros_like, first)
    rate, momentum = jnp.float32(0.1), jnp.float32(0.9)
    stepped, velocity, _ = _step(tiny_task)(
        KEY, first, projected, free, zeros, {}, batch, rate, momentum
    )
    gradient = jax.jit(jax.grad(loss))(free)
    for got, w, g in zip(*map(jax.tree.leaves, (stepped, free, gradient)), strict=True):
        np.testing.assert_allclose(got, w - 0.1 * g, rtol=1e-5, atol=1e-6)
    again, _, _ = _step(tiny_task)(KEY, first, projected, free, velocity, {}, batch, rate, momentum)
    for got, w, v in zip(*map(jax.tree.leaves, (again, free, velocity)), strict=True):
        np.testing.assert_allclose(got, w - 0.1 * 1.9 * v, rtol=1e-5, atol=1e-6)


def test_errors_name_the_setting(models, tiny_task, tiny_data):
    spec, first, second = models
    images, labels = tiny_data
    with pytest.raises(ValueError, match="no training data: labels are empty"):
        straight_through(KEY, spec, first, second, tiny_task, images[:0], labels[:0])
    with pytest.raises(ValueError, match="steps 0, batch_size 500 and max_sweeps 100 must be"):
        straight_through(KEY, spec, first, second, tiny_task, images, labels, steps=0)
    with pytest.raises(ValueError, match=r"learning_rate -1.0 is not a non-negative number"):
        straight_through(KEY, spec, first, second, tiny_task, images, labels, learning_rate=-1.0)
    phases = jax.tree.map(lambda leaf: leaf + 0j, (first, second))
    with pytest.raises(ValueError, match="leaf Dense_0/bias is of type complex64, and straight-"):
        straight_through(KEY, spec, *phases, tiny_task, images, labels)
    broken = second | {"Dense_0": second["Dense_0"] | {"bias": jnp.full(72, jnp.nan)}}
    with pytest.raises(ValueError, match="leaf Dense_0/bias of the second model holds 72 NaN"):
        straight_through(KEY, spec, first, broken, tiny_task, images, labels)


def test_a_loss_that_is_not_finite_is_never_the_best(models, tiny_task, tiny_data):
    spec, first, second = models

    def search(first_loss):
        # The losses of the steps, one after another.
        losses = iter([first_loss, *[jnp.nan] * 5] if np.isnan(first_loss) else [jnp.nan, 1.0, 1.0])

        def loss(key, params, model_state, batch):
            del key, batch
            value = jax.experimental.io_callback(
                lambda: np.float32(next(losses)), jax.ShapeDtypeStruct((), np.float32)
            )
            return value + 0 * sum(leaf.sum() for leaf in jax.tree.leaves(params)), model_state

        task = tiny_task._replace(loss=loss)
        return straight_through(KEY, spec, first, second, task, *tiny_data, steps=3, batch_size=60)

    assert search(1.0).info["best_step"] == 1
    with pytest.raises(ValueError, match="of the 3 losses was finite, the first was nan; give a"):
        search(np.nan)
