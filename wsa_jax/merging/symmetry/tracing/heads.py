"""A function's head: what makes its outputs of the last units, seen from the outputs."""

from collections.abc import Iterable, Mapping, Sequence

from wsa_jax.merging.symmetry.tracing.axes import Atom, atoms_of
from wsa_jax.merging.symmetry.tracing.interpreter import Walk
from wsa_jax.merging.symmetry.tracing.steps import Contract, Convolve, Step, Value


def find_head(
    walk: Walk,
    leaves: Sequence[Value],
    names: Sequence[str],
    outputs: Iterable[Value],
    moving: Iterable[Atom],
) -> tuple[str, ...]:
    """The last kernels before the outputs, and what their products are added to or scaled by.

    What lies before units that move, or before such a kernel, is not looked at: it is the body's.
    Scalars are left out.
    """
    units = frozenset(moving)
    sources = _sources(walk, leaves)
    # Back from the outputs, since a kernel is a head's by what does not come after it.
    behind, path = {id(value) for value in outputs}, []
    for step in reversed(walk.steps):
        if not any(id(value) in behind for value in step.outputs):
            continue
        path.append(step)
        if not _is_layer(step, sources):
            data = [value for value in step.inputs if value.origin is None]
            behind |= {id(value) for value in data if not _holds(value, units)}
    # Forward again: what meets data that no kernel of the head has read stands at the input.
    made: set[int] = set()
    head: set[int] = set()
    for step in reversed(path):
        if _is_layer(step, sources) or any(id(value) in made for value in step.inputs):
            made |= {id(value) for value in step.outputs}
            head |= _parameters(step, sources)
    return tuple(names[index] for index in sorted(head) if leaves[index].axes)


def _sources(walk: Walk, leaves: Sequence[Value]) -> dict[int, frozenset[int]]:
    """The leaves that each function of parameters alone reads, also where no axis tells them."""
    sources = {id(leaf): frozenset({index}) for index, leaf in enumerate(leaves)}
    for step in walk.steps:
        read = _parameters(step, sources)
        sources |= {id(value): read for value in step.outputs if value.origin is not None}
    return sources


def _parameters(step: Step, sources: Mapping[int, frozenset[int]]) -> frozenset[int]:
    return frozenset().union(*(sources.get(id(value), ()) for value in step.inputs))


def _is_layer(step: Step, sources: Mapping[int, frozenset[int]]) -> bool:
    """Whether a step is a product of data with a parameter."""
    has_data = any(value.origin is None for value in step.inputs)
    product = isinstance(step.kind, Contract | Convolve)
    return product and has_data and bool(_parameters(step, sources))


def _holds(value: Value, units: frozenset[Atom]) -> bool:
    return any(atom in units for axis in value.axes for atom in atoms_of(axis))
