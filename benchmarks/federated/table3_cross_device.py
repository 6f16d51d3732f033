"""WSA's Table 3: four algorithms with and without WSA, 100 clients, 10 drawn a round.

    python -m benchmarks table3 [--preset smoke|short|cpu|paper]

paper: CIFAR-10, CIFAR-100 and CINIC-10, alpha 0.5 and 1, 1,500 rounds, three seeds. short cuts the
rounds to 100, the data to CIFAR-10 and the seeds to one: 16 cells. cpu: the standard problem.
smoke: FedAvg on digits, two of eight clients a round.
"""

from benchmarks.federated.comparison import Comparison
from benchmarks.federated.experiment import Args, Experiment, algorithm_grid
from benchmarks.federated.figures import gain_dots
from benchmarks.federated.paired_claims import FULL, STANDARD, Size, gain_range, size_claims
from benchmarks.federated.paper_numbers import TABLE3
from benchmarks.federated.table2_cross_silo import ALGORITHMS, SETTINGS
from benchmarks.record.claims import Claim


def comparisons(args: Args) -> list[Comparison]:
    """The table's lines, in the order of Table 2."""
    smoke = args.preset == "smoke"
    return algorithm_grid(
        args,
        TABLE3,
        SETTINGS[args.preset],
        ALGORITHMS[:1] if smoke else ALGORITHMS,
        clients=8 if smoke else 100,
        participants=2 if smoke else 10,
    )


def claims() -> list[Claim]:
    """At every size on record."""
    page = "federated.md#"
    return size_claims(
        comparisons,
        {
            FULL: page + "table-3-100-clients-10-drawn-a-round",
            STANDARD: page + "the-standard-problem-half-size-images-at-full-length",
            Size("full size", "short", 20): page + "table-3-100-clients-10-drawn-a-round",
        },
        source="WSA, Table 3",
        claim=f"WSA adds {gain_range(TABLE3)} points, 100 clients",
        setting="all algorithms",
    )


SCRIPT = Experiment(
    claims=claims,
    name="table3_cross_device",
    title="Table 3: 100 clients, 10 drawn a round",
    description=__doc__,
    comparisons=comparisons,
    seeds={"smoke": (0,), "short": (0,), "cpu": (0, 1, 2), "paper": (0, 1, 2)},
    figure=gain_dots,
)
