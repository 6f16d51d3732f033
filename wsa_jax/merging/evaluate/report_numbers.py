"""The numbers of a merge report: scopes of layers, units of groups, barriers of pairs of models."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, PyTree, Shaped

from wsa_jax.merging.evaluate.barrier_interval import (
    Interval,
    PathLosses,
    barrier_interval,
    example_losses,
    greatest_barrier,
    path_losses,
    rise_interval,
)
from wsa_jax.merging.evaluate.unit_similarity import Activations, UnitMoments, unit_moments
from wsa_jax.merging.evidence import Model
from wsa_jax.merging.repair.batch_norm import reset_batch_norm
from wsa_jax.scope.layers import Rule
from wsa_jax.scope.scope import fuse_scopes, scope_divergence, weight_scope
from wsa_jax.training.task import Task
from wsa_jax.tree import lerp
from wsa_jax.types import Inputs, Json


class Settings(NamedTuple):
    """What models are measured on, and how; equal for all aligns."""

    task: Task
    data: tuple[Inputs, Shaped[Array | np.ndarray, "examples ..."]]
    calibration: Inputs | None
    num_points: int
    resamples: int
    batch_size: int
    seed: int


class Units(NamedTuple):
    """A group's units after an align.

    Attributes:
      pairs: moments of each pair of models, in the order of `pairs_of`.
      spread: how much the units of the average vary, as a share of the models' own.
    """

    pairs: list[UnitMoments]
    spread: float


def pairs_of(count: int) -> list[tuple[int, int]]:
    """All pairs of models, by their positions.

    >>> pairs_of(3)
    [(0, 1), (0, 2), (1, 2)]
    """
    return list(itertools.combinations(range(count), 2))


def layer_rows(models: Sequence[Model], select: Rule) -> list[Json]:
    """One row a layer: its scopes, and how far each is from the fused one."""
    scopes = [weight_scope(model.params, select=select) for model in models]
    fused = fuse_scopes(scopes)
    divergences = np.array([np.asarray(scope_divergence(scope, fused)) for scope in scopes])
    stds = np.array([np.asarray(scope.std) for scope in scopes])
    return [
        {
            "layer": name,
            "divergence": float(own.mean()),
            "divergences": own.tolist(),
            "std": std.tolist(),
        }
        for name, own, std in zip(fused.names, divergences.T, stds.T, strict=True)
    ]


def barrier_row(align: str, models: Sequence[Model], average: Model, settings: Settings) -> Json:
    """The barrier of every pair of aligned models, the greatest, and the rise of their average."""
    task, data, calibration, num_points, resamples, batch_size, seed = settings
    pairs, paths = pairs_of(len(models)), list[PathLosses]()
    for first, second in pairs:
        paths.append(
            path_losses(
                task,
                tuple(models[first]),
                tuple(models[second]),
                data,
                num_points=num_points,
                calibration=calibration,
                batch_size=batch_size,
            )
        )
    # One seed for all, so that pairs, their greatest and the average see the same resamples.
    found = [barrier_interval(path, resamples=resamples, seed=seed) for path in paths]
    merged, counts = example_losses(
        task, tuple(average), data, calibration=None, batch_size=batch_size
    )
    # The first pairs are those of the first model with each of the others.
    ends = [paths[0].sums[0], *(path.sums[-1] for path in paths[: len(models) - 1])]
    rise = rise_interval(merged, np.array(ends), counts, resamples=resamples, seed=seed)
    greatest = greatest_barrier(paths, resamples=resamples, seed=seed)
    farthest = max(range(len(pairs)), key=lambda at: found[at].value)
    return {
        "align": align,
        **_barrier(greatest),
        "models": _numbers(pairs[farthest]),
        "pairs": [
            {"models": _numbers(pair), **_barrier(own)}
            for pair, own in zip(pairs, found, strict=True)
        ],
        "average": {"rise": rise.value, "low": rise.low, "high": rise.high},
    }


def units_of(
    read: Activations, models: Sequence[Model], average: Model, settings: Settings
) -> dict[str, Units]:
    """The units of every group, of all pairs of aligned models and of their average."""
    trees, (inputs, _) = [model.variables for model in models], settings.data

    def moments_of(first: PyTree, second: PyTree) -> dict[str, UnitMoments]:
        return unit_moments(read, first, second, inputs, settings.batch_size)

    found = [moments_of(trees[first], trees[second]) for first, second in pairs_of(len(models))]
    averaged = moments_of(average.variables, trees[0])
    units = {}
    for name, moments in averaged.items():
        pairs = [of_pair[name] for of_pair in found]
        own = np.mean([deviations.sum() for deviations in _of_models(pairs, "deviations")])
        spread = float(moments.deviations()[0].sum() / own) if own else float("nan")
        units[name] = Units(pairs, spread)
    return units


def group_row(name: str, units: Mapping[str, Units]) -> Json:
    """One group: what does not depend on the align, and what does, by align."""
    plain = units["none"].pairs
    return {
        "group": name,
        "units": len(plain[0].means[0]),
        "cka": _mean([moments.cka() for moments in plain]),
        "dead": float(np.mean(np.concatenate(_of_models(plain, "dead")))),
        "correlation": {
            align: _mean([moments.correlation() for moments in found.pairs])
            for align, found in units.items()
        },
        "spread": {align: found.spread for align, found in units.items()},
    }


def average_of(models: Sequence[Model], settings: Settings) -> Model:
    """The mean of all, in the memory of two; statistics are means, too, or estimated again."""
    params, state = functools.reduce(
        lambda mean, numbered: lerp(mean, numbered[1], np.float32(1 / numbered[0])),
        ((index + 2, tuple(model)) for index, model in enumerate(models[1:])),
        tuple(models[0]),
    )
    if settings.calibration is not None:
        state = reset_batch_norm(
            settings.task, params, state, settings.calibration, batch_size=settings.batch_size
        )
    return Model(params, state)


def _of_models(pairs: Sequence[UnitMoments], what: str) -> list[np.ndarray]:
    """Values of each model once: the first one's of the first pair, the others' of the next."""
    count = next(n for n in itertools.count(2) if n * (n - 1) // 2 == len(pairs))
    values = [getattr(moments, what)() for moments in pairs[: count - 1]]
    return [values[0][0], *(own for _, own in values)]


def _mean(values: Sequence[float]) -> float:
    """The mean of what is defined; NaN where nothing is."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def _barrier(found: Interval) -> Json:
    return {"barrier": found.value, "low": found.low, "high": found.high}


def _numbers(pair: tuple[int, int]) -> list[int]:
    """Models as they are counted from 1."""
    return [index + 1 for index in pair]
