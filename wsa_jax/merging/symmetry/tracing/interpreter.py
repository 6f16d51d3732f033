"""Walk through a jaxpr and all it calls, one rule per equation, and record what was seen.

The walk is symbolic: each array is a `Value` with its axes in atoms, and each rule joins or pins
these.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.extend import core, source_info_util

from wsa_jax.merging.symmetry.tracing.axes import Axis, fresh, join, pin, size_of

Origin = tuple[frozenset[tuple[int, int]], ...]

_CALLS = frozenset({
    "pjit", "jit", "closed_call", "core_call", "remat", "remat2", "checkpoint",
    "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_vmap_call",
})  # fmt: skip


@dataclass(eq=False)
class Value:
    """An array: its axes, and what is known of where it comes from.

    Attributes:
      axes: one entry per axis of the array.
      origin: for a function of parameters alone, (leaf, axis) pairs that each axis derives from.
      constant: the number that all elements equal, if known.
    """

    axes: tuple[Axis, ...]
    origin: Origin | None = None
    constant: float | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return tuple(size_of(axis) for axis in self.axes)

    @property
    def is_parameter(self) -> bool:
        """Whether it is a function of parameters alone, and of at least one."""
        return self.origin is not None and any(self.origin)


@dataclass(eq=False)
class Step:
    """One equation as it was seen.

    Attributes:
      name: name of the primitive.
      inputs: input values.
      outputs: output values.
      params: what the rule records about it.
      position: number of the equation, counted outside of loops; None inside a loop.
    """

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    params: dict[str, Any]
    position: int | None


Rule = Callable[["Walk", Any, Sequence[Value]], list[Value]]


@dataclass
class Walk:
    """What a walk has seen.

    Attributes:
      rules: rules by primitive.
      steps: steps in the order of execution.
      consumed: (leaf, axis) pairs that a product with data sums over.
      produced: (leaf, axis) pairs that end up in data.
      depth: number of loops around the current equation.
      position: number of equations passed outside of loops.
      lines: lines of the user's code, for the calls around the current equation.
    """

    rules: dict[str, Rule]
    steps: list[Step] = field(default_factory=list)
    consumed: set[tuple[int, int]] = field(default_factory=set)
    produced: set[tuple[int, int]] = field(default_factory=set)
    depth: int = 0
    position: int = 0
    lines: list[str] = field(default_factory=list)

    def record(
        self, name: str, inputs: Iterable[Value], outputs: Iterable[Value], **params
    ) -> None:
        """Keep a step for the analyses that follow: degrees, nesting, taps."""
        position = None if self.depth else self.position
        self.steps.append(Step(name, tuple(inputs), tuple(outputs), params, position))

    def values(self) -> Iterator[Value]:
        """All arrays seen, and the products inside of sums, repeats included."""
        for step in self.steps:
            yield from step.inputs
            yield from step.outputs
            if "inside" in step.params:
                yield step.params["inside"]

    def run(self, jaxpr: core.Jaxpr, consts: Sequence[Value], args: Sequence[Value]) -> list[Value]:
        """Walk through a jaxpr and return the values of its outputs."""
        env: dict[core.Var, Value] = dict(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, args, strict=True))

        def read(atom: Any) -> Value:
            return constant_value(atom.val) if isinstance(atom, core.Literal) else env[atom]

        for eqn in jaxpr.eqns:
            inputs = [read(atom) for atom in eqn.invars]
            outputs = self.equation(eqn, inputs)
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def closed(self, jaxpr: Any, args: Sequence[Value]) -> list[Value]:
        """Walk through a jaxpr with its constants."""
        if isinstance(jaxpr, core.ClosedJaxpr):
            consts = [constant_value(const) for const in jaxpr.consts]
            return self.run(jaxpr.jaxpr, consts, args)
        return self.run(jaxpr, [], args)

    def equation(self, eqn: Any, inputs: list[Value]) -> list[Value]:
        """Apply the rule of an equation; look inside calls and loops."""
        name = eqn.primitive.name
        # Equations of functions that jax has compiled before have no line: their call's is used.
        self.lines.append(source_info_util.summarize(eqn.source_info))
        try:
            return self._apply(name, eqn, inputs)
        finally:
            self.lines.pop()

    def where(self, eqn: Any) -> str:
        """The primitive and the line of the user's code that an equation comes from."""
        line = next((line for line in reversed(self.lines) if line), "an unknown line")
        return f"{eqn.primitive.name} at {line}"

    def _apply(self, name: str, eqn: Any, inputs: list[Value]) -> list[Value]:
        if (inner := called(eqn)) is not None:
            return self.closed(inner, inputs)
        self.position += self.depth == 0
        if name in _LOOPS:
            self.depth += 1
            outputs = _LOOPS[name](self, eqn, inputs)
            self.depth -= 1
            return outputs
        if 0 in [n for var in (*eqn.invars, *eqn.outvars) for n in getattr(var.aval, "shape", ())]:
            return unknown(self, eqn, inputs)
        return self.rules.get(name, unknown)(self, eqn, inputs)


def called(eqn: Any) -> Any:
    """The jaxpr that an equation merely calls, or None."""
    if eqn.primitive.name not in _CALLS:
        return None
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr", "call"):
        if key in eqn.params:
            return eqn.params[key]
    return None


def constant_value(array: Any) -> Value:
    """The value of a literal or a closed-over array: free along its axes if all elements agree."""
    shape = tuple(getattr(array, "shape", ()))
    known = not isinstance(array, jax.core.Tracer) and is_number(array)
    if known:
        numbers = np.asarray(array)
        if numbers.size and (numbers == numbers.flat[0]).all():
            axes = tuple(fresh(size, free=True) for size in shape)
            return Value(axes, _no_origin(shape), float(numbers.flat[0]))
    reason = "a constant array differs along it"
    return Value(tuple(fresh(size, reason=reason) for size in shape), _no_origin(shape))


def is_number(array: Any) -> bool:
    """Whether an array holds real numbers or booleans, on this host."""
    dtype = getattr(array, "dtype", None)
    if dtype is None:
        return isinstance(array, bool | int | float)
    # Not np.issubdtype: it does not know bfloat16, and a PRNG key holds no numbers.
    return any(jax.numpy.issubdtype(dtype, kind) for kind in (np.floating, np.integer, np.bool_))


def unknown(walk: Walk, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """Pin every axis that goes in or comes out, and say which equation did it."""
    reason = walk.where(eqn)
    for value in inputs:
        for axis in value.axes:
            pin(axis, reason)
    outputs = [pinned_value(var.aval, reason) for var in eqn.outvars]
    walk.record("unknown", inputs, outputs)
    return outputs


def pinned_value(aval: Any, reason: str) -> Value:
    """An array in which every element has a fixed place."""
    return Value(tuple(fresh(size, reason=reason) for size in getattr(aval, "shape", ())))


def merged_origin(inputs: Sequence[Value], shape: tuple[int, ...]) -> Origin | None:
    """Where the result of an elementwise function comes from; None if from data."""
    if any(value.origin is None for value in inputs):
        return None
    pairs: list[frozenset[tuple[int, int]]] = [frozenset()] * len(shape)
    for value in inputs:
        if value.origin is not None and len(value.origin) == len(shape):
            pairs = [a | b for a, b in zip(pairs, value.origin, strict=True)]
    return tuple(pairs)


def _no_origin(shape: Sequence[int]) -> Origin:
    return (frozenset(),) * len(shape)


def _carried(walk: Walk, start: Sequence[Value]) -> list[Value]:
    """Stand-ins for what a loop carries: the same axes in every iteration."""
    carried = []
    for value in start:
        # What is constant along an axis at the start need not be so later.
        axes = [fresh(size) for size in value.shape]
        for axis, given in zip(axes, value.axes, strict=True):
            join(axis, given)
        carried.append(Value(tuple(axes)))
        walk.record("carry", [value], [carried[-1]])
    return carried


def _same(walk: Walk, value: Value, other: Value) -> Value:
    axes = tuple(join(a, b) for a, b in zip(value.axes, other.axes, strict=True))
    result = Value(axes)
    walk.record("same", [value, other], [result])
    return result


def _scan(walk: Walk, eqn: Any, inputs: list[Value]) -> list[Value]:
    body = eqn.params["jaxpr"]
    # Told by the ranks, since jax 0.10 and 0.12 keep the counts in different forms.
    sliced = sum(_rank(a) != _rank(b) for a, b in zip(eqn.invars, _inner(body).invars, strict=True))
    outer = zip(eqn.outvars, _inner(body).outvars, strict=True)
    carries = sum(_rank(a) == _rank(b) for a, b in outer)
    count = len(inputs) - carries - sliced
    reason = f"iterations of {walk.where(eqn)}"
    slices = []
    for value in inputs[count + carries :]:
        pin(value.axes[0], reason)
        origin = None if value.origin is None else value.origin[1:]
        slices.append(Value(value.axes[1:], origin, value.constant))
        kept = [(axis + 1,) for axis in range(len(slices[-1].axes))]
        walk.record("move", [value], [slices[-1]], sources=kept)
    start = inputs[count : count + carries]
    carried = _carried(walk, start)
    outputs = walk.closed(body, [*inputs[:count], *carried, *slices])
    ends = [_same(walk, a, b) for a, b in zip(carried, outputs[:carries], strict=True)]
    stacked = []
    for value in outputs[carries:]:
        turns = fresh(eqn.params["length"], reason=reason)
        stacked.append(Value((turns, *value.axes)))
        kept = [(), *((axis,) for axis in range(len(value.axes)))]
        walk.record("move", [value], [stacked[-1]], sources=kept)
    return [*ends, *stacked]


def _inner(jaxpr: Any) -> Any:
    return jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr


def _rank(var: Any) -> int:
    return len(getattr(var.aval, "shape", ()))


def _while(walk: Walk, eqn: Any, inputs: list[Value]) -> list[Value]:
    first = eqn.params["cond_nconsts"]
    second = first + eqn.params["body_nconsts"]
    carried = _carried(walk, inputs[second:])
    (going,) = walk.closed(eqn.params["cond_jaxpr"], [*inputs[:first], *carried])
    walk.record("decide", [going], [])
    outputs = walk.closed(eqn.params["body_jaxpr"], [*inputs[first:second], *carried])
    return [_same(walk, a, b) for a, b in zip(carried, outputs, strict=True)]


def _cond(walk: Walk, eqn: Any, inputs: list[Value]) -> list[Value]:
    walk.record("decide", inputs[:1], [])
    results = [walk.closed(branch, inputs[1:]) for branch in eqn.params["branches"]]
    outputs = results[0]
    for others in results[1:]:
        outputs = [_same(walk, a, b) for a, b in zip(outputs, others, strict=True)]
    return outputs


_LOOPS = {"scan": _scan, "while": _while, "cond": _cond}
