"""The barrier between two models with a bootstrap interval over the examples it is measured on."""

import functools
from collections.abc import Callable, Sequence
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
    t, sums, counts = np.linspace(0, 1, num_points), [], np.zeros(0)
    for position in t:
        model = lerp(first, second, np.float32(position))
        losses, counts = example_losses(
            task, model, data, calibration=calibration, batch_size=batch_size
        )
        sums.append(losses)
    return PathLosses(t, np.array(sums), counts)


def example_losses(
    task: Task,
    model: tuple[PyTree, PyTree],
    data: tuple[Inputs, Labels],
    *,
    calibration: Inputs | None,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The sum of the losses of each example's labels, and their number, in float64."""
    params, state = model
    if calibration is not None:
        state = reset_batch_norm(task, params, state, calibration, batch_size=batch_size)
    found = _example_losses(task, batch_size)(params, state, *jax.tree.map(jnp.asarray, data))
    losses, counts = (np.asarray(part, np.float64) for part in found)
    return losses, counts


def barrier_interval(losses: PathLosses, *, resamples: int, seed: int) -> Interval:
    """The paper's barrier (Eq. 7), and its percentiles over resampled examples.

    Guarantees: equal seeds resample the same examples, so that barriers of one data set are
    comparable resample by resample. A maximum over points is biased upwards, resamples more so.

    >>> sums = np.array([[1.0, 1.0], [4.0, 2.0], [1.0, 1.0]])
    >>> losses = PathLosses(np.array([0.0, 0.5, 1.0]), sums, np.ones(2))
    >>> barrier_interval(losses, resamples=100, seed=0)
    Interval(value=2.0, low=1.0, high=3.0)
    """
    return greatest_barrier([losses], resamples=resamples, seed=seed)


def greatest_barrier(paths: Sequence[PathLosses], *, resamples: int, seed: int) -> Interval:
    """The greatest barrier of several paths, in each resample the greatest of that resample."""

    def greatest(weights: np.ndarray) -> np.ndarray:
        return np.max([_barriers(losses, weights) for losses in paths], axis=0)

    return _interval(greatest, len(paths[0].counts), resamples, seed)


def rise_interval(
    merged: np.ndarray, ends: np.ndarray, counts: np.ndarray, *, resamples: int, seed: int
) -> Interval:
    """By how much a merged model's mean loss is above the mean of its models'.

    Args:
      merged: sum of the losses of each example's labels, ``[examples]``.
      ends: the same for each model, ``[models, examples]``.
      counts: number of labels, ``[examples]``.
      resamples: as for `barrier_interval`.
      seed: likewise.

    >>> rise_interval(np.full(3, 2.0), np.ones((2, 3)), np.ones(3), resamples=10, seed=0)
    Interval(value=1.0, low=1.0, high=1.0)
    """
    above = merged - ends.mean(0)
    return _interval(
        lambda weights: weights @ above / (weights @ counts), len(counts), resamples, seed
    )


def _interval(
    measure: Callable[[np.ndarray], np.ndarray], count: int, resamples: int, seed: int
) -> Interval:
    """What is measured of all examples, and its percentiles over resampled ones."""
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)
    low, high = np.percentile(measure(draws), [2.5, 97.5])
    (value,) = measure(np.ones((1, count)))
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
