"""Optimal transport between two models' units: plans of least cost, exact or by Sinkhorn."""

import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Array, Float
from scipy.optimize import linprog
from scipy.sparse import eye as sparse_eye
from scipy.sparse import kron, vstack

from wsa_jax import checks
from wsa_jax.extras import require
from wsa_jax.merging.align.assignment import assign

__all__ = ["Masses", "check_transport", "mass_of", "plan_maps", "transport_plan"]

Masses: TypeAlias = Mapping[str, Float[Array | np.ndarray, "..."] | Sequence[float | int]]
"""By group, how much each unit of a model counts: positive numbers of any sum."""

SOLVERS = ("exact", "sinkhorn")
_SINKHORN_STEPS = 20_000
_SINKHORN_ERROR = 1e-4  # Of the masses, relative, in the Euclidean norm.


def transport_plan(
    cost: Float[np.ndarray, "units others"],
    first: Float[np.ndarray, " units"],
    second: Float[np.ndarray, " others"],
    *,
    solver: str = "exact",
    epsilon: float | int = 0.05,
) -> Float[np.ndarray, "units others"]:
    r"""The plan of least cost that moves one model's masses to another's, in float64.

    .. math:: \min_{T \ge 0} \sum_{ij} T_{ij} C_{ij}
              \quad\text{with}\quad T 1 = \mu,\; T^\top 1 = \nu

    ``"exact"``: where all masses are equal and one number of units divides the other, an
    assignment; otherwise POT's network simplex, or without POT SciPy's linear programme, which is
    slow beyond some ten thousand pairs. ``"sinkhorn"`` adds ``-epsilon * mean(C)`` times the plan's
    entropy (POT, in the log domain).

    >>> transport_plan(np.array([[1.0, 0.0], [0.0, 1.0]]), np.ones(2), np.ones(2)).tolist()
    [[0.0, 0.5], [0.5, 0.0]]
    """
    first, second = (np.asarray(mass, np.float64) for mass in (first, second))
    first, second = first / first.sum(), second / second.sum()
    if solver == "sinkhorn":
        return _sinkhorn(cost, first, second, epsilon)
    rows, columns = cost.shape
    even = np.ptp(first) <= 1e-12 * first[0] and np.ptp(second) <= 1e-12 * second[0]
    if even and columns % rows == 0:
        return _by_assignment(cost)
    if even and rows % columns == 0:
        return _by_assignment(cost.T).T
    if importlib.util.find_spec("ot") is not None:
        return np.asarray(_pot("this solver").emd(first, second, np.ascontiguousarray(cost)))
    return _by_linear_programme(cost, first, second)


def check_transport(
    models: int, solver: str, epsilon: float | int, masses: Sequence[Masses] | None
) -> None:
    """Raise a ValueError for settings that no transport has.

    >>> check_transport(2, "emd", 0.01, None)
    Traceback (most recent call last):
    ValueError: solver 'emd' is unknown; give 'exact' or 'sinkhorn'
    """
    checks.one_of("solver", solver, SOLVERS)
    checks.positive("epsilon", epsilon)
    if models < 2:
        raise ValueError(f"{models} model was given; give at least two")
    if masses is None:
        return
    if len(masses) != models or not all(isinstance(own, Mapping) for own in masses):
        raise ValueError(
            f"masses are {len(masses)} of which each must be a dictionary {{group: [units]}}, one "
            f"for each of {models} models; give an empty one where all units count the same"
        )


def mass_of(
    masses: Sequence[Masses] | None, model: int, group: str, size: int
) -> Float[np.ndarray, " units"]:
    """How much each unit of a model's group counts; 1 where nothing is said.

    >>> mass_of([{"a": [1.0, 0.0]}], 0, "a", 2)
    Traceback (most recent call last):
    ValueError: masses of group a of model 1 are not 2 finite numbers above 0
    """
    given = np.ones(size) if masses is None else np.asarray(masses[model].get(group, np.ones(size)))
    given = given.astype(np.float64)
    if given.shape != (size,) or not (np.isfinite(given).all() and (given > 0).all()):
        raise ValueError(
            f"masses of group {group} of model {model + 1} are not {size} finite numbers above 0"
        )
    return given


def plan_maps(
    plan: Float[np.ndarray, "units others"],
) -> tuple[Float[np.ndarray, "units others"], Float[np.ndarray, "others units"]]:
    """Divide a plan by both models' masses: forward means, and backward shares, as in `UnitMaps`.

    >>> forward, backward = plan_maps(np.array([[0.25, 0.25, 0.0, 0.0], [0.0, 0.0, 0.25, 0.25]]))
    >>> forward[0].tolist(), backward[:, 0].tolist()
    ([0.5, 0.5, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0])
    """
    rows, columns = plan.sum(1, keepdims=True), plan.sum(0, keepdims=True)
    return plan / rows, (plan / columns).T


def _by_assignment(cost: np.ndarray) -> np.ndarray:
    """Every row stands for as many units as there are columns to it."""
    rows, columns = cost.shape
    times = columns // rows
    chosen, _ = assign(-np.repeat(cost, times, axis=0))
    plan = np.zeros(cost.shape)
    plan[np.repeat(np.arange(rows), times), chosen] = 1 / columns
    return plan


def _by_linear_programme(cost: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    rows, columns = cost.shape
    sums = vstack(
        [
            kron(sparse_eye(rows), np.ones((1, columns))),
            kron(np.ones((1, rows)), sparse_eye(columns)),
        ]
    )
    # The last equation follows from the others.
    found = linprog(cost.ravel(), A_eq=sums.tocsr()[:-1], b_eq=np.concatenate([first, second])[:-1])
    if not found.success:
        raise ValueError(f"SciPy's linear programme found no transport plan: {found.message}")
    return np.maximum(found.x, 0.0).reshape(cost.shape)


def _sinkhorn(
    cost: np.ndarray, first: np.ndarray, second: np.ndarray, epsilon: float | int
) -> np.ndarray:
    unit, allowed = float(cost.mean()) or 1.0, _SINKHORN_ERROR * float(np.linalg.norm(second))
    plan, log = _pot("Sinkhorn's solver").sinkhorn(
        first,
        second,
        cost / unit,
        float(epsilon),
        method="sinkhorn_log",
        numItermax=_SINKHORN_STEPS,
        stopThr=allowed,
        log=True,
        warn=False,
    )
    error = log["err"][-1]
    if not error <= allowed:
        warnings.warn(
            f"Sinkhorn's masses are off by {error:.2g} after {_SINKHORN_STEPS} steps; give an "
            f"epsilon above {epsilon:g}",
            stacklevel=4,
        )
    return np.asarray(plan)


def _pot(purpose: str) -> ModuleType | Any:
    require("ot", purpose)
    return importlib.import_module("ot")
