"""Clients less alike than the paper's: Dirichlet 0.1, 0.05 and 0.01, and two shards a client.

    python -m benchmarks extreme_noniid [--preset smoke|short|cpu|paper]

If WSA helps because clients drift apart, it should help most here. paper: 1,500 rounds, three
seeds. short cuts the rounds to 100 and the seeds to one: 8 cells. cpu: the standard problem. smoke:
alpha 0.1, digits.
"""

from typing import Any

from benchmarks.federated.comparison import Comparison
from benchmarks.federated.experiment import Args, Experiment, against_wsa
from benchmarks.federated.paired_claims import FULL, STANDARD, Size, size_claims
from benchmarks.record.claims import Claim

PARTITIONS: dict[str, dict[str, Any]] = {
    "alpha 0.1": {"alpha": 0.1},
    "two shards a client": {"partition": "shards", "shards_per_client": 2},
    "alpha 0.01": {"alpha": 0.01},
    "alpha 0.05": {"alpha": 0.05},
}


def comparisons(args: Args) -> list[Comparison]:
    """What is usual in the literature before its extremes."""
    chosen = list(PARTITIONS.items())[: 1 if args.preset == "smoke" else None]
    return [against_wsa(args, section, "FedAvg +WSA", **extra) for section, extra in chosen]


def claims() -> list[Claim]:
    """At every size on record."""
    page = "federated.md#clients-less-alike-than-the-papers"
    return size_claims(
        comparisons,
        {FULL: page, STANDARD: page, Size("full size", "short", 50): page},
        source="our question",
        claim="WSA helps most where clients differ most",
        setting="FedAvg, three partitions",
    )


SCRIPT = Experiment(
    claims=claims,
    name="extreme_noniid",
    title="Clients less alike than the paper's",
    description=__doc__,
    comparisons=comparisons,
    seeds={"smoke": (0,), "short": (0,), "cpu": (0, 1, 2), "paper": (0, 1, 2)},
)
