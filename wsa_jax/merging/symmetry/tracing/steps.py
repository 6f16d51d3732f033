"""What the walk records: arrays with their axes, and one typed step for each thing seen."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from wsa_jax.merging.symmetry.tracing.axes import Atom, Axis, size_of

Origin = tuple[frozenset[tuple[int, int]], ...]


class Index(NamedTuple):
    """What integers mean: positions along an axis, plus an offset.

    If the axis is reordered, the integers change with it, so they may only look things up along
    the same axis; any other use pins it, with the reason given here.
    """

    axis: Axis
    reason: str
    offset: int = 0


@dataclass(eq=False)
class Value:
    """An array: its axes, and what is known of where it comes from.

    Attributes:
      axes: one entry per axis of the array.
      origin: for a function of parameters alone, (leaf, axis) pairs that each axis derives from.
      constant: the number that all elements equal, if known.
      index: the axis along which the elements are positions, if they are.
    """

    axes: tuple[Axis, ...]
    origin: Origin | None = None
    constant: float | None = None
    index: Index | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return tuple(size_of(axis) for axis in self.axes)

    @property
    def is_parameter(self) -> bool:
        """Whether it is a function of parameters alone, and of at least one."""
        return self.origin is not None and any(self.origin)


class Scaling(enum.Enum):
    """How a result scales when what it is computed from does, in powers of a unit's factor."""

    SAME = "as its input"
    SUM = "as its terms, which must agree"
    PRODUCT = "by the sum of powers"
    QUOTIENT = "by the difference of powers"
    EXTREME = "as its inputs, which must agree: a positive factor keeps the largest the largest"
    SELECTED = "as what is selected from, which must agree; the selector must not scale"
    COMPARED = "not at all, if both sides agree"
    LINEAR = "a sum along an axis: as its terms"
    KEPT = "the largest along an axis: as all of them"
    NONE = "nothing is known: no input may scale"


class Power(NamedTuple):
    """A power of the input; None where the equation says which."""

    exponent: Fraction | int | None


ScalingRule = Scaling | Power


class Move(NamedTuple):
    """Each axis of the output comes from the listed axes of the input.

    Attributes:
      sources: for each axis of the output, axes of the input.
      into: the output is one slice of the input, for the body of a loop.
      out: the output stacks what the body of a loop returns.
    """

    sources: Sequence[Sequence[int]]
    into: bool = False
    out: bool = False


class Contract(NamedTuple):
    """A product that sums over axes, given in pairs of both inputs.

    Attributes:
      contracted: axes summed over, of each input.
      batch: axes that both inputs share, of each input.
      free: the other axes, of each input; the output has shared axes, then these.
      inside: what stands side by side before the sum: the output's axes and those summed.
    """

    contracted: Sequence[Sequence[int]]
    batch: Sequence[Sequence[int]]
    free: Sequence[Sequence[int]]
    inside: Value


class Convolve(NamedTuple):
    """A convolution.

    Attributes:
      features: axes of image and kernel that hold the input channels.
      outs: axes of output and kernel that hold the output channels.
      summed: the channels summed over.
      groups: number of groups of channels.
      kept: pairs of output's and image's other axes.
      inside: what stands side by side before the sum.
    """

    features: tuple[int, int]
    outs: tuple[int, int]
    summed: Axis
    groups: int
    kept: Sequence[tuple[int, int]]
    inside: Value


class Reduce(NamedTuple):
    """A function along axes of the first input; ``kept`` are the axes that the outputs have."""

    kept: Sequence[int]
    scaling: ScalingRule


class Elementwise(NamedTuple):
    """A function of elements at the same place; ``floating`` if its results are not integers."""

    scaling: ScalingRule
    floating: bool


class Concatenate(NamedTuple):
    """Arrays one after the other along an axis; None: one of them written over the other."""

    dimension: int | None


class Stack(NamedTuple):
    """Arrays side by side along a new axis."""

    dimension: int


class Scatter(NamedTuple):
    """The second input written into the first, or added to it.

    Attributes:
      places: for each axis of the first, the axis of the second that covers it as a whole.
      scaling: how both go together.
    """

    places: Sequence[int | None]
    scaling: ScalingRule


class Pad(NamedTuple):
    """An array with a number around it."""


class Decide(NamedTuple):
    """Numbers that choose what is computed or read: they must not change."""


class Lookup(NamedTuple):
    """One position along an axis of the input is read, whichever the data choose."""

    axis: int


class LoopCarry(NamedTuple):
    """What a loop starts from, and its stand-in for every iteration."""


class Same(NamedTuple):
    """Arrays of which one takes the other's place: branches, the next iteration."""


class Unknown(NamedTuple):
    """An equation without a rule: every axis is pinned."""


StepKind = (
    Move
    | Contract
    | Convolve
    | Reduce
    | Elementwise
    | Concatenate
    | Stack
    | Scatter
    | Pad
    | Decide
    | Lookup
    | LoopCarry
    | Same
    | Unknown
)


@dataclass(eq=False)
class Step:
    """One equation as it was seen.

    Attributes:
      name: name of the primitive.
      kind: what it does to axes.
      inputs: input values.
      outputs: output values.
      position: number of the equation, counted outside of loops; None inside a loop.
      iterations: an index of the iteration for each loop over stacked arrays around it.
    """

    name: str
    kind: StepKind
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    position: int | None
    iterations: tuple[Atom, ...] = ()

    @property
    def values(self) -> list[Value]:
        """The arrays that it shows, each with the iterations that it belongs to as last axes."""
        shown = [*self.inputs, *self.outputs]
        match self.kind:
            case Contract() | Convolve():
                shown.append(self.kind.inside)
            case Move(into=True):  # a slice is met again inside the loop, with its iteration
                shown = list(self.inputs)
            case Move(out=True):
                shown = list(self.outputs)
        loops = tuple(((atom,),) for atom in self.iterations)
        return [Value((*value.axes, *loops)) for value in shown] if loops else shown
