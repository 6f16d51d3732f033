"""Axes as sums of products of atoms, and what it takes to identify two axes.

An *atom* is an index set that may be reordered as a whole: the units of a layer, the heads of an
attention layer. An axis is a tuple of segments, one after the other (a concatenation), and a
segment is a tuple of atoms, major first (a flattening): ``[h·w·c + u]`` is ``((h, w, c), (u,))``.
A factor of a segment may be a sum itself: heads cut in halves are ``((heads, (d1 + d2)),)``.
Joining two axes merges atoms; where their borders differ, atoms are split, wherever they occur.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

_LIMIT = 1024
"""More segments than this in one axis are positions, not structure: they are pinned."""


class Atom:
    """An index set: equal by identity, merged and split in place.

    Attributes:
      size: number of indices.
      reason: why it may not be reordered; None while it may.
      free: whether arrays are constant along it (a broadcast), so that it fits any other.
      parts: the axis it has been split into, if any.
    """

    __slots__ = ("_link", "free", "parts", "reason", "size")

    def __init__(self, size: int, *, reason: str | None = None, free: bool = False) -> None:
        self.size = size
        self.reason = reason
        self.free = free
        self.parts: Axis | None = None
        self._link: Atom | None = None

    def root(self) -> "Atom":
        """The atom that stands for all that were merged with this one."""
        atom = self
        while atom._link is not None:
            atom = atom._link
        if atom is not self:
            self._link = atom
        return atom

    def merge(self, other: "Atom") -> "Atom":
        """Merge two unsplit roots of equal size; if one is free, the other is the result."""
        if self is other or other.free:
            return self
        if self.free:
            return other
        self.reason = self.reason if self.reason is not None else other.reason
        other._link = self
        return self

    def piece(self, size: int) -> "Atom":
        """A new atom that is a part of this one."""
        return Atom(size, reason=self.reason, free=self.free)


@dataclass(frozen=True)
class Sum:
    """A concatenation inside each unit of the factors before it, of which one or more may move."""

    terms: "Axis"
    free: ClassVar[bool] = False

    @property
    def size(self) -> int:
        """Length of the concatenation."""
        return size_of(self.terms)


Factor = Atom | Sum
Segment = tuple[Factor, ...]
Axis = tuple[Segment, ...]


def fresh(size: int, *, reason: str | None = None, free: bool = False) -> Axis:
    """An axis of one new atom."""
    return ((Atom(size, reason=reason, free=free),),) if size > 1 else ((),) * size


def size_of(axis: Axis) -> int:
    """Length of an axis."""
    return sum(_size(segment) for segment in axis)


def expand(axis: Axis) -> Axis:
    """The axis in unsplit roots; single indices vanish and neighbouring free atoms become one."""
    terms = [term for segment in axis for term in _expand(segment)]
    if len(terms) > _LIMIT:
        for term in terms:
            _pin(term, "an axis cut into too many pieces to follow")
        return fresh(sum(_size(term) for term in terms), reason="an axis cut into too many pieces")
    return tuple(_merge_free(term) for term in terms)


def atoms_of(axis: Axis) -> list[Atom]:
    """The unsplit roots of an axis, in order, repeats included."""
    return _atoms(factor for segment in expand(axis) for factor in segment)


def products_of(axis: Axis) -> list[tuple[Atom, ...]]:
    """The axis as products of atoms alone, each factor that is a sum multiplied out."""
    products: list[tuple[Atom, ...]] = []
    for segment in expand(axis):
        terms: list[tuple[Atom, ...]] = [()]
        for factor in segment:
            parts = products_of(factor.terms) if isinstance(factor, Sum) else [(factor,)]
            terms = [(*term, *part) for term in terms for part in parts]
        products += terms
    return products


def is_free(axis: Axis) -> bool:
    """Whether arrays are constant along the axis, or it has one position."""
    axis = expand(axis)
    return len(axis) == 1 and all(atom.free for atom in axis[0])


def is_positional(axis: Axis) -> bool:
    """Whether nothing along the axis may be reordered."""
    atoms = [atom for atom in atoms_of(axis) if not atom.free]
    return bool(atoms) and all(atom.reason is not None for atom in atoms)


def pin(axis: Axis, reason: str) -> None:
    """Forbid reordering anything along the axis; the first reason is kept."""
    _pin(atoms_of(axis), reason)


def product(axes: Sequence[Axis]) -> Axis:
    """The flattening of several axes into one, major first."""
    terms: list[Segment] = [()]
    for axis in axes:
        terms = _times(terms, list(expand(axis)))
    return expand(tuple(terms))


def join(first: Axis, second: Axis) -> Axis:
    """Declare that two axes of equal size index the same things, and return the joined axis."""
    for _ in range(64):
        first, second = expand(first), expand(second)
        if is_free(second):
            return first
        if is_free(first):
            return second
        if is_positional(first) or is_positional(second):
            return _join_positional(first, second)
        borders = _borders(first), _borders(second)
        if borders[0] == borders[1]:
            joined = [_join_segments(a, b) for a, b in zip(first, second, strict=True)]
            if None not in joined:
                return expand(tuple(segment for segment in joined if segment is not None))
            continue
        cut(first, borders[1])
        cut(second, borders[0])
    reason = "two orders of one axis that have no common pieces"
    pin(first, reason)
    pin(second, reason)
    return fresh(size_of(first), reason=reason)


def cut(axis: Axis, points: Iterable[int]) -> Axis:
    """Split atoms so that segments end at the given positions."""
    for point in sorted(points):
        for _ in range(64):
            start, axis = 0, expand(axis)
            inside = None
            for segment in axis:
                if start < point < start + _size(segment):
                    inside = segment, point - start
                start += _size(segment)
            if inside is None:
                break
            (leading, *rest), offset = inside
            assert isinstance(leading, Atom)  # a leading sum is multiplied out
            before, within = divmod(offset, _size(rest))
            sizes = (before, 1 if within else 0, leading.size - before - (within > 0))
            leading.parts = tuple(
                (leading.piece(size),) if size > 1 else () for size in sizes if size
            )
    return expand(axis)


def distribute(axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """Unflatten an axis into several, major first."""
    axis = expand(axis)
    if len(axis) != 1:
        axes = [fresh(size) for size in sizes]
        join(product(axes), axis)
        return axes
    factors, axes = list(axis[0]), []
    for size in reversed(sizes):
        taken: list[Factor] = []
        while (missing := size // _size(taken)) > 1:
            factors.extend(_current(factors.pop()))  # an atom that occurs twice may be split by now
            atom = factors.pop()
            if isinstance(atom, Sum):
                if missing % atom.size == 0:
                    taken.insert(0, atom)
                    continue
                pin((tuple(factors),), "a reshape that cuts across a concatenation in each unit")
                return distribute(axis, sizes)
            if missing % atom.size and atom.size % missing:
                # Borders that do not divide one another have no common factors.
                reason = f"a reshape of {size_of(axis)} to {tuple(sizes)} that cuts across units"
                pin(axis, reason)
                return [fresh(size, reason=reason) for size in sizes]
            if atom.size > missing:
                major, minor = _factor(atom, missing)
                factors.append(major)
                atom = minor
            taken.insert(0, atom)
        axes.insert(0, (tuple(taken),))
    return axes


def _size(segment: Sequence[Factor]) -> int:
    return math.prod(factor.size for factor in segment)


def _atoms(factors: Iterable[Factor]) -> list[Atom]:
    return [
        atom
        for factor in factors
        for atom in (atoms_of(factor.terms) if isinstance(factor, Sum) else [factor])
    ]


def _pin(factors: Iterable[Factor], reason: str) -> None:
    for atom in _atoms(factors):
        if not atom.free and atom.reason is None:
            atom.reason = reason


def _current(factor: Factor) -> list[Factor]:
    """A factor in unsplit roots."""
    segments = expand(factor.terms if isinstance(factor, Sum) else ((factor,),))
    return list(segments[0]) if len(segments) == 1 else [Sum(segments)]


def _expand(segment: Segment) -> list[Segment]:
    terms: list[Segment] = [()]
    for factor in segment:
        if isinstance(factor, Sum):
            terms = _times(terms, list(expand(factor.terms)))
            continue
        atom = factor.root()
        if atom.size == 1:
            continue
        if atom.parts is None:
            terms = [(*term, atom) for term in terms]
        else:
            terms = _times(terms, [term for part in atom.parts for term in _expand(part)])
    return terms


def _times(terms: list[Segment], parts: list[Segment]) -> list[Segment]:
    if len(parts) == 1:
        return [term + parts[0] for term in terms]
    result: list[Segment] = []
    alike = len(set(parts)) == 1
    for term in terms:
        if not term:
            result.extend(parts)
        elif alike:  # the same units several times: a flattening, too
            places = Atom(len(parts), reason="places in which units are repeated")
            result.append((*term, places, *parts[0]))
        elif any(not atom.free and atom.reason is None for atom in _atoms(term)):
            result.append((*term, Sum(tuple(parts))))
        elif _size(term) * len(parts) > _LIMIT:
            reason = "a concatenation repeated too often to follow"
            _pin((factor for part in parts for factor in part), reason)
            size = _size(term) * sum(_size(part) for part in parts)
            result.append((Atom(size, reason=reason),))
        else:  # at fixed places: one concatenation after the other
            result.extend(parts * _size(term))
    return result


def _merge_free(segment: Segment) -> Segment:
    result: list[Factor] = []
    for atom in segment:
        if atom.free and result and result[-1].free:
            result[-1] = Atom(result[-1].size * atom.size, free=True)
        else:
            result.append(atom)
    return tuple(result)


def _borders(axis: Axis) -> set[int]:
    position, borders = 0, set()
    for segment in axis:
        position += _size(segment)
        borders.add(position)
    return borders


def _join_positional(first: Axis, second: Axis) -> Axis:
    fixed = first if is_positional(first) else second
    reason = next((a.reason for a in atoms_of(fixed) if a.reason is not None), "a constant")
    pin(first, reason)
    pin(second, reason)
    return fresh(size_of(first), reason=reason)


def _factor(atom: Atom, minor: int) -> tuple[Atom, Atom]:
    pieces = atom.piece(atom.size // minor), atom.piece(minor)
    atom.parts = (pieces,)
    return pieces


def _join_segments(first: Segment, second: Segment) -> Segment | None:
    """Join two flattenings from their ends; None if something had to be pinned before."""
    left, right, joined = list(first), list(second), []
    while left and right:
        # A merge or a split before this one may have split these, too.
        left.extend(_current(left.pop()))
        right.extend(_current(right.pop()))
        a, b = left.pop(), right.pop()
        if isinstance(a, Atom) and a.size > b.size and a.size % b.size == 0:
            major, a = _factor(a, b.size)
            left.append(major)
        elif isinstance(b, Atom) and b.size > a.size and b.size % a.size == 0:
            major, b = _factor(b, a.size)
            right.append(major)
        elif a.size != b.size:
            for larger, rest in ((a, left), (b, right)):
                if isinstance(larger, Sum) and larger.size == max(a.size, b.size):
                    _pin(rest, "a flattening that cuts across a concatenation in each unit")
                    return None
            reason = "two flattenings of one axis that cut across each other's units"
            _pin([*left, a, *right, b], reason)
            joined.insert(0, Atom(_size(left) * a.size, reason=reason))
            return tuple(joined)
        if isinstance(a, Atom) and isinstance(b, Atom):
            joined.insert(0, a.merge(b))
        else:
            axes = [f.terms if isinstance(f, Sum) else ((f,),) for f in (a, b)]
            joined = [*_current(Sum(join(*axes))), *joined]
    return tuple(joined)
