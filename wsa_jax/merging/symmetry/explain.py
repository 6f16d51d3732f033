"""Show how a spec was read off a function, equation by equation."""

import re
from collections.abc import Callable, Iterable, Sequence

from jaxtyping import PyTree

from wsa_jax.door import door
from wsa_jax.merging.symmetry.spec import Group, Tie
from wsa_jax.merging.symmetry.tracing.axes import Atom, Axis, Factor, Sum, atoms_of, expand
from wsa_jax.merging.symmetry.tracing.steps import Value
from wsa_jax.merging.symmetry.tracing.trace_spec import Traced, is_statistic, trace
from wsa_jax.scope.layers import Rule


@door
def explain_spec(
    apply_fn: Callable[..., PyTree],
    params: PyTree,
    *inputs: PyTree,
    statistics: Rule = is_statistic,
) -> None:
    """Print how `trace_spec` reads a function: each equation with the axes of its result.

    Three tables: the equations; the groups with what they admit and where their units lie; the
    axes that stay, with reasons. An axis is written major first: ``16·conv[4]`` is 16 places of the
    4 units of group ``conv``, ``a[4] + b[2]`` a concatenation, a plain number has fixed places,
    and ``~5`` is 5 times the same.

    Args:
      apply_fn: any JAX function, as for `trace_spec`.
      params: its parameters; shapes suffice.
      inputs: its other arguments; shapes suffice.
      statistics: as for `trace_spec`.

    Raises:
      ValueError: ``params`` holds no arrays.

    >>> import jax, jax.numpy as jnp
    >>> params = {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 2))}
    >>> explain_spec(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, jnp.ones((7, 3)))
     #  equation           of               axes           line
    %1  dot_general        input 1, a       (7, a[5])      ...
    %2  tanh               %1               (7, a[5])      ...
    %3  dot_general        %2, b            (7, 2)         ...
    <BLANKLINE>
    group  units  admits       inside  leaf  axis  role
    a      5      permutation          a     1     produced
                                       b     0     consumed
    <BLANKLINE>
    fixed  axis  reason
    a      0     an input
    b      1     an output
    """
    traced = trace(apply_fn, params, *inputs, statistics=statistics)
    # One name for all layers of a loop: its body is printed once.
    units = {atom: re.sub(r"\[[\d,]+\]$", "[i]", name) for name, atom in traced.atoms.items()}
    rows = [("#", "equation", "of", "axes", "line"), *_equations(traced, units)]
    groups: list[tuple[str, ...]] = [("group", "units", "admits", "inside", "leaf", "axis", "role")]
    for group in traced.spec.groups:
        groups.extend(_places(group))
    fixed = [("fixed", "axis", "reason"), *_fixed(traced, units)]
    print("\n\n".join(_table(table) for table in (rows, groups, fixed) if len(table) > 1))


def _equations(traced: Traced, units: dict[Atom, str]) -> Iterable[tuple[str, ...]]:
    names = {id(value): name for name, value in traced.leaves.items()}
    leaves = list(traced.leaves)
    names |= {id(value): f"input {i}" for i, value in enumerate(traced.inputs, 1)}
    for number, equation in enumerate(traced.walk.equations, 1):
        results = [
            f"%{number}" if i == 0 else f"%{number}.{i}" for i in range(len(equation.outputs))
        ]
        names |= {id(value): name for value, name in zip(equation.outputs, results, strict=True)}
        given = ", ".join(names.get(id(v)) or _unnamed(v, leaves) for v in equation.inputs)
        axes = "; ".join(_axes(value, units) for value in equation.outputs)
        yield f"%{number}", "  " * equation.depth + equation.name, given, axes, _line(equation.line)


def _places(group: Group) -> Iterable[tuple[str, ...]]:
    head = (group.name, str(group.size), group.admits, group.parent or "")
    for tie in group.ties:
        yield (*head, tie.leaf, f"{tie.axis}{_block(tie)}", tie.role)
        head = ("",) * 4


def _block(tie: Tie) -> str:
    """Which positions of the axis, where not simply all in their order."""
    said = {"from": tie.offset, "outer": tie.outer, "inner": tie.inner}
    plain = {"from": 0, "outer": 1, "inner": 1}
    parts = [f"{name} {number}" for name, number in said.items() if number != plain[name]]
    parts += [f"at {position} of axis {axis}" for axis, position in tie.at]
    return f" ({', '.join(parts)})" if parts else ""


def _fixed(traced: Traced, units: dict[Atom, str]) -> Iterable[tuple[str, ...]]:
    """Every axis of a parameter of which something stays, and the first reason for it."""
    for name, value in traced.leaves.items():
        for number, axis in enumerate(value.axes):
            segments = expand(axis)
            parts = any(isinstance(factor, Sum) for segment in segments for factor in segment)
            if parts or any(not any(atom in units for atom in segment) for segment in segments):
                reasons = [atom.reason for atom in atoms_of(axis) if atom.reason is not None]
                yield name, str(number), [*reasons, "a single unit"][0]


def _axes(value: Value, units: dict[Atom, str]) -> str:
    return f"({', '.join(_axis(axis, units) for axis in value.axes)})"


def _axis(axis: Axis, units: dict[Atom, str]) -> str:
    return " + ".join(
        "·".join(_atom(atom, units) for atom in segment) or "1" for segment in expand(axis)
    )


def _atom(atom: Factor, units: dict[Atom, str]) -> str:
    if isinstance(atom, Sum):
        return f"({_axis(atom.terms, units)})"
    if atom in units:
        return f"{units[atom]}[{atom.size}]"
    return f"~{atom.size}" if atom.free else str(atom.size)


def _unnamed(value: Value, leaves: Sequence[str]) -> str:
    """A literal, or what a loop hands to its body."""
    if value.constant is not None:
        return f"{value.constant:g}"
    sources = {leaf for pairs in value.origin or () for leaf, _ in pairs}
    if len(sources) == 1:
        return f"{leaves[sources.pop()]}[i]"
    return "carried" if value.origin is None else "constant"


def _line(line: str) -> str:
    """File and line, without folders, columns and the function's name."""
    match = re.match(r"(?:.*/)?(.+?):(\d+)", re.sub("<doctest |[<>]", "", line))
    return f"{match[1]}:{match[2]}" if match else ""


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
