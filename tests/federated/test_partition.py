import numpy as np
import pytest
from numpy.testing import assert_array_equal

from wsa_jax.federated.partition import (
    Partition,
    dirichlet_equal,
    dirichlet_unequal,
    iid,
    shards,
)
from wsa_jax.federated.partition_table import partition_table
from wsa_jax.federated.plots import partition_heatmap

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 203))

PARTITIONERS = {
    "dirichlet_equal": lambda labels, clients, seed: dirichlet_equal(
        labels, clients=clients, alpha=0.5, seed=seed
    ),
    "dirichlet_unequal": lambda labels, clients, seed: dirichlet_unequal(
        labels, clients=clients, alpha=0.5, seed=seed, min_size=1
    ),
    "iid": lambda labels, clients, seed: iid(labels, clients=clients, seed=seed),
    "shards": lambda labels, clients, seed: shards(
        labels, clients=clients, shards_per_client=2, seed=seed
    ),
}
every_partitioner = pytest.mark.parametrize("make", PARTITIONERS.values(), ids=PARTITIONERS)


def assigned(partition: Partition) -> np.ndarray:
    return np.concatenate([partition.client_indices(i) for i in range(partition.clients)])


def concentration(counts: np.ndarray) -> np.ndarray:
    """Sum of squared proportions of each row: 1 for one class, 1 / classes for equal shares."""
    return ((counts / counts.sum(axis=1, keepdims=True)) ** 2).sum(axis=1)


@every_partitioner
@pytest.mark.parametrize("clients", [1, 7, 40])
def test_no_sample_has_two_clients_and_none_is_lost(make, clients):
    partition = make(LABELS, clients, 0)
    samples = assigned(partition)
    assert len(np.unique(samples)) == len(samples) == partition.sizes.sum()
    lost = LABELS.size - len(samples)
    assert lost == (LABELS.size % clients if make is PARTITIONERS["dirichlet_equal"] else 0)
    assert samples.min() >= 0
    assert samples.max() < LABELS.size


@every_partitioner
def test_rows_are_padded_with_a_sample_of_the_client(make):
    partition = make(LABELS, 7, 0)
    assert partition.indices.dtype == partition.sizes.dtype == np.int32
    assert partition.indices.shape == (7, partition.sizes.max())
    assert_array_equal(partition.mask.sum(axis=1), partition.sizes)
    for row, mask, client in zip(partition.indices, partition.mask, range(7), strict=True):
        assert_array_equal(row[mask], partition.client_indices(client))
        assert np.all(np.diff(row[mask]) > 0)
        assert np.all(row[~mask] == row[0])


@every_partitioner
def test_the_seed_alone_decides(make):
    first, again, other = (make(LABELS, 7, seed) for seed in (5, 5, 6))
    assert_array_equal(first.indices, again.indices)
    assert_array_equal(first.sizes, again.sizes)
    assert assigned(first).tolist() != assigned(other).tolist()


@every_partitioner
def test_the_callers_labels_and_global_random_state_stay_as_they_are(make):
    labels = LABELS.copy()
    labels.flags.writeable = False
    before = np.random.get_state()[1].copy()  # noqa: NPY002, the state under test
    make(labels, 7, 0)
    assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@every_partitioner
def test_labels_need_not_be_contiguous(make):
    # Class 3 has no sample: a draw over classes 0 .. max would have nothing to give there.
    partition = make(np.where(LABELS == 3, 17, LABELS), 7, 0)
    assert 0 <= LABELS.size - partition.sizes.sum() < 7


@every_partitioner
@pytest.mark.parametrize("clients", [0, -1, 6])
def test_impossible_numbers_of_clients_are_refused(make, clients):
    with pytest.raises(ValueError, match=f"clients={clients} .*5, the number of samples"):
        make(np.arange(5), clients, 0)


@pytest.mark.parametrize("name", [name for name in PARTITIONERS if name != "iid"])
@pytest.mark.parametrize("labels", [np.zeros(0, int), np.array([0, -1])])
def test_impossible_labels_are_refused(name, labels):
    with pytest.raises(ValueError, match="labels must be"):
        PARTITIONERS[name](labels, 1, 0)


def test_iid_asks_no_more_of_labels_than_their_number():
    assert iid(np.linspace(-1, 1, 10), clients=4, seed=0).sizes.tolist() == [3, 3, 2, 2]
    with pytest.raises(ValueError, match=r"clients=1 must lie in 1 \.\. 0"):
        iid(np.zeros(0), clients=1, seed=0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"clients": 1.5}, "clients of iid is 1.5; give an integer"),
        ({"seed": -1}, "seed -1 is no integer of 0 or more; give one"),
        ({"seed": "0"}, "seed of iid is '0'; give an integer"),
    ],
)
def test_numbers_that_are_none_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        iid(LABELS, **({"clients": 2, "seed": 0} | setting))


@pytest.mark.parametrize("partitioner", [dirichlet_equal, dirichlet_unequal])
@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_alphas_are_refused(partitioner, alpha):
    with pytest.raises(ValueError, match=f"alpha={alpha} must be positive") as error:
        partitioner(LABELS, clients=4, alpha=alpha, seed=0)
    assert "\n" not in str(error.value)


def test_counts_are_the_confusion_of_client_and_label():
    partition = PARTITIONERS["dirichlet_unequal"](LABELS, 7, 0)
    expected = np.zeros((7, 10), int)
    for client in range(7):
        for index in partition.client_indices(client):
            expected[client, LABELS[index]] += 1
    assert_array_equal(partition.counts(LABELS), expected)


@pytest.mark.parametrize("alpha", [1e-8, 0.01, 0.1, 1.0, 1e6, 1e308])
@pytest.mark.parametrize("clients", [3, 100])
def test_equal_sizes_at_any_alpha(alpha, clients):
    # At 1e-8 every q_i is exactly one-hot: drawing again until a class has samples would
    # never end, so this ends only because the number of draws does not depend on q.
    partition = dirichlet_equal(LABELS, clients=clients, alpha=alpha, seed=1)
    assert partition.indices.shape == (clients, LABELS.size // clients)
    assert np.all(partition.sizes == LABELS.size // clients)


def redrawing_counts(
    labels: np.ndarray, clients: int, alpha: float, rng: np.random.Generator
) -> np.ndarray:
    """The convention to the letter: draw a class again until it has a sample left."""
    classes = labels.max() + 1
    left = np.bincount(labels)
    proportions = rng.dirichlet(np.full(classes, alpha), size=clients)
    counts = np.zeros((clients, classes), int)
    capacity = labels.size // clients
    while np.any(counts.sum(axis=1) < capacity):
        client = rng.choice(np.flatnonzero(counts.sum(axis=1) < capacity))
        label = rng.choice(classes, p=proportions[client])
        while left[label] == 0:
            label = rng.choice(classes, p=proportions[client])
        left[label] -= 1
        counts[client, label] += 1
    return counts


def test_equal_dirichlet_has_the_law_of_drawing_again():
    labels, clients, alpha, runs = np.arange(120) % 4, 5, 1.0, 120
    rng = np.random.default_rng(0)
    ours = np.array(
        [
            concentration(
                dirichlet_equal(labels, clients=clients, alpha=alpha, seed=seed).counts(labels)
            ).mean()
            for seed in range(runs)
        ]
    )
    letter = np.array(
        [concentration(redrawing_counts(labels, clients, alpha, rng)).mean() for _ in range(runs)]
    )
    # Means of independent runs: five standard errors of their difference.
    error = np.sqrt((ours.var() + letter.var()) / runs)
    assert abs(ours.mean() - letter.mean()) < 5 * error
    # And the test can tell: a little more concentration would be seen.
    assert 5 * error < 0.25 * (letter.mean() - 1 / 4)


def test_equal_dirichlet_concentrates_as_alpha_falls():
    means = [
        concentration(
            dirichlet_equal(LABELS, clients=20, alpha=alpha, seed=0).counts(LABELS)
        ).mean()
        for alpha in (1e6, 1.0, 0.1, 0.01)
    ]
    assert means == sorted(means)
    # With q uniform a client's counts are a draw of `capacity` samples, so the expected
    # concentration is 1/10 + at most (1 - 1/10) / capacity.
    capacity = LABELS.size // 20
    assert means[0] < 0.1 + 2 * 0.9 / capacity
    assert means[-1] > 0.5


def test_unequal_dirichlet_has_dirichlet_moments_in_its_first_class():
    # Before the first class no client is full, so its shares are Dir(alpha · 1) cut to samples.
    clients, alpha, runs = 6, 0.5, 400
    labels = np.repeat([0, 1], [4000, 40_000])
    shares = np.array(
        [
            dirichlet_unequal(labels, clients=clients, alpha=alpha, seed=seed, min_size=0).counts(
                labels
            )[:, 0]
            / 4000
            for seed in range(runs)
        ]
    )
    second = (shares**2).sum(axis=1)
    expected = (alpha + 1) / (clients * alpha + 1)
    # Cutting at whole samples moves a share by at most 1/4000, the sum of squares by 2/4000.
    assert abs(second.mean() - expected) < 5 * second.std() / np.sqrt(runs) + 2 / 4000
    error = 5 * shares.std(axis=0) / np.sqrt(runs) + 1 / 4000
    assert np.all(np.abs(shares.mean(axis=0) - 1 / clients) < error)


@pytest.mark.parametrize("alpha", [0.05, 0.5, 1e308])
def test_unequal_dirichlet_gives_nothing_more_to_clients_above_the_average(alpha):
    clients = 8
    partition = dirichlet_unequal(LABELS, clients=clients, alpha=alpha, seed=0, min_size=0)
    counts = partition.counts(LABELS)
    before = np.cumsum(counts, axis=1) - counts
    assert np.all(counts[before * clients >= LABELS.size] == 0)
    assert_array_equal(counts.sum(axis=0), np.bincount(LABELS))


def test_unequal_dirichlet_keeps_its_smallest_size():
    for seed in range(20):
        sizes = dirichlet_unequal(LABELS, clients=10, alpha=0.3, seed=seed, min_size=30).sizes
        assert sizes.min() >= 30
        assert len(set(sizes.tolist())) > 1


def test_unequal_dirichlet_gives_up_with_a_way_out():
    with pytest.raises(
        ValueError, match=r"alpha=0.01 .*clients=100 .*50 attempts.*dirichlet_equal"
    ):
        dirichlet_unequal(LABELS, clients=100, alpha=0.01, seed=0, attempts=50)


def test_an_empty_client_has_size_zero_and_safe_padding():
    partition = dirichlet_unequal(np.arange(40) % 2, clients=20, alpha=0.01, seed=0, min_size=0)
    empty = np.flatnonzero(partition.sizes == 0)
    assert empty.size > 0
    assert np.all(partition.indices[empty] == 0)
    assert partition.client_indices(int(empty[0])).size == 0


@pytest.mark.parametrize("setting", [{"min_size": -1}, {"min_size": 300}, {"attempts": 0}])
def test_impossible_retry_settings_are_refused(setting):
    name, value = next(iter(setting.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        dirichlet_unequal(LABELS, clients=7, alpha=0.5, seed=0, **setting)


def test_iid_sizes_differ_by_one_and_classes_follow_the_labels():
    partition = iid(LABELS, clients=7, seed=0)
    assert partition.sizes.max() - partition.sizes.min() <= 1
    # Hypergeometric counts: mean m = size / 10, variance below m; six standard deviations.
    mean = partition.sizes[:, None] / 10
    assert np.all(np.abs(partition.counts(LABELS) - mean) < 6 * np.sqrt(mean))


@pytest.mark.parametrize("per_client", [1, 2, 5])
def test_shards_hold_few_classes(per_client):
    labels = np.repeat(np.arange(10), 100)
    partition = shards(labels, clients=20, shards_per_client=per_client, seed=0)
    # 20, 40 and 100 shards all divide the classes evenly, so a shard has one class.
    present = (partition.counts(labels) > 0).sum(axis=1)
    assert present.max() <= per_client
    assert np.all(partition.sizes == 50)


@pytest.mark.parametrize("per_client", [0, 3])
def test_impossible_shards_are_refused(per_client):
    with pytest.raises(ValueError, match=f"shards_per_client={per_client}"):
        shards(np.arange(8), clients=4, shards_per_client=per_client, seed=0)


def test_table_shows_every_count_or_the_largest_class():
    partition = PARTITIONERS["dirichlet_equal"](LABELS, 7, 0)
    lines = partition_table(partition, LABELS).splitlines()
    assert len(lines) == 1 + 7 + 1
    for line, counts in zip(lines[1:-1], partition.counts(LABELS), strict=True):
        assert [int(cell) for cell in line.split()][3:] == counts.tolist()
    many = np.arange(200) % 50
    lines = partition_table(iid(many, clients=40, seed=0), many, max_rows=4).splitlines()
    assert lines[0].split() == ["client", "samples", "classes", "largest", "share"]
    assert len(lines) == 1 + 4 + 1 + 1
    with pytest.raises(ValueError, match="3 names for 10 classes"):
        partition_table(partition, LABELS, class_names=["a", "b", "c"])


@pytest.mark.parametrize("clients", [1, 10, 100])
def test_heatmap_draws_the_counts_and_no_global_state(clients, tmp_path):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    partition = PARTITIONERS["dirichlet_equal"](LABELS, clients, 0)
    figure = partition_heatmap(partition, LABELS)
    figure.savefig(tmp_path / "partition.png", dpi=40)
    assert (tmp_path / "partition.png").stat().st_size > 1000
    assert_array_equal(figure.axes[1].images[0].get_array(), partition.counts(LABELS).T)
    assert dict(mpl.rcParams) == before
    with pytest.raises(ValueError, match="1 names for 10 classes"):
        partition_heatmap(partition, LABELS, class_names=["a"])
