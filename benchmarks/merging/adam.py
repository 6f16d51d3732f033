"""Training by Adam, for experiments that compare optimisers: `wsa_jax.training.fit` is SGD."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from wsa_jax import regularize_scope
from wsa_jax.files import load_model, save_model
from wsa_jax.reductions import clip_gradient
from wsa_jax.scope.scope import WeightScope
from wsa_jax.training import FitResult, FitSettings, Task
from wsa_jax.training.task import Batch


def fit_by_adam(
    key: Array,
    task: Task,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    settings: FitSettings,
    learning_rate: optax.Schedule,
    directory: Path,
    target: WeightScope | None = None,
    strength: float = 0.0,
    params: PyTree | None = None,
    model_state: PyTree | None = None,
) -> FitResult:
    """Train as `fit` does, with Adam for SGD; kept in the directory when it has ended.

    Decay is added to the gradient, as PyTorch's Adam does, and so is WSA's. Initial weights and
    statistics, where none are given, and the order of the data are those that `fit` draws from the
    key.
    """
    kept = directory / "model.npz"
    if kept.is_file():
        tree = load_model(kept)
        return FitResult(tree["params"], tree.get("model_state", {}), tree["loss"])
    init_key, order_key, loss_key = jax.random.split(key, 3)
    optimizer = _optimizer(settings, learning_rate, target, strength)
    size, count = settings.batch_size, len(labels)
    per_epoch = count // size

    @jax.jit
    def run(
        images: Array, labels: Array, params: PyTree | None, model_state: PyTree | None
    ) -> FitResult:
        if params is None or model_state is None:
            drawn = task.init(init_key)
            params = drawn[0] if params is None else params
            model_state = drawn[1] if model_state is None else model_state

        def step(carry: tuple, index: Array) -> tuple[tuple, Array]:
            params, model_state, state, order = carry
            # Drawn again at the start of each epoch, as `fit` does.
            position = index % per_epoch
            order = jax.lax.cond(
                position == 0,
                lambda: jax.random.permutation(jax.random.fold_in(order_key, index), count),
                lambda: order,
            )
            rows = jax.lax.dynamic_slice_in_dim(order, position * size, size)
            batch = Batch(images[rows], labels[rows], jnp.ones(size))
            grad_fn = jax.value_and_grad(task.loss, argnums=1, has_aux=True)
            (loss, model_state), grads = grad_fn(
                jax.random.fold_in(loss_key, index), params, model_state, batch
            )
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), model_state, state, order), loss

        start = params, model_state, optimizer.init(params), jnp.arange(count)
        (params, model_state, *_), loss = jax.lax.scan(step, start, jnp.arange(settings.steps))
        return FitResult(params, model_state, loss)

    # Saved last: a model in the directory is one whose training has ended.
    result = run(jnp.asarray(images), jnp.asarray(labels), params, model_state)
    directory.mkdir(parents=True, exist_ok=True)
    state = {"model_state": result.model_state} if result.model_state else {}
    save_model(kept, {"params": result.params, "loss": result.loss} | state)
    return result


def _optimizer(
    settings: FitSettings,
    learning_rate: optax.Schedule,
    target: WeightScope | None,
    strength: float,
) -> optax.GradientTransformation:
    """WSA, clip and decay of the gradient, in this order, and then Adam."""
    parts = [optax.add_decayed_weights(settings.weight_decay), optax.adam(learning_rate)]
    if settings.clip_norm is not None:
        parts.insert(0, clip_gradient(settings.clip_norm))
    if target is not None:
        regularize = regularize_scope(strength, target=target, select=settings.select)
        parts.insert(0, regularize)
    return optax.chain(*parts)
