"""The functions of log scales that rescaling minimises, and their minimisation.

Every objective depends smoothly on x = log c, through sums over cells (`scale_tables`). In float64
on the host.
"""

from collections.abc import Callable

import numpy as np
import scipy.optimize

from wsa_jax.merging.align.scale_tables import Scopes, Table, moments
from wsa_jax.types import Json

__all__ = ["closed_form", "distance_fun", "divergence", "log_std", "minimise", "scope_fun"]

ValueAndGradient = Callable[[np.ndarray], tuple[float, np.ndarray]]
Loss = Callable[[np.ndarray, np.ndarray, Scopes], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Of a mean and a variance; the value, and its derivatives with respect to both."""


def _factor(table: Table, x: np.ndarray) -> np.ndarray:
    factor = np.ones((1,) * len(table.axes))
    for dim, axis in enumerate(table.axes):
        shape = [-1 if d == dim else 1 for d in range(len(table.axes))]
        factor = factor * np.exp(axis.sign * x[axis.variable]).reshape(shape)
    return factor


def _pull(table: Table, cells: np.ndarray, size: int) -> np.ndarray:
    """Carry derivatives with respect to the cells' log factors back to the log scales."""
    gradient = np.zeros(size)
    for dim, axis in enumerate(table.axes):
        others = tuple(d for d in range(cells.ndim) if d != dim)
        np.add.at(gradient, axis.variable, axis.sign * cells.sum(others))
    return gradient


def log_std(
    mean: np.ndarray, var: np.ndarray, rows: Scopes
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Squared log ratio of stds, and its derivatives with respect to mean and variance."""
    ratio = 0.5 * np.log(var / rows.var)
    return ratio**2, np.zeros_like(mean), ratio / var


def divergence(
    mean: np.ndarray, var: np.ndarray, rows: Scopes
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """WSA's Eq. 3, and its derivatives with respect to mean and variance."""
    ratio, shift = var / rows.var, mean - rows.mean
    value = 0.5 * (ratio + shift**2 / rows.var - 1.0 - np.log(ratio))
    return value, shift / rows.var, 0.5 * (1.0 / rows.var - 1.0 / var)


def scope_fun(tables: list[Table], free: np.ndarray, loss: Loss) -> ValueAndGradient:
    """Weighted mean of a loss of each row's scope, together with its derivatives."""

    def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = 0.0, np.zeros_like(x)
        for table in tables:
            factor = _factor(table, x)
            total, square = table.second_sum * factor, table.second_square * factor**2
            cells = np.zeros_like(square)
            for rows in table.rows:
                mean, var = moments(total, square, rows.over, rows.count)
                live = rows.weight > 0
                each, by_mean, by_var = loss(mean, np.where(live, var, 1.0), rows)
                value += np.sum(rows.weight * each)
                scale = rows.weight / rows.count
                cells += scale * (by_mean * total + by_var * 2 * (square - mean * total))
            gradient += _pull(table, cells, x.size)
        return float(value), gradient * free

    return fun


def distance_fun(tables: list[Table], free: np.ndarray) -> ValueAndGradient:
    """Squared distance in units of the two models' squared norms."""
    norm = sum(table.first_square.sum() + table.second_square.sum() for table in tables)
    norm = norm or 1.0

    def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = 0.0, np.zeros_like(x)
        for table in tables:
            factor = _factor(table, x)
            cross, square = table.cross * factor, table.second_square * factor**2
            value += np.sum(table.first_square - 2 * cross + square) / norm
            gradient += _pull(table, 2 * (square - cross) / norm, x.size)
        return float(value), gradient * free

    return fun


def closed_form(tables: list[Table], free: np.ndarray) -> np.ndarray:
    """Weighted least squares of the layers' log stds, linear in x without concatenations."""
    matrix, residual = [], []
    for table in tables:
        for rows in table.rows:
            mean, var = moments(table.second_sum, table.second_square, rows.over, rows.count)
            if not rows.weight.sum() > 0:
                continue
            share = (table.second_square - mean * table.second_sum) / rows.count / var
            root = np.sqrt(rows.weight.sum())
            matrix.append(root * _pull(table, share, free.size) * free)
            residual.append(root * 0.5 * np.log(var / rows.var).item())
    solution, *_ = np.linalg.lstsq(np.stack(matrix), -np.asarray(residual), rcond=None)
    return solution * free


def minimise(
    fun: ValueAndGradient, starts: list[np.ndarray], max_steps: int
) -> tuple[np.ndarray, Json]:
    """Descend from the best of the starts, and never end above it."""
    values = [fun(x)[0] for x in starts]
    best = int(np.argmin(values))
    start, trace = starts[best], [values[0], values[best]]
    result = scipy.optimize.minimize(
        fun,
        start,
        jac=True,
        method="L-BFGS-B",
        callback=lambda intermediate_result: trace.append(float(intermediate_result.fun)),
        options={"maxiter": max_steps, "ftol": 1e-15, "gtol": 1e-12, "maxcor": 20},
    )
    # A line search that stops at rounding error may end slightly above its start.
    x = result.x if result.fun <= values[best] else start
    return x, {"objective": np.asarray(trace), "converged": result.status != 1}
