"""Means and covariances of what models compute at their affine parts, and how these are moved."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from wsa_jax import checks
from wsa_jax.leaves import key_path
from wsa_jax.merging.result import NotAdmittedError, check_real
from wsa_jax.merging.symmetry.affine import Site, find_sites
from wsa_jax.merging.symmetry.taps import Evaluation
from wsa_jax.merging.symmetry.tracing.trace_spec import flatten, trace
from wsa_jax.tree import shares
from wsa_jax.types import Inputs, Leaf, Numbers

Apply = Callable[..., PyTree]
"""``(variables, inputs) -> outputs``, in evaluation mode."""


class SiteMoments(NamedTuple):
    """Moments of several models at one affine part, over examples and positions, in float64.

    Attributes:
      count: number of examples times positions.
      mean: ``[models, units]``.
      covariance: of the models' values of one unit, ``[models, models, units]``, divided by n.
    """

    count: int
    mean: np.ndarray
    covariance: np.ndarray

    def goal(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The mean of the means and the mean of the standard deviations."""
        each = np.sqrt(np.einsum("mm...->m...", self.covariance))
        return np.tensordot(weights, self.mean, 1), np.tensordot(weights, each, 1)

    def of_average(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the models' average."""
        variance = np.einsum("m,k,mk...->...", weights, weights, self.covariance)
        return np.tensordot(weights, self.mean, 1), np.sqrt(np.maximum(variance, 0.0))


def site_moments(
    apply_fn: Apply, models: Sequence[PyTree], inputs: Inputs, batch_size: int
) -> dict[str, SiteMoments]:
    """Moments at every affine part, by the key path of its bias, in one pass over the inputs.

    Batches are centred before they are squared, and pooled in float64: nothing cancels.
    """
    count = len(jax.tree.leaves(inputs)[0])
    total: dict[str, SiteMoments] = {}
    # Batches whose sizes differ by at most one, so that the model is compiled at most twice.
    for rows in np.array_split(np.arange(count), -(-count // batch_size)):
        batch = jax.tree.map(lambda leaf, rows=rows: jnp.asarray(leaf[rows]), inputs)
        for name, found in _moments_of(apply_fn)(tuple(models), batch).items():
            size, mean, covariance = (np.asarray(part, np.float64) for part in found)
            more = SiteMoments(int(size), mean, covariance)
            total[name] = _pooled(total[name], more) if name in total else more
    return total


def sites_of(apply_fn: Apply, params: PyTree, inputs: Inputs) -> list[Site]:
    """The affine parts of a function.

    Raises:
      NotAdmittedError: there is none, so nothing can be repaired.
    """
    sites = find_sites(trace(apply_fn, params, jax.tree.map(lambda leaf: leaf[:2], inputs)))
    if not sites:
        raise NotAdmittedError(
            "no hidden layer adds a bias of its own to what a kernel or a norm's scale multiplies, "
            "so no activation can be repaired; give the layers biases"
        )
    return sites


def check_repair(
    models: Sequence[PyTree], merged: PyTree, inputs: Inputs, weights: Numbers | None
) -> np.ndarray:
    """Check what REPAIR gets, and return the models' shares."""
    if not models:
        raise ValueError("no models that were merged; give at least one")
    checks.models([merged, *models])
    leaves = jax.tree.leaves(inputs)
    count = len(leaves[0]) if leaves and np.ndim(leaves[0]) else 0
    if count < 2:
        raise NotAdmittedError(
            f"too few calibration samples: {count}; give at least 2, better some hundreds, since "
            "standard deviations are estimated from them"
        )
    weights = np.ones(len(models)) if weights is None else weights
    if np.shape(weights) != (len(models),):
        raise ValueError(
            f"weights of shape {np.shape(weights)} for {len(models)} models; give one per model"
        )
    checks.shares(weights, "weights")
    return np.asarray(shares(weights), np.float64)


def moved(
    params: PyTree,
    site: Site,
    found: tuple[np.ndarray, np.ndarray],
    goal: tuple[np.ndarray, np.ndarray],
) -> PyTree:
    """Change an affine part so that its units get other means and standard deviations.

    A unit that is constant keeps its weights, and gets the mean.
    """
    (mean, std), (goal_mean, goal_std) = found, goal
    alive = std > 1e-6 * np.maximum(goal_std, np.abs(mean))
    factor = np.where(alive, goal_std / np.where(alive, std, 1.0), 1.0)

    def change(path: tuple, leaf: Leaf) -> Leaf:
        name = key_path(path)
        if name not in (site.weight.leaf, site.bias.leaf):
            return leaf
        values = np.asarray(leaf, np.float64)
        if name == site.weight.leaf:
            values = values * site.weight.along(factor, values.ndim)
        else:
            s, old, new = (site.bias.along(v, values.ndim) for v in (factor, mean, goal_mean))
            values = s * (values - old) + new
        return jnp.asarray(values, jnp.result_type(leaf))

    return jax.tree_util.tree_map_with_path(change, params)


@functools.lru_cache(maxsize=16)
def _moments_of(apply_fn: Apply) -> Callable[..., dict[str, tuple[Array, Array, Array]]]:
    @jax.jit
    def run(models: tuple[PyTree, ...], batch: Inputs) -> dict[str, tuple[Array, Array, Array]]:
        traced = trace(apply_fn, models[0], batch)
        sites = find_sites(traced)
        values: dict[str, list[Array]] = {site.bias.leaf: [] for site in sites}
        for model in models:
            evaluation = Evaluation({(site.position, True, 0) for site in sites})
            evaluation.run(traced.jaxpr, flatten(apply_fn, model, (batch,))[1])
            for site in sites:
                units = range(-len(site.units), 0)
                value = jnp.moveaxis(evaluation.seen[site.position, True, 0], site.units, units)
                check_real({site.bias.leaf: value}, "REPAIR")
                shape = value.shape[value.ndim - len(site.units) :]
                values[site.bias.leaf].append(value.reshape(-1, *shape).astype(jnp.float32))
        return {name: _batch_moments(jnp.stack(each)) for name, each in values.items()}

    return run


def _batch_moments(values: Array) -> tuple[Array, Array, Array]:
    """Number of samples, means and covariances of ``[models, samples, units]``."""
    mean = jnp.mean(values, axis=1)
    centred = values - mean[:, None]
    products = jnp.einsum(
        "ms...,ks...->mk...", centred, centred, precision=jax.lax.Precision.HIGHEST
    )
    covariance = products / values.shape[1]
    return jnp.float32(values.shape[1]), mean, covariance


def _pooled(total: SiteMoments, more: SiteMoments) -> SiteMoments:
    """Moments of two samples together (Chan, Golub and LeVeque, 1983)."""
    count = total.count + more.count
    share, shift = more.count / count, more.mean - total.mean
    between = share * (1 - share) * shift[:, None] * shift[None]
    return SiteMoments(
        count,
        total.mean + share * shift,
        (1 - share) * total.covariance + share * more.covariance + between,
    )
