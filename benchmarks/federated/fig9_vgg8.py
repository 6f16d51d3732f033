"""WSA's Figure 9: VGG8 on CIFAR-10, FedAvg with and without WSA.

    python -m benchmarks fig9 [--preset smoke|short|cpu|paper]

The paper gives neither VGG8's layers nor its initialisation, so both initialisations run. paper:
full width, 1,500 rounds, three seeds. short cuts the width to a quarter, the rounds to 100 and the
seeds to two: 8 cells, each about as long as the CNN's. cpu: as paper, at a quarter of the width.
smoke: the MLP on digits.
"""

from typing import Any

from benchmarks.federated.comparison import Comparison
from benchmarks.federated.experiment import Args, Experiment, against_wsa
from benchmarks.federated.paired_claims import FULL, STANDARD, Size, size_claims
from benchmarks.federated.paper_numbers import CLAIMS
from benchmarks.record.claims import Claim

NETWORKS: dict[str, dict[str, Any]] = {
    "smoke": {},
    "short": {"model": "vgg8", "width": 0.25},
    # Its five max-pools need images of 32x32.
    "cpu": {"model": "vgg8", "width": 0.25, "side": 0},
    "paper": {"model": "vgg8"},
}
NAMES = {"he": "He initialisation", "reference": "reference initialisation"}


def comparisons(args: Args) -> list[Comparison]:
    """He first: PyTorch's small initial weights keep eight layers on a plateau for long."""
    inits = ("reference",) if args.preset == "smoke" else ("he", "reference")
    return [
        against_wsa(args, NAMES[init], "FedAvg +WSA", init=init, **NETWORKS[args.preset])
        for init in inits
    ]


def claims() -> list[Claim]:
    """At every size on record."""
    page = "federated.md#figure-9-vgg8"
    return size_claims(
        comparisons,
        {FULL: page, STANDARD: page, Size("a quarter of the width", "short", 25): page},
        source="WSA, Figure 9",
        claim="WSA raises VGG8's accuracy",
        setting="FedAvg +WSA",
    )


SCRIPT = Experiment(
    claims=claims,
    name="fig9_vgg8",
    title="Figure 9: VGG8",
    description=__doc__,
    comparisons=comparisons,
    seeds={"smoke": (0,), "short": (0, 1), "cpu": (0, 1, 2), "paper": (0, 1, 2)},
    claim=CLAIMS["figure 9"],
)
