"""How alike two models' units are on the same inputs: correlations, CKA, dead units."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from wsa_jax.types import Inputs

Activations = Callable[[PyTree, Inputs], dict[str, Array]]


class UnitMoments(NamedTuple):
    """Moments of two models' units over examples and positions, in float64.

    Attributes:
      count: number of samples.
      means: of both models' units, each ``[units]``.
      products: centred sums of products, first with first, second with second, first with second.
    """

    count: float
    means: tuple[np.ndarray, np.ndarray]
    products: tuple[np.ndarray, np.ndarray, np.ndarray]

    def dead(self) -> tuple[np.ndarray, np.ndarray]:
        """Which units are constant over all samples, in both models."""
        found = []
        for mean, product in zip(self.means, self.products[:2], strict=True):
            variance = np.diag(product) / self.count
            found.append(variance <= 1e-10 * np.maximum(np.square(mean), 1e-20))
        return found[0], found[1]

    def deviations(self) -> tuple[np.ndarray, np.ndarray]:
        """The standard deviation of each unit, in both models."""
        first, second = (np.sqrt(np.diag(part) / self.count) for part in self.products[:2])
        return first, second

    def correlation(self) -> float:
        """Mean correlation of the units of equal number that live in both models.

        NaN where there is none.
        """
        first, second, cross = (np.diag(product) for product in self.products)
        alive = ~np.logical_or(*self.dead())
        if not alive.any():
            return float("nan")
        return float(np.mean(cross[alive] / np.sqrt(first[alive] * second[alive])))

    def cka(self) -> float:
        """Linear CKA (Kornblith et al., ICML 2019, equation 5): 1 for units equal up to rotation.

        It does not depend on the order of units. NaN where a model's units are all constant.
        """
        first, second, cross = (np.linalg.norm(product) for product in self.products)
        return float(cross**2 / (first * second)) if first and second else float("nan")


def unit_moments(
    activations: Activations, first: PyTree, second: PyTree, inputs: Inputs, batch_size: int
) -> dict[str, UnitMoments]:
    """Moments of every group's units, in one pass over the inputs."""
    count = len(jax.tree.leaves(inputs)[0])
    total: dict[str, UnitMoments] = {}
    for rows in np.array_split(np.arange(count), -(-count // batch_size)):
        batch = jax.tree.map(lambda leaf, rows=rows: jnp.asarray(leaf[rows]), inputs)
        for name, found in _batch_moments(activations)(first, second, batch).items():
            more = UnitMoments(*jax.tree.map(lambda part: np.asarray(part, np.float64), found))
            total[name] = _pooled(total[name], more) if name in total else more
    return total


def _pooled(a: UnitMoments, b: UnitMoments) -> UnitMoments:
    """Moments of two samples together (Chan, Golub and LeVeque, 1983)."""
    count = a.count + b.count
    weight, share = a.count * b.count / count, b.count / count
    first, second = (new - old for new, old in zip(b.means, a.means, strict=True))
    between = np.outer(first, first), np.outer(second, second), np.outer(first, second)
    return UnitMoments(
        count,
        (a.means[0] + share * first, a.means[1] + share * second),
        (
            a.products[0] + b.products[0] + weight * between[0],
            a.products[1] + b.products[1] + weight * between[1],
            a.products[2] + b.products[2] + weight * between[2],
        ),
    )


@functools.lru_cache(maxsize=16)
def _batch_moments(activations: Activations) -> Callable[..., dict[str, tuple]]:
    @jax.jit
    def run(first: PyTree, second: PyTree, batch: Inputs) -> dict[str, tuple]:
        ours, theirs = activations(first, batch), activations(second, batch)
        return {name: _of_group(ours[name], theirs[name]) for name in ours}

    return run


def _of_group(ours: Array, theirs: Array) -> tuple:
    pair = [value.reshape(-1, value.shape[-1]).astype(jnp.float32) for value in (ours, theirs)]
    means = tuple(value.mean(0) for value in pair)
    a, b = (value - mean[None] for value, mean in zip(pair, means, strict=True))
    products = [
        jnp.matmul(x.T, y, precision=jax.lax.Precision.HIGHEST) for x, y in ((a, a), (b, b), (a, b))
    ]
    return jnp.float32(len(a)), means, tuple(products)
