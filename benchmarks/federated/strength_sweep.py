"""The strength of WSA, which the paper leaves open: 0, 1, 5, 10 and 50.

    python -m benchmarks strength_sweep [--preset smoke|short|cpu|paper]

paper: 1,500 rounds, three seeds. short cuts the rounds to 100 and the seeds to two: 10 cells. cpu:
the standard problem. smoke: strengths 0, 1 and 10, the MLP on digits. Accuracy is on the test set:
a strength is not to be chosen here (see best_against_best).
"""

from benchmarks.federated.comparison import Comparison
from benchmarks.federated.experiment import CommonArgs, Experiment, data_name
from benchmarks.federated.paired_claims import FULL, STANDARD, Size, several, size_claims
from benchmarks.record.claims import Claim

STRENGTHS = (10.0, 1.0, 50.0, 5.0)


def comparisons(args: CommonArgs) -> list[Comparison]:
    """The tables' own strength first."""
    strengths = (1.0, 10.0) if args.preset == "smoke" else STRENGTHS
    return [
        Comparison(
            section=data_name(args.cell()),
            label=f"+WSA {strength:g}",
            baseline=args.cell(),
            treated=args.cell(strength=strength),
        )
        for strength in strengths
    ]


def claims() -> list[Claim]:
    """At every size on record."""
    page = "scopes.md#the-strength-of-wsa"
    return size_claims(
        comparisons,
        {FULL: page, STANDARD: page, Size("full size", "short", 25): page},
        source="our question",
        claim="some strength of WSA gains",
        setting="FedAvg, every strength",
        arguments=CommonArgs,
        choose=several,
        apart=lambda line: True,
    )


SCRIPT = Experiment(
    claims=claims,
    name="strength_sweep",
    title="Strength of WSA",
    description=__doc__,
    comparisons=comparisons,
    arguments=CommonArgs,
    seeds={"smoke": (0,), "short": (0, 1), "cpu": (0, 1, 2), "paper": (0, 1, 2)},
)
