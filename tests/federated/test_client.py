"""Local training against a plain loop, and the batches it draws."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsa_jax import constant_target, proximal_scope_step, scope_gradient, weight_scope
from wsa_jax.federated import LocalSettings, fed_avg
from wsa_jax.federated.client import (
    Broadcast,
    ScopeForm,
    draw_batches,
    epochs_needed,
    train_client,
)
from wsa_jax.scope.layers import all_leaves, kernels
from wsa_jax.training import Batch

draw = jax.jit(draw_batches, static_argnames=("capacity", "steps", "batch_size", "epochs"))
SHAPE = {"capacity": 13, "steps": 9, "batch_size": 4, "epochs": 9}


class TestDrawBatches:
    @pytest.mark.parametrize("size", [1, 3, 4, 9, 12, 13])
    def test_every_epoch_shows_every_example_once(self, size):
        positions, mask = draw(jax.random.key(size), jnp.int32(size), **SHAPE)
        assert positions.shape == mask.shape == (9, 4)
        per_epoch = -(-size // 4)
        for start in range(0, 9 - per_epoch + 1, per_epoch):
            rows = slice(start, start + per_epoch)
            seen = np.asarray(positions[rows])[np.asarray(mask[rows]) == 1]
            assert sorted(seen) == list(range(size))

    def test_only_the_last_batch_of_an_epoch_is_smaller(self):
        _, mask = draw(jax.random.key(0), jnp.int32(10), **SHAPE)
        assert mask.sum(axis=1).tolist() == [4, 4, 2] * 3

    @pytest.mark.parametrize("size", [1, 3, 5, 12, 13])
    def test_what_a_batch_lacks_is_filled_up_evenly(self, size):
        positions, _ = draw(jax.random.key(0), jnp.int32(size), **SHAPE)
        for row in np.asarray(positions):
            counts = np.bincount(row, minlength=size)
            assert len(counts) == size
            assert counts.max() - counts.min() <= 1

    def test_no_examples_give_empty_batches_that_are_safe_to_gather(self):
        positions, mask = draw(jax.random.key(0), jnp.int32(0), **SHAPE)
        assert not mask.any()
        assert not positions.any()

    def test_orders_differ_between_epochs_and_keys(self):
        first, _ = draw(jax.random.key(0), jnp.int32(12), **SHAPE)
        other, _ = draw(jax.random.key(1), jnp.int32(12), **SHAPE)
        assert not np.array_equal(first, other)
        assert not np.array_equal(first[:3], first[3:6])
        np.testing.assert_array_equal(first, draw(jax.random.key(0), jnp.int32(12), **SHAPE)[0])

    def test_each_example_is_equally_likely_to_come_first(self):
        keys = jax.random.split(jax.random.key(0), 3000)
        firsts = jax.jit(jax.vmap(lambda key: draw(key, jnp.int32(5), **SHAPE)[0][0, 0]))(keys)
        np.testing.assert_allclose(np.bincount(firsts, minlength=5) / 3000, 0.2, atol=0.03)

    def test_vmap_over_unequal_sizes(self):
        sizes = jnp.array([0, 5, 13])
        _, masks = jax.vmap(lambda size: draw(jax.random.key(0), size, **SHAPE))(sizes)
        assert masks.sum(axis=(1, 2)).tolist() == [0, 5 * 4 + 4, 2 * 13 + 4]

    @pytest.mark.parametrize(
        ("smallest", "expected"), [(100, 10), (50, 20), (49, 20), (51, 10), (1000, 1), (0, 20)]
    )
    def test_epochs_needed_covers_the_smallest_client(self, smallest, expected):
        assert epochs_needed(smallest, steps=20, batch_size=50) == expected


class TestTrainClient:
    """One client is centralised SGD: the oracle is a loop that says the order of a local step."""

    RATE = 0.2
    LOCAL = LocalSettings(steps=5, batch_size=8, clip_norm=0.5, weight_decay=0.05, momentum=0.5)

    @pytest.fixture(scope="class")
    @classmethod
    def grad_fn(cls, federation):
        return jax.jit(jax.grad(lambda p, b: federation.task.loss(jax.random.key(0), p, {}, b)[0]))

    def oracle(self, federation, grad_fn, params, target, scope_form, strength):
        form = scope_form and scope_form.form
        which = scope_form and {"select": scope_form.select, "scale": scope_form.scale}
        if form in ("gradient", "penalty"):
            which["direction"] = scope_form.direction
        data, client = federation.data, 0
        data_key, _ = jax.random.split(federation.key)
        positions, mask = draw(
            data_key, data.sizes[client], capacity=25, steps=5, batch_size=8, epochs=2
        )
        pull, prox = (
            jax.jit(partial(step, **(which or {})))
            for step in (scope_gradient, proximal_scope_step)
        )
        params = jax.device_get(params)
        velocity = jax.tree.map(np.zeros_like, params)
        for rows, weights in zip(positions, mask, strict=True):
            chosen = data.indices[client][rows]
            batch = Batch(data.inputs[chosen], data.labels[chosen], weights)
            grads = jax.device_get(grad_fn(params, batch))
            if form in ("gradient", "penalty"):
                more = jax.device_get(pull(params, target))
                grads = jax.tree.map(lambda g, p: g + strength * p, grads, more)
            norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(grads)))
            grads = jax.tree.map(lambda g, n=norm: g * min(1, 0.5 / n), grads)
            grads = jax.tree.map(lambda g, w: g + 0.05 * w, grads, params)
            velocity = jax.tree.map(lambda v, g: 0.5 * v + g, velocity, grads)
            params = jax.tree.map(lambda w, v: w - self.RATE * v, params, velocity)
            if form == "proximal":
                params = jax.device_get(
                    prox(params, target, step_size=self.RATE, strength=strength)
                )
        return params

    @pytest.mark.parametrize(
        ("form", "strength"),
        [
            (None, 0.0),
            *((ScopeForm(form=form), 3.0) for form in ("gradient", "penalty", "proximal")),
            (ScopeForm(form="penalty", direction="target||weights"), 3.0),
            # By size a divergence counts up to 27 times, and a bias is a layer as well.
            *(
                (ScopeForm(form=form, scale="size", select=all_leaves), 0.01)
                for form in ("gradient", "penalty", "proximal")
            ),
        ],
    )
    def test_equals_a_plain_loop(self, federation, grad_fn, assert_close, form, strength):
        params, _ = federation.task.init(jax.random.key(1))
        select = form.select if form else kernels
        target = constant_target(weight_scope(params, select=select), mean=0.1, std=0.5)
        algorithm = fed_avg()
        train = partial(
            train_client,
            task=federation.task,
            algorithm=algorithm,
            local=self.LOCAL,
            scope_form=form,
            epochs=2,
        )
        server = Broadcast(params, {}, target)
        settings = federation.settings(self.RATE, strength)
        result = jax.jit(train)(federation.key, server, federation.client(0), settings)
        expected = self.oracle(federation, grad_fn, params, target, form, strength)
        found = jax.tree.map(jnp.add, params, result.update)
        assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert np.isfinite(result.loss)


class TestSettings:
    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("momentum", 1.5, r"momentum 1.5 is not in \[0, 1\)"),
            ("weight_decay", float("nan"), r"weight_decay nan is not in \[0, inf\)"),
            ("weight_decay", -1.0, r"weight_decay -1.0 is not in"),
        ],
    )
    def test_rates_are_in_their_range(self, name, value, message):
        with pytest.raises(ValueError, match=message):
            LocalSettings(**{name: value})

    def test_steps_are_whole(self, rejected):
        with pytest.raises(ValueError, match=r"steps must be a positive integer, got 2.5"):
            rejected(LocalSettings(), steps=2.5)

    @pytest.mark.parametrize("name", ["steps", "batch_size"])
    def test_counts_are_positive(self, name):
        with pytest.raises(ValueError, match=f"{name} must be a positive integer, got 0"):
            LocalSettings(**{name: 0})

    def test_clip_norm_is_positive(self):
        with pytest.raises(ValueError, match="clip_norm 0 is not positive"):
            LocalSettings(clip_norm=0)
