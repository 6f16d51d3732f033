"""Which units have an order of their own in each unit of another group.

The dimensions inside an attention head may be ordered per head, because the head occurs wherever
they do: every array, and every product before it is summed, shows which head they belong to.
"""

from collections.abc import Iterable, Sequence

from wsa_jax.merging.symmetry.spec import Tie
from wsa_jax.merging.symmetry.tracing.axes import Atom, Axis, expand, products_of
from wsa_jax.merging.symmetry.tracing.steps import Value


def possible_parents(live: Sequence[Atom], values: Iterable[Value]) -> dict[Atom, list[Atom]]:
    """For each atom, the others that occur beside it in all arrays, innermost first.

    Of two that are always together, the earlier in ``live`` may be the later's parent.
    """
    beside: dict[Atom, set[Atom]] = {}
    seen: set[tuple[Axis, ...]] = set()
    for value in values:
        axes = tuple(expand(axis) for axis in value.axes)
        if axes in seen:
            continue
        seen.add(axes)
        for atom, others in _occurrences(axes, frozenset(live)):
            beside[atom] = beside[atom] & others if atom in beside else others
    rank = {atom: index for index, atom in enumerate(live)}
    result = {}
    for atom in live:
        given = [
            other
            for other in beside.get(atom, ())
            if atom not in beside.get(other, ()) or rank[other] < rank[atom]
        ]
        result[atom] = sorted(given, key=lambda other: (-len(beside[other]), rank[other]))
    return result


def lies_in_units_of(
    inner: Sequence[Tie], size: int, outer: Sequence[Tie], parent_size: int
) -> bool:
    """Whether the ties of an atom lie in whole blocks of its parent's, leaf by leaf."""
    for tie in inner:
        in_leaf = [other for other in outer if other.leaf == tie.leaf]
        on_axis = [other for other in in_leaf if other.axis == tie.axis]
        if on_axis:
            other, stop = on_axis[0], tie.offset + tie.outer * size * tie.inner
            repeats, unit = other.outer, size * tie.inner
            period = parent_size * other.inner
            inside = other.offset <= tie.offset and stop <= other.offset + repeats * period
            inside &= (tie.offset - other.offset) % period == 0
            if len(on_axis) > 1 or not inside or other.inner % unit:
                return False
            if (stop - tie.offset) % period:
                return False
        elif len(in_leaf) != 1:
            return False
    return True


def _occurrences(axes: tuple[Axis, ...], live: frozenset[Atom]) -> Iterable[tuple[Atom, set[Atom]]]:
    for index, axis in enumerate(axes):
        elsewhere = [_throughout(other) for place, other in enumerate(axes) if place != index]
        mentioned = [
            {atom for product in products_of(other) for atom in product}
            for place, other in enumerate(axes)
            if place != index
        ]
        for product in products_of(axis):
            for place, atom in enumerate(product):
                if atom not in live:
                    continue
                own = [other for i, other in enumerate(product) if i != place]
                beside = {other for other in own if own.count(other) == 1 and other is not atom}
                # On other axes it must be evident which index is meant.
                if not any(other.free for other in own):
                    for names in elsewhere:
                        beside |= {
                            other
                            for other in names
                            if other not in own and sum(other in m for m in mentioned) == 1
                        }
                yield atom, beside & (live - {atom})


def _throughout(axis: Axis) -> set[Atom]:
    """Atoms that every position of an axis has exactly one index of."""
    first, *rest = products_of(axis) or ((),)
    return {
        atom
        for atom in first
        if first.count(atom) == 1 and all(product.count(atom) == 1 for product in rest)
    }
