"""Local optimisers against loops written out, and what they are not defined with."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from tests.trees import assert_bitwise
from wsa_jax import proximal_scope_step, scope_gradient, weight_scope
from wsa_jax.federated import (
    Broadcast,
    LocalSettings,
    ScopeForm,
    WeightScopeAlignment,
    fed_avg,
    fed_prox,
    scaffold,
)
from wsa_jax.federated.client import draw_batches, train_client
from wsa_jax.training import Batch

RATE, CLIP, DECAY, STRENGTH, MU = 0.05, 0.5, 0.02, 3.0, 0.3
PLAIN = {"steps": 5, "batch_size": 8, "clip_norm": CLIP, "weight_decay": DECAY}


def trained(federation, params, target, algorithm, form=None, **settings):
    """Parameters of client 0 after its local steps."""
    train = partial(
        train_client,
        task=federation.task,
        algorithm=algorithm,
        local=LocalSettings(**(PLAIN | settings)),
        scope_form=form,
        epochs=2,
    )
    server = Broadcast(params, {}, target)
    numbers = federation.settings(RATE, STRENGTH)
    result = jax.jit(train)(federation.key, server, federation.client(0), numbers)
    return jax.tree.map(jnp.add, params, result.update)


@pytest.fixture(scope="module")
def start(federation):
    params, _ = federation.task.init(jax.random.key(1))
    other, _ = federation.task.init(jax.random.key(2))
    return params, weight_scope(jax.tree.map(lambda leaf: 0.1 + 2 * leaf, other))


@pytest.fixture(scope="module")
def gradients(federation, start):
    """One function a step: the gradient that the optimiser is given, in NumPy."""
    data, (first, target) = federation.data, start
    data_key, _ = jax.random.split(federation.key)
    positions, masks = draw_batches(
        data_key, data.sizes[0], capacity=25, steps=5, batch_size=8, epochs=2
    )
    loss = jax.jit(jax.grad(lambda p, batch: federation.task.loss(data_key, p, {}, batch)[0]))
    pull = jax.jit(lambda params: scope_gradient(params, target))

    def of_batch(batch, params, *, mu=0.0, strength=0.0):
        grads = jax.device_get(loss(params, batch))
        grads = jax.tree.map(lambda g, w, v: g + mu * (w - v), grads, params, first)
        if strength:
            more = jax.device_get(pull(params))
            grads = jax.tree.map(lambda g, p: g + strength * p, grads, more)
        norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(grads)))
        return jax.tree.map(lambda g, w: g * min(1, CLIP / norm) + DECAY * w, grads, params)

    rows = [data.indices[0][position] for position in positions]
    batches = [
        Batch(data.inputs[row], data.labels[row], mask)
        for row, mask in zip(rows, masks, strict=True)
    ]
    return [partial(of_batch, batch) for batch in batches]


def adam_by_hand(params, gradients, after=lambda params: params, **composed):
    params = jax.device_get(params)
    mean = square = jax.tree.map(np.zeros_like, params)
    for step, gradient in enumerate(gradients, 1):
        grads = gradient(params, **composed)
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, grads)
        square = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, square, grads)
        params = jax.tree.map(
            lambda w, m, v, t=step: (
                w - RATE * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            ),
            params,
            mean,
            square,
        )
        params = jax.device_get(after(params))
    return params


def test_adam(federation, start, gradients, assert_close):
    found = trained(federation, *start, fed_avg(), optimizer=optax.adam)
    assert_close(found, adam_by_hand(start[0], gradients), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("form", ["gradient", "proximal"])
def test_adam_composes_with_fed_prox_and_alignment(
    federation, start, gradients, form, assert_close
):
    params, target = start
    found = trained(
        federation, params, target, fed_prox(MU), ScopeForm(form=form), optimizer=optax.adam
    )
    prox = jax.jit(
        lambda params: proximal_scope_step(params, target, step_size=RATE, strength=STRENGTH)
    )
    explicit = form == "gradient"
    expected = adam_by_hand(
        params,
        gradients,
        after=(lambda params: params) if explicit else prox,
        mu=MU,
        strength=STRENGTH if explicit else 0.0,
    )
    assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_a_schedule_within_the_round(federation, start, gradients, assert_close):
    found = trained(
        federation, *start, fed_avg(),
        optimizer=lambda rate: optax.sgd(optax.linear_schedule(rate, 0.0, 5)),
    )  # fmt: skip
    params = jax.device_get(start[0])
    for step, gradient in enumerate(gradients):
        rate = RATE * (1 - step / 5)
        params = jax.tree.map(lambda w, g, r=rate: w - r * g, params, gradient(params))
    assert_close(found, params, rtol=1e-4, atol=1e-6)


def test_sharpness_aware_minimisation(federation, start, gradients, assert_close):
    """The second gradient is that of the same batch, with all that a local step adds to it."""
    radius = 0.05

    def sam(rate):
        ascent = optax.chain(optax.contrib.normalize(), optax.sgd(radius))
        return optax.contrib.sam(optax.sgd(rate), ascent, opaque_mode=True)

    found = trained(federation, *start, fed_avg(), ScopeForm(), optimizer=sam)
    params = jax.device_get(start[0])
    for gradient in gradients:
        up = gradient(params, strength=STRENGTH)
        norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(up)))
        there = jax.tree.map(lambda w, g, n=norm: w + radius * g / n, params, up)
        down = gradient(there, strength=STRENGTH)
        params = jax.tree.map(lambda w, g: w - RATE * g, params, down)
    assert_close(found, params, rtol=1e-3, atol=1e-5)


def test_sgd_by_name_is_the_default_bitwise(federation, start):
    default = trained(federation, *start, fed_avg(), momentum=0.5)
    named = trained(
        federation, *start, fed_avg(), optimizer=lambda rate: optax.sgd(rate, momentum=0.5)
    )
    assert_bitwise(named, default)


def test_scaffold_refuses_what_its_variates_are_not_defined_for(federate):
    with pytest.raises(ValueError, match="scaffold is not defined for another local optimizer"):
        federate(algorithm=scaffold(), local=LocalSettings(optimizer=optax.adam))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": optax.adam(0.1)}, "a rate of its own; give a function of the learning rate"),
        ({"optimizer": optax.adam, "momentum": 0.9}, "momentum 0.9 is that of SGD, but an optim"),
    ],
)
def test_settings_that_would_have_no_effect(rejected, settings, message):
    with pytest.raises(ValueError, match=message):
        rejected(LocalSettings(), **settings)


def test_the_bound_of_sgd_is_not_asked_of_others_and_runs_are_told_apart(federate, tmp_path):
    local = LocalSettings(steps=2, batch_size=8, optimizer=optax.adam)
    wsa = WeightScopeAlignment(strength=1e4)
    result = federate(wsa=wsa, local=local, learning_rate=1e-3, rounds=2, directory=tmp_path)
    assert np.isfinite(result.history[-1]["train_loss"])
    assert result.history[-1]["stability"] == 0
    other = LocalSettings(steps=2, batch_size=8, optimizer=optax.nadam)
    with pytest.raises(ValueError, match=r"holds a run with local = .*adam"):
        federate(wsa=wsa, local=other, learning_rate=1e-3, rounds=2, directory=tmp_path)
