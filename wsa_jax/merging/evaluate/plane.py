"""The loss over the plane through three models."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree, Shaped

from wsa_jax import checks
from wsa_jax.door import door
from wsa_jax.merging.evaluate.path import measure
from wsa_jax.merging.repair.statistics import find_statistics
from wsa_jax.training.checks import check_data, check_evaluable
from wsa_jax.training.task import Task
from wsa_jax.tree import is_inexact, norm, unit, wide
from wsa_jax.types import Inputs

# Fraction of the third model's distance: a point on the line is off it by less in float32.
_COLLINEAR = 1e-5


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LossPlane:
    """Mean loss and accuracy on a grid in the plane through three models.

    Coordinates are Euclidean distances in the space of the parameters: the first model is the
    origin, the second lies on the positive x axis, the third above it.

    Attributes:
      x: x coordinates of the grid's columns, ``[columns]``.
      y: y coordinates of the grid's rows, ``[rows]``.
      loss: mean loss, in the task's units, ``[rows, columns]``.
      accuracy: share of correct answers in [0, 1], ``[rows, columns]``; None for a task without.
      models: x and y of the three models, ``[3, 2]``.
    """

    x: Float[Array, "*planes columns"]
    y: Float[Array, "*planes rows"]
    loss: Float[Array, "*planes rows columns"]
    accuracy: Float[Array, "*planes rows columns"] | None
    models: Float[Array, "*planes 3 2"]


@door
def loss_plane(
    task: Task,
    first: PyTree,
    second: PyTree,
    third: PyTree,
    inputs: Inputs,
    labels: Shaped[Array | np.ndarray, "examples ..."],
    *,
    model_state: PyTree = None,
    calibration: Inputs | None = None,
    key: Key[Array, ""] | None = None,
    resolution: int = 21,
    margin: float | int = 0.25,
    batch_size: int = 500,
) -> LossPlane:
    r"""Evaluate the plane through three models on a grid, one point after the other.

    .. math:: e_1 = \frac{w_2 - w_1}{\lVert w_2 - w_1 \rVert}, \qquad
              e_2 \propto (w_3 - w_1) - \langle w_3 - w_1, e_1 \rangle e_1, \qquad
              w(x, y) = w_1 + x e_1 + y e_2

    Args:
      task: what the models were trained for.
      first: parameters at the origin.
      second: parameters on the x axis.
      third: parameters off it.
      inputs: examples to evaluate on.
      labels: their labels.
      model_state: non-parameter collections of all points; none by default.
      calibration: training inputs on which the BatchNorm statistics of every point are estimated
        anew. A model with statistics needs them: outside the triangle, interpolated variances may
        be negative.
      key: for augmentation and dropout while statistics are estimated; key 0 by default.
      resolution: points per side.
      margin: how far the grid goes beyond the models on each side, as a fraction of their extent.
      batch_size: examples at once, in evaluation and calibration.

    Guarantees: one model and one batch in memory at a time besides the three models. Grid points
    that fall on a model are exactly that model: with margin 0, the first row holds one or two.
    Complex weights count as their real and imaginary parts.

    Raises:
      ValueError: models that differ in a leaf or hold NaN (the leaf is named), two equal models or
        three on a line, a resolution below 2, a negative margin, no examples, or BatchNorm
        statistics without calibration images.

    Source: WSA, Fig. 7; basis as in Garipov et al., 2018, section A.
    """
    model_state = {} if model_state is None else model_state
    for name, params in (("first", first), ("second", second), ("third", third)):
        checks.same_structure(first, params)
        checks.same_dtypes(first, params)
        checks.weights(params, f"the {name} model")
    if resolution < 2:
        raise ValueError(f"resolution {resolution} is below 2; give at least 2 points per side")
    if not margin >= 0:
        raise ValueError(f"margin {margin} is negative; give 0 or more")
    check_evaluable(labels, calibration, "the plane")
    check_data(task, first, model_state, {"the plane's data": (inputs, labels)})
    if calibration is None and find_statistics(model_state).leaves:
        raise ValueError(
            "the models have BatchNorm statistics, which the points of a plane do not share; "
            "give calibration images to estimate them from"
        )
    models = _coordinates(first, second, third)
    x, y = (
        np.linspace(low - margin * (high - low), high + margin * (high - low), resolution)
        for low, high in zip(models.min(axis=0), models.max(axis=0), strict=True)
    )
    # In shares of w2 - w1 and w3 - w1, no basis has to be kept and the models' points are exact.
    (width, _), (across, height) = models[1], models[2]
    to_third = y / height
    to_second = (x[None, :] - to_third[:, None] * across) / width
    shares = np.stack(np.broadcast_arrays(to_second, to_third[:, None]), axis=-1)
    run = _plane_fn(task, batch_size)
    shares = jnp.asarray(shares, jnp.float32).reshape(-1, 2)
    found = run((first, second, third), model_state, inputs, labels, calibration, key, shares)
    grid = {name: values.reshape(resolution, resolution) for name, values in found.items()}
    return LossPlane(
        x=jnp.asarray(x, jnp.float32),
        y=jnp.asarray(y, jnp.float32),
        loss=grid["loss"],
        accuracy=grid.get("accuracy"),
        models=jnp.asarray(models, jnp.float32),
    )


def _coordinates(first: PyTree, second: PyTree, third: PyTree) -> np.ndarray:
    """Place the three models in the plane by Gram-Schmidt, ``[3, 2]`` in float64."""
    width, across, height, distance = map(float, _lengths(first, second, third))
    if width == 0:
        raise ValueError("the first and second model are equal; a plane needs three different ones")
    if not height > _COLLINEAR * max(distance, width):
        raise ValueError(
            "the third model lies on the line through the first and second "
            f"({height:g} off it, {distance:g} from the first); give one that is off it"
        )
    return np.array([[0.0, 0.0], [width, 0.0], [across, height]])


@jax.jit
def _lengths(first: PyTree, second: PyTree, third: PyTree) -> tuple[Array, Array, Array, Array]:
    origin, there, other = (
        [wide(leaf) for leaf in jax.tree.leaves(tree) if is_inexact(leaf)]
        for tree in (first, second, third)
    )

    u = [b - a for a, b in zip(origin, there, strict=True)]
    v = [c - a for a, c in zip(origin, other, strict=True)]
    direction = unit(u)
    products = (jnp.sum((jnp.conj(a) * b).real) for a, b in zip(direction, v, strict=True))
    across = sum(products, jnp.zeros(()))
    # The rest itself, not |v|² - |across|², which cancels where the three are nearly in line.
    rest = [b - across * a for a, b in zip(direction, v, strict=True)]
    return norm(u), across, norm(rest), norm(v)


@functools.lru_cache(maxsize=16)
def _plane_fn(task: Task, batch_size: int) -> Callable[..., dict[str, Array]]:
    @jax.jit
    def run(
        models: tuple[PyTree, PyTree, PyTree],
        model_state: PyTree,
        inputs: Inputs,
        labels: Array,
        calibration: Inputs | None,
        key: Array | None,
        shares: Array,
    ) -> dict[str, Array]:
        def point(share: Array) -> dict[str, Array]:
            params = jax.tree.map(functools.partial(_mix, share), *models)
            return measure(task, params, model_state, inputs, labels, calibration, key, batch_size)

        return jax.lax.map(point, shares)

    return run


def _mix(share: Array, a: Array, b: Array, c: Array) -> Array:
    if not is_inexact(a):
        return a
    return ((1 - share[0] - share[1]) * a + share[0] * b + share[1] * c).astype(a.dtype)
