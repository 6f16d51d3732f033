"""From atoms that may move to groups: where their units lie, what they are called, what stays."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from wsa_jax.merging.symmetry.spec import Admits, Group, Pinned, Role, Tie
from wsa_jax.merging.symmetry.tracing.admitted_maps import Degree
from wsa_jax.merging.symmetry.tracing.axes import Atom, Sum, atoms_of, expand
from wsa_jax.merging.symmetry.tracing.interpreter import Walk
from wsa_jax.merging.symmetry.tracing.nesting import lies_in_units_of, possible_parents
from wsa_jax.merging.symmetry.tracing.rules_compute import WINDOW
from wsa_jax.merging.symmetry.tracing.steps import Value

INPUT, OUTPUT = "an input", "an output"
# Not worth reporting: nobody expects these to move.
_EVIDENT = frozenset({INPUT, OUTPUT, WINDOW})


def reading_order(walk: Walk) -> dict[int, int]:
    """When each leaf first enters a computation; leaves that are merely moved come last."""
    first: dict[int, int] = {}
    for late in (False, True):
        for step in walk.steps:
            met = late or any(value.origin is None for value in step.inputs)
            for value in step.inputs if met else ():
                for index, _ in sorted(frozenset().union(*(value.origin or ()))):
                    first.setdefault(index, len(first))
    return first


def _role(walk: Walk, pair: tuple[int, int], is_statistic: bool) -> Role:
    if is_statistic:
        return "statistic"
    return "consumed" if pair in walk.consumed and pair not in walk.produced else "produced"


def degree_of(walk: Walk, index: int, axis: int, is_statistic: bool) -> Degree | None:
    """The power of a unit's factor in a leaf, by role; None for an axis of two roles."""
    pair = (index, axis)
    if not is_statistic and pair in walk.consumed and pair in walk.produced:
        return None
    return {"produced": 1, "consumed": -1, "statistic": 0}[_role(walk, pair, is_statistic)]


def find_ties(
    walk: Walk,
    leaves: Sequence[Value],
    names: Sequence[str],
    is_statistic: Sequence[bool],
    order: dict[int, int],
) -> dict[Atom, list[Tie]]:
    """Where the units of each atom lie, with atoms and ties in the order of execution."""
    ties: dict[Atom, list[Tie]] = {}
    for index in sorted(order, key=order.__getitem__):
        for axis, given in enumerate(leaves[index].axes):
            role = _role(walk, (index, axis), is_statistic[index])
            offset = 0
            for segment in expand(given):
                length = math.prod(atom.size for atom in segment)
                outer = 1
                for atom in segment:
                    if isinstance(atom, Atom) and atom.reason is None:
                        inner = length // (outer * atom.size)
                        tie = Tie(
                            leaf=names[index],
                            axis=axis,
                            role=role,
                            offset=offset,
                            outer=outer,
                            inner=inner,
                        )
                        _append(ties.setdefault(atom, []), tie, atom.size)
                    outer *= atom.size
                offset += length
    return ties


def _append(ties: list[Tie], tie: Tie, size: int) -> None:
    """Add a tie; if it starts where another tie of its axis ends, extend that one instead."""
    for index, last in enumerate(ties):
        stop = last.offset + last.outer * size * last.inner
        if (last.leaf, last.axis, last.inner, stop) == (tie.leaf, tie.axis, tie.inner, tie.offset):
            ties[index] = dataclasses.replace(last, outer=last.outer + tie.outer)
            return
    ties.append(tie)


def find_groups(
    ties: dict[Atom, list[Tie]],
    leaves: Sequence[Value],
    names: Sequence[str],
    walk: Walk,
    admits: Mapping[Atom, Admits],
) -> tuple[list[Group], dict[str, Atom]]:
    """One group for each atom; one for each layer, if the atom lies in a loop's stacked leaves."""
    turns = _stacks(walk, leaves, names)
    parents: dict[Atom, Atom | None] = {}
    layers: dict[Atom, list[Atom]] = {}
    candidates = possible_parents([*turns, *ties], [*leaves, *walk.values()])
    for atom, places in ties.items():
        inside = [o for o in candidates[atom] if o in ties]
        fitting = (o for o in inside if lies_in_units_of(places, atom.size, ties[o], o.size))
        parents[atom] = next(fitting, None)
        around = [turn for turn in candidates[atom] if turn in turns]
        layers[atom] = [t for t in around if all(_stacked(turns[t], tie) for tie in places)]
    bases: dict[Atom, str] = {}
    for atom, parent in parents.items():
        # A parent with an order for each layer has none that an order for all layers could follow.
        if parent is not None and not set(layers[parent]) <= set(layers[atom]):
            parents[atom] = None
        bases[atom] = _name(ties[atom], parents[atom] is not None, bases.values())
    groups, atoms = [], {}
    for atom, places in ties.items():
        for positions in itertools.product(*(range(turn.size) for turn in layers[atom])):
            at = dict(zip(layers[atom], positions, strict=True))
            parent = parents[atom]
            owner = None if parent is None else _layer_name(bases[parent], at, layers[parent])
            group = Group(
                name=_layer_name(bases[atom], at, layers[atom]),
                size=atom.size,
                ties=tuple(_in_layer(tie, turns, at) for tie in places),
                admits=admits[atom],
                parent=owner,
            )
            groups.append(group)
            atoms[group.name] = atom
    return groups, atoms


def _stacks(
    walk: Walk, leaves: Sequence[Value], names: Sequence[str]
) -> dict[Atom, dict[str, int]]:
    """Indices of loops' iterations, and the axis of each leaf that is cut along them."""
    stacks: dict[Atom, dict[str, int]] = {}
    for atom in (atom.root() for step in walk.steps for atom in step.iterations):
        if atom not in stacks:
            stacks[atom] = {
                name: axis
                for name, leaf in zip(names, leaves, strict=True)
                for axis, given in enumerate(leaf.axes)
                if expand(given) == ((atom,),)
            }
    return stacks


def _stacked(axes: Mapping[str, int], tie: Tie) -> bool:
    return axes.get(tie.leaf, tie.axis) != tie.axis


def _in_layer(tie: Tie, turns: Mapping[Atom, Mapping[str, int]], at: Mapping[Atom, int]) -> Tie:
    places = sorted((turns[turn][tie.leaf], position) for turn, position in at.items())
    return dataclasses.replace(tie, at=tuple(places))


def _layer_name(base: str, at: Mapping[Atom, int], layers: Sequence[Atom]) -> str:
    return f"{base}[{','.join(str(at[turn]) for turn in layers)}]" if layers else base


def _name(ties: Iterable[Tie], nested: bool, taken: Iterable[str]) -> str:
    leaf = next(tie.leaf for tie in ties if tie.role == "produced")
    path = leaf.split("/")
    base = "/".join(path[path[0] == "params" : -1] or path[-1:])
    base = f"{base}/inner" if nested else base
    name, count = base, 1
    taken = set(taken)
    while name in taken:
        count += 1
        name = f"{base}_{count}"
    return name


def find_pinned(
    leaves: Sequence[Value], names: Sequence[str], ties: dict[Atom, list[Tie]]
) -> Iterable[Pinned]:
    """Axes with atoms that do not move: all except the evident, and all that move in part."""
    moving = {(tie.leaf, tie.axis) for places in ties.values() for tie in places}
    for name, leaf in zip(names, leaves, strict=True):
        for axis, given in enumerate(leaf.axes):
            segments = expand(given)
            reasons = [atom.reason for atom in atoms_of(given) if atom.reason is not None]
            parts = any(isinstance(factor, Sum) for segment in segments for factor in segment)
            telling = [reason for reason in reasons if reason not in _EVIDENT]
            if (name, axis) not in moving:
                if telling:
                    yield Pinned(leaf=name, axis=axis, reason=telling[0])
            elif parts or any(not any(atom in ties for atom in segment) for segment in segments):
                yield Pinned(leaf=name, axis=axis, reason=[*telling, *reasons, "a single unit"][0])
