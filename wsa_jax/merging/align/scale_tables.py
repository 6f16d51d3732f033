"""What rescaling knows of two models: sums over the cells of each leaf, by log scale.

A cell is an output unit times an input unit. Objectives depend on the log scales through these sums
alone, so single weights are read only once. In float64 on the host.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from wsa_jax.merging.result import NotAdmittedError
from wsa_jax.merging.symmetry.spec import AxisSpec, Group, Tie
from wsa_jax.merging.symmetry.units import unit_rows
from wsa_jax.scope.layers import Rule, select_layers
from wsa_jax.scope.scope import STD_FLOOR
from wsa_jax.tree import is_weight, key_path
from wsa_jax.types import Leaf

__all__ = [
    "LogScales",
    "ScaleGranularity",
    "Scopes",
    "Table",
    "frozen",
    "layer_tables",
    "leaf_tables",
    "log_scales_of",
    "moments",
    "movable",
    "scales_of",
]

ScaleGranularity = Literal["group", "unit"]


class _Axis(NamedTuple):
    """Which log scale each position of an axis carries, and its sign: 0 where it carries none."""

    variable: np.ndarray
    sign: np.ndarray


class Scopes(NamedTuple):
    """Scopes to match in one leaf: dimensions that each sums over, and the first model's scopes."""

    over: tuple[int, ...]
    count: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    weight: np.ndarray


class Table(NamedTuple):
    """Sums over the cells of one leaf, ``[positions of each moving axis]``, in float64."""

    axes: tuple[_Axis, ...]
    count: np.ndarray
    first_sum: np.ndarray
    first_square: np.ndarray
    second_sum: np.ndarray
    second_square: np.ndarray
    cross: np.ndarray
    rows: tuple[Scopes, ...] = ()


class LogScales(NamedTuple):
    """The fitted groups and where the log scales of each lie in the vector x."""

    groups: tuple[Group, ...]
    slices: dict[str, slice]
    size: int


def log_scales_of(
    spec: AxisSpec, granularity: ScaleGranularity, names: Sequence[str] | None
) -> LogScales:
    """Lay out one log scale per unit, or per group, for the groups to be scaled.

    Raises:
      NotAdmittedError: no group admits scaling.
      ValueError: a named one does not.
    """
    able = [g for g in spec.groups if g.admits != "permutation" and g.parent is None]
    # A table covers a whole leaf; one layer of a stacked leaf is not told apart in it.
    able = [g for g in able if not any(tie.at for tie in g.ties)]
    for name in names or ():
        if spec[name] not in able:
            raise ValueError(
                f"group {name} admits no scaling: a norm or another non-linearity follows, or it "
                "lies inside another group or in one layer of a stacked leaf; leave it out"
            )
    chosen = tuple(g for g in able if names is None or g.name in names)
    if not chosen:
        raise NotAdmittedError(
            f"none of the {len(spec.groups)} groups to rescale admits scaling; match units by "
            "permutation alone, or use a model with a layer that no norm follows"
        )
    slices, start = {}, 0
    for group in chosen:
        stop = start + (group.size if granularity == "unit" else 1)
        slices[group.name] = slice(start, stop)
        start = stop
    return LogScales(chosen, slices, start)


def layer_tables(
    spec: AxisSpec,
    variables: LogScales,
    first: PyTree,
    second: PyTree,
    granularity: ScaleGranularity,
    select: Rule,
    weight_by: str,
) -> list[Table]:
    """Tables of the layers that move, with the rows whose scopes are to be matched."""
    named = jax.tree_util.tree_leaves_with_path(first)
    others = jax.tree.leaves(second)
    tables = []
    for layer in select_layers(first, select):
        pair = [np.asarray(named[layer.leaf][1]), np.asarray(others[layer.leaf])]
        if layer.axis is not None:
            pair = [np.take(leaf, np.asarray([layer.position]), layer.axis) for leaf in pair]
        table = _table(spec, variables, key_path(named[layer.leaf][0]), *pair)
        if table is None:
            continue
        if granularity == "unit":  # a unit's few weights have no mean of their own
            table = table._replace(first_sum=0 * table.first_sum, second_sum=0 * table.second_sum)
            every = range(table.count.ndim)
            sides = [tuple(axis for axis in every if axis != kept) for kept in every]
        else:
            sides = [tuple(range(table.count.ndim))]
        share = float(layer.size) if weight_by == "size" else 1.0
        tables.append(table._replace(rows=tuple(_rows(table, over, share) for over in sides)))
    total = sum(rows.weight.sum() for table in tables for rows in table.rows)
    if not total > 0:
        raise NotAdmittedError(
            "no selected layer has a scope and a group to scale; select other layers or groups"
        )
    return [
        table._replace(rows=tuple(rows._replace(weight=rows.weight / total) for rows in table.rows))
        for table in tables
    ]


def leaf_tables(spec: AxisSpec, variables: LogScales, first: PyTree, second: PyTree) -> list[Table]:
    """Tables of all leaves that move, biases included."""
    named = jax.tree_util.tree_leaves_with_path(first)
    pairs = [(key_path(p), a, b) for (p, a), b in zip(named, jax.tree.leaves(second), strict=True)]
    tables = [_table(spec, variables, name, a, b) for name, a, b in pairs if is_weight(a)]
    return [table for table in tables if table is not None]


def _table(
    spec: AxisSpec, variables: LogScales, name: str, first: Leaf, second: Leaf
) -> Table | None:
    a, b = (np.asarray(leaf).astype(np.float64) for leaf in (first, second))
    ties: dict[int, list[tuple[Group, Tie]]] = {}
    for group in variables.groups:
        for tie in group.ties:
            if tie.leaf == name and tie.role != "statistic":
                ties.setdefault(tie.axis, []).append((group, tie))
    if not ties:
        return None
    # Cells: an axis that moves keeps its positions, all others are summed in one.
    order = [*sorted(ties), *(axis for axis in range(a.ndim) if axis not in ties)]
    shape = [a.shape[axis] for axis in sorted(ties)]
    a, b = (leaf.transpose(order).reshape(*shape, -1) for leaf in (a, b))
    sums: list[np.ndarray] = [np.full(shape, float(a.shape[-1])), a.sum(-1), (a * a).sum(-1)]
    sums += [b.sum(-1), (b * b).sum(-1), (a * b).sum(-1)]
    # Positions of one log scale and one sign are one cell: sums then cost what scales there are.
    axes = []
    for dim, axis in enumerate(sorted(ties)):
        variable, sign = _positions(spec, variables, shape[dim], ties[axis])
        code = np.where(sign == 0, -1, 2 * variable + (sign > 0))
        kept, index, inverse = np.unique(code, return_index=True, return_inverse=True)
        if kept.size == code.size:
            index = np.arange(code.size)
        else:
            sums = [
                np.stack(
                    [t.take(np.flatnonzero(inverse == k), dim).sum(dim) for k in range(kept.size)],
                    axis=dim,
                )
                for t in sums
            ]
        axes.append(_Axis(variable[index], sign[index]))
    count, a_sum, a_square, b_sum, b_square, cross = sums
    return Table(tuple(axes), count, a_sum, a_square, b_sum, b_square, cross)


def _positions(
    spec: AxisSpec, variables: LogScales, size: int, ties: list[tuple[Group, Tie]]
) -> tuple[np.ndarray, np.ndarray]:
    variable, sign = np.zeros(size, int), np.zeros(size)
    for group, tie in ties:
        at = unit_rows(
            spec, jnp.arange(size, dtype=jnp.float32), group, dataclasses.replace(tie, axis=0)
        )
        at = np.asarray(at).astype(int)
        where = variables.slices[group.name]
        owner = np.arange(where.start, where.stop)
        variable[at] = np.broadcast_to(owner[:, None], (group.size, 1))
        sign[at] = -1.0 if tie.role == "consumed" else 1.0
    return variable, sign


def _rows(table: Table, over: tuple[int, ...], share: float) -> Scopes:
    count = table.count.sum(over, keepdims=True)
    mean, var = moments(table.first_sum, table.first_square, over, count)
    _, other = moments(table.second_sum, table.second_square, over, count)
    live = (var > STD_FLOOR**2) & (other > STD_FLOOR**2)
    weight = live * count / table.count.sum() * share
    return Scopes(over, count, mean, np.where(live, var, 1.0), weight)


def moments(
    total: np.ndarray, square: np.ndarray, over: tuple[int, ...], count: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Means and variances of cells, summed over some of their dimensions."""
    mean = total.sum(over, keepdims=True) / count
    return mean, np.maximum(square.sum(over, keepdims=True) / count - mean**2, 0.0)


def movable(tables: list[Table], size: int, *, of_first: bool = True) -> np.ndarray:
    """1 for log scales that move; 0 where a side that the fit sees is all 0 in either model."""
    free = np.ones(size)
    for sign in (1.0, -1.0):
        there, first, second = np.zeros(size), np.zeros(size), np.zeros(size)
        for table in tables:
            for dim, axis in enumerate(table.axes):
                others = tuple(d for d in range(len(table.axes)) if d != dim)
                chosen = axis.sign == sign
                np.add.at(there, axis.variable[chosen], 1.0)
                for total, cells in ((first, table.first_square), (second, table.second_square)):
                    np.add.at(total, axis.variable[chosen], cells.sum(others)[chosen])
        free[(there > 0) & (second == 0)] = 0.0
        if of_first:
            free[(there > 0) & (first == 0)] = 0.0
    return free


def frozen(variables: LogScales, free: np.ndarray) -> dict[str, int]:
    """Count, by group, the units that keep scale 1."""
    return {name: int(np.sum(free[where] == 0)) for name, where in variables.slices.items()}


def scales_of(variables: LogScales, x: np.ndarray) -> dict[str, np.ndarray]:
    """Scales by group, one per unit."""
    return {
        group.name: np.broadcast_to(
            np.exp(x[variables.slices[group.name]]).astype(np.float32), (group.size,)
        ).copy()
        for group in variables.groups
    }
