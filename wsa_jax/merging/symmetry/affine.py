"""Where a function adds a parameter to what another parameter scales: layers, norms' affine parts.

Multiplying the one by s, and making the other ``s b + t``, turns the result y into ``s y + t``.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from wsa_jax.merging.symmetry.tracing.axes import atoms_of, size_of
from wsa_jax.merging.symmetry.tracing.groups import OUTPUT
from wsa_jax.merging.symmetry.tracing.steps import (
    Contract,
    Convolve,
    Elementwise,
    Move,
    Step,
    Value,
)
from wsa_jax.merging.symmetry.tracing.trace_spec import Traced

# What changes neither axes nor, up to a constant factor, values.
_LINEAR = frozenset(["convert_element_type", "copy", "neg", "stop_gradient", "reduce_precision"])


class Scaled(NamedTuple):
    """A parameter that a value is proportional to.

    Attributes:
      leaf: its key path.
      axes: for each of the value's unit axes, the axis of the leaf that it comes from.
    """

    leaf: str
    axes: tuple[int, ...]

    def along(self, values: np.ndarray, ndim: int) -> np.ndarray:
        """An array of the units' axes as one that broadcasts against the leaf, of ``ndim`` axes.

        >>> Scaled("kernel", (3,)).along(np.ones(5), 4).shape
        (1, 1, 1, 5)
        """
        order = np.argsort(self.axes)
        shape = [1] * ndim
        for position in order:
            shape[self.axes[position]] = values.shape[position]
        return values.transpose(order).reshape(shape)


class Site(NamedTuple):
    """An affine part of a function, ``y = weight-scaled value + bias``.

    Attributes:
      name: what both leaves' key paths begin with, or that of the bias.
      position: number of the equation whose output y is.
      units: axes of y along which the bias differs, in the order of the bias's axes.
      bias: key path of the bias, and its axes for the units.
      weight: the parameter that y without the bias is proportional to.
      operand: which input of the equation is what the bias is added to.
    """

    name: str
    position: int
    units: tuple[int, ...]
    bias: Scaled
    weight: Scaled
    operand: int


class Linear(NamedTuple):
    """A product of data with a parameter as it is: a dense layer or a convolution.

    Attributes:
      leaf: the kernel's key path.
      position: number of the equation.
      operand: which of its inputs is the data.
      summed: axes of the data that are summed over; for a convolution, that of the channels.
      inputs: axes of the kernel that are summed over, in the same order; for a convolution, its
        spatial axes after that of the channels.
      convolution: whether it is one.
    """

    leaf: str
    position: int
    operand: int
    summed: tuple[int, ...]
    inputs: tuple[int, ...]
    convolution: bool


class Producers:
    """What makes each array of a trace: from a value back to the equation and the parameters."""

    def __init__(self, traced: Traced) -> None:
        self._steps = {
            id(output): step
            for step in traced.walk.steps
            if step.position is not None
            for output in step.outputs
        }
        self._leaves = {id(value): name for name, value in traced.leaves.items()}

    def leaf(self, value: Value) -> str | None:
        """The name of a parameter, if the array is one as it is."""
        return self._leaves.get(id(value))

    def step(self, value: Value) -> Step | None:
        """The equation that makes it; None for parameters, inputs and what loops make."""
        return self._steps.get(id(value))

    def whole(self, value: Value) -> Scaled | None:
        """The parameter that an array is, with its axes in another order or not."""
        step, axes = self.step(value), tuple(range(len(value.axes)))
        leaf = self.leaf(value)
        if leaf is not None:
            return Scaled(leaf, axes)
        if step is None or not (step.name in _LINEAR or isinstance(step.kind, Move)):
            return None
        factors = _factors(step, axes) if step.name != "neg" else []
        found = self.whole(factors[0][0]) if factors else None
        if found is None or len(factors[0][1]) != len(found.axes):
            return None
        return Scaled(found.leaf, tuple(found.axes[axis] for axis in factors[0][1]))

    def scaled_by(self, value: Value, units: Sequence[int]) -> Scaled | None:
        """A parameter with the value's units that the value is proportional to."""
        leaf = self.leaf(value)
        if leaf is not None:
            return Scaled(leaf, tuple(units))
        step = self.step(value)
        for operand, axes in [] if step is None else _factors(step, units):
            found = self.scaled_by(operand, axes)
            if found is not None:
                return found
        return None


def find_sites(traced: Traced) -> list[Site]:
    """All affine parts whose units are hidden, in the order of execution.

    Left out are sums inside loops, and parameters that more than one of them uses: one of the two
    cannot be changed without the other.
    """
    producers = Producers(traced)
    sites = []
    for step in traced.walk.steps:
        if step.name != "add" or step.position is None or len(step.inputs) != 2:
            continue
        for operand, (value, other) in enumerate((step.inputs, step.inputs[::-1])):
            site = _site(producers, step, operand, value, other)
            if site is not None:
                sites.append(site)
    uses = [leaf for site in sites for leaf in (site.bias.leaf, site.weight.leaf)]
    return [s for s in sites if uses.count(s.bias.leaf) == uses.count(s.weight.leaf) == 1]


def find_linear(traced: Traced) -> list[Linear]:
    """All products of data with a whole parameter, in the order of execution.

    Left out are products inside loops, those that share axes other than by summing (experts, heads
    with kernels of their own), and convolutions whose channels are in groups.
    """
    producers = Producers(traced)
    found = []
    for step in traced.walk.steps:
        if step.position is None or not isinstance(step.kind, Contract | Convolve):
            continue
        for operand, kernel in enumerate(step.inputs[::-1]):
            if step.inputs[operand].origin is not None or not kernel.is_parameter:
                continue
            whole = producers.whole(kernel)
            summed = _summed(step.kind, operand, len(kernel.axes))
            if whole is None or summed is None:
                continue
            data, own = summed
            inputs = tuple(whole.axes[axis] for axis in own)
            convolution = isinstance(step.kind, Convolve)
            found.append(Linear(whole.leaf, step.position, operand, data, inputs, convolution))
    return found


def _summed(
    kind: Contract | Convolve, operand: int, ndim: int
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The axes of data and of the kernel that are summed over; None for what is no plain layer."""
    if isinstance(kind, Contract):
        if kind.batch[0]:
            return None
        return tuple(kind.contracted[operand]), tuple(kind.contracted[1 - operand])
    if kind.groups != 1 or operand:
        return None
    channels, out = kind.features, kind.outs[1]
    spatial = [axis for axis in range(ndim) if axis not in (channels[1], out)]
    return (channels[0],), (channels[1], *spatial)


def _site(
    producers: Producers, step: Step, operand: int, value: Value, other: Value
) -> Site | None:
    """The sum as an affine part, if ``other`` is a bias and ``value`` what a parameter scales."""
    if value.is_parameter or not other.is_parameter or other.origin is None:
        return None
    # Axes of one index have no units to tell apart, and a bias has them wherever it is broadcast.
    units = tuple(i for i, pairs in enumerate(other.origin) if pairs and other.shape[i] > 1)
    bias = producers.scaled_by(other, units)
    (output,) = step.outputs
    if bias is None or _is_output(output, units):
        return None
    weight = producers.scaled_by(value, units)
    if weight is None:
        return None
    order = sorted(range(len(units)), key=lambda i: bias.axes[i])
    return Site(
        name=_common(bias.leaf, weight.leaf),
        position=step.position or 0,
        units=tuple(units[i] for i in order),
        bias=Scaled(bias.leaf, tuple(bias.axes[i] for i in order)),
        weight=Scaled(weight.leaf, tuple(weight.axes[i] for i in order)),
        operand=operand,
    )


def _factors(step: Step, units: Sequence[int]) -> list[tuple[Value, tuple[int, ...]]]:
    """Inputs that the output is proportional to, with the axes in which they have its units."""
    output = step.outputs[0]
    found: list[tuple[Value, tuple[int | None, ...]]] = []
    match step.kind:
        case Elementwise() if step.name in _LINEAR:
            found = [(step.inputs[0], tuple(units))]
        case Elementwise() if step.name in ("mul", "div"):
            operands = step.inputs[:1] if step.name == "div" else step.inputs
            found = [(value, tuple(units)) for value in operands]
        case Move(into=False, out=False):
            sources = step.kind.sources
            axes = [sources[unit][0] if len(sources[unit]) == 1 else None for unit in units]
            found = [(step.inputs[0], tuple(axes))]
        case Contract():
            found = list(zip(step.inputs, _contracted(step.kind, units), strict=True))
        case Convolve():
            out, kernel = step.kind.outs
            found = [(step.inputs[1], tuple(kernel if u == out else None for u in units))]
    return [
        (value, tuple(axis for axis in axes if axis is not None))
        for value, axes in found
        if None not in axes and _same_sizes(output, units, value, axes)
    ]


def _contracted(kind: Contract, units: Sequence[int]) -> list[tuple[int | None, ...]]:
    """The axes of both inputs of a product that the output's units are."""
    batch = len(kind.batch[0])
    first = len(kind.free[0])
    maps: list[dict[int, int]] = [dict(enumerate(axes)) for axes in kind.batch]
    maps[0] |= {batch + i: axis for i, axis in enumerate(kind.free[0])}
    maps[1] |= {batch + first + i: axis for i, axis in enumerate(kind.free[1])}
    return [tuple(places.get(unit) for unit in units) for places in maps]


def _same_sizes(
    output: Value, units: Sequence[int], value: Value, axes: Sequence[int | None]
) -> bool:
    sizes = [size_of(output.axes[unit]) for unit in units]
    return all(
        axis is not None and axis < len(value.axes) and size_of(value.axes[axis]) == size
        for axis, size in zip(axes, sizes, strict=True)
    )


def _is_output(value: Value, units: Sequence[int]) -> bool:
    """Whether the units are those of the function's own outputs."""
    return any(atom.reason == OUTPUT for unit in units for atom in atoms_of(value.axes[unit]))


def _common(first: str, second: str) -> str:
    """The names that two key paths share."""
    parts = []
    for a, b in zip(first.split("/")[:-1], second.split("/")[:-1], strict=False):
        if a != b:
            break
        parts.append(a)
    return "/".join(parts) if parts and parts != ["params"] else first
