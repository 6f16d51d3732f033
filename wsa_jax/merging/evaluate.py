"""What lies between two models: loss and accuracy on the line, and the barrier that they share."""

import functools
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, PyTree

from wsa_jax.training import Task, evaluate
from wsa_jax.tree import check_same_structure, lerp


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Path:
    """Mean loss and accuracy at points of the line from a first to a second model.

    Attributes:
      t: position, 0 at the first model and 1 at the second, ``[points]``.
      loss: mean loss, in the task's units, ``[points]``.
      accuracy: share of correct answers in [0, 1], ``[points]``.
    """

    t: Float[Array, " points"]
    loss: Float[Array, " points"]
    accuracy: Float[Array, " points"]


def interpolate_path(
    task: Task,
    first: PyTree,
    second: PyTree,
    images: Array,
    labels: Integer[Array, " examples"],
    *,
    model_state: PyTree = None,
    num_points: int = 25,
    batch_size: int = 500,
) -> Path:
    r"""Evaluate :math:`(1 - t) w_1 + t w_2` at evenly spaced t, one point after the other.

    Args:
      task: what the models were trained for.
      first: parameters at t = 0.
      second: parameters at t = 1, of the same structure.
      images: examples to evaluate on.
      labels: their labels.
      model_state: non-parameter collections of all points; none by default.
      num_points: number of points, both ends included.
      batch_size: examples evaluated at once.

    Guarantees: one model and one batch in memory at a time beside the two ends; both ends are
    exact.

    Raises:
      ValueError: the models differ in a leaf (named), fewer than 2 points, or no examples.

    Source: WSA, section 4.1.
    """
    check_same_structure(first, second)
    if num_points < 2:
        raise ValueError(f"num_points {num_points} is below 2; both ends are points")
    if len(labels) == 0:
        raise ValueError("no examples to evaluate the path on; give at least one")
    run = _path_fn(task, num_points, batch_size)
    return run(first, second, {} if model_state is None else model_state, images, labels)


@functools.lru_cache(maxsize=16)
def _path_fn(task: Task, num_points: int, batch_size: int):
    @jax.jit
    def run(
        first: PyTree, second: PyTree, model_state: PyTree, images: Array, labels: Array
    ) -> Path:
        def point(t: Array) -> tuple[Array, Array]:
            params = lerp(first, second, t)
            sums = evaluate(task, params, model_state, images, labels, batch_size=batch_size)
            return sums.loss / sums.count, sums.correct / sums.count

        t = jnp.linspace(0.0, 1.0, num_points)
        loss, accuracy = jax.lax.map(point, t)
        return Path(t=t, loss=loss, accuracy=accuracy)

    return run


def loss_barrier(
    path: Path, *, definition: Literal["paper", "endpoints"] = "paper"
) -> Float[Array, ""]:
    r"""Measure how far the loss rises above its ends on a path.

    .. math:: \text{paper:}\quad \max_t \; L(t) - [(1 - t) L(0) + t L(1)]

              \text{endpoints:}\quad \max_t L(t) - \tfrac12 [L(0) + L(1)]

    The two differ where the ends do. Both are at least 0 up to rounding, since t = 0 is a point.

    Raises:
      ValueError: the definition is unknown.

    >>> t = jnp.array([0.0, 0.5, 1.0])
    >>> path = Path(t=t, loss=jnp.array([1.0, 4.0, 2.0]), accuracy=1.0 - t)
    >>> float(loss_barrier(path)), float(loss_barrier(path, definition="endpoints"))
    (2.5, 2.5)

    Source: WSA, Eq. 7; the other is Git Re-Basin's.
    """
    first, last = path.loss[0], path.loss[-1]
    if definition == "paper":
        return jnp.max(path.loss - ((1 - path.t) * first + path.t * last))
    if definition == "endpoints":
        return jnp.max(path.loss) - 0.5 * (first + last)
    raise ValueError(f"definition {definition!r} is unknown; give 'paper' or 'endpoints'")
