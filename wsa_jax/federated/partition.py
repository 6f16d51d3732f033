"""Which client holds which samples: index arrays, drawn once on the host.

Two different partitioners are called "Dirichlet" in the literature. `dirichlet_equal` draws each
client's class proportions and gives all clients the same number of samples; `dirichlet_unequal`
draws how each class spreads over the clients, whose sizes then differ.
"""

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Bool, Int, Int32, Integer, Shaped

from wsa_jax.door import door, shown
from wsa_jax.federated.dealing import class_pools, deal_by_client, spread_classes
from wsa_jax.leaves import is_key

__all__ = [
    "Partition",
    "as_partition",
    "dirichlet_equal",
    "dirichlet_unequal",
    "iid",
    "shards",
]


@dataclass(frozen=True, eq=False)
class Partition:
    """The samples of each client, padded to one capacity so that all clients have one shape.

    Attributes:
      indices: int32 `[clients, capacity]`. Row i starts with client i's samples in ascending
        order; the rest repeats its first sample (0 for an empty client), so that every entry
        is safe to gather.
      sizes: int32 `[clients]`, the number of samples of each client.

    >>> partition = iid(np.array([0, 0, 1, 1, 1]), clients=2, seed=0)
    >>> partition.sizes, partition.indices.shape, partition.mask.sum(axis=1)
    (array([3, 2], dtype=int32), (2, 3), array([3, 2]))
    """

    indices: Int32[np.ndarray, "clients capacity"]
    sizes: Int32[np.ndarray, " clients"]

    @property
    def clients(self) -> int:
        """The number of clients."""
        return len(self.sizes)

    @property
    def mask(self) -> Bool[np.ndarray, "clients capacity"]:
        """True where `indices` holds a sample, False where it holds padding."""
        return np.arange(self.indices.shape[1]) < self.sizes[:, None]

    def client_indices(self, client: int) -> Int32[np.ndarray, " size"]:
        """The samples of one client, without padding, ascending."""
        return self.indices[client, : self.sizes[client]]

    def counts(
        self, labels: Integer[Array | np.ndarray, " n"]
    ) -> Int[np.ndarray, "clients classes"]:
        """The number of samples `[clients, classes]`, with `max(labels) + 1` classes."""
        labels = checked_labels(labels)
        if self.indices.size and self.indices.max() >= len(labels):
            raise ValueError(
                f"the partition points at example {self.indices.max()}, but there are "
                f"{len(labels)} labels; give the labels that it was made from"
            )
        classes = int(labels.max()) + 1
        rows = [
            np.bincount(labels[self.client_indices(i)], minlength=classes)
            for i in range(self.clients)
        ]
        return np.stack(rows)


@door
def dirichlet_equal(
    labels: Integer[Array | np.ndarray, " n"] | Sequence[int],
    *,
    clients: int,
    alpha: float,
    seed: int,
) -> Partition:
    """Clients of equal size, each with its own class proportions.

    Client i draws q_i ~ Dir(alpha · 1) over the classes present in `labels`. Then, until all
    clients hold floor(n / clients) samples, a client that is not yet full is picked at random and
    takes a random sample of a class drawn from q_i.

    Exhausted classes: the draw is from q_i restricted to the classes with samples left, and
    uniform over those classes if q_i has no mass on them. This is the distribution of "draw again
    until the class has a sample", in one draw; the uniform case is its limit for q_i + epsilon. So
    the work is n draws at any alpha. The price of equal sizes is that the last samples a client
    takes may follow what is left rather than q_i.

    Args:
      labels: integer `[n]`.
      clients: number of clients.
      alpha: concentration; small is heterogeneous, large approaches the labels' own supply.
      seed: equal seeds give equal partitions.

    Returns:
      A `Partition` without padding, capacity floor(n / clients). No sample belongs to two
      clients; n mod clients samples belong to none.

    Raises:
      ValueError: empty labels, clients < 1, more clients than samples, alpha not positive and
        finite.

    This is the convention of FedDyn's and FedExP's code ("equal" Dirichlet data), and FedLab's
    client-inner Dirichlet partition of balanced clients; `dirichlet_lognormal` is that of
    unbalanced ones.

    >>> labels = np.repeat(np.arange(10), 100)
    >>> partition = dirichlet_equal(labels, clients=7, alpha=0.1, seed=0)
    >>> partition.indices.shape, np.unique(partition.indices).size
    ((7, 142), 994)
    """
    labels = checked_labels(labels, clients)
    check_alpha(alpha)
    rng = generator(seed)
    _, inverse, supply = np.unique(labels, return_inverse=True, return_counts=True)
    sizes = np.full(clients, labels.size // clients)
    return pack(deal_by_client(inverse, supply, sizes, alpha, rng))


@door
def dirichlet_unequal(
    labels: Integer[Array | np.ndarray, " n"] | Sequence[int],
    *,
    clients: int,
    alpha: float,
    seed: int,
    min_size: int = 10,
    attempts: int = 1000,
) -> Partition:
    """Each class spread over the clients by its own Dirichlet draw; sizes differ.

    Class k, in ascending order, draws p_k ~ Dir(alpha · 1) over the clients; clients that already
    hold n / clients samples or more are left out of p_k (all others take equal shares in the
    rare case that p_k has no mass on them), and the class's samples are cut at the cumulative
    proportions. If a client then has fewer than `min_size` samples, everything is drawn again.

    Args:
      labels: integer `[n]`.
      clients: number of clients.
      alpha: concentration; small is heterogeneous.
      seed: equal seeds give equal partitions.
      min_size: smallest allowed number of samples of a client.
      attempts: how often to draw before giving up.

    Returns:
      A padded `Partition`; every sample belongs to exactly one client.

    Raises:
      ValueError: empty labels, clients < 1, more clients than samples, alpha not positive and
        finite, min_size < 0 or above n / clients, attempts < 1, or no draw reached min_size.

    This is the convention of NIID-Bench (Li et al. 2022, "noniid-labeldir"). FedLab's
    hetero-Dirichlet partition is the same with ``min_size`` equal to the number of classes, and
    PFLlib's "dir" with ``min_size=1``, of train and test data together, a quarter of each client's
    examples kept for its test (`split_clients`).

    >>> labels = np.repeat(np.arange(10), 100)
    >>> partition = dirichlet_unequal(labels, clients=5, alpha=0.5, seed=0)
    >>> int(partition.sizes.sum()), bool(partition.sizes.min() >= 10)
    (1000, True)
    """
    labels = checked_labels(labels, clients)
    check_alpha(alpha)
    if not 0 <= min_size <= labels.size // clients:
        raise ValueError(
            f"min_size={min_size} must lie in 0 .. samples // clients = {labels.size // clients}: "
            "lower min_size or clients"
        )
    if attempts < 1:
        raise ValueError(f"attempts={attempts} must be at least 1")
    rng = generator(seed)
    _, inverse, supply = np.unique(labels, return_inverse=True, return_counts=True)
    for _ in range(attempts):
        counts = spread_classes(supply, clients, alpha, rng)
        if counts.sum(axis=1).min() >= min_size:
            break
    else:
        raise ValueError(
            f"alpha={alpha} with clients={clients} left a client with fewer than "
            f"min_size={min_size} samples in each of {attempts} attempts: raise alpha, lower "
            "clients or min_size, or use dirichlet_equal"
        )
    # Only counts are drawn again; samples are dealt once.
    held: list[list[int]] = [[] for _ in range(clients)]
    for label, pool in enumerate(class_pools(inverse, supply.size, rng)):
        ends = np.cumsum(counts[:, label]).tolist()
        for client, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            held[client].extend(pool[start:end])
    return pack(held)


@door
def iid(
    labels: Shaped[Array | np.ndarray, " n"] | Sequence[int], *, clients: int, seed: int
) -> Partition:
    """All samples dealt at random; sizes differ by at most one.

    Args:
      labels: `[n]`, of any type; only their number matters.
      clients: number of clients.
      seed: equal seeds give equal partitions.

    Returns:
      A `Partition`; every sample belongs to exactly one client.

    Raises:
      ValueError: empty labels, clients < 1, more clients than samples.

    >>> iid(np.zeros(10, int), clients=4, seed=0).sizes
    array([3, 3, 2, 2], dtype=int32)
    """
    count = len(labels)
    if not 1 <= clients <= count:
        raise ValueError(f"clients={clients} must lie in 1 .. {count}, the number of samples")
    order = generator(seed).permutation(count)
    return pack([part.tolist() for part in np.array_split(order, clients)])


@door
def shards(
    labels: Integer[Array | np.ndarray, " n"] | Sequence[int],
    *,
    clients: int,
    shards_per_client: int,
    seed: int,
) -> Partition:
    """Samples sorted by label and cut into equal shards, a few of them dealt to each client.

    With s = `shards_per_client` a client holds samples of few classes, at most 2s as long as no
    class is smaller than a shard. Shards, and so clients, differ in size by at most one (s).

    Args:
      labels: integer `[n]`.
      clients: number of clients.
      shards_per_client: shards each client gets.
      seed: equal seeds give equal partitions; also shuffles the samples within a class.

    Returns:
      A `Partition`; every sample belongs to exactly one client.

    Raises:
      ValueError: empty labels, clients < 1, shards_per_client < 1, more shards than samples.

    This is the "pathological non-IID" partition of McMahan et al. 2017 (section 3).

    >>> labels = np.repeat(np.arange(10), 100)
    >>> partition = shards(labels, clients=10, shards_per_client=2, seed=0)
    >>> int((partition.counts(labels) > 0).sum(axis=1).max())
    2
    """
    labels = checked_labels(labels, clients)
    total = clients * shards_per_client
    if shards_per_client < 1 or total > labels.size:
        raise ValueError(
            f"shards_per_client={shards_per_client} must be at least 1, and clients times "
            f"shards_per_client at most the {labels.size} samples (here {total}): change "
            "shards_per_client or lower clients"
        )
    rng = generator(seed)
    shuffled = rng.permutation(labels.size)
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    cut = np.array_split(by_label, total)
    dealt = rng.permutation(total).reshape(clients, shards_per_client)
    return pack([np.concatenate([cut[shard] for shard in row]).tolist() for row in dealt])


@door
def as_partition(partition: Partition | Sequence[object] | Mapping[int, object]) -> Partition:
    """Return a partition, made of the rows of each client: a list of them, or a dictionary.

    A dictionary holds client numbers from 0 and their rows, as FedLab's and PFLlib's partitioners
    return them. `simulate` takes these as they are.

    Raises:
      ValueError: no client, or rows that are no sequence of integers >= 0.

    >>> as_partition([[0, 4], [3, 1, 2]]).indices.tolist()
    [[0, 4, 0], [1, 2, 3]]
    >>> as_partition({1: [3, 1, 2], 0: [0, 4]}).sizes
    array([2, 3], dtype=int32)
    """
    if isinstance(partition, Partition):
        return partition
    if isinstance(partition, Mapping):
        if set(partition) != set(range(len(partition))):
            raise ValueError(
                f"the partition has clients {shown(list(partition))}; number them 0, 1, 2 ..."
            )
        partition = [partition[client] for client in range(len(partition))]
    if not len(partition):
        raise ValueError("the partition has no client; give the rows of each")
    held = []
    for client, given in enumerate(partition):
        if is_key(given):
            raise ValueError(f"client {client} of the partition has keys; give the rows of each")
        rows = np.asarray(given)
        if rows.size == 0:
            rows = rows.astype(np.int32).reshape(-1)
        if rows.ndim != 1 or rows.dtype.kind not in "iu" or (rows.size and rows.min() < 0):
            raise ValueError(
                f"client {client} of the partition has rows of shape {rows.shape} and type "
                f"{rows.dtype}; give integers of 0 or more, one for each of its examples"
            )
        held.append(rows.tolist())
    return pack(held)


def checked_labels(
    labels: Integer[Array | np.ndarray, " n"] | Sequence[int], clients: int = 1
) -> Integer[np.ndarray, " n"]:
    if is_key(labels):
        raise ValueError(f"labels are {shown(labels)}; give integers")
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.size == 0 or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ValueError(
            "labels must be a non-empty array of integers >= 0 with one axis, "
            f"got shape {labels.shape} of {labels.dtype}"
        )
    if not 1 <= clients <= labels.size:
        raise ValueError(f"clients={clients} must lie in 1 .. {labels.size}, the number of samples")
    return labels


def generator(seed: int) -> np.random.Generator:
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or seed < 0:
        raise ValueError(f"seed {shown(seed)} is no integer of 0 or more; give one")
    return np.random.default_rng(int(seed))


def check_alpha(alpha: float) -> None:
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(
            f"alpha={alpha} must be positive and finite: for clients that are all alike use iid"
        )


def pack(held: Sequence[Sequence[int]]) -> Partition:
    sizes = np.array([len(samples) for samples in held], np.int32)
    indices = np.zeros((len(held), int(sizes.max())), np.int32)
    for row, samples in zip(indices, held, strict=True):
        if samples:
            ordered = np.sort(np.asarray(samples, np.int32))
            row[: ordered.size] = ordered
            row[ordered.size :] = ordered[0]
    return Partition(indices, sizes)
