"""Rules of loops and branches: their bodies are walked once, and iterations must agree."""

from collections.abc import Sequence
from typing import Any

from jax.extend import core

from wsa_jax.merging.symmetry.tracing.axes import Atom, expand, fresh, join, pin
from wsa_jax.merging.symmetry.tracing.interpreter import Walk
from wsa_jax.merging.symmetry.tracing.steps import Decide, LoopCarry, Move, Same, Value
from wsa_jax.types import JaxprEqn


def scan(walk: Walk, eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    """One iteration stands for all: what is carried has the same axes at both ends."""
    body = eqn.params["jaxpr"]
    # Told by the ranks, since jax 0.10 and 0.12 keep the counts in different forms.
    sliced = sum(_rank(a) != _rank(b) for a, b in zip(eqn.invars, _open(body).invars, strict=True))
    outer = zip(eqn.outvars, _open(body).outvars, strict=True)
    carries = sum(_rank(a) == _rank(b) for a, b in outer)
    count = len(inputs) - carries - sliced
    reason = f"iterations of {walk.where(eqn)}"
    walk.depth += 1
    turns = _turns(inputs[count + carries :], eqn.params["length"], reason)
    slices = []
    for value in inputs[count + carries :]:
        pin(value.axes[0], reason)
        origin = None if value.origin is None else value.origin[1:]
        slices.append(Value(value.axes[1:], origin, value.constant))
        kept = [(axis + 1,) for axis in range(len(slices[-1].axes))]
        walk.record("scan", Move(kept, into=True), [value], [slices[-1]])
    start = inputs[count : count + carries]
    carried = _carried(walk, start)
    # What is carried is the same in all iterations; all else inside belongs to one of them.
    walk.iterations += turns
    outputs = walk.run(body, [*inputs[:count], *carried, *slices])
    walk.pin_indices(outputs)
    del walk.iterations[len(walk.iterations) - len(turns) :]
    ends = [_same(walk, a, b) for a, b in zip(carried, outputs[:carries], strict=True)]
    stacked = []
    for value in outputs[carries:]:
        iterations = (tuple(turns),) if turns else fresh(eqn.params["length"], reason=reason)
        stacked.append(Value((iterations, *value.axes)))
        kept = [(), *((axis,) for axis in range(len(value.axes)))]
        walk.record("scan", Move(kept, out=True), [value], [stacked[-1]])
    walk.depth -= 1
    return [*ends, *stacked]


def _turns(slices: Sequence[Value], length: int, reason: str) -> list[Atom]:
    """The index of a scan's iterations: what the stacked arrays are cut along, as one atom.

    Arrays without an order of their own along that axis are joined. Others keep theirs: an axis
    that was reversed, say, counts the iterations, too, but not by the same numbers.
    """
    if length < 2:
        return []
    chosen: Atom | None = None
    for value in sorted(slices, key=lambda value: not value.is_parameter):
        segments = expand(value.axes[0])
        atom = segments[0][0] if len(segments) == 1 and len(segments[0]) == 1 else None
        if not isinstance(atom, Atom) or atom.free:
            continue
        if chosen is None:
            chosen = atom
        elif atom.reason is None or chosen.reason is None:
            chosen = chosen.root().merge(atom)
    chosen = Atom(length) if chosen is None else chosen.root()
    pin(((chosen,),), reason)
    return [chosen]


def while_loop(walk: Walk, eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    """As `scan`, and the condition must not change."""
    first = eqn.params["cond_nconsts"]
    second = first + eqn.params["body_nconsts"]
    walk.depth += 1
    carried = _carried(walk, inputs[second:])
    (going,) = walk.run(eqn.params["cond_jaxpr"], [*inputs[:first], *carried])
    walk.record("while", Decide(), [going], [])
    outputs = walk.run(eqn.params["body_jaxpr"], [*inputs[first:second], *carried])
    walk.pin_indices([going, *outputs])
    ends = [_same(walk, a, b) for a, b in zip(carried, outputs, strict=True)]
    walk.depth -= 1
    return ends


def cond(walk: Walk, eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
    """All branches give arrays of the same axes."""
    walk.depth += 1
    walk.record("cond", Decide(), inputs[:1], [])
    results = [walk.run(branch, inputs[1:]) for branch in eqn.params["branches"]]
    outputs = results[0]
    for result in results:
        walk.pin_indices(result)
    for others in results[1:]:
        outputs = [_same(walk, a, b) for a, b in zip(outputs, others, strict=True)]
    walk.depth -= 1
    return outputs


def _carried(walk: Walk, start: Sequence[Value]) -> list[Value]:
    """Stand-ins for what a loop carries: the same axes in every iteration."""
    carried = []
    for value in start:
        # What is constant along an axis at the start need not be so later.
        axes = [fresh(size) for size in value.shape]
        for axis, given in zip(axes, value.axes, strict=True):
            join(axis, given)
        carried.append(Value(tuple(axes)))
        walk.record("loop", LoopCarry(), [value], [carried[-1]])
    return carried


def _same(walk: Walk, value: Value, other: Value) -> Value:
    axes = tuple(join(a, b) for a, b in zip(value.axes, other.axes, strict=True))
    result = Value(axes)
    walk.record("loop", Same(), [value, other], [result])
    return result


def _open(jaxpr: Any) -> Any:
    return jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr


def _rank(var: Any) -> int:
    return len(getattr(var.aval, "shape", ()))
