"""Which axes of which leaves move together: a model's symmetries as static data."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import jax
import numpy as np
from jaxtyping import PyTree

from wsa_jax import checks
from wsa_jax.door import door
from wsa_jax.leaves import key_path

Layer = tuple[tuple[int, int], ...]
"""Positions of axes, ``((axis, position), ...)``; none for a whole leaf."""
Role = Literal["produced", "consumed", "statistic"]
Admits = Literal["linear", "scaling", "permutation"]


@dataclass(frozen=True, kw_only=True, order=True)
class Tie:
    """Where a group's units lie in one leaf: a block of one axis.

    Position ``offset + (o * size + u) * inner + i`` of the axis, with ``o < outer`` and
    ``i < inner``, belongs to unit ``u`` of the group. A dense layer after a flattened
    ``[height, width, channels]`` consumes with ``outer = height * width``; after
    ``[channels, height, width]`` with ``inner = height * width``; after a concatenation with an
    ``offset``.

    Attributes:
      leaf: key path, ``Conv_0/kernel``.
      axis: which axis of it, not negative.
      role: ``"produced"`` (kernel output, bias, norm scale), ``"consumed"`` (the next kernel's
        input: an invertible map enters inverted), or ``"statistic"`` (BatchNorm: moves with the
        units and enters no cost).
      offset: first position of the block.
      outer: repeats of all units.
      inner: consecutive positions of one unit.
      at: the tie holds only at these positions of other axes, ``((axis, position), ...)``: one
        layer of kernels that a ``lax.scan`` stacks.
    """

    leaf: str
    axis: int
    role: str = "produced"
    offset: int = 0
    outer: int = 1
    inner: int = 1
    at: Layer = ()

    def __post_init__(self) -> None:
        checks.one_of(f"role of the tie in leaf {self.leaf}:", self.role, get_args(Role))


@dataclass(frozen=True, kw_only=True)
class Group:
    """Units that may be reordered without changing the function, wherever they lie.

    Attributes:
      name: the group's name in results.
      size: number of units.
      ties: all places where the units lie.
      admits: the widest maps that preserve the function: ``"linear"`` (any invertible),
        ``"scaling"`` (positive scaling and permutation: ReLU between), ``"permutation"`` (norms,
        other non-linearities).
      parent: the group inside whose units these lie, each with an order of its own (the dimensions
        inside an attention head; the channels inside a group of GroupNorm). Its leaves hold the
        parent's units, too; maps are ``[parent's size, size]`` and count the parent's units
        before the parent itself is moved.
    """

    name: str
    size: int
    ties: tuple[Tie, ...]
    admits: str = "permutation"
    parent: str | None = None

    def __post_init__(self) -> None:
        checks.one_of(f"admits of group {self.name}:", self.admits, get_args(Admits))


@dataclass(frozen=True, kw_only=True, order=True)
class Pinned:
    """An axis that does not move, or only in part (a concatenation with an input), and why."""

    leaf: str
    axis: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class AxisSpec:
    """Groups of a model's axes that move together: static, hashable, checked against a model.

    Axes that no group names stay where they are (inputs, outputs, what a tracer pinned).

    Attributes:
      groups: in the order in which algorithms visit them.
      pinned: hidden axes left alone on purpose, with reasons; equality ignores them.
      head: the last kernels before the outputs and their biases, where a tracer looked for them
        (see `head_of`); equality ignores them.

    >>> spec = AxisSpec(
    ...     groups=(
    ...         Group(
    ...             name="hidden",
    ...             size=4,
    ...             ties=(
    ...                 Tie(leaf="in/kernel", axis=1),
    ...                 Tie(leaf="in/bias", axis=0),
    ...                 Tie(leaf="out/kernel", axis=0, role="consumed"),
    ...             ),
    ...             admits="scaling",
    ...         ),
    ...     )
    ... )
    >>> hash(spec) == hash(AxisSpec(groups=spec.groups)), spec["hidden"].size
    (True, 4)

    Source: the idea of a specification as data is Git Re-Basin's; roles, blocks, nesting and what
    a group admits are added here.
    """

    groups: tuple[Group, ...]
    pinned: tuple[Pinned, ...] = dataclasses.field(default=(), compare=False)
    head: tuple[str, ...] | None = dataclasses.field(default=None, compare=False)

    def __getitem__(self, name: str) -> Group:
        for group in self.groups:
            if group.name == name:
                return group
        raise ValueError(f"group {name} is not in the spec; it has {_listed(self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the groups."""
        return tuple(group.name for group in self.groups)

    def parent_tie(self, group: Group, tie: Tie) -> Tie:
        """Where the parent's units lie in the leaf of a nested group's tie.

        Raises:
          ValueError: the group has no parent, or its leaf does not hold the parent's units.
        """
        if group.parent is None:
            raise ValueError(f"group {group.name} has no parent")
        ties = [t for t in self[group.parent].ties if t.leaf == tie.leaf and covers(t, tie)]
        # The same axis first: a square kernel holds the parent's units on both.
        ties.sort(key=lambda t: (t.axis != tie.axis, t.role != tie.role))
        if not ties:
            raise ValueError(
                f"leaf {tie.leaf} holds units of group {group.name} but none of its parent "
                f"{group.parent}; give the parent a tie there"
            )
        return ties[0]

    def canonical(self) -> "AxisSpec":
        """The same symmetries with groups and ties sorted, named by each group's first tie.

        Two specs of one model are equal in this form whatever their groups were called.
        """
        names = {group.name: _first(group.ties) for group in self.groups}
        groups = [
            dataclasses.replace(
                group,
                name=names[group.name],
                ties=tuple(sorted(group.ties)),
                parent=None if group.parent is None else names[group.parent],
            )
            for group in self.groups
        ]
        return AxisSpec(groups=tuple(sorted(groups, key=lambda group: group.name)))


@door
def check_spec(spec: AxisSpec, params: PyTree) -> None:
    """Raise a ValueError that names the leaf and axis in which a spec does not fit a model.

    Checks that every leaf exists and has the axis, whose size must fit the group's blocks; that
    groups have distinct names and at least one unit and one tie; that blocks of one axis do not
    overlap, unless each unit of one holds all of the other's, and cover the axis unless it is
    pinned; and that parents exist.

    >>> hidden = Group(name="hidden", size=4, ties=(Tie(leaf="kernel", axis=1),))
    >>> check_spec(AxisSpec(groups=(hidden,)), {"kernel": np.ones((2, 3))})
    Traceback (most recent call last):
    ValueError: axis 1 of leaf kernel has size 3, too small for group hidden: 4 units ...
    """
    shapes = {
        key_path(path): np.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    if len(set(spec.names)) != len(spec.names):
        raise ValueError(f"group names must differ; got {_listed(spec.names)}")
    pinned = {(pin.leaf, pin.axis) for pin in spec.pinned}
    blocks: dict[
        tuple[str, int, tuple[tuple[int, int], ...]], list[tuple[int, int, Group, Tie]]
    ] = {}
    for group in spec.groups:
        if group.size < 1 or not group.ties:
            raise ValueError(
                f"group {group.name} has {group.size} units and {len(group.ties)} ties; "
                "both must be at least 1"
            )
        for tie in group.ties:
            _check_tie(group, tie, shapes)
            if group.parent is not None:
                spec.parent_tie(group, tie)
            extent = (tie.offset, _stop(group, tie), group, tie)
            blocks.setdefault((tie.leaf, tie.axis, tie.at), []).append(extent)
    for (leaf, axis, at), own in blocks.items():
        # What lies in the whole leaf lies in each of its layers, too.
        whole = blocks.get((leaf, axis, ()), []) if at else []
        extents = [*whole, *own]
        for index, (start, stop, group, tie) in enumerate(extents):
            for begin, end, other, others in extents[:index]:
                nested = other.parent == group.name or group.parent == other.name
                nested |= _inside(group, tie, other, others) or _inside(other, others, group, tie)
                if begin < stop and start < end and not nested:
                    raise ValueError(
                        f"axis {axis} of leaf {leaf} is given to groups {other.name} and "
                        f"{group.name} at once; give each its own block"
                    )
        covered = np.zeros(shapes[leaf][axis], bool)
        for start, stop, *_ in extents:
            covered[start:stop] = True
        if not covered.all() and (leaf, axis) not in pinned:
            raise ValueError(
                f"axis {axis} of leaf {leaf} has size {covered.size}, of which groups "
                f"{_listed(sorted({group.name for _, _, group, _ in extents}))} cover "
                f"{covered.sum()}; pin the axis if the rest is meant to stay"
            )


def covers(tie: Tie, other: Tie) -> bool:
    """Whether a tie lies wherever another tie of its leaf does: in that layer, or in all.

    >>> whole, layer = Tie(leaf="k", axis=1), Tie(leaf="k", axis=1, at=((0, 2),))
    >>> covers(whole, layer), covers(layer, whole)
    (True, False)
    """
    return set(tie.at) <= set(other.at)


def depth_of(spec: AxisSpec, group: Group) -> int:
    """In how many groups a group is nested."""
    return 0 if group.parent is None else 1 + depth_of(spec, spec[group.parent])


def ties_by_leaf(spec: AxisSpec) -> dict[str, list[tuple[Group, Tie]]]:
    """Collect, for each leaf, the groups that lie in it; nested groups before their parents."""
    result: dict[str, list[tuple[Group, Tie]]] = {}
    for group in sorted(spec.groups, key=lambda group: -depth_of(spec, group)):
        for tie in group.ties:
            result.setdefault(tie.leaf, []).append((group, tie))
    return result


@door
def hand_written(
    groups: Mapping[str, Iterable[Tie]],
    params: PyTree,
    *,
    pinned: Iterable[Pinned] = (),
    admits: str | Mapping[str, str] = "permutation",
) -> AxisSpec:
    """Build a spec from ties alone, with sizes read off the model.

    Leaves, axes and sizes are checked, but shapes cannot show whether a tie is missing:
    `check_equivalence` of a model and its permuted copy reveals a forgotten bias.

    Args:
      groups: ties of each group, by name.
      params: a model, for the sizes.
      pinned: axes of which only a part moves.
      admits: what all groups admit, or what each admits, by name.

    Raises:
      ValueError: as for `check_spec`, an axis whose size its block does not divide, or ``admits``
        is not one of ``"linear"``, ``"scaling"`` and ``"permutation"``, or names another group.

    >>> spec = hand_written(
    ...     {"hidden": [Tie(leaf="a", axis=1), Tie(leaf="b", axis=0, role="consumed", outer=2)]},
    ...     {"a": np.ones((3, 5)), "b": np.ones((10, 1))},
    ... )
    >>> spec["hidden"].size
    5
    """
    shapes = {
        key_path(path): np.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    unknown = [] if isinstance(admits, str) else [name for name in admits if name not in groups]
    if unknown:
        raise ValueError(
            f"admits names groups {_listed(unknown)}, which are not given; there are "
            f"{_listed(groups)}"
        )
    built = []
    for name, given in groups.items():
        ties = tuple(given)
        sizes = [
            (shapes[tie.leaf][tie.axis] - tie.offset) // (tie.outer * tie.inner)
            for tie in ties
            if tie.leaf in shapes and 0 <= tie.axis < len(shapes[tie.leaf])
        ]
        kind = admits if isinstance(admits, str) else admits.get(name, "permutation")
        built.append(Group(name=name, size=min(sizes, default=1), ties=ties, admits=kind))
    spec = AxisSpec(groups=tuple(built), pinned=tuple(pinned))
    check_spec(spec, params)
    return spec


def _check_tie(group: Group, tie: Tie, shapes: Mapping[str, tuple[int, ...]]) -> None:
    if tie.leaf not in shapes:
        # Parameters for variables, or the reverse: the leaf is there, a folder higher or lower.
        near = [n for n in shapes if f"/{n}".endswith(f"/{tie.leaf}") or tie.leaf.endswith(f"/{n}")]
        way = (
            f"give the tree that trace_spec got: here the leaf is {near[0]} (Model.variables has "
            "params/ before the names of params)"
            if near
            else "is the spec another model's?"
        )
        raise ValueError(
            f"leaf {tie.leaf} of group {group.name} is not in the model; it has "
            f"{_listed(shapes)}; {way}"
        )
    shape = shapes[tie.leaf]
    if not 0 <= tie.axis < len(shape):
        raise ValueError(
            f"leaf {tie.leaf} has shape {shape} and no axis {tie.axis}, which group {group.name} "
            "names"
        )
    for axis, position in tie.at:
        if axis == tie.axis or not (0 <= axis < len(shape) and 0 <= position < shape[axis]):
            raise ValueError(
                f"leaf {tie.leaf} has shape {shape} and no position {position} of another axis "
                f"{axis}, at which group {group.name} lies"
            )
    size, needed = shape[tie.axis], _stop(group, tie)
    if size < needed:
        raise ValueError(
            f"axis {tie.axis} of leaf {tie.leaf} has size {size}, too small for group "
            f"{group.name}: {group.size} units in {tie.outer} x {tie.inner} places from "
            f"{tie.offset}"
        )


def _stop(group: Group, tie: Tie) -> int:
    return tie.offset + tie.outer * group.size * tie.inner


def _inside(inner: Group, tie: Tie, outer: Group, other: Tie) -> bool:
    """Whether each unit of an outer group holds all of an inner one's, so that both may move."""
    repeat, period = inner.size * tie.inner, outer.size * other.inner
    if other.inner % repeat or (other.offset - tie.offset) % repeat:
        return False
    start, stop = tie.offset, _stop(inner, tie)
    around = start <= other.offset and _stop(outer, other) <= stop
    return around or ((start - other.offset) % period == 0 and (stop - start) % period == 0)


def _first(ties: tuple[Tie, ...]) -> str:
    produced = [tie for tie in ties if tie.role == "produced"]
    tie = min(produced or ties)
    layer = "".join(f"@{axis}:{position}" for axis, position in tie.at)
    return f"{tie.leaf}[{tie.axis}]{layer}+{tie.offset}/{tie.outer}x{tie.inner}"


def _listed(names: Iterable[object], limit: int = 8) -> str:
    said = [str(name) for name in names]
    more = f" and {len(said) - limit} more" if len(said) > limit else ""
    return ", ".join(said[:limit]) + more
