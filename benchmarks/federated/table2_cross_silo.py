"""WSA's Table 2: four algorithms with and without WSA, 10 clients, all in every round.

    python -m benchmarks table2 [--preset smoke|short|cpu|paper]

paper: CIFAR-10, CIFAR-100 and CINIC-10, alpha 0.5 and 1, 1,500 rounds, three seeds. short cuts the
rounds to 100, the data to CIFAR-10 and the seeds to one: 16 cells. cpu: the standard problem.
smoke: FedAvg on digits.
"""

from benchmarks.federated.comparison import Comparison
from benchmarks.federated.experiment import Args, Experiment, algorithm_grid
from benchmarks.federated.figures import gain_dots
from benchmarks.federated.paired_claims import FULL, STANDARD, Size, gain_range, size_claims
from benchmarks.federated.paper_numbers import TABLE2
from benchmarks.record.claims import Claim

ALGORITHMS = ("fed_avg", "fed_prox", "scaffold", "fed_exp")
SETTINGS = {
    "smoke": (("digits", 0.5),),
    "short": (("cifar10", 0.5), ("cifar10", 1.0)),
    "cpu": (("cifar10", 0.5), ("cifar100", 0.5), ("cifar10", 1.0), ("cifar100", 1.0)),
    "paper": tuple(TABLE2),
}


def comparisons(args: Args) -> list[Comparison]:
    """The table's lines; CIFAR-10 at alpha 0.5 first, where the paper's other figures are."""
    algorithms = ALGORITHMS[:1] if args.preset == "smoke" else ALGORITHMS
    return algorithm_grid(args, TABLE2, SETTINGS[args.preset], algorithms)


def claims() -> list[Claim]:
    """At every size on record."""
    page = "federated.md#"
    return size_claims(
        comparisons,
        {
            FULL: page + "full-length-fedavg-with-and-without-wsa",
            STANDARD: page + "the-standard-problem-half-size-images-at-full-length",
            Size("full size", "short", 25): page + "table-2-four-algorithms-10-clients",
        },
        source="WSA, Table 2",
        claim=f"WSA adds {gain_range(TABLE2)} points, 10 clients",
        setting="all algorithms",
    )


SCRIPT = Experiment(
    claims=claims,
    name="table2_cross_silo",
    title="Table 2: 10 clients, all in every round",
    description=__doc__,
    comparisons=comparisons,
    seeds={"smoke": (0,), "short": (0,), "cpu": (0, 1, 2), "paper": (0, 1, 2)},
    figure=gain_dots,
)
