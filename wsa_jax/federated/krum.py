"""Krum and multi-Krum: the updates that have the nearest neighbours, whatever the others send."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from wsa_jax.door import shown
from wsa_jax.tree import wide


def check_faulty(faulty: Any, clients: int) -> None:
    """Raise a ValueError unless Krum's guarantee holds, which takes ``2 f + 3`` clients.

    >>> check_faulty(2, 6)
    Traceback (most recent call last):
    ValueError: Krum withstands at most 1 faulty of 6 participants, not 2; ...
    """
    most = (clients - 3) // 2
    if faulty > most:
        raise ValueError(
            f"Krum withstands at most {max(most, 0)} faulty of {clients} participants, not "
            f"{shown(faulty)}; give fewer, or at least {2 * faulty + 3} participants"
        )


def krum(
    updates: PyTree, keep: Bool[Array, " clients"], faulty: int, *, many: bool = False
) -> Bool[Array, " clients"]:
    r"""Choose by Krum among updates ``[clients, ...]``: one, or with ``many`` all but the last f.

    .. math:: s_i = \sum_{j \in N_i} \lVert \Delta_i - \Delta_j \rVert^2, \qquad |N_i| = k - f - 2

    where ``N_i`` are the nearest others among the k that ``keep`` marks. The least score is chosen,
    by multi-Krum the least ``k - f``.

    Guarantees: memory is that of the updates; f clients cannot choose, if ``k >= 2 f + 3``. Edge
    cases: at least one neighbour is counted, so that a choice is made however few are kept; if none
    is kept, none is chosen.

    >>> found = krum(jnp.array([[1.0], [1.1], [0.9], [1.2], [-50.0]]), jnp.ones(5, bool), 1)
    >>> found.tolist()
    [True, False, False, False, False]

    Source: Blanchard et al., 2017, section 4; multi-Krum as in their section 5, with m = n - f.
    """
    count = keep.sum()
    distances = _distances(updates, keep)
    nearest = jnp.cumsum(jnp.sort(distances, axis=1), axis=1)
    scores = jnp.take(nearest, jnp.maximum(count - faulty - 2, 1) - 1, axis=1)
    # Where too few are kept, the last neighbour counted is none: the score is infinite.
    order = jnp.argsort(jnp.where(keep, jnp.minimum(scores, jnp.finfo(scores.dtype).max), jnp.inf))
    chosen = jnp.where(many, jnp.maximum(count - faulty, 1), 1)
    first = jnp.arange(len(keep)) < jnp.minimum(chosen, count)
    return jnp.zeros(len(keep), bool).at[order].set(first)


def _distances(updates: PyTree, keep: Bool[Array, " clients"]) -> Float[Array, "clients clients"]:
    """Squared distances to every other client that is kept; infinite to the rest and to itself."""
    rows = jnp.arange(len(keep))

    def from_one(one: Array) -> Array:
        squares = [
            jnp.square(wide(leaf) - wide(leaf[one])[None]).reshape(len(rows), -1).sum(axis=1)
            for leaf in jax.tree.leaves(updates)
        ]
        return jnp.where(keep & (rows != one), sum(squares), jnp.inf)

    # One client at a time: all differences at once would be as many copies of the updates.
    return jax.lax.map(from_one, rows)
