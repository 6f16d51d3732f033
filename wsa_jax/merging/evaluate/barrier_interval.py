"""The barrier between two models with a bootstrap interval over the examples it is measured on."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from wsa_jax.merging.repair.batch_norm import reset_batch_norm
from wsa_jax.training.task import Batch, Task
from wsa_jax.tree import lerp
from wsa_jax.types import Inputs, Labels


class Interval(NamedTuple):
    """An estimate and the bounds that 95 % of its resamples lie in."""

    value: float
    low: float
    high: float


class PathLosses(NamedTuple):
    """The loss of every example at every point of a path.

    Attributes:
      t: positions from 0 to 1, ``[points]``.
      sums: sum of the losses of one example's labels, ``[points, examples]``, float64.
      counts: number of an example's labels, ``[examples]``.
    """

    t: np.ndarray
    sums: np.ndarray
    counts: np.ndarray


def path_losses(
    task: Task,
    first: tuple[PyTree, PyTree],
    second: tuple[PyTree, PyTree],
    data: tuple[Inputs, Labels],
    *,
    num_points: int,
    calibration: Inputs | None,
    batch_size: int,
) -> PathLosses:
    """Evaluate each example at evenly spaced points between two models and their states."""
    run = _example_losses(task, batch_size)
    inputs, labels = jax.tree.map(jnp.asarray, data)
    t, sums, counts = np.linspace(0, 1, num_points), [], np.zeros(0)
    for position in t:
        params, state = lerp(first, second, np.float32(position))
        if calibration is not None:
            state = reset_batch_norm(task, params, state, calibration, batch_size=batch_size)
        losses, counted = run(params, state, inputs, labels)
        sums.append(np.asarray(losses, np.float64))
        counts = np.asarray(counted, np.float64)
    return PathLosses(t, np.array(sums), counts)


def barrier_interval(losses: PathLosses, *, resamples: int, seed: int) -> Interval:
    """The paper's barrier (Eq. 7), and its percentiles over resampled examples.

    Guarantees: equal seeds resample the same examples, so that barriers of one data set are
    comparable resample by resample. A maximum over points is biased upwards, resamples more so.

    >>> sums = np.array([[1.0, 1.0], [4.0, 2.0], [1.0, 1.0]])
    >>> losses = PathLosses(np.array([0.0, 0.5, 1.0]), sums, np.ones(2))
    >>> barrier_interval(losses, resamples=100, seed=0)
    Interval(value=2.0, low=1.0, high=3.0)
    """
    count = len(losses.counts)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)
    resampled = _barriers(losses, draws)
    low, high = np.percentile(resampled, [2.5, 97.5])
    (value,) = _barriers(losses, np.ones((1, count)))
    return Interval(float(value), float(low), float(high))


def _barriers(losses: PathLosses, weights: np.ndarray) -> np.ndarray:
    """One barrier for each row of examples' weights."""
    means = weights @ losses.sums.T / (weights @ losses.counts)[:, None]
    line = (1 - losses.t) * means[:, :1] + losses.t * means[:, -1:]
    return np.max(means - line, axis=1)


@functools.lru_cache(maxsize=16)
def _example_losses(
    task: Task, batch_size: int
) -> Callable[..., tuple[Float[Array, " examples"], Float[Array, " examples"]]]:
    @jax.jit
    def run(
        params: PyTree, model_state: PyTree, inputs: Inputs, labels: Array
    ) -> tuple[Array, Array]:
        def one(example: tuple[Inputs, Array]) -> tuple[Array, Array]:
            rows, label = jax.tree.map(lambda leaf: leaf[None], example)
            found = task.metrics(params, model_state, Batch(rows, label, jnp.ones(1)))
            return found.loss, found.count

        return jax.lax.map(one, (inputs, labels), batch_size=batch_size)

    return run
