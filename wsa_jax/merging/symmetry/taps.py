"""Read the activations of a group's units from any function, without hooks in the model."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from wsa_jax.door import door
from wsa_jax.merging.symmetry.spec import AxisSpec, Group
from wsa_jax.merging.symmetry.tracing.axes import Atom, Axis, Factor, expand
from wsa_jax.merging.symmetry.tracing.equations import Equations
from wsa_jax.merging.symmetry.tracing.steps import (
    Contract,
    Convolve,
    LoopCarry,
    Same,
    Step,
    Value,
)
from wsa_jax.merging.symmetry.tracing.trace_spec import Traced, flatten, trace
from wsa_jax.types import JaxprEqn


class _Tap(NamedTuple):
    """Where an activation is, and how to move its units to the last axis."""

    position: int
    output: bool
    index: int
    axes: tuple[Axis, ...]
    axis: int
    units: tuple[Atom, ...]


@door
def taps(
    apply_fn: Callable[..., PyTree], spec: AxisSpec, *, where: str = "consumed"
) -> Callable[..., dict[str, Array]]:
    """Make a function that returns the activations of each group's units.

    Args:
      apply_fn: any JAX function ``apply_fn(params, *inputs)``.
      spec: groups of its parameters, traced or written by hand.
      where: ``"consumed"``, right before the last product that sums over the units (after the
        non-linearity; for a residual stream, at its end), or ``"produced"``, right after the first
        product that makes them and its bias (before norms and non-linearities).

    Returns:
      A function ``(params, *inputs) -> {group: [batch, ..., units]}``, the other axes in their
      order, flattened ones separate again; ``[batch, ..., parent's units, units]`` for a nested
      group.

    Edge cases: a group whose activations occur only inside a loop, or only in an axis that is cut
    into parts, is left out of the result, with a warning that names it.

    Guarantees: one evaluation of the function, of which only what the taps need is computed under
    jit; works for any function that `trace_spec` can read, and inside jit, vmap and grad.

    Raises:
      ValueError: (from the returned function) a group that is not one of the function's own
        symmetries.

    >>> import jax.numpy as jnp
    >>> from wsa_jax.merging.symmetry.tracing import trace_spec
    >>> apply_fn = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]
    >>> params = {"a": jnp.array([[1.0, -1.0]]), "b": jnp.ones((2, 1))}
    >>> spec = trace_spec(apply_fn, params, jnp.ones((3, 1)))
    >>> taps(apply_fn, spec)(params, jnp.ones((1, 1)))["a"].tolist()
    [[1.0, 0.0]]
    >>> taps(apply_fn, spec, where="produced")(params, jnp.ones((1, 1)))["a"].tolist()
    [[1.0, -1.0]]
    """
    if where not in ("consumed", "produced"):
        raise ValueError(f"where {where!r} is unknown; give 'consumed' or 'produced'")

    def activations(params: PyTree, *inputs: PyTree) -> dict[str, Array]:
        traced = trace(apply_fn, params, *inputs)
        found = {group.name: _tap(traced, spec, group, where) for group in spec.groups}
        places = {name: tap for name, tap in found.items() if tap is not None}
        _name_missing([name for name in found if name not in places])
        wanted = {(tap.position, tap.output, tap.index) for tap in places.values()}
        _, arrays, _ = flatten(apply_fn, params, inputs)
        evaluation = Evaluation(wanted)
        evaluation.run(traced.jaxpr, arrays)
        return {
            name: _units_last(evaluation.seen[tap.position, tap.output, tap.index], tap)
            for name, tap in places.items()
        }

    return activations


class Evaluation(Equations[Any]):
    """Evaluate a jaxpr and keep the arrays at the wanted places, numbered as in the trace.

    Attributes:
      wanted: ``(equation, whether an output, number)``.
      passed: for equations that are left out, the input that takes their result's place.
      seen: the arrays at the wanted places.
    """

    def __init__(
        self, wanted: set[tuple[int, bool, int]], passed: Mapping[int, int] | None = None
    ) -> None:
        super().__init__()
        self.wanted = wanted
        self.passed = passed or {}
        self.seen: dict[tuple[int, bool, int], Array] = {}

    def constant(self, array: Any) -> Any:
        """An array as it is."""
        return array

    def apply(self, eqn: JaxprEqn, inputs: list[Any]) -> list[Any]:
        """The arrays that an equation returns, kept where they are wanted."""
        if not self.depth and self.position in self.passed:
            (var,) = eqn.outvars
            return [inputs[self.passed[self.position]].astype(var.aval.dtype)]
        params = eqn.primitive.get_bind_params(eqn.params)
        # Early jax 0.10 returns functions separately, as its guide to interpreters says.
        functions, params = params if isinstance(params, tuple) else ((), params)
        with eqn.ctx.manager:
            results = eqn.primitive.bind(*functions, *inputs, **params)
        results = list(results) if eqn.primitive.multiple_results else [results]
        for output, arrays in ((False, inputs), (True, results)):
            for index, array in enumerate(arrays):
                if (self.position, output, index) in self.wanted:
                    self.seen[self.position, output, index] = array
        return results


def _name_missing(names: Sequence[str]) -> None:
    if names:
        listed = ", ".join(names)
        groups, have = ("group", "has") if len(names) == 1 else ("groups", "have")
        warnings.warn(
            f"{groups} {listed} {have} no activations outside of loops that hold the units, and "
            "no tap; tap a function without lax.scan to see them",
            stacklevel=3,
        )


def _tap(traced: Traced, spec: AxisSpec, group: Group, where: str) -> _Tap | None:
    atom = _atom(traced, group)
    units = (atom,) if group.parent is None else (_atom(traced, spec[group.parent]), atom)
    steps = [step for step in traced.walk.steps if step.position is not None]
    places = _consumed(steps, atom) if where == "consumed" else _produced(steps, atom)
    for step, output, index in places:
        value = (step.outputs if output else step.inputs)[index]
        holding = [axis for axis in range(len(value.axes)) if _holds(value.axes[axis], atom)]
        if holding and _placed(value, holding[0], units):
            return _Tap(step.position or 0, output, index, value.axes, holding[0], units)
    return None


def _atom(traced: Traced, group: Group) -> Atom:
    """The atom that stands for a group's units, whatever the spec calls the group."""
    for own in traced.spec.groups:
        if own.size == group.size and set(own.ties) & set(group.ties):
            return traced.atoms[own.name]
    tie = group.ties[0]
    raise ValueError(
        f"group {group.name} (axis {tie.axis} of leaf {tie.leaf}) is not one of the function's own "
        "symmetries; compare the spec with trace_spec's"
    )


def _consumed(steps: Sequence[Step], atom: Atom) -> list[tuple[Step, bool, int]]:
    """Data summed over the units: by parameters first, latest first; then any other data."""
    by_parameters, by_data = [], []
    for step in reversed(steps):
        match step.kind:
            case Contract():
                summed = step.kind.contracted
            case Convolve() if _holds(step.kind.summed, atom):
                features, ins = step.kind.features
                summed = (features,), (ins,)
            case _:
                continue
        for index, (value, axes) in enumerate(zip(step.inputs, summed, strict=True)):
            if value.origin is None and any(_holds(value.axes[axis], atom) for axis in axes):
                other = step.inputs[1 - index]
                (by_parameters if other.is_parameter else by_data).append((step, False, index))
    return [*by_parameters, *by_data, *_any(reversed(steps), atom)]


def _produced(steps: Sequence[Step], atom: Atom) -> list[tuple[Step, bool, int]]:
    places: list[tuple[Step, bool, int]] = []
    for number, step in enumerate(steps):
        if isinstance(step.kind, Contract | Convolve) and _is_data(step.outputs[0], atom):
            result, last = step.outputs[0], step
            for later in steps[number + 1 :]:
                if later.name == "add" and any(v is result for v in later.inputs):
                    if any(value.is_parameter for value in later.inputs):
                        result, last = later.outputs[0], later
                    break
            places.append((last, True, 0))
    return [*places, *_any(steps, atom)]


def _any(steps: Any, atom: Atom) -> list[tuple[Step, bool, int]]:
    return [
        (step, True, index)
        for step in steps
        for index, value in enumerate(step.outputs)
        if _is_data(value, atom) and not isinstance(step.kind, LoopCarry | Same)
    ]


def _is_data(value: Value, atom: Atom) -> bool:
    return value.origin is None and any(_holds(axis, atom) for axis in value.axes)


def _holds(axis: Axis, atom: Atom) -> bool:
    return any(atom in segment for segment in expand(axis))


def _placed(value: Value, axis: int, units: tuple[Atom, ...]) -> bool:
    """Whether the parent's units can be told apart in the array, too."""
    segment = next(s for s in expand(value.axes[axis]) if units[-1] in s)
    others = [a for i, a in enumerate(value.axes) if i != axis]
    return all(
        unit in segment or any(len(expand(o)) == 1 and unit in expand(o)[0] for o in others)
        for unit in units
    )


def _units_last(array: Array, tap: _Tap) -> Array:
    """Unflatten the axes that hold the units, and move the units to the end."""
    shape: list[int] = []
    atoms: list[Factor | None] = []
    for axis, given in enumerate(tap.axes):
        segments = expand(given)
        chosen = (
            next((s for s in segments if tap.units[-1] in s), None)
            if axis == tap.axis
            else (segments[0] if len(segments) == 1 and set(segments[0]) & set(tap.units) else None)
        )
        if chosen is None:
            shape.append(array.shape[axis])
            atoms.append(None)
            continue
        offset = 0
        for segment in segments:
            if segment is chosen:
                break
            offset += math.prod(atom.size for atom in segment)
        size = math.prod(atom.size for atom in chosen)
        array = jax.lax.slice_in_dim(array, offset, offset + size, axis=axis)
        shape += [atom.size for atom in chosen]
        atoms += chosen
    array = array.reshape(shape)
    for unit in tap.units:
        place = atoms.index(unit)
        array = jnp.moveaxis(array, place, -1)
        atoms.append(atoms.pop(place))
    return array
