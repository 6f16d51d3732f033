"""Loss and accuracy on the line between two models, and the barrier between them."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key, PyTree, Real, Shaped

from wsa_jax import checks
from wsa_jax.door import door
from wsa_jax.merging.repair.batch_norm import reset_batch_norm
from wsa_jax.merging.repair.statistics import find_statistics
from wsa_jax.training.checks import check_data, check_evaluable
from wsa_jax.training.evaluation import evaluate
from wsa_jax.training.task import Task
from wsa_jax.tree import is_traced, lerp
from wsa_jax.types import Inputs

Definition = Literal["paper", "endpoints"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LossPath:
    """Mean loss and accuracy at points on the line from a first to a second model.

    Attributes:
      t: position, 0 at the first model and 1 at the second, ``[points]``.
      loss: mean loss, in the task's units, ``[points]``.
      accuracy: share of correct answers in [0, 1], ``[points]``; None for a task without one.
      own: means of the task's own metrics by name, each ``[points]``.
    """

    t: Float[Array, "*paths points"]
    loss: Float[Array, "*paths points"]
    accuracy: Float[Array, "*paths points"] | None
    own: dict[str, Float[Array, "*paths points"]] = field(default_factory=dict)


Path = LossPath
"""The earlier name of `LossPath`."""


@door
def interpolate_path(
    task: Task,
    first: PyTree,
    second: PyTree,
    inputs: Inputs,
    labels: Shaped[Array | np.ndarray, "examples ..."],
    *,
    model_state: PyTree = None,
    second_state: PyTree = None,
    calibration: Inputs | None = None,
    key: Key[Array, ""] | None = None,
    t: Real[ArrayLike, " points"] | Sequence[float | int] | None = None,
    num_points: int = 25,
    batch_size: int = 500,
) -> LossPath:
    r"""Evaluate :math:`(1 - t) w_1 + t w_2` at points t, one after the other.

    Args:
      task: what the models were trained for.
      first: parameters at t = 0.
      second: parameters at t = 1, of the same structure.
      inputs: examples to evaluate on.
      labels: their labels.
      model_state: non-parameter collections of the first model; none by default.
      second_state: those of the second; by default the first's. At intermediate
        points, both states are interpolated linearly, variances as well as means.
      calibration: training inputs on which `reset_batch_norm` estimates the BatchNorm statistics
        of every point, ends included, instead of interpolating them.
      key: for augmentation and dropout while statistics are estimated; key 0 by default.
      t: positions, in any order and also beyond the ends; by default ``num_points`` evenly spaced
        ones.
      num_points: number of points, both ends included; unused if t is given.
      batch_size: examples at once, in evaluation and calibration.

    Guarantees: one model and one batch in memory at a time besides the two ends; without
    calibration both ends are exact; a different t of the same length does not compile again.

    Raises:
      ValueError: models that differ in a leaf or hold NaN (the leaf is named), fewer than 2 points,
        an empty t, no examples, no calibration images, or t outside [0, 1] where variances of two
        models would be extrapolated.

    Source: WSA, section 4.1.
    """
    model_state = {} if model_state is None else model_state
    second_state = model_state if second_state is None else second_state
    checks.same_structure(first, second)
    checks.same_structure(model_state, second_state)
    for side, tree in (("first", (first, model_state)), ("second", (second, second_state))):
        checks.weights(tree[0], f"the {side} model")
        checks.weights(tree[1], f"the {side} model's state")
    if t is None and num_points < 2:
        raise ValueError(f"num_points {num_points} is below 2; give at least the two ends")
    checks.count("num_points", num_points)
    t = jnp.linspace(0.0, 1.0, num_points) if t is None else jnp.asarray(t, jnp.float32)
    if not t.size:
        raise ValueError("t is empty; give at least one point")
    check_evaluable(labels, calibration, "the path")
    if (
        calibration is None
        and second_state is not model_state
        and find_statistics(model_state).leaves
        and not is_traced(t)
        and not bool(jnp.all((t >= 0) & (t <= 1)))
    ):
        raise ValueError(
            f"t from {float(t.min()):g} to {float(t.max()):g} would extrapolate variances; stay in "
            "[0, 1], or give calibration images to estimate them from"
        )
    check_data(task, first, model_state, {"the path's data": (inputs, labels)})
    checks.count("batch_size", batch_size)
    run = _path_fn(task, batch_size)
    return run(first, second, model_state, second_state, inputs, labels, calibration, key, t)


def measure(
    task: Task,
    params: PyTree,
    model_state: PyTree,
    inputs: Inputs,
    labels: Array,
    calibration: Inputs | None,
    key: Array | None,
    batch_size: int,
) -> dict[str, Array]:
    """Means of one point's metrics, with statistics estimated anew if there are inputs for it."""
    if calibration is not None:
        model_state = reset_batch_norm(
            task, params, model_state, calibration, batch_size=batch_size, key=key
        )
    return evaluate(task, params, model_state, inputs, labels, batch_size=batch_size).means()


@functools.lru_cache(maxsize=16)
def _path_fn(task: Task, batch_size: int) -> Callable[..., LossPath]:
    @jax.jit
    def run(
        first: PyTree,
        second: PyTree,
        first_state: PyTree,
        second_state: PyTree,
        inputs: Inputs,
        labels: Array,
        calibration: Inputs | None,
        key: Array | None,
        t: Array,
    ) -> LossPath:
        def point(t: Array) -> dict[str, Array]:
            params, model_state = lerp((first, first_state), (second, second_state), t)
            return measure(task, params, model_state, inputs, labels, calibration, key, batch_size)

        own = jax.lax.map(point, t)
        return LossPath(t=t, loss=own.pop("loss"), accuracy=own.pop("accuracy", None), own=own)

    return run


@door
def loss_barrier(path: LossPath, *, definition: Definition = "paper") -> Float[Array, " *paths"]:
    r"""Measure how far the loss on a path rises above the path's ends.

    .. math:: \text{paper:}\quad \max_t \; L(t) - [(1 - t) L(0) + t L(1)]

              \text{endpoints:}\quad \max_t L(t) - \tfrac12 [L(0) + L(1)]

    Away from t = 1/2 the two definitions differ if the ends' losses do. Both barriers are at least
    0 up to rounding, because the ends are points of the path. Of paths ``[..., points]``, one each.

    Raises:
      ValueError: the definition is unknown, or the path does not go from t = 0 to t = 1.

    >>> t = jnp.array([0.0, 0.25, 0.5, 1.0])
    >>> path = LossPath(t=t, loss=jnp.array([1.0, 4.0, 2.0, 2.0]), accuracy=1.0 - t)
    >>> float(loss_barrier(path)), float(loss_barrier(path, definition="endpoints"))
    (2.75, 2.5)

    Source: WSA, Eq. 7; ``"endpoints"`` is Git Re-Basin's.
    """
    return jnp.max(path.loss - _between_ends(path.t, path.loss, definition), axis=-1)


@door
def accuracy_barrier(
    path: LossPath, *, definition: Definition = "paper"
) -> Float[Array, " *paths"]:
    r"""Measure how far the accuracy on a path falls below the path's ends, as a share in [0, 1].

    .. math:: \text{paper:}\quad \max_t \; [(1 - t) A(0) + t A(1)] - A(t)

              \text{endpoints:}\quad \tfrac12 [A(0) + A(1)] - \min_t A(t)

    Raises:
      ValueError: as for `loss_barrier`, or the task has no accuracy.

    >>> t = jnp.array([0.0, 0.25, 0.5, 1.0])
    >>> path = LossPath(t=t, loss=t, accuracy=jnp.array([1.0, 0.25, 0.5, 0.5]))
    >>> float(accuracy_barrier(path)), float(accuracy_barrier(path, definition="endpoints"))
    (0.625, 0.5)

    Source: WSA, Eq. 7, with accuracy in place of loss.
    """
    if path.accuracy is None:
        raise ValueError("the path has no accuracy, since its task counts none; use loss_barrier")
    return jnp.max(_between_ends(path.t, path.accuracy, definition) - path.accuracy, axis=-1)


def _between_ends(t: Array, values: Array, definition: str) -> Array:
    """The values of paths without a barrier: one per point, or one for all points."""
    if not is_traced(t):
        for first, last in np.asarray(t)[..., [0, -1]].reshape(-1, 2):
            if first != 0 or last != 1:
                raise ValueError(
                    f"the path goes from t = {first:g} to {last:g}; a barrier needs 0 to 1"
                )
    checks.one_of("definition", definition, ("paper", "endpoints"))
    if definition == "paper":
        return (1 - t) * values[..., :1] + t * values[..., -1:]
    return 0.5 * (values[..., :1] + values[..., -1:])
