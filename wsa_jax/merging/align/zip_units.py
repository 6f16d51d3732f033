"""ZipIt!: merge the most correlated units of several models, within a model as well as across."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, PyTree

from wsa_jax.door import door
from wsa_jax.leaves import key_path
from wsa_jax.merging.align.feature_moments import FeatureMoments, Functions, features_of
from wsa_jax.merging.align.unit_maps import UnitMaps, map_units
from wsa_jax.merging.symmetry.spec import AxisSpec, ties_by_leaf
from wsa_jax.types import Inputs

__all__ = ["Zipped", "zip_merge", "zip_units"]


class Zipped(NamedTuple):
    """Models that share a trunk and have tails of their own.

    Attributes:
      models: one for each that was merged, in its own shape but for the trunk's widths.
      shared: names of the trunk's leaves, equal in all of them.
    """

    models: tuple[PyTree, ...]
    shared: tuple[str, ...]


@door
def zip_units(
    spec: AxisSpec,
    models: Sequence[PyTree],
    activations: Functions,
    inputs: Inputs,
    *,
    groups: Sequence[str] | None = None,
    repeat: float | int | None = None,
    within: float | int = 1.0,
    batch_size: int = 100,
) -> tuple[UnitMaps, ...]:
    r"""Merge the most correlated units of all models until as many are left as the first has.

    .. math:: W_{cd} = \frac{1}{|c|} \sum_m \sum_{i \in c \cap m} \sum_{j \in d \cap m} W^m_{ij}

    for clusters c of the units that W makes and d of those that it reads, and models m. Every unit
    of every model starts as a cluster of its own. Greedily, the two clusters whose activations
    correlate most become one, whose correlation with any other is the lesser of theirs, times
    ``repeat``. A unit of the result is its cluster's mean; it is consumed in place of each of its
    units. Units of one model may meet, so a feature that one model alone has need not be averaged
    with a stranger.

    Args:
      spec: which axes of the first model move together.
      models: any number, of any width; the result has the first one's shape.
      activations: ``(params, inputs) -> {group: [examples, ..., units]}``, from `taps`; one
        function, or one for each model where architectures differ.
      inputs: ``[examples, ...]`` or a pytree of such arrays: calibration data, without labels.
      groups: names of those to zip, all others upstream among them; the rest, downstream, stays
        each model's own (`zip_merge`), and then heads may have different classes. All if None.
      repeat: factor in [0, 1] on the correlations of a merged cluster: small numbers favour pairs,
        and 0 allows pairs only (two models of one width). If None, 0.1 for two models, and 1 for
        more, in which a feature that all have is merged several times. On validation data of MLPs
        and ResNets no other number merged two models better or worse than 0.1 by more than chance
        (`python -m benchmarks align_settings`).
      within: share of a model's units that may be merged with units of the same model, in [0, 1].
      batch_size: examples at once; one pass serves all models and groups.

    Returns:
      For each model `UnitMaps`, which `align` applies. **The mean of the aligned models** (equal
      weights) is the zipped model; one by one they are parts of a sum, and no paths lead to them.
      ``info`` has ``within`` (merges inside one model, by group), ``unmoved`` and ``seconds``.

    Guarantees: correlations from covariances in float64, accumulated about running means; dead
    units agree with each other alone. Many-to-one maps do not keep the function through a ReLU,
    unless the units of a cluster compute the same: copies of one model with their units in other
    orders come back as the model.

    Raises:
      ValueError: as for `activation_transport`; an unknown group, a group without those upstream of
        it; factors outside [0, 1], or such that too few clusters may be merged.

    >>> from wsa_jax.merging import Tie, hand_written
    >>> from wsa_jax.merging.align import align
    >>> first = {"a": np.array([[1.0, 2.0], [0.0, 1.0]]), "b": np.array([[1.0], [4.0]])}
    >>> second = {"a": first["a"][:, ::-1], "b": first["b"][::-1]}
    >>> ties = [Tie(leaf="a", axis=1), Tie(leaf="b", axis=0, role="consumed")]
    >>> spec = hand_written({"hidden": ties}, first)
    >>> x = np.array([[1.0, 1.0], [1.0, -1.0], [0.0, 2.0]])
    >>> maps = zip_units(spec, [first, second], lambda p, x: {"hidden": x @ p["a"]}, x)
    >>> align(spec, second, maps[1])["b"].tolist()
    [[1.0], [4.0]]

    Source: Stoica et al., ZipIt! Merging Models from Different Tasks without Training, ICLR 2024.
    """
    begin = time.perf_counter()
    if repeat is None:
        repeat = 0.1 if len(models) == 2 else 1.0
    for name, value in (("repeat", repeat), ("within", within)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} {value} is not in [0, 1]; give a number in it")
    own = (
        _own_leaves(spec, models[0], groups) if groups is not None and len(models) else frozenset()
    )
    features = features_of(
        spec, models, activations, inputs, batch_size=batch_size, own=own, groups=groups
    )
    forward: list[dict[str, np.ndarray]] = [{} for _ in models]
    backward: list[dict[str, np.ndarray]] = [{} for _ in models]
    merged_within: dict[str, int] = {}
    for name, moments in features.moments.items():
        labels, merged_within[name] = _clusters(moments, float(repeat), float(within), name)
        member = np.eye(moments.sizes[0])[labels]
        mean = (member / member.sum(0)).T
        for index in range(len(models)):
            # The mean over models is to be the sum of these.
            forward[index][name] = len(models) * mean[:, moments.part(index)]
            backward[index][name] = member[moments.part(index)]
    info = {
        "within": merged_within,
        "unmoved": features.unmoved,
        "seconds": time.perf_counter() - begin,
    }
    return tuple(UnitMaps(f, b, info) for f, b in zip(forward, backward, strict=True))


@door
def zip_merge(spec: AxisSpec, models: Sequence[PyTree], maps: Sequence[UnitMaps]) -> Zipped:
    """Merge the trunk of zipped models and keep each one's own tail.

    Args:
      spec: as given to `zip_units`.
      models: as given to `zip_units`.
      maps: what it returned.

    Returns:
      One model for each: leaves that produce zipped units are merged, and equal in all of them;
      those that only consume such units are the model's own, in the trunk's units; all others are
      as they were. With all groups zipped, the tails are the heads. Statistics of the trunk are
      means; estimate them again with any of the models.

    Raises:
      ValueError: not one map for each model.

    >>> from wsa_jax.merging import Tie, hand_written
    >>> first = {"a": np.array([[1.0, 2.0]]), "b": np.array([[1.0], [4.0]])}
    >>> second = {"a": np.array([[4.0, 1.0]]), "b": np.array([[5.0], [3.0]])}
    >>> ties = [Tie(leaf="a", axis=1), Tie(leaf="b", axis=0, role="consumed")]
    >>> spec = hand_written({"hidden": ties}, first)
    >>> swap = np.array([[0.0, 1.0], [1.0, 0.0]])
    >>> maps = [UnitMaps({"hidden": m}, {"hidden": m}, {}) for m in (np.eye(2), swap)]
    >>> zipped = zip_merge(spec, [first, second], maps)
    >>> [model["a"].tolist() for model in zipped.models]
    [[[1.0, 3.0]], [[1.0, 3.0]]]
    >>> zipped.models[1]["b"].tolist(), zipped.shared
    ([[3.0], [5.0]], ('a',))
    """
    if not all(isinstance(own, UnitMaps) for own in maps):
        raise ValueError("maps are no UnitMaps; give what zip_units returned")
    if len(maps) != len(models) or not maps:
        raise ValueError(f"{len(maps)} maps were given for {len(models)} models; give one for each")
    moved = [map_units(spec, model, own) for model, own in zip(models, maps, strict=True)]
    trunk = {
        tie.leaf
        for group in spec.groups
        for tie in group.ties
        if group.name in maps[0].forward and tie.role != "consumed"
    }
    shared: dict[str, jax.Array] = {}
    named = [jax.tree_util.tree_flatten_with_path(model)[0] for model in moved]
    for leaves in zip(*named, strict=True):
        name = key_path(leaves[0][0])
        if name in trunk:
            values = np.stack([np.asarray(leaf, np.float64) for _, leaf in leaves]).mean(0)
            shared[name] = jax.numpy.asarray(values, leaves[0][1].dtype)
    merged = tuple(
        jax.tree_util.tree_map_with_path(lambda path, leaf: shared.get(key_path(path), leaf), model)
        for model in moved
    )
    return Zipped(merged, tuple(shared))


def _own_leaves(spec: AxisSpec, params: PyTree, groups: Sequence[str]) -> frozenset[str]:
    """Leaves of the tails; checks that whatever zipped units come from is zipped, too."""
    if not all(isinstance(name, str) for name in groups):
        raise ValueError(f"groups are no names; give some of {', '.join(spec.names)}")
    for name in groups:
        spec[name]  # an unknown one is refused there
    trunk = set()
    for leaf, ties in ties_by_leaf(spec).items():
        if not any(g.name in groups and tie.role != "consumed" for g, tie in ties):
            continue
        trunk.add(leaf)
        left = [group.name for group, _ in ties if group.name not in groups]
        if left:
            made = next(g.name for g, tie in ties if g.name in groups and tie.role != "consumed")
            raise ValueError(
                f"group {made} is made from group {left[0]} by leaf {leaf}; zip group {left[0]}, "
                "too, or neither"
            )
    names = (key_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params))
    return frozenset(name for name in names if name not in trunk)


def _clusters(
    moments: FeatureMoments, repeat: float, within: float, name: str
) -> tuple[np.ndarray, int]:
    """The cluster of every unit of every model, and how many merges were inside one model.

    Rows keep their best partner, so that a merge looks at a few rows only.
    """
    alike = _correlations(moments)
    owner = np.repeat(np.arange(len(moments.sizes)), moments.sizes)  # -1: of several models
    allowed = np.floor(within * np.asarray(moments.sizes)).astype(int)
    labels, inside = np.arange(len(alike)), 0
    full = allowed[owner] <= 0

    def best(rows: np.ndarray) -> None:
        values = np.where(
            full[rows, None] & (owner[rows, None] == owner[None]), -np.inf, alike[rows]
        )
        partner[rows] = values.argmax(1)
        value[rows] = values[np.arange(len(rows)), partner[rows]]

    partner, value = np.zeros(len(alike), int), np.zeros(len(alike))
    best(np.arange(len(alike)))
    for _ in range(len(alike) - moments.sizes[0]):
        row = int(value.argmax())
        if not np.isfinite(value[row]):
            raise ValueError(
                f"group {name} cannot be zipped to {moments.sizes[0]} units: no more clusters may "
                f"be merged with repeat {repeat:g} and within {within:g}; give greater ones"
            )
        keep, gone = sorted((row, int(partner[row])))
        labels[labels == gone] = keep
        again = (partner == keep) | (partner == gone)
        if owner[keep] == owner[gone] >= 0:
            inside += 1
            allowed[owner[keep]] -= 1
            if allowed[owner[keep]] <= 0:
                again |= owner == owner[keep]
                full[owner == owner[keep]] = True
        elif owner[keep] != owner[gone]:
            owner[keep], full[keep] = -1, False
        # A cluster is as near to another as the farther of its two parts.
        lesser = np.minimum(alike[keep], alike[gone])
        lesser = repeat * lesser if repeat > 0 else np.full_like(lesser, -np.inf)
        alike[keep], alike[:, keep] = lesser, lesser
        alike[gone], alike[:, gone] = -np.inf, -np.inf
        owner[gone], full[gone], again[[keep, gone]] = -2, False, True
        better = (lesser > value) & ~again
        again |= better
        best(np.flatnonzero(again))
    kept, labels = np.unique(labels, return_inverse=True)
    assert len(kept) == moments.sizes[0]
    return labels, inside


def _correlations(moments: FeatureMoments) -> Float[np.ndarray, "units units"]:
    """Pearson's; dead units agree with each other alone; minus infinity of a unit with itself."""
    deviation = np.sqrt(np.diag(moments.covariance))
    norm, dead = np.outer(deviation, deviation), deviation == 0
    same = np.outer(dead, dead).astype(np.float64)
    alike = np.divide(moments.covariance, norm, out=same, where=norm > 0)
    np.fill_diagonal(alike, -np.inf)
    return alike
