"""FedLab's and PFLlib's conventions, and index lists, against their laws."""

import math
from fractions import Fraction

import numpy as np
import pytest

from wsa_jax.federated import (
    as_partition,
    dirichlet_equal,
    dirichlet_lognormal,
    iid,
    split_clients,
)

LABELS = np.random.default_rng(0).integers(0, 5, 600)


def test_sigma_0_is_the_partition_of_equal_clients():
    equal = dirichlet_equal(LABELS, clients=6, alpha=0.5, seed=3)
    found = dirichlet_lognormal(LABELS, clients=6, alpha=0.5, sigma=0, seed=3)
    np.testing.assert_array_equal(found.sizes, equal.sizes)


@pytest.mark.parametrize("clients", [49, 98, 103])
def test_sigma_0_is_equal_whatever_the_number_of_clients(clients):
    sizes = dirichlet_lognormal(
        np.zeros(30 * clients, int), clients=clients, alpha=1.0, sigma=0, seed=0
    ).sizes
    assert set(sizes.tolist()) == {30}


def test_logarithms_of_sizes_have_the_given_spread_and_none_is_lost():
    labels = np.zeros(40_000, int)
    partition = dirichlet_lognormal(labels, clients=400, alpha=1.0, sigma=0.5, seed=1)
    assert np.unique(partition.indices[partition.mask]).size == labels.size
    assert np.log(partition.sizes).std() == pytest.approx(0.5, rel=0.12)
    again = dirichlet_lognormal(labels, clients=400, alpha=1.0, sigma=0.5, seed=1)
    np.testing.assert_array_equal(again.indices, partition.indices)


def test_classes_of_a_client_concentrate_as_alpha_falls():
    shares = []
    for alpha in (0.05, 100.0):
        partition = dirichlet_lognormal(LABELS, clients=6, alpha=alpha, sigma=0.3, seed=0)
        counts = partition.counts(LABELS)
        shares.append((counts.max(axis=1) / counts.sum(axis=1)).mean())
    assert shares[0] > 0.6 > 0.35 > shares[1]


def test_no_size_overflows():
    sizes = dirichlet_lognormal(LABELS, clients=6, alpha=1.0, sigma=500, seed=0).sizes
    assert sizes.sum() == LABELS.size
    assert sizes.min() == 0


@pytest.mark.parametrize("share", [0.05, 0.25, 0.9])
def test_a_split_keeps_every_example_of_every_client(share):
    whole = as_partition([list(range(20)), [20], [21, 22], []])
    train, test = split_clients(whole, test_share=share, seed=0)
    for client in range(4):
        rows = [part.client_indices(client).tolist() for part in (train, test)]
        assert sorted(rows[0] + rows[1]) == whole.client_indices(client).tolist()
    expected = 20 - min(max(math.floor((1 - Fraction(str(share))) * 20), 1), 19)
    assert test.sizes.tolist() == [expected, 0, 1, 0]


@pytest.mark.parametrize(("count", "share", "tested"), [(90, 0.3, 27), (10, 0.8, 8), (10, 0.9, 9)])
def test_a_share_that_gives_an_integer_is_not_rounded_off_it(count, share, tested):
    whole = as_partition([list(range(count))])
    assert split_clients(whole, test_share=share, seed=0)[1].sizes.tolist() == [tested]


def test_dictionaries_of_other_libraries_are_partitions():
    whole = as_partition({1: np.array([5, 3]), 0: [4]})
    assert [whole.client_indices(i).tolist() for i in range(2)] == [[4], [3, 5]]
    assert as_partition(whole) is whole


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: as_partition({1: [0], 2: [1]}), r"clients \[1, 2\]; number them 0, 1, 2"),
        (
            lambda: split_clients(iid(LABELS, clients=2, seed=0), test_share=1.0, seed=0),
            "test_share 1.0",
        ),
        (
            lambda: dirichlet_lognormal(LABELS, clients=2, alpha=1.0, sigma=-1, seed=0),
            r"sigma -1 is not in \[0, inf\); give 0 for equal sizes",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
