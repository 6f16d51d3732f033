"""Walk through a jaxpr and all it calls, one rule per equation, and record what was seen.

The walk is symbolic: each array is a `Value` with its axes in atoms, and each rule joins or pins
these.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import source_info_util

from wsa_jax.merging.symmetry.tracing.axes import Atom, fresh, pin
from wsa_jax.merging.symmetry.tracing.equations import Equations
from wsa_jax.merging.symmetry.tracing.steps import (
    Origin,
    Scaling,
    ScalingRule,
    Step,
    StepKind,
    Unknown,
    Value,
)
from wsa_jax.types import JaxprEqn

# Rules that hold for arrays without elements, too; such an array is not always without effect.
_WITH_EMPTY = frozenset(["concatenate", "split"])

# Rules that know what positions along an axis are; all others take them for numbers.
_WITH_INDEX = frozenset(
    [
        "add",
        "broadcast_in_dim",
        "clamp",
        "convert_element_type",
        "copy",
        "eq",
        "gather",
        "lt",
        "optimization_barrier",
        "reshape",
        "select_n",
        "slice",
        "split",
        "squeeze",
        "stop_gradient",
        "transpose",
        "unstack",
    ]
)

AxisRule = Callable[["Walk", Any, Sequence[Value]], list[Value]]


class Primitive(NamedTuple):
    """What is known of a primitive: what it does to axes, and how its result scales."""

    axes: AxisRule
    scaling: ScalingRule = Scaling.NONE


@dataclass(eq=False)
class Equation:
    """An equation as a person reads it: loops stand before what is inside them.

    Attributes:
      name: name of the primitive.
      line: line of the user's code that it comes from, or an empty string.
      depth: number of loops around it.
      inputs: input values.
      outputs: output values.
    """

    name: str
    line: str
    depth: int
    inputs: Sequence[Value]
    outputs: Sequence[Value] = ()


class Walk(Equations[Value]):
    """A symbolic walk, and what it has seen.

    Attributes:
      primitives: what is known of each primitive; those that are missing pin all their axes.
      equations: equations in the order in which they were met.
      steps: steps in the order of execution.
      iterations: for each loop over stacked arrays around the equation, an index of its turns.
      consumed: (leaf, axis) pairs that a product with data sums over.
      produced: (leaf, axis) pairs that end up in data.
    """

    def __init__(self, primitives: Mapping[str, Primitive]) -> None:
        super().__init__()
        self.primitives = primitives
        self.equations: list[Equation] = []
        self.steps: list[Step] = []
        self.iterations: list[Atom] = []
        self.consumed: set[tuple[int, int]] = set()
        self.produced: set[tuple[int, int]] = set()
        self._lines: list[str] = []  # lines of the user's code, for the calls around an equation

    def constant(self, array: Any) -> Value:
        """Free along its axes if all elements agree; else every element has its place."""
        return constant_value(array)

    def equation(self, eqn: JaxprEqn, inputs: list[Value]) -> Sequence[Value]:
        """As of any walk, remembering the line of the user's code."""
        # Equations of functions that jax has compiled before have no line: their call's is used.
        self._lines.append(source_info_util.summarize(eqn.source_info))
        try:
            return super().equation(eqn, inputs)
        finally:
            self._lines.pop()

    def apply(self, eqn: JaxprEqn, inputs: list[Value]) -> list[Value]:
        """Apply the rule of an equation's primitive; without one, pin everything."""
        name = eqn.primitive.name
        if name not in _WITH_INDEX:
            self.pin_indices(inputs)
        equation = Equation(name, self._line(), self.depth, inputs)
        self.equations.append(equation)
        known = self.primitives.get(name)
        empty = 0 in [n for var in (*eqn.invars, *eqn.outvars) for n in _shape(var)]
        if empty and all(0 in _shape(var) for var in eqn.outvars):
            equation.outputs = [Value(tuple(map(fresh, _shape(var)))) for var in eqn.outvars]
        elif known is None or (empty and name not in _WITH_EMPTY and not _has_jaxpr(eqn)):
            equation.outputs = pin_all(self, eqn, inputs)
        else:
            equation.outputs = known.axes(self, eqn, inputs)
        return list(equation.outputs)

    def pin_indices(self, values: Iterable[Value]) -> None:
        """Fix the axes of which values are positions, where these are used as mere numbers."""
        for value in values:
            if value.index is not None:
                pin(value.index.axis, value.index.reason)

    def scaling(self, eqn: JaxprEqn) -> ScalingRule:
        """How the result of an equation scales."""
        return self.primitives[eqn.primitive.name].scaling

    def record(
        self, name: str, kind: StepKind, inputs: Iterable[Value], outputs: Iterable[Value]
    ) -> None:
        """Keep a step for the analyses that follow: admitted maps, nesting, taps."""
        position = None if self.depth else self.position
        iterations = tuple(self.iterations)
        self.steps.append(Step(name, kind, tuple(inputs), tuple(outputs), position, iterations))

    def values(self) -> Iterator[Value]:
        """All arrays seen, and the products inside of sums, repeats included."""
        for step in self.steps:
            yield from step.values

    def where(self, eqn: JaxprEqn) -> str:
        """The primitive and the line of the user's code that an equation comes from."""
        return f"{eqn.primitive.name} at {self._line() or 'an unknown line'}"

    def _line(self) -> str:
        return next((line for line in reversed(self._lines) if line), "")


def constant_value(array: Any) -> Value:
    """The value of a literal or a closed-over array: free along its axes if all elements agree."""
    shape = tuple(getattr(array, "shape", ()))
    nowhere = (frozenset(),) * len(shape)
    if not isinstance(array, jax.core.Tracer) and is_number(array):
        numbers = np.asarray(array)
        if numbers.size and (numbers == numbers.flat[0]).all():
            axes = tuple(fresh(size, free=True) for size in shape)
            return Value(axes, nowhere, float(numbers.flat[0]))
    reason = "a constant array differs along it"
    return Value(tuple(fresh(size, reason=reason) for size in shape), nowhere)


def is_number(array: Any) -> bool:
    """Whether an array holds real numbers or booleans, on this host."""
    dtype = getattr(array, "dtype", None)
    if dtype is None:
        return isinstance(array, bool | int | float)
    # Not np.issubdtype: it does not know bfloat16, and a PRNG key holds no numbers.
    return any(jax.numpy.issubdtype(dtype, kind) for kind in (np.floating, np.integer, np.bool_))


def pin_all(walk: Walk, eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    """Pin every axis that goes in or comes out, and say which equation did it."""
    reason = walk.where(eqn)
    for value in inputs:
        for axis in value.axes:
            pin(axis, reason)
    outputs = [
        Value(tuple(fresh(size, reason=reason) for size in _shape(var))) for var in eqn.outvars
    ]
    walk.record(eqn.primitive.name, Unknown(), inputs, outputs)
    return outputs


def merged_origin(inputs: Sequence[Value], shape: tuple[int, ...]) -> Origin | None:
    """Where the result of an elementwise function comes from; None if from data."""
    if any(value.origin is None for value in inputs):
        return None
    pairs: list[frozenset[tuple[int, int]]] = [frozenset()] * len(shape)
    for value in inputs:
        if value.origin is not None and len(value.origin) == len(shape):
            pairs = [a | b for a, b in zip(pairs, value.origin, strict=True)]
    return tuple(pairs)


def _shape(var: Any) -> tuple[int, ...]:
    return tuple(getattr(var.aval, "shape", ()))


def _has_jaxpr(eqn: JaxprEqn) -> bool:
    """Whether an equation runs others, which see for themselves whether an array is empty."""
    return any(key in eqn.params for key in ("jaxpr", "body_jaxpr", "branches"))
