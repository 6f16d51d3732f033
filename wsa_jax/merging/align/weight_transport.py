"""OT Fusion by weights: transport one model's units to another's by their incoming weights."""

import time
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, PyTree

from wsa_jax import checks
from wsa_jax.door import door
from wsa_jax.merging.align.assignment import moving_leaves
from wsa_jax.merging.align.transport_plan import (
    Masses,
    check_transport,
    mass_of,
    plan_maps,
    transport_plan,
)
from wsa_jax.merging.align.unit_maps import (
    UnitMaps,
    identity_maps,
    map_leaf,
    movable,
    resized,
    rows_of,
    second_sizes,
    wide,
)
from wsa_jax.merging.symmetry.spec import AxisSpec, Group, check_spec, ties_by_leaf

__all__ = ["weight_transport"]

Leaves = dict[str, np.ndarray]


@door
def weight_transport(
    spec: AxisSpec,
    models: Sequence[PyTree],
    *,
    solver: str = "exact",
    epsilon: float | int = 0.05,
    masses: Sequence[Masses] | None = None,
    passes: int = 2,
) -> tuple[UnitMaps, ...]:
    r"""Transport each model's units to the first one's by their incoming weights.

    .. math:: \min_T \sum_{ij} T_{ij} \lVert w_i - w'_j \rVert, \qquad
              W' = \operatorname{diag}(\mu)^{-1} T\, W\, \operatorname{diag}(\nu_0)^{-1} T_0^\top

    with T, :math:`\mu`, :math:`\nu` and the 0 as in `activation_transport`, and w the weights that
    make a unit. Group after group, from the input on: a unit is compared by all weights, biases and
    norms that produce it, whose other axes were transported before. A residual stream is produced
    at several depths: the first pass compares what is comparable by then, the second all.

    Args:
      spec: which axes of the first model move together.
      models: the first stays as it is; others may be wider or narrower.
      solver: ``"exact"`` or ``"sinkhorn"`` (extra ``transport``), as in `transport_plan`.
      epsilon: Sinkhorn's regularisation, relative to the mean cost.
      masses: as in `activation_transport`.
      passes: over all groups; 1 is the published algorithm, which has no residual streams. More
        change nothing in a network without them.

    Returns:
      For each model `UnitMaps`, which `align` applies; the average of the aligned models is OT
      Fusion. ``info`` has ``cost`` by group, ``unmoved`` (groups left as they are, nested ones for
      example, and why) and ``seconds``.

    Guarantees and errors: those of `activation_transport`.

    >>> from wsa_jax.merging import Tie, hand_written
    >>> from wsa_jax.merging.align import align
    >>> first = {"a": np.array([[1.0, 2.0]]), "b": np.array([[1.0], [4.0]])}
    >>> second = {"a": np.array([[2.0, 2.0, 1.0, 1.0]]), "b": np.array([[3.0, 1.0, 1.0, 0.0]]).T}
    >>> ties = [Tie(leaf="a", axis=1), Tie(leaf="b", axis=0, role="consumed")]
    >>> spec = hand_written({"hidden": ties}, first)
    >>> _, maps = weight_transport(spec, [first, second])
    >>> {name: leaf.tolist() for name, leaf in align(spec, second, maps).items()}
    {'a': [[1.0, 2.0]], 'b': [[1.0], [4.0]]}

    Source: Singh and Jaggi, Model Fusion via Optimal Transport, NeurIPS 2020, weight-based. Biases,
    norms, residual sums and sums of shares of outgoing weights are added here.
    """
    begin = time.perf_counter()
    check_transport(len(models), solver, epsilon, masses)
    checks.count("passes", passes)
    check_spec(spec, models[0])
    groups, unmoved = movable(spec)
    ours = _leaves(spec, models[0])
    order = _in_order(spec, groups, ours)
    found = [identity_maps(spec, groups, {"cost": {}, "unmoved": unmoved})]
    for index, model in enumerate(models):
        checks.finite(model, f"model {index + 1}")
    for index, model in enumerate(models):
        if index == 0:
            continue
        sizes = second_sizes(spec, models[0], model, f"model {index + 1}")
        comparison = _Comparison(spec, sizes, ours, _leaves(spec, model))
        maps, costs = UnitMaps({}, {}, {}), {}
        for number in range(passes):
            for group in order:
                cost = comparison.distances(group, maps, everything=number > 0)
                both = (
                    mass_of(masses, at, group.name, size)
                    for at, size in zip((0, index), cost.shape, strict=True)
                )
                plan = transport_plan(cost, *both, solver=solver, epsilon=epsilon)
                maps.forward[group.name], maps.backward[group.name] = plan_maps(plan)
                costs[group.name] = float(np.sum(plan * cost))
        found.append(maps._replace(info={"cost": costs, "unmoved": unmoved}))
    seconds = time.perf_counter() - begin
    return tuple(maps._replace(info=maps.info | {"seconds": seconds}) for maps in found)


class _Comparison:
    """Two models whose incoming weights are compared, group by group."""

    def __init__(
        self, spec: AxisSpec, sizes: Mapping[str, int], ours: Leaves, theirs: Leaves
    ) -> None:
        self._spec, self._sizes = spec, sizes
        self._ours, self._theirs = ours, theirs
        self._by_leaf = ties_by_leaf(resized(spec, sizes))
        self._movable = movable(spec)[0].keys()

    def distances(
        self, group: Group, maps: UnitMaps, *, everything: bool
    ) -> Float[np.ndarray, "units others"]:
        """Euclidean distances of all pairs of units, by what was brought in order before."""
        size = self._sizes[group.name]
        own = resized(self._spec, {group.name: size})[group.name]
        full = resized(self._spec, self._sizes)[group.name]
        total = np.zeros((group.size, size))
        for tie, moved, tied in zip(group.ties, own.ties, full.ties, strict=True):
            if tie.role != "produced":
                continue
            others = [(g, t) for g, t in self._by_leaf[tie.leaf] if t != tied]
            # On the first pass, what other groups have not been transported for cannot be compared.
            if not everything and {g.name for g, _ in others} & self._movable - maps.forward.keys():
                continue
            leaf = map_leaf(self._theirs[tie.leaf], others, maps)
            total += _squared(
                rows_of(self._ours[tie.leaf], group.size, tie), rows_of(leaf, size, moved)
            )
        return np.sqrt(np.maximum(total, 0.0))


def _in_order(spec: AxisSpec, groups: Mapping[str, Group], ours: Leaves) -> list[Group]:
    """Groups from the input on: next is the one most of whose incoming weights are comparable."""
    by_leaf = ties_by_leaf(spec)
    done: list[str] = []

    def share(group: Group) -> float:
        ready = total = 0
        for tie in (tie for tie in group.ties if tie.role == "produced"):
            size = ours[tie.leaf].size
            others = {g.name for g, t in by_leaf[tie.leaf] if t != tie} & groups.keys()
            total += size
            ready += size if others <= set(done) else 0
        return ready / max(total, 1)

    while len(done) < len(groups):
        left = [group for name, group in groups.items() if name not in done]
        done.append(max(left, key=share).name)
    return [groups[name] for name in done]


def _squared(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    squares = np.square(ours).sum(1)[:, None] + np.square(theirs).sum(1)[None]
    return squares - 2 * ours @ theirs.T


def _leaves(spec: AxisSpec, model: PyTree) -> Leaves:
    leaves = moving_leaves(spec, model)
    return {name: np.asarray(leaf, wide(leaf)) for name, leaf in leaves.items()}
