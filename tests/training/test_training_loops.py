"""Regularization in the training loops of Flax, nnx and Equinox, against a loop written out."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

from wsa_jax import proximal_scope, regularize_scope, scope_gradient, weight_scope

X, Y, KERNEL = (
    jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)
    for seed, shape in enumerate([(16, 5), (16, 3), (5, 3)])
)
GOAL = jax.jit(weight_scope)({"kernel": 0.3 * KERNEL + 0.1})
STEPS, RATE, STRENGTH = 3, 0.1, 2.0


def squared_error(prediction):
    return jnp.mean((prediction - Y) ** 2)


def named(scope, name):
    """The goal under the name that a module system gives the one kernel."""
    (found,) = scope.names
    assert found == name
    return type(scope)(mean=GOAL.mean, std=GOAL.std, names=scope.names, sizes=scope.sizes)


@pytest.fixture(scope="module")
def expected():
    kernel = KERNEL
    for _ in range(STEPS):
        gradient = jax.grad(lambda w: squared_error(X @ w))(kernel)
        gradient += STRENGTH * scope_gradient({"kernel": kernel}, GOAL)["kernel"]
        kernel -= RATE * gradient
    return kernel


def test_train_state_takes_the_target_with_the_transformation(expected):
    module = nn.Dense(3, use_bias=False)
    target = named(weight_scope({"kernel": KERNEL}), "kernel")
    chain = optax.chain(regularize_scope(STRENGTH, target=target), optax.sgd(RATE))
    state = TrainState.create(apply_fn=module.apply, params={"kernel": KERNEL}, tx=chain)
    for _ in range(STEPS):
        grads = jax.grad(lambda p: squared_error(module.apply({"params": p}, X)))(state.params)
        state = state.apply_gradients(grads=grads)
    np.testing.assert_allclose(state.params["kernel"], expected, rtol=1e-5)


def test_nnx_optimizer_passes_the_target_on(expected):
    model = nnx.Linear(5, 3, use_bias=False, rngs=nnx.Rngs(0))
    model.kernel[...] = KERNEL
    target = named(weight_scope(nnx.state(model, nnx.Param)), "kernel")
    chain = optax.chain(regularize_scope(STRENGTH), optax.sgd(RATE))
    optimizer = nnx.Optimizer(model, chain, wrt=nnx.Param)
    for _ in range(STEPS):
        grads = nnx.grad(lambda model: squared_error(model(X)))(model)
        optimizer.update(model, grads, target=target)
    np.testing.assert_allclose(model.kernel[...], expected, rtol=1e-5)


class Counted(eqx.Module):
    """A linear layer beside an integer that gradients leave out."""

    weight: jax.Array
    calls: jax.Array

    def __call__(self, x):
        return x @ self.weight


@pytest.mark.parametrize("transform", [regularize_scope, proximal_scope])
def test_equinox_filters_leave_none_among_the_updates(expected, transform):
    model = Counted(KERNEL, jnp.int32(7))
    target = named(weight_scope(model), "weight")
    parts = [regularize_scope(STRENGTH), optax.sgd(RATE)]
    if transform is proximal_scope:
        parts = [*parts, proximal_scope(RATE, 0.0)]
    chain = optax.chain(*parts)
    state = chain.init(eqx.filter(model, eqx.is_array))
    for _ in range(STEPS):
        grads = eqx.filter_grad(lambda model: squared_error(jax.vmap(model)(X)))(model)
        assert grads.calls is None
        updates, state = chain.update(grads, state, eqx.filter(model, eqx.is_array), target=target)
        model = eqx.apply_updates(model, updates)
    np.testing.assert_allclose(model.weight, expected, rtol=1e-5)
    assert model.calls == 7


def test_hyperparameters_may_be_injected(expected):
    params = {"kernel": KERNEL}
    inject = optax.inject_hyperparams(regularize_scope, static_args=("select",))
    chain = optax.chain(inject(strength=1.0), optax.sgd(RATE))
    state = chain.init(params)
    state[0].hyperparams["strength"] = jnp.float32(STRENGTH)
    for _ in range(STEPS):
        grads = jax.grad(lambda p: squared_error(X @ p["kernel"]))(params)
        updates, state = chain.update(grads, state, params, target=GOAL)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["kernel"], expected, rtol=1e-5)
