"""Infer a model's spec from the jaxpr of the function that applies it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core
from jaxtyping import PyTree

from wsa_jax.door import door, taken_by
from wsa_jax.merging.symmetry.spec import AxisSpec, check_spec
from wsa_jax.merging.symmetry.tracing.admitted_maps import admitted
from wsa_jax.merging.symmetry.tracing.axes import Atom, Sum, expand, fresh, pin
from wsa_jax.merging.symmetry.tracing.groups import (
    INPUT,
    OUTPUT,
    degree_of,
    find_groups,
    find_pinned,
    find_ties,
    reading_order,
)
from wsa_jax.merging.symmetry.tracing.heads import find_head
from wsa_jax.merging.symmetry.tracing.interpreter import Walk
from wsa_jax.merging.symmetry.tracing.primitives import PRIMITIVES
from wsa_jax.merging.symmetry.tracing.steps import Value
from wsa_jax.scope.layers import Rule
from wsa_jax.tree import key_path
from wsa_jax.types import Leaf

_PART = "a part of each unit that the axis holds"
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


def is_statistic(name: str, leaf: Leaf) -> bool:
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
        Value(tuple(fresh(size, reason=INPUT) for size in array.shape)) for array in arrays[count:]
    ]
    outputs = walk.run(jaxpr, [*leaves, *given])
    for output in outputs:
        walk.pin_indices([output])
        for axis in output.axes:
            pin(axis, OUTPUT)

    # A tie says nothing of parts of each unit: where units move, what they are cut into stays.
    for value in [*leaves, *walk.values()]:
        for axis in value.axes:
            for factor in (factor for segment in expand(axis) for factor in segment):
                if isinstance(factor, Sum):
                    pin(factor.terms, _PART)
    # What is never read could be moved alone, which would mean nothing.
    order = reading_order(walk)
    for index in set(range(count)) - set(order):
        for axis in leaves[index].axes:
            pin(axis, "the function does not read it")
    # Only now is it settled which atoms move, and so where each one's units lie.
    is_stat = [statistics(name, array) for name, array in zip(names, arrays, strict=False)]
    ties = find_ties(walk, leaves, names, is_stat, order)
    # Units that nothing here makes are indices of something outside, such as a vocabulary.
    for atom, places in list(ties.items()):
        if not any(tie.role == "produced" for tie in places):
            pin(((atom,),), "nothing here produces its units")
            del ties[atom]

    # Maps other than permutations need a second pass: powers follow from roles, known only now.
    degrees = [
        (leaf, [degree_of(walk, index, axis, is_stat[index]) for axis in range(len(leaf.axes))])
        for index, leaf in enumerate(leaves)
    ]
    admits = admitted(ties, walk.steps, degrees)
    groups, atoms = find_groups(ties, leaves, names, walk, admits)
    spec = AxisSpec(
        groups=tuple(groups),
        pinned=tuple(find_pinned(leaves, names, ties)),
        head=find_head(walk, leaves, names, outputs, ties),
    )
    # A spec written by hand is checked, so one read off a function is, too.
    check_spec(spec, dict(zip(names, arrays[:count], strict=True)))
    return Traced(spec, jaxpr, walk, atoms, dict(zip(names, leaves, strict=True)), given)


def _leaf(index: int, shape: Sequence[int]) -> Value:
    origin = tuple(frozenset({(index, axis)}) for axis in range(len(shape)))
    return Value(tuple(fresh(size) for size in shape), origin)


def _is_array(leaf: Leaf) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")
