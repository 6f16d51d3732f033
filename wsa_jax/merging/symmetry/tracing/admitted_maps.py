"""What a group admits: follow how each array scales when the group's units are scaled.

Multiply unit u's produced weights by c_u > 0 and divide its consumed ones by c_u. An array then
scales along the group's axes by a power of c, its *degree*. If every equation is consistent with
that, the function is unchanged: sums of equal degrees, sums over units of degree 0 only. If,
moreover, no equation is more than linear in the units, any invertible matrix may replace c.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

from wsa_jax.merging.symmetry.spec import Admits
from wsa_jax.merging.symmetry.tracing.axes import Atom, atoms_of
from wsa_jax.merging.symmetry.tracing.steps import (
    Concatenate,
    Contract,
    Convolve,
    Decide,
    Elementwise,
    Lookup,
    LoopCarry,
    Move,
    Pad,
    Power,
    Reduce,
    Same,
    Scaling,
    Scatter,
    Stack,
    Step,
    Unknown,
    Value,
)

Degree = Fraction | int
AxisDegrees = dict[Atom, Degree]


class _Analysis:
    def __init__(self, live: Iterable[Atom]) -> None:
        self.live = frozenset(live)
        self.not_scaling: set[Atom] = set()
        self.not_linear: set[Atom] = set()
        self.known: dict[int, list[AxisDegrees]] = {}

    def atoms(self, value: Value, axis: int) -> frozenset[Atom]:
        return self.live.intersection(atoms_of(value.axes[axis]))

    def degree(self, value: Value, axis: int, atom: Atom) -> Degree:
        """The power with which an array scales; 0 where it does not hold the units."""
        known = self.known.get(id(value))
        return 0 if known is None or axis >= len(known) else known[axis].get(atom, 0)

    def set(self, value: Value, degrees: list[AxisDegrees]) -> None:
        for entry in degrees:
            self.not_linear.update(atom for atom, degree in entry.items() if degree not in (1, -1))
        self.known[id(value)] = degrees

    def break_all(self, atoms: Iterable[Atom]) -> None:
        atoms = set(atoms)
        self.not_scaling |= atoms
        self.not_linear |= atoms

    def agreed(self, values: Iterable[Value], axis: int, atom: Atom) -> Degree:
        """The common degree of arrays that are added or selected from; 0 and infinity have any."""
        degrees = {self.degree(v, axis, atom) for v in values if not _any_degree(v.constant)}
        if len(degrees) > 1:
            self.break_all([atom])
        return max(degrees, default=0)

    def step(self, step: Step) -> None:
        if not self.live:
            return
        match step.kind:
            case Move(sources):
                self.move(step, sources)
            case Contract():
                self.contract(step, step.kind)
            case Convolve():
                self.convolve(step, step.kind)
            case Reduce():
                self.reduce(step, step.kind)
            case Elementwise():
                self.elementwise(step, step.kind)
            case Concatenate(dimension):
                self.concatenate(step, dimension, new=False)
            case Stack(dimension):
                self.concatenate(step, dimension, new=True)
            case Scatter():
                self.scatter(step, step.kind)
            case Pad() | LoopCarry() | Same():
                self.together(step)
            case Decide():
                self.decide(step)
            case Lookup(axis):
                self.break_all(self.atoms(step.inputs[0], axis))
            case Unknown():
                pass  # everything it meets is pinned

    def decide(self, step: Step) -> None:
        for value in step.inputs:
            for axis in range(len(value.axes)):
                for atom in self.atoms(value, axis):
                    self.not_linear.add(atom)
                    if self.degree(value, axis, atom):
                        self.break_all([atom])

    def elementwise(self, step: Step, kind: Elementwise) -> None:
        (result,) = step.outputs
        degrees: list[AxisDegrees] = [{} for _ in result.axes]
        for axis, entry in enumerate(degrees):
            for atom in self.atoms(result, axis):
                entry[atom] = self.combined(step.inputs, kind, axis, atom)
        self.set(result, degrees)

    def combined(self, inputs: Sequence[Value], kind: Elementwise, axis: int, atom: Atom) -> Degree:
        """The degree of an elementwise result, by the primitive's rule."""
        given = [self.degree(value, axis, atom) for value in inputs]
        match kind.scaling:
            case Scaling.SAME:
                if given[0] and not kind.floating:
                    self.break_all([atom])
                return given[0]
            case Scaling.SUM:
                if any(_any_degree(v.constant) and v.constant != 0 for v in inputs):
                    self.not_linear.add(atom)
                return self.agreed(inputs, axis, atom)
            case Scaling.PRODUCT | Scaling.QUOTIENT:
                holding = sum(len(v.axes) > axis and atom in self.atoms(v, axis) for v in inputs)
                inverted = kind.scaling is Scaling.QUOTIENT
                if holding > 1 or (inverted and given[1]):
                    self.not_linear.add(atom)
                return given[0] - given[1] if inverted else given[0] + given[1]
        # What follows is not linear in its input, whatever its degree.
        self.not_linear.add(atom)
        match kind.scaling:
            case Scaling.EXTREME:
                return self.agreed(inputs, axis, atom)
            case Scaling.SELECTED:
                if given[0]:
                    self.break_all([atom])
                return self.agreed(inputs[1:], axis, atom)
            case Scaling.COMPARED:
                self.agreed(inputs, axis, atom)
                return 0
            case Power(exponent) if exponent is not None:
                return given[0] * exponent
        if any(given):
            self.break_all([atom])
        return 0

    def reduce(self, step: Step, kind: Reduce) -> None:
        linear = kind.scaling is Scaling.LINEAR
        for value in step.inputs:
            for axis in range(len(value.axes)):
                for atom in self.atoms(value, axis):
                    if not linear:
                        self.not_linear.add(atom)
                    keeps = axis in kind.kept and (linear or kind.scaling is Scaling.KEPT)
                    if self.degree(value, axis, atom) and not keeps:
                        self.break_all([atom])
        value = step.inputs[0]
        for result in step.outputs:
            self.set(
                result,
                [
                    {atom: self.degree(value, axis, atom) for atom in self.atoms(value, axis)}
                    for axis in kind.kept
                ],
            )

    def contract(self, step: Step, kind: Contract) -> None:
        left, right = step.inputs
        (result,) = step.outputs
        degrees: list[AxisDegrees] = []
        for a, b in zip(*kind.contracted, strict=True):
            self.sum_over(left, a, right, b, self.atoms(left, a) | self.atoms(right, b))
        for a, b in zip(*kind.batch, strict=True):
            mine, other = self.atoms(left, a), self.atoms(right, b)
            self.not_linear |= mine & other
            degrees.append(
                {g: self.degree(left, a, g) + self.degree(right, b, g) for g in mine | other}
            )
        for value, kept in zip(step.inputs, kind.free, strict=True):
            for axis in kept:
                degrees.append({g: self.degree(value, axis, g) for g in self.atoms(value, axis)})
        self.set(result, degrees)

    def convolve(self, step: Step, kind: Convolve) -> None:
        image, kernel = step.inputs
        (result,) = step.outputs
        features, ins = kind.features
        out, outs = kind.outs
        degrees: list[AxisDegrees] = [{} for _ in result.axes]
        summed = self.live.intersection(atoms_of(kind.summed))
        self.sum_over(image, features, kernel, ins, summed)
        for atom in self.atoms(result, out):
            degrees[out][atom] = self.degree(kernel, outs, atom)
            if kind.groups > 1 and atom in self.atoms(image, features) - summed:
                degrees[out][atom] += self.degree(image, features, atom)
                self.not_linear.add(atom)
        for place, axis in kind.kept:
            degrees[place] = {g: self.degree(image, axis, g) for g in self.atoms(image, axis)}
        self.set(result, degrees)

    def sum_over(self, a: Value, i: int, b: Value, j: int, atoms: Iterable[Atom]) -> None:
        for atom in atoms:
            if self.degree(a, i, atom) + self.degree(b, j, atom):
                self.break_all([atom])
            if not self.degree(a, i, atom):
                self.not_linear.add(atom)

    def move(self, step: Step, sources: Sequence[Sequence[int]]) -> None:
        (value,), (result,) = step.inputs, step.outputs
        degrees: list[AxisDegrees] = []
        for axis, source in enumerate(sources):
            entry: AxisDegrees = {}
            for atom in self.atoms(result, axis):
                given = {
                    self.degree(value, s, atom) for s in source if atom in self.atoms(value, s)
                }
                if len(given) > 1:
                    self.break_all([atom])
                entry[atom] = max(given, default=0)
            degrees.append(entry)
        self.set(result, degrees)

    def concatenate(self, step: Step, along: int | None, *, new: bool) -> None:
        (result,) = step.outputs
        degrees: list[AxisDegrees] = []
        for axis in range(len(result.axes)):
            if new and axis == along:
                degrees.append({})
                continue
            place = axis - (new and along is not None and axis > along)
            entry: AxisDegrees = {}
            for atom in self.atoms(result, axis):
                values = [v for v in step.inputs if axis != along or atom in self.atoms(v, place)]
                entry[atom] = self.agreed(values, place, atom)
            degrees.append(entry)
        self.set(result, degrees)

    def scatter(self, step: Step, kind: Scatter) -> None:
        operand, updates = step.inputs
        (result,) = step.outputs
        degrees: list[AxisDegrees] = [{} for _ in result.axes]
        for axis, place in enumerate(kind.places):
            for atom in self.atoms(result, axis):
                given = [(operand, axis)] + ([] if place is None else [(updates, place)])
                if any(_any_degree(v.constant) and v.constant != 0 for v, _ in given):
                    self.not_linear.add(atom)
                known = {self.degree(v, a, atom) for v, a in given if not _any_degree(v.constant)}
                if len(known) > 1 or (kind.scaling is Scaling.NONE and any(known)):
                    self.break_all([atom])
                if kind.scaling is not Scaling.SUM:
                    self.not_linear.add(atom)
                degrees[axis][atom] = max(known, default=0)
        # Along the other axes of what is written, elements are chosen or summed.
        for axis in range(len(updates.axes)):
            for atom in self.atoms(updates, axis) if axis not in kind.places else ():
                self.not_linear.add(atom)
                if self.degree(updates, axis, atom):
                    self.break_all([atom])
        self.set(result, degrees)

    def together(self, step: Step) -> None:
        """Arrays that must scale alike: iterations of a loop, branches, arrays and padding."""
        (value, *others), (result,) = step.inputs, step.outputs
        degrees: list[AxisDegrees] = []
        for axis in range(len(result.axes)):
            entry: AxisDegrees = {}
            for atom in self.atoms(result, axis):
                if isinstance(step.kind, LoopCarry) and value.constant == 0:
                    entry[atom] = 1  # zeros scale by any power; the last iteration tells if by this
                else:
                    entry[atom] = self.agreed([value, *others], axis, atom)
                if isinstance(step.kind, Pad) and others[0].constant != 0:
                    self.not_linear.add(atom)
            degrees.append(entry)
        self.set(result, degrees)


def admitted(
    live: Iterable[Atom],
    steps: Iterable[Step],
    leaves: Iterable[tuple[Value, list[Degree | None]]],
) -> Mapping[Atom, Admits]:
    """The widest maps that each group of units admits.

    Args:
      live: atoms of the groups.
      steps: steps of the walk, in order.
      leaves: parameters, and the degree of each of their axes; None where an axis has two.
    """
    analysis = _Analysis(live)
    for value, degrees in leaves:
        entries: list[AxisDegrees] = []
        for axis, degree in enumerate(degrees):
            atoms = analysis.atoms(value, axis)
            if degree is None:
                analysis.break_all(atoms)
            entries.append(dict.fromkeys(atoms, 0 if degree is None else degree))
        analysis.set(value, entries)
    for step in steps:
        analysis.step(step)

    def kind(atom: Atom) -> Admits:
        if atom in analysis.not_scaling:
            return "permutation"
        return "scaling" if atom in analysis.not_linear else "linear"

    return {atom: kind(atom) for atom in analysis.live}


def _any_degree(constant: float | None) -> bool:
    return constant is not None and (constant == 0 or not math.isfinite(constant))
