"""Partitions whose clients differ in size by a law of their own, and each client's own test split.

The examples of a client are drawn as in `dirichlet_equal`.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Integer

from wsa_jax import checks
from wsa_jax.door import door
from wsa_jax.federated.dealing import deal_by_client
from wsa_jax.federated.partition import (
    Partition,
    check_alpha,
    checked_labels,
    generator,
    pack,
)


@door
def dirichlet_lognormal(
    labels: Integer[Array | np.ndarray, " n"] | Sequence[int],
    *,
    clients: int,
    alpha: float,
    sigma: float | int,
    seed: int,
) -> Partition:
    r"""Clients of log-normal sizes, each with its own class proportions.

    .. math:: n_i = \lfloor n \, s_i / \textstyle\sum_j s_j \rfloor, \qquad
              \log s_i \sim N(\log \lfloor n / \mathrm{clients} \rfloor, \sigma^2)

    What rounding leaves goes to the first client. Then examples are dealt as in `dirichlet_equal`.

    Args:
      labels: integer ``[n]``.
      clients: number of clients.
      alpha: concentration; small is heterogeneous.
      sigma: standard deviation of the logarithms of the sizes; 0 gives equal ones.
      seed: equal seeds give equal partitions.

    Returns:
      A padded `Partition`; every sample belongs to exactly one client.

    Edge cases: at a large sigma a client may have no sample.

    Raises:
      ValueError: empty labels, clients < 1, more clients than samples, alpha not positive and
        finite, or sigma negative or not finite.

    This is FedLab's convention, client-inner Dirichlet with log-normal sizes.

    >>> labels = np.repeat(np.arange(10), 100)
    >>> partition = dirichlet_lognormal(labels, clients=4, alpha=0.5, sigma=0.5, seed=0)
    >>> int(partition.sizes.sum()), np.unique(partition.sizes).size
    (1000, 4)
    """
    labels = checked_labels(labels, clients)
    check_alpha(alpha)
    checks.number("sigma", sigma, 0, math.inf, "0 for equal sizes")
    rng = generator(seed)
    _, inverse, supply = np.unique(labels, return_inverse=True, return_counts=True)
    logs = rng.normal(math.log(labels.size // clients), sigma, clients)
    weights = np.exp(logs - logs.max())  # shares alone count, and these never overflow
    # Divided last: equal weights give an integer exactly, which rounding would miss from below.
    sizes = (weights * labels.size / weights.sum()).astype(np.int64)
    sizes[0] += labels.size - sizes.sum()
    return pack(deal_by_client(inverse, supply, sizes, alpha, rng))


@door
def split_clients(
    partition: Partition, *, test_share: float = 0.25, seed: int
) -> tuple[Partition, Partition]:
    """Split each client's own examples at random into two partitions, for training and for test.

    Args:
      partition: which client owns which examples.
      test_share: share of each client's examples that is kept for its test, in (0, 1).
      seed: equal seeds give equal splits.

    Returns:
      Partitions of the same examples for training and for test. A client of n examples tests on
      ``n - floor((1 - test_share) n)``, at least one and all but one of them.

    Edge cases: the one example of a client is for training.

    Raises:
      ValueError: test_share is not in (0, 1).

    A quarter is PFLlib's convention. Give the second to `simulate` as ``test_partition``:

    >>> from wsa_jax.federated import iid
    >>> train, test = split_clients(iid(np.zeros(22, int), clients=2, seed=0), seed=0)
    >>> train.sizes.tolist(), test.sizes.tolist()
    ([8, 8], [3, 3])
    """
    if not 0 < test_share < 1:
        raise ValueError(f"test_share {test_share} is not in (0, 1); give a share such as 0.25")
    rng = generator(seed)
    train: list[list[int]] = []
    test: list[list[int]] = []
    for client in range(partition.clients):
        rows = rng.permutation(partition.client_indices(client)).tolist()
        # A share that gives an integer may be rounded to below it, (1 - 0.3) 90 to 62.99...
        whole = math.floor((1 - test_share) * len(rows) + 1e-9)
        kept = min(max(whole, 1), max(len(rows) - 1, 1))
        train.append(rows[:kept])
        test.append(rows[kept:])
    return pack(train), pack(test)
