"""How examples are dealt to clients by Dirichlet draws: lists of rows, before they are packed."""

from bisect import bisect_right

import numpy as np


def deal_by_client(
    inverse: np.ndarray,
    supply: np.ndarray,
    sizes: np.ndarray,
    alpha: float,
    rng: np.random.Generator,
) -> list[list[int]]:
    """Deal examples of classes ``inverse`` to clients of known sizes; see `dirichlet_equal`."""
    proportions = rng.dirichlet(np.full(supply.size, alpha), size=len(sizes))
    pools = class_pools(inverse, supply.size, rng)
    held: list[list[int]] = [[] for _ in sizes]
    capacities = sizes.tolist()
    open_clients = [client for client, size in enumerate(capacities) if size]
    left = supply.tolist()
    # A client's cumulative proportions are renewed only when a class has run out since its
    # last turn, which keeps the loop in plain Python floats: 50,000 turns take about 0.1 s.
    exhausted = 0
    cumulative: list[list[float]] = [[] for _ in sizes]
    renewed_at = [-1] * len(sizes)
    for pick, draw in rng.random((sum(capacities), 2)).tolist():
        place = int(pick * len(open_clients))
        client = open_clients[place]
        if renewed_at[client] != exhausted:
            cumulative[client] = _restricted_cumulative(proportions[client], np.array(left) > 0)
            renewed_at[client] = exhausted
        bounds = cumulative[client]
        label = bisect_right(bounds, draw * bounds[-1])
        left[label] -= 1
        exhausted += left[label] == 0
        held[client].append(pools[label][left[label]])
        if len(held[client]) == capacities[client]:
            open_clients[place] = open_clients[-1]
            open_clients.pop()
    return held


def class_pools(inverse: np.ndarray, classes: int, rng: np.random.Generator) -> list[list[int]]:
    """The rows of each class, in random order."""
    # Shuffled, because files may be ordered by more than their label (digits: by writer).
    return [rng.permutation(np.flatnonzero(inverse == label)).tolist() for label in range(classes)]


def _restricted_cumulative(proportions: np.ndarray, available: np.ndarray) -> list[float]:
    mass = np.where(available, proportions, 0.0)
    # Below the normal range draw * total could round up to total and point past the last class.
    if mass.sum() < np.finfo(np.float64).tiny:
        mass = available.astype(np.float64)
    return np.cumsum(mass).tolist()


def spread_classes(
    supply: np.ndarray, clients: int, alpha: float, rng: np.random.Generator
) -> np.ndarray:
    """How many of each class every client gets, ``[clients, classes]``; see `dirichlet_unequal`."""
    counts = np.zeros((clients, supply.size), np.int64)
    for label, amount in enumerate(supply):
        mass = rng.dirichlet(np.full(clients, alpha))
        below_average = counts.sum(axis=1) * clients < supply.sum()
        mass = np.where(below_average, mass, 0.0)
        if mass.sum() < np.finfo(np.float64).tiny:
            mass = below_average.astype(np.float64)
        ends = (np.cumsum(mass)[:-1] / mass.sum() * amount).astype(np.int64)
        counts[:, label] = np.diff(ends, prepend=0, append=amount)
    return counts
