"""How methods bring models' units into correspondence, by name.

Each is ``(key, spec, models, evidence, restarts) -> maps`` on trees of variables, which were
checked when they came in.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import jax
from jaxtyping import Array, Key, PyTree

from wsa_jax.door import door
from wsa_jax.merging.align import (
    UnitMaps,
    activation_matching,
    activation_transport,
    align,
    canonical_correlation,
    rescale,
    weight_matching,
    weight_transport,
    zip_units,
)
from wsa_jax.merging.align.apply import Found
from wsa_jax.merging.evidence import Evidence, Model, apply_of
from wsa_jax.merging.symmetry.spec import AxisSpec
from wsa_jax.merging.symmetry.taps import taps
from wsa_jax.training.task import Task
from wsa_jax.types import Inputs

AlignName = Literal[
    "none",
    "weight",
    "activation",
    "rescaling",
    "rescaling, weight",
    "weight transport",
    "activation transport",
    "activation transport, Sinkhorn",
    "canonical correlation",
    "zip",
]
Maps: TypeAlias = tuple[Found, ...]
"""What moves one model, in the order in which it is applied; nothing moves the first one."""
Align: TypeAlias = Callable[[Array, AxisSpec, Sequence[PyTree], Evidence, int], Sequence[Maps]]


@door
def align_models(
    key: Key[Array, ""],
    spec: AxisSpec,
    models: Sequence[Model],
    evidence: Evidence,
    name: str,
    *,
    restarts: int = 2,
) -> list[Model]:
    """Bring every model's units into correspondence with the first one's.

    Args:
      key: draws orders and restarts.
      spec: spec of ``Model.variables``, as `trace_spec` returns it.
      models: all of one architecture.
      evidence: inputs for aligns that look at activations.
      name: name of the align; ``"rescaling, weight"`` applies one after the other.
      restarts: as in `weight_matching`.

    Raises:
      NotAdmittedError: too little evidence for the align, or rescaling where no group admits it.
      ValueError: an unknown name, or as for the aligns.
    """
    found = find_maps(key, spec, models, evidence, name, restarts=restarts)
    return [moved(spec, model, maps) for model, maps in zip(models, found, strict=True)]


def find_maps(
    key: Array,
    spec: AxisSpec,
    models: Sequence[Model],
    evidence: Evidence,
    name: str,
    *,
    restarts: int,
) -> Sequence[Maps]:
    """What an align would move each model by."""
    if name not in ALIGNS:
        known = ", ".join(repr(known) for known in ALIGNS)
        raise ValueError(f"align {name!r} is unknown; give one of {known}")
    return ALIGNS[name](key, spec, [model.variables for model in models], evidence, restarts)


def moved(spec: AxisSpec, model: Model, maps: Maps) -> Model:
    """A model after all of its maps."""
    return Model.of(_apply(spec, model.variables, maps))


def _apply(spec: AxisSpec, variables: PyTree, maps: Maps) -> PyTree:
    return functools.reduce(lambda tree, found: align(spec, tree, found), maps, variables)


def reads_activations(name: str) -> bool:
    """Whether an align looks at what a task's logits are computed from.

    >>> reads_activations("zip"), reads_activations("weight transport")
    (True, False)
    """
    return name.startswith("activation") or name in ("canonical correlation", "zip")


def _none(
    key: Array, spec: AxisSpec, models: Sequence[PyTree], evidence: Evidence, restarts: int
) -> Sequence[Maps]:
    return [()] * len(models)


def _by_weights(
    key: Array, spec: AxisSpec, models: Sequence[PyTree], evidence: Evidence, restarts: int
) -> Sequence[Maps]:
    first, *others = models
    keys = [jax.random.fold_in(key, index) for index in range(len(others))]
    return [()] + [
        (weight_matching(own, spec, first, model, restarts=restarts),)
        for own, model in zip(keys, others, strict=True)
    ]


def _by_activations(
    key: Array, spec: AxisSpec, models: Sequence[PyTree], evidence: Evidence, restarts: int
) -> Sequence[Maps]:
    first, *others = models
    read = activations_of(spec, evidence.task)
    return [()] + [
        (activation_matching(key, spec, first, model, read, evidence.inputs),) for model in others
    ]


def _rescaled(
    key: Array, spec: AxisSpec, models: Sequence[PyTree], evidence: Evidence, restarts: int
) -> Sequence[Maps]:
    first, *others = models
    return [()] + [(rescale(spec, first, model),) for model in others]


def _rescaled_by_weights(
    key: Array, spec: AxisSpec, models: Sequence[PyTree], evidence: Evidence, restarts: int
) -> Sequence[Maps]:
    scales = _rescaled(key, spec, models, evidence, restarts)
    scaled = [_apply(spec, model, maps) for model, maps in zip(models, scales, strict=True)]
    matched = _by_weights(key, spec, scaled, evidence, restarts)
    return [before + after for before, after in zip(scales, matched, strict=True)]


def _weights_transported(
    key: Array, spec: AxisSpec, models: Sequence[PyTree], evidence: Evidence, restarts: int
) -> Sequence[Maps]:
    return [(maps,) for maps in weight_transport(spec, models)]


def _by_features(find: Callable[..., Sequence[UnitMaps]], **settings: Any) -> Align:
    """An align by maps that are found from all models' activations at once."""

    def found(
        key: Array, spec: AxisSpec, models: Sequence[PyTree], evidence: Evidence, restarts: int
    ) -> Sequence[Maps]:
        read = activations_of(spec, evidence.task)
        return [(maps,) for maps in find(spec, models, read, evidence.inputs, **settings)]

    return found


ALIGNS: Mapping[str, Align] = {
    "none": _none,
    "weight": _by_weights,
    "activation": _by_activations,
    "rescaling": _rescaled,
    "rescaling, weight": _rescaled_by_weights,
    "weight transport": _weights_transported,
    "activation transport": _by_features(activation_transport),
    "activation transport, Sinkhorn": _by_features(activation_transport, solver="sinkhorn"),
    "canonical correlation": _by_features(canonical_correlation),
    "zip": _by_features(zip_units),
}
"""Aligns by name; a new one is a new line here and in `AlignName`."""


@functools.lru_cache(maxsize=16)
def activations_of(spec: AxisSpec, task: Task) -> Callable[[PyTree, Inputs], dict[str, Array]]:
    """The activations of every group, as a function of variables and stored inputs."""
    return taps(apply_of(task), spec)
