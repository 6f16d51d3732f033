"""WSA's Table 3: four algorithms with and without WSA, 100 clients, 10 drawn a round.

    python -m benchmarks table3 [--preset smoke|short|cpu|paper]

paper: CIFAR-10, CIFAR-100 and CINIC-10, alpha 0.5 and 1, 1,500 rounds, three seeds. short cuts the
rounds to 100, the data to CIFAR-10 and the seeds to one: 16 cells. cpu: the standard problem.
smoke: FedAvg on digits, two of eight clients a round.
"""

from benchmarks.federated.comparison import Comparison
from benchmarks.federated.experiment import Args, Experiment, algorithm_grid
from benchmarks.federated.figures import gain_panels
from benchmarks.federated.paper_numbers import TABLE3
from benchmarks.federated.table2_cross_silo import ALGORITHMS, SETTINGS


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


SCRIPT = Experiment(
    name="table3_cross_device",
    title="Table 3: 100 clients, 10 drawn a round",
    description=__doc__,
    comparisons=comparisons,
    seeds={"smoke": (0,), "short": (0,), "cpu": (0, 1, 2), "paper": (0, 1, 2)},
    figure=gain_panels,
)
