"""Where a model state keeps BatchNorm statistics: Flax, Keras, PyTorch, Haiku and Equinox."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from wsa_jax.leaves import is_weight, key_path
from wsa_jax.scope.layers import Rule
from wsa_jax.types import Leaf

_NAMES = frozenset(
    prefix + name for prefix in ("", "running_", "moving_") for name in ("mean", "var", "variance")
)
# Haiku's module for an average, and the leaves in it beside its counter.
_HAIKU_MODULES, _HAIKU_LEAVES = frozenset({"mean_ema", "var_ema"}), ("hidden", "average")


class Statistic(NamedTuple):
    """A running statistic, by positions in the flattened model state.

    Attributes:
      leaf: the leaf that a step in training mode moves towards the batch's value.
      center: for a variance, the place of its mean among all statistics; None for a mean.
      counter: the number of updates, where the leaf starts at 0 and what is used is the leaf
        divided by ``1 - momentum^counter``; None where it is used as it is.
      average: the leaf that keeps this quotient (Haiku), or None.
    """

    leaf: int
    center: int | None
    counter: int | None = None
    average: int | None = None


class Statistics(NamedTuple):
    """All statistics of a model state.

    Attributes:
      found: the statistics.
      first_time: flags that let the next batch replace a statistic (Equinox), by position.
    """

    found: tuple[Statistic, ...]
    first_time: tuple[int, ...] = ()

    @property
    def leaves(self) -> tuple[int, ...]:
        """Positions of all floating-point leaves that belong to a statistic."""
        own = [one.leaf for one in self.found]
        return (*own, *(one.average for one in self.found if one.average is not None))


def running_statistics(name: str, leaf: Leaf) -> bool:
    """Select what BatchNorm keeps, by the names that module systems give it.

    ``mean`` and ``var`` or ``variance``, with ``running_`` or ``moving_`` before it, and ``hidden``
    and ``average`` inside Haiku's ``mean_ema`` and ``var_ema``. Equinox gives no names; its
    statistics are found by their place.

    >>> running_statistics("batch_stats/BatchNorm_0/var", jnp.ones(2))
    True
    >>> running_statistics("net/~/bn/~/mean_ema/average", jnp.ones(2))
    True
    """
    del leaf
    *_, module, last = ["", *_parts(name)]
    return last in _NAMES or (module in _HAIKU_MODULES and last in _HAIKU_LEAVES)


def find_statistics(model_state: PyTree, select: Rule | None = None) -> Statistics:
    """Find the statistics in a model state; a variance belongs to the mean beside it.

    Args:
      model_state: non-parameter collections.
      select: which leaves are statistics; if None, those of `running_statistics` and of Equinox.

    Raises:
      ValueError: a variance has no mean beside it; the message names it.

    >>> state = {"bn": {"moving_mean": jnp.zeros(2), "moving_variance": jnp.ones(2)}}
    >>> find_statistics(state).found
    (Statistic(leaf=0, center=None, counter=None, average=None),
     Statistic(leaf=1, center=0, counter=None, average=None))
    """
    leaves = jax.tree_util.tree_leaves_with_path(model_state)
    names = {key_path(path): index for index, (path, _) in enumerate(leaves)}
    rule = running_statistics if select is None else select
    chosen = [
        (name, index)
        for name, index in names.items()
        if is_weight(leaves[index][1]) and rule(name, leaves[index][1])
    ]
    # Haiku's average is derived from the hidden leaf beside it, which alone is moved.
    hidden = {name for name, _ in chosen if _parts(name)[-1] == "hidden"}
    derived = {_sibling(name, "average") for name in hidden}
    chosen = [(name, index) for name, index in chosen if name not in derived]
    places = {name: place for place, (name, _) in enumerate(chosen)}
    found = []
    for name, index in chosen:
        mean = _mean_beside(name)
        if mean not in places:
            raise ValueError(f"variance {name} has no {mean} beside it; select both or neither")
        counter, average = (
            names.get(_sibling(name, last)) if name in hidden else None
            for last in ("counter", "average")
        )
        found.append(Statistic(index, None if mean == name else places[mean], counter, average))
    if select is not None:
        return Statistics(tuple(found))
    return _with_equinox(found, model_state)


def _with_equinox(found: list[Statistic], model_state: PyTree) -> Statistics:
    """Add those of Equinox states: a flag or a counter, then a mean and a variance."""
    position, first_time = 0, []
    for node in jax.tree.leaves(model_state, is_leaf=_is_equinox_state):
        values = [node]
        if _is_equinox_state(node):
            values, _ = jax.tree_util.default_registry.flatten_one_level(node) or ([], None)
        before: Any = None
        for value in values:
            if _is_pair(value) and before is not None and _is_scalar_of(before, value[0]):
                place, flag = len(found), before.dtype == jnp.bool_
                first_time += [position - 1] if flag else []
                counter = None if flag else position - 1
                found.append(Statistic(position, None, counter))
                found.append(Statistic(position + 1, place, counter))
            before, position = value, position + len(jax.tree.leaves(value))
    return Statistics(tuple(found), tuple(first_time))


def _is_equinox_state(node: object) -> bool:
    kind = type(node)
    return kind.__name__ == "State" and kind.__module__.split(".")[0] == "equinox"


def _is_pair(value: object) -> bool:
    return (
        type(value) is tuple
        and len(value) == 2
        and all(map(is_weight, value))
        and value[0].shape == value[1].shape
    )


def _is_scalar_of(leaf: Leaf, statistic: PyTree) -> bool:
    """Whether a leaf is one flag or counter for a statistic (for each model of a stack)."""
    kind = getattr(leaf, "dtype", None)
    return (
        kind is not None
        and (kind == jnp.bool_ or jnp.issubdtype(kind, jnp.integer))
        and leaf.ndim == statistic.ndim - 1
    )


def _parts(name: str) -> list[str]:
    """The parts of a name; PyTorch's and flat names have dots between them."""
    return re.split(r"[/.]", name)


def _sibling(name: str, last: str) -> str:
    return name[: len(name) - len(_parts(name)[-1])] + last


def _mean_beside(name: str) -> str:
    """The name of the mean that belongs to a variance; that of a mean itself."""
    parts = _parts(name)
    if parts[-1] in _HAIKU_LEAVES and len(parts) > 1 and parts[-2] in _HAIKU_MODULES:
        end = len(name) - len(parts[-2]) - len(parts[-1]) - 1
        return name[:end] + parts[-2].replace("var", "mean") + name[end + len(parts[-2]) :]
    return _sibling(name, parts[-1].replace("variance", "mean").replace("var", "mean"))
