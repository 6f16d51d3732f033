"""What a group admits: follow how each array scales when the group's units are scaled.

Multiply unit u's produced weights by c_u > 0 and divide its consumed ones by c_u. An array then
scales along the group's axes by a power of c, its *degree*. If every equation is consistent with
that, the function is unchanged: sums of equal degrees, sums over units of degree 0 only. If,
moreover, no equation is more than linear in the units, any invertible matrix may replace c.
"""

import math
from collections.abc import Iterable, Mapping
from fractions import Fraction

from wsa_jax.merging.symmetry.spec import Admits
from wsa_jax.merging.symmetry.tracing.axes import Atom, atoms_of
from wsa_jax.merging.symmetry.tracing.interpreter import Step, Value

Degree = Fraction | int
AxisDegrees = dict[Atom, Degree]

_IDENTITY = frozenset({
    "neg", "copy", "copy_p", "convert_element_type", "reduce_precision", "name",
    "stop_gradient", "device_put", "real", "imag", "pvary", "sharding_constraint",
    "layout_constraint",
})  # fmt: skip
_POWERS = {"abs": 1, "square": 2, "sqrt": Fraction(1, 2), "rsqrt": Fraction(-1, 2),
           "cbrt": Fraction(1, 3), "sign": 0, "is_finite": 0}  # fmt: skip
_COMPARISONS = frozenset(["eq", "ne", "lt", "le", "gt", "ge"])
_SUMS = frozenset(["add", "sub", "add_any"])
_EXTREMES = frozenset(["max", "min", "clamp", "select_n"])
_KEEPING = frozenset(["reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min"])
_LINEAR = frozenset(["reduce_sum", "reduce_window_sum", "cumsum"])


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
        name = step.name
        if name == "unknown" or not self.live:
            return
        if name == "decide":
            for value in step.inputs:
                for axis in range(len(value.axes)):
                    for atom in self.atoms(value, axis):
                        self.not_linear.add(atom)
                        if self.degree(value, axis, atom):
                            self.break_all([atom])
        elif name == "contract":
            self.contract(step)
        elif name == "convolve":
            self.convolve(step)
        elif name == "move":
            self.move(step)
        elif name in ("concatenate", "stack"):
            self.concatenate(step)
        elif name in ("carry", "same", "pad"):
            self.together(step)
        elif "left" in step.params or "axes" in step.params or name.startswith(("reduce_", "top")):
            self.reduce(step)
        else:
            self.elementwise(step)

    def elementwise(self, step: Step) -> None:
        (result,) = step.outputs
        degrees: list[AxisDegrees] = [{} for _ in result.axes]
        for axis, entry in enumerate(degrees):
            for atom in self.atoms(result, axis):
                holding = sum(
                    len(v.axes) > axis and atom in self.atoms(v, axis) for v in step.inputs
                )
                entry[atom] = self.combined(step, axis, atom, holding)
        self.set(result, degrees)

    def combined(self, step: Step, axis: int, atom: Atom, holding: int) -> Degree:
        name, inputs = step.name, step.inputs
        given = [self.degree(value, axis, atom) for value in inputs]
        if name in _IDENTITY:
            if given[0] and not step.params["floating"]:
                self.break_all([atom])
            return given[0]
        if name in _SUMS:
            if any(_any_degree(v.constant) and v.constant != 0 for v in inputs):
                self.not_linear.add(atom)
            return self.agreed(inputs, axis, atom)
        if name in ("mul", "div"):
            if holding > 1 or (name == "div" and given[1]):
                self.not_linear.add(atom)
            return given[0] + given[1] if name == "mul" else given[0] - given[1]
        self.not_linear.add(atom)
        if name in _EXTREMES:
            if name == "select_n" and given[0]:
                self.break_all([atom])
            return self.agreed(inputs[name == "select_n" :], axis, atom)
        if name in _COMPARISONS:
            self.agreed(inputs, axis, atom)
            return 0
        if name in _POWERS or name == "integer_pow":
            return given[0] * _POWERS.get(name, step.params["power"])
        if any(given):
            self.break_all([atom])
        return 0

    def reduce(self, step: Step) -> None:
        (value, *_), name = step.inputs, step.name
        left = step.params.get("left", range(len(value.axes)))
        everywhere = [self.atoms(value, axis) for axis in range(len(value.axes))]
        for axis, atoms in enumerate(everywhere):
            for atom in atoms:
                degree = self.degree(value, axis, atom)
                if name not in _LINEAR:
                    self.not_linear.add(atom)
                if degree and (axis not in left or name not in _LINEAR | _KEEPING):
                    self.break_all([atom])
        for result in step.outputs:
            axes = left if len(left) == len(result.axes) else range(len(result.axes))
            self.set(
                result,
                [{a: self.degree(value, axis, a) for a in everywhere[axis]} for axis in axes],
            )

    def contract(self, step: Step) -> None:
        left, right = step.inputs
        (result,) = step.outputs
        degrees: list[AxisDegrees] = []
        for a, b in zip(*step.params["contracted"], strict=True):
            self.sum_over(left, a, right, b, self.atoms(left, a) | self.atoms(right, b))
        for a, b in zip(*step.params["batch"], strict=True):
            mine, other = self.atoms(left, a), self.atoms(right, b)
            self.not_linear |= mine & other
            degrees.append(
                {g: self.degree(left, a, g) + self.degree(right, b, g) for g in mine | other}
            )
        for value, kept in zip(step.inputs, step.params["free"], strict=True):
            for axis in kept:
                degrees.append({g: self.degree(value, axis, g) for g in self.atoms(value, axis)})
        self.set(result, degrees)

    def convolve(self, step: Step) -> None:
        image, kernel = step.inputs
        (result,) = step.outputs
        features, ins = step.params["features"]
        out, outs = step.params["outs"]
        degrees: list[AxisDegrees] = [{} for _ in result.axes]
        summed = self.live.intersection(atoms_of(step.params["summed"]))
        self.sum_over(image, features, kernel, ins, summed)
        for atom in self.atoms(result, out):
            degrees[out][atom] = self.degree(kernel, outs, atom)
            if step.params["groups"] > 1 and atom in self.atoms(image, features) - summed:
                degrees[out][atom] += self.degree(image, features, atom)
                self.not_linear.add(atom)
        for place, axis in step.params["kept"]:
            degrees[place] = {g: self.degree(image, axis, g) for g in self.atoms(image, axis)}
        self.set(result, degrees)

    def sum_over(self, a: Value, i: int, b: Value, j: int, atoms: Iterable[Atom]) -> None:
        for atom in atoms:
            if self.degree(a, i, atom) + self.degree(b, j, atom):
                self.break_all([atom])
            if not self.degree(a, i, atom):
                self.not_linear.add(atom)

    def move(self, step: Step) -> None:
        (value,), (result,) = step.inputs, step.outputs
        degrees: list[AxisDegrees] = []
        for axis, source in enumerate(step.params["sources"]):
            entry: AxisDegrees = {}
            for atom in self.atoms(result, axis):
                found = {
                    self.degree(value, s, atom) for s in source if atom in self.atoms(value, s)
                }
                if len(found) > 1:
                    self.break_all([atom])
                entry[atom] = max(found, default=0)
            degrees.append(entry)
        self.set(result, degrees)

    def concatenate(self, step: Step) -> None:
        (result,), along = step.outputs, step.params["dimension"]
        degrees: list[AxisDegrees] = []
        for axis in range(len(result.axes)):
            if step.name == "stack" and axis == along:
                degrees.append({})
                continue
            place = axis - (step.name == "stack" and axis > along)
            entry: AxisDegrees = {}
            for atom in self.atoms(result, axis):
                values = [v for v in step.inputs if axis != along or atom in self.atoms(v, place)]
                entry[atom] = self.agreed(values, place, atom)
            degrees.append(entry)
        self.set(result, degrees)

    def together(self, step: Step) -> None:
        """Arrays that must scale alike: iterations of a loop, branches, arrays and padding."""
        (value, *others), (result,) = step.inputs, step.outputs
        degrees: list[AxisDegrees] = []
        for axis in range(len(result.axes)):
            entry: AxisDegrees = {}
            for atom in self.atoms(result, axis):
                if step.name == "carry" and value.constant == 0:
                    entry[atom] = 1  # zeros scale by any power; the last iteration tells if by this
                else:
                    entry[atom] = self.agreed([value, *others], axis, atom)
                if step.name == "pad" and others[0].constant != 0:
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
