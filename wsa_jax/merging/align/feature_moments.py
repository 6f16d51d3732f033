"""Means and covariances of several models' units together, from one pass over batches."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, PyTree

from wsa_jax import checks
from wsa_jax.merging.align.activation_similarity import Activations, count_examples, tap_views
from wsa_jax.merging.align.unit_maps import movable, second_sizes
from wsa_jax.merging.result import NotAdmittedError
from wsa_jax.merging.symmetry.spec import AxisSpec
from wsa_jax.types import Inputs

__all__ = ["FeatureMoments", "Features", "Functions", "check_samples", "features_of"]

Functions: TypeAlias = Activations | Sequence[Activations]
"""Activations of a model's groups; one function for each model where architectures differ."""


class FeatureMoments(NamedTuple):
    """Of one group, all models' units one after another, in float64.

    Attributes:
      count: samples (examples times positions).
      sizes: units of each model.
      mean: of each unit.
      covariance: of all pairs of units, divided by the count.
    """

    count: int
    sizes: tuple[int, ...]
    mean: Float[np.ndarray, " units"]
    covariance: Float[np.ndarray, "units units"]

    def part(self, model: int) -> slice:
        """Where a model's units are."""
        start = sum(self.sizes[:model])
        return slice(start, start + self.sizes[model])


class Features(NamedTuple):
    """What aligns by activations look at.

    Attributes:
      moments: by group that can be mapped.
      unmoved: why other groups have no map, by name.
    """

    moments: dict[str, FeatureMoments]
    unmoved: dict[str, str]


def features_of(
    spec: AxisSpec,
    models: Sequence[PyTree],
    activations: Functions,
    inputs: Inputs,
    *,
    batch_size: int,
    groups: Collection[str] | None = None,
    own: Collection[str] = (),
) -> Features:
    """Accumulate the moments of every group that can be mapped.

    Batches are centred by their own means in float64 and joined exactly (Chan, Golub and LeVeque,
    1983), so covariances stay precise where means are large.

    Args:
      spec: of the first model.
      models: at least two.
      activations: of all groups.
      inputs: calibration data.
      batch_size: examples at once.
      groups: which to look at; all that can be mapped if None.
      own: leaves in which models may differ, as in `second_sizes`.

    Raises:
      ValueError: fewer than two models, models that do not fit the spec, no inputs, activations of
        another width or number of samples, or such that are not finite.
    """
    functions, examples = _check(models, activations, inputs, batch_size)
    sizes = [
        second_sizes(spec, models[0], model, f"model {index + 1}", own)
        for index, model in enumerate(models)
    ]
    mapped, unmoved = movable(spec)
    unmoved = unmoved | _without_samples(spec, functions[0], models[0], inputs)
    for name, reason in unmoved.items():
        widths = {size[name] for size in sizes}
        if len(widths) > 1 or name in (groups or ()):
            raise ValueError(
                f"group {name}, of {' and '.join(map(str, sorted(widths)))} units, cannot be "
                f"mapped: {reason}"
            )
    kept = [name for name in mapped if name not in unmoved and (groups is None or name in groups)]
    total: dict[str, FeatureMoments] = {}
    for start in range(0, examples, batch_size):
        rows = jax.tree.map(lambda leaf, at=start: leaf[at : at + batch_size], inputs)
        found = [_compiled(f)(model, rows) for f, model in zip(functions, models, strict=True)]
        for name in kept:
            batch = _of_batch(name, found, [size[name] for size in sizes])
            total[name] = _joined(total[name], batch) if name in total else batch
    return Features(total, unmoved)


def check_samples(features: Features, method: str) -> None:
    """Raise a NotAdmittedError where there are too few samples for a model's covariance."""
    for name, moments in features.moments.items():
        units = max(moments.sizes)
        if moments.count <= units:
            raise NotAdmittedError(
                f"group {name} has {units} units and {moments.count} calibration samples, too few "
                f"for the covariance that {method} needs; give more than {units}"
            )


def _check(
    models: Sequence[PyTree], activations: Functions, inputs: Inputs, batch_size: int
) -> tuple[Sequence[Activations], int]:
    """One function for each model, and the number of examples."""
    if len(models) < 2:
        raise ValueError(f"{len(models)} model was given; give at least two")
    for index, model in enumerate(models):
        checks.finite(model, f"model {index + 1}")
    examples = count_examples(inputs)
    checks.count("batch_size", batch_size)
    functions = [activations] * len(models) if callable(activations) else list(activations)
    if len(functions) != len(models):
        raise ValueError(
            f"{len(functions)} functions of activations were given for {len(models)} models; give "
            "one for each, or one for all"
        )
    return functions, examples


def _without_samples(
    spec: AxisSpec, activations: Activations, params: PyTree, inputs: Inputs
) -> dict[str, str]:
    """Groups without activations, or whose samples another group's order would change."""
    views = {view.tap: view for view in tap_views(spec, activations, params, inputs)}
    missing = {name: "it has no activations" for name in spec.names if name not in views}
    return missing | {
        name: f"its activations hold units of group {view.others[0]}, too"
        for name, view in views.items()
        if view.others
    }


@functools.lru_cache(maxsize=64)
def _compiled(activations: Activations) -> Callable[[PyTree, Inputs], Mapping[str, Array]]:
    return jax.jit(activations)


def _of_batch(
    name: str, found: Sequence[Mapping[str, Array]], sizes: Sequence[int]
) -> FeatureMoments:
    rows = [_rows(np.asarray(values[name])) for values in found]
    for index, (values, size) in enumerate(zip(rows, sizes, strict=True)):
        if values.shape != (len(rows[0]), size):
            raise ValueError(
                f"activations of group {name} of model {index + 1} hold {values.shape[0]} samples "
                f"of {values.shape[1]} units; expected {len(rows[0])} of {size}"
            )
        if not np.isfinite(values).all():
            raise ValueError(
                f"activations of group {name} of model {index + 1} hold NaN or infinity; give "
                "inputs on which the models are finite"
            )
    both = np.concatenate(rows, axis=1, dtype=np.float64)
    mean = both.mean(0)
    both -= mean
    return FeatureMoments(len(both), tuple(sizes), mean, both.T @ both / len(both))


def _rows(values: np.ndarray) -> np.ndarray:
    """``[samples, units]``; the parts of complex numbers are samples of their own."""
    if np.iscomplexobj(values):
        values = np.stack([values.real, values.imag])
    return values.reshape(-1, values.shape[-1])


def _joined(a: FeatureMoments, b: FeatureMoments) -> FeatureMoments:
    count = a.count + b.count
    share, apart = b.count / count, b.mean - a.mean
    covariance = (1 - share) * a.covariance + share * b.covariance
    covariance += share * (1 - share) * np.outer(apart, apart)
    return FeatureMoments(count, a.sizes, a.mean + share * apart, covariance)
