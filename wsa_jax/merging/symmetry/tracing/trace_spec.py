"""Infer a model's spec from the jaxpr of the function that applies it."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core
from jaxtyping import PyTree

from wsa_jax.door import door, taken_by
from wsa_jax.merging.symmetry.spec import Admits, AxisSpec, Group, Pinned, Role, Tie, check_spec
from wsa_jax.merging.symmetry.tracing.admitted_maps import Degree, admitted
from wsa_jax.merging.symmetry.tracing.axes import Atom, Sum, atoms_of, expand, fresh, pin
from wsa_jax.merging.symmetry.tracing.interpreter import Walk
from wsa_jax.merging.symmetry.tracing.nesting import lies_in_units_of, possible_parents
from wsa_jax.merging.symmetry.tracing.primitives import PRIMITIVES
from wsa_jax.merging.symmetry.tracing.rules_compute import WINDOW
from wsa_jax.merging.symmetry.tracing.steps import Value
from wsa_jax.scope.layers import Rule
from wsa_jax.tree import key_path

_INPUT, _OUTPUT = "an input", "an output"
_PART = "a part of each unit that the axis holds"
# Not worth reporting: nobody expects these to move.
_EVIDENT = frozenset({_INPUT, _OUTPUT, WINDOW})
_STATISTICS = frozenset({"mean", "var", "running_mean", "running_var"})


class Traced(NamedTuple):
    """A spec and what it was read from.

    Attributes:
      spec: the result.
      jaxpr: jaxpr of the function, parameters' arrays first.
      walk: steps and marks of the walk through it.
      atoms: the atom that stands for each group's units, by group name.
      leaves: the parameters' values, by name.
      inputs: the other arguments' values.
    """

    spec: AxisSpec
    jaxpr: core.ClosedJaxpr
    walk: Walk
    atoms: dict[str, Atom]
    leaves: dict[str, Value]
    inputs: list[Value]


def is_statistic(name: str, leaf: Any) -> bool:
    """Whether a leaf is a running statistic: in ``batch_stats``, or named like one.

    >>> is_statistic("batch_stats/BatchNorm_0/mean", None), is_statistic("Dense_0/kernel", None)
    (True, False)
    """
    del leaf
    *path, last = name.split("/")
    return "batch_stats" in path or last in _STATISTICS


@door
def trace_spec(
    apply_fn: Callable[..., PyTree],
    params: PyTree,
    *inputs: PyTree,
    statistics: Rule = is_statistic,
) -> AxisSpec:
    """Infer which axes of a model move together from the jaxpr of ``apply_fn(params, *inputs)``.

    Every axis is followed through the function: products show that what one layer produces is what
    the next consumes; sums show that their terms have the same order; reshapes, concatenations and
    grouped convolutions show that an axis consists of several. The effect of a positive scaling, or
    of any linear map of the units, on each equation decides what a group admits.

    Args:
      apply_fn: any JAX function, in the mode in which it is evaluated (running statistics, no
        dropout). The units of its outputs do not move, so it should not return new statistics.
      params: any pytree; leaves that are not arrays are passed to ``apply_fn``. Shapes suffice.
      inputs: the other arguments; shapes suffice. Their sizes need not differ from those of the
        layers.
      statistics: rule ``(name, leaf)`` that says which leaves are running statistics.

    Returns:
      Groups in the order of execution, named by the layer that first produces their units; hidden
      axes that do not move are listed in ``pinned``, with the primitive and line that pin them.

    Guarantees: nothing is compiled or evaluated. Any order of a group's units preserves the
    function (see `check_equivalence`); a primitive without a rule pins all its axes, and nothing is
    guessed.

    Edge cases: units of a layer whose output is not a group (one unit, an output, or tied to an
    input) do not move. In a ``lax.scan`` over stacked layers each layer has an order of its own, a
    group ``name[i]``, except for what is carried from one to the next. Leaves that the function
    does not read do not move.

    Raises:
      ValueError: ``params`` holds no arrays.

    >>> import jax.numpy as jnp
    >>> params = {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 2))}
    >>> spec = trace_spec(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, jnp.ones((7, 3)))
    >>> [(group.name, group.size, group.admits) for group in spec.groups]
    [('a', 5, 'scaling')]

    Source: new here. Git Re-Basin (Ainsworth et al., ICLR 2023) writes its specifications by
    hand.
    """
    return trace(apply_fn, params, *inputs, statistics=statistics).spec


def flatten(
    apply_fn: Callable[..., PyTree], params: PyTree, inputs: Sequence[PyTree]
) -> tuple[Callable[..., PyTree], list[Any], list[str]]:
    """A function of arrays alone, the arrays (parameters first), and the parameters' names."""
    named, structure = jax.tree_util.tree_flatten_with_path((params, tuple(inputs)))
    leaves = [leaf for _, leaf in named]
    places = [i for i, leaf in enumerate(leaves) if _is_array(leaf)]
    names = [key_path(named[i][0][1:]) for i in places if named[i][0][0].idx == 0]
    if not names:
        raise ValueError("params holds no arrays; give the model's parameters")

    def function(*arrays: Any) -> PyTree:
        filled = list(leaves)
        for place, array in zip(places, arrays, strict=True):
            filled[place] = array
        given, rest = jax.tree_util.tree_unflatten(structure, filled)
        return apply_fn(given, *rest)

    return function, [leaves[place] for place in places], names


def trace(
    apply_fn: Callable[..., PyTree],
    params: PyTree,
    *inputs: PyTree,
    statistics: Rule = is_statistic,
) -> Traced:
    """Like `trace_spec`, but with what the spec was read from."""
    function, arrays, names = flatten(apply_fn, params, inputs)
    with taken_by("apply_fn", "these parameters and inputs"):
        jaxpr = jax.make_jaxpr(function)(*arrays)
    walk, count = Walk(PRIMITIVES), len(names)
    # Parameters start free to move; inputs and outputs are the function's own and never move.
    leaves = [_leaf(index, array.shape) for index, array in enumerate(arrays[:count])]
    given = [
        Value(tuple(fresh(size, reason=_INPUT) for size in array.shape)) for array in arrays[count:]
    ]
    for output in walk.run(jaxpr, [*leaves, *given]):
        walk.pin_indices([output])
        for axis in output.axes:
            pin(axis, _OUTPUT)

    # A tie says nothing of parts of each unit: where units move, what they are cut into stays.
    for value in [*leaves, *walk.values()]:
        for axis in value.axes:
            for factor in (factor for segment in expand(axis) for factor in segment):
                if isinstance(factor, Sum):
                    pin(factor.terms, _PART)
    # What is never read could be moved alone, which would mean nothing.
    order = _order(walk)
    for index in set(range(count)) - set(order):
        for axis in leaves[index].axes:
            pin(axis, "the function does not read it")
    # Only now is it settled which atoms move, and so where each one's units lie.
    is_stat = [statistics(name, array) for name, array in zip(names, arrays, strict=False)]
    ties = _ties(walk, leaves, names, is_stat, order)
    # Units that nothing here makes are indices of something outside, such as a vocabulary.
    for atom, places in list(ties.items()):
        if not any(tie.role == "produced" for tie in places):
            pin(((atom,),), "nothing here produces its units")
            del ties[atom]

    # Maps other than permutations need a second pass: powers follow from roles, known only now.
    degrees = [
        (leaf, [_degree(walk, index, axis, is_stat[index]) for axis in range(len(leaf.axes))])
        for index, leaf in enumerate(leaves)
    ]
    admits = admitted(ties, walk.steps, degrees)
    groups, atoms = _groups(ties, leaves, names, walk, admits)
    spec = AxisSpec(groups=tuple(groups), pinned=tuple(_pinned(leaves, names, ties)))
    # A spec written by hand is checked, so one read off a function is, too.
    check_spec(spec, dict(zip(names, arrays[:count], strict=True)))
    return Traced(spec, jaxpr, walk, atoms, dict(zip(names, leaves, strict=True)), given)


def _leaf(index: int, shape: Sequence[int]) -> Value:
    origin = tuple(frozenset({(index, axis)}) for axis in range(len(shape)))
    return Value(tuple(fresh(size) for size in shape), origin)


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def _order(walk: Walk) -> dict[int, int]:
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


def _degree(walk: Walk, index: int, axis: int, is_statistic: bool) -> Degree | None:
    pair = (index, axis)
    if not is_statistic and pair in walk.consumed and pair in walk.produced:
        return None
    return {"produced": 1, "consumed": -1, "statistic": 0}[_role(walk, pair, is_statistic)]


def _ties(
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


def _groups(
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


def _pinned(
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
