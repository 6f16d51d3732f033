"""Straight-through matching: learn weights whose matching makes the midpoint's loss small."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Key, PyTree, Real, Shaped

from wsa_jax.door import door
from wsa_jax.merging.align.assignment import Matching, permuted
from wsa_jax.merging.align.cached_scores import CachedScores
from wsa_jax.merging.align.similarity import lay_out, prepare
from wsa_jax.merging.align.weight_matching import descend, generator
from wsa_jax.merging.result import check_real
from wsa_jax.merging.symmetry.spec import AxisSpec
from wsa_jax.merging.symmetry.units import identity_permutations
from wsa_jax.schedules import check_non_negative
from wsa_jax.training.task import Batch, Task
from wsa_jax.tree import lerp
from wsa_jax.types import Json


class Sgd(TypedDict, total=False):
    """How the free model descends.

    Attributes:
      learning_rate: a number, 0.01 by default.
      momentum: a number, 0.9 by default.
    """

    learning_rate: Real[ArrayLike, ""]
    momentum: float | int


__all__ = ["straight_through"]


@door
def straight_through(
    key: Key[Array, ""],
    spec: AxisSpec,
    first: PyTree,
    second: PyTree,
    task: Task,
    inputs: Array | np.ndarray,
    labels: Shaped[Array | np.ndarray, " examples"],
    *,
    model_state: PyTree = None,
    steps: int = 100,
    batch_size: int = 500,
    max_sweeps: int = 100,
    **sgd: Unpack[Sgd],
) -> Matching:
    r"""Search for permutations of low midpoint loss, through a free model projected onto them.

    .. math:: \pi_t = \text{weight matching of } w^2 \text{ to } v_t, \qquad
              L_t = L\bigl(\tfrac12 (w^1 + \pi_t(w^2))\bigr), \qquad
              v_{t+1} = v_t - \eta \, \nabla L_t

    The gradient passes through the projection as if it were the identity; :math:`v_0 = w^1`, so
    step 0 is weight matching, and each matching starts from the previous one.

    Args:
      key: draws batches, the loss's own randomness and visiting orders.
      spec: which axes move together.
      first: the model that stays fixed: parameters, or variables ``{"params": ..., collections}``,
        whichever the spec names.
      second: the model to reorder to match ``first``, in the same form.
      task: the task whose training loss is minimised.
      inputs: ``[examples, ...]``, training data.
      labels: ``[examples]``.
      model_state: non-parameter collections of the midpoint; none by default, or, where the
        models are variables, the midpoint of the models' collections.
      steps: number of batches; the matching is judged on each.
      batch_size: examples per step, at most all of them.
      max_sweeps: maximum number of sweeps per matching.
      sgd: SGD on the free model: ``learning_rate`` (0.01) and ``momentum`` (0.9).

    Returns:
      The permutations of lowest loss, and ``info`` with ``loss`` ``[steps]`` of the midpoints as
      measured in training, ``best_step``, ``seconds`` and ``matching_seconds``.

    Guarantees: arguments are unchanged; equal keys give equal results. The best permutations are
    kept, not the last. Losses of different batches are compared: to judge by the whole set, set
    ``batch_size`` to the number of examples.

    Raises:
      ValueError: no data, fewer than one step or one example per batch, a negative learning rate,
        no finite loss, or as for `weight_matching`.
      NotAdmittedError: complex weights.

    Source: Ainsworth et al., Git Re-Basin, ICLR 2023, Algorithm 3, as in their code (random
    batches of one epoch, momentum); the paper states that the best is kept.
    """
    begin = time.perf_counter()
    if len(labels) == 0:
        raise ValueError("no training data: labels are empty; give at least one example")
    if min(steps, batch_size, max_sweeps) < 1:
        raise ValueError(
            f"steps {steps}, batch_size {batch_size} and max_sweeps {max_sweeps} must be at least 1"
        )
    learning_rate, momentum = sgd.get("learning_rate", 0.01), sgd.get("momentum", 0.9)
    check_non_negative(learning_rate, "learning_rate", schedule=False)
    prepare(spec, first, second)
    check_real(first, "straight-through matching")
    rng, size = generator(key), min(batch_size, len(labels))
    step = _step(task)
    free, velocity = first, jax.tree.map(jnp.zeros_like, first)
    state = {} if model_state is None else model_state
    permutations = identity_permutations(spec)
    best, best_step, best_loss, losses, matching_seconds = permutations, 0, np.inf, [], 0.0
    order = np.zeros(0, int)
    for index in range(steps):
        # Projection: the second model's order that comes closest to the free model as it now is.
        start = time.perf_counter()
        scores = CachedScores(lay_out(spec, free, second))
        permutations = descend(rng, scores, permutations, max_sweeps=max_sweeps).permutations
        matching_seconds += time.perf_counter() - start
        # Whole batches of one epoch after another, as in the authors' code.
        if len(order) < size:
            order = rng.permutation(len(labels))
        rows, order = order[:size], order[size:]
        batch = Batch(jnp.asarray(inputs[rows]), jnp.asarray(labels[rows]), jnp.ones(size))
        projected = permuted(spec, second, permutations)
        free, velocity, loss = step(
            jax.random.fold_in(key, index),
            first,
            projected,
            free,
            velocity,
            state,
            batch,
            jnp.float32(learning_rate),
            jnp.float32(momentum),
        )
        losses.append(float(loss))
        # The free model may leave a good order again, so the best is kept and not the last.
        if losses[index] < best_loss:
            best, best_step, best_loss = permutations, index, losses[index]
    if not np.isfinite(best_loss):
        raise ValueError(
            f"none of the {steps} losses was finite, the first was {losses[0]}; "
            f"give a learning_rate below {learning_rate}, or other models or examples"
        )
    info: Json = {
        "loss": np.asarray(losses),
        "best_step": best_step,
        "seconds": time.perf_counter() - begin,
        "matching_seconds": matching_seconds,
    }
    return Matching(best, info)


@functools.lru_cache(maxsize=16)
def _step(task: Task) -> Callable[..., tuple[PyTree, PyTree, Array]]:
    @jax.jit
    def run(
        key: Array,
        first: PyTree,
        projected: PyTree,
        free: PyTree,
        velocity: PyTree,
        model_state: PyTree,
        batch: Batch,
        learning_rate: Array,
        momentum: Array,
    ) -> tuple[PyTree, PyTree, Array]:
        def loss_of(midpoint: PyTree) -> tuple[Array, PyTree]:
            if not (isinstance(midpoint, Mapping) and "params" in midpoint):
                return task.loss(key, midpoint, model_state, batch)
            collections = {name: value for name, value in midpoint.items() if name != "params"}
            return task.loss(key, midpoint["params"], collections | model_state, batch)

        # Through the projection: the midpoint's gradient, times the projected model's weight, 1/2.
        midpoint = lerp(first, projected, 0.5)
        (loss, _), grads = jax.value_and_grad(loss_of, has_aux=True)(midpoint)
        grads = jax.tree.map(lambda g: 0.5 * g, grads)
        velocity = jax.tree.map(lambda v, g: momentum * v + g, velocity, grads)
        free = optax.apply_updates(free, jax.tree.map(lambda v: -learning_rate * v, velocity))
        return free, velocity, loss

    return run
