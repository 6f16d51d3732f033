"""WSA's Figure 10: WSA on in some rounds only, from the start, late, or in between.

    python -m benchmarks fig10 [--preset smoke|short|cpu|paper]

Windows end or begin after 1/12 (the paper's 125 of 1,500 rounds), 1/6 and 1/3 of the rounds. paper:
1,500 rounds, three seeds. short cuts the rounds to 100 and the seeds to one: 10 cells. cpu: the
standard problem. smoke: the MLP on digits.
"""

import itertools

from benchmarks.federated.comparison import Comparison
from benchmarks.federated.experiment import Args, Experiment
from benchmarks.federated.paired_claims import FULL, STANDARD, Size, several, size_claims
from benchmarks.federated.paper_numbers import CLAIMS
from benchmarks.record.claims import Claim


def windows(rounds: int) -> dict[str, list[tuple[int, int]]]:
    """The figure's three panels; an end of -1 is the last round.

    >>> windows(1500)["WSA from the start"]
    [(0, -1), (0, 125), (0, 250), (0, 500)]
    """
    marks = sorted({max(1, rounds // part) for part in (12, 6, 3)})
    return {
        "WSA from the start": [(0, -1), *((0, mark) for mark in marks)],
        "WSA from a round on": [(mark, -1) for mark in marks],
        "WSA in between": list(itertools.pairwise(marks)),
    }


def comparisons(args: Args) -> list[Comparison]:
    """The whole run and the first window before the others."""
    baseline = args.cell()
    return [
        Comparison(
            section=section,
            label=f"rounds [{first}, {'T' if last < 0 else last})",
            baseline=baseline,
            treated=args.cell(strength=args.strength, window=(first, last)),
        )
        for section, pairs in windows(baseline.rounds).items()
        for first, last in pairs
    ]


def claims() -> list[Claim]:
    """At every size on record."""
    page = "scopes.md#figure-10-wsa-in-some-rounds-only"
    return size_claims(
        comparisons,
        {FULL: page, STANDARD: page, Size("full size", "short", 25): page},
        source="WSA, Figure 10",
        claim="WSA gains in windows, most in long and early ones",
        setting="FedAvg, nine windows",
        choose=several,
    )


SCRIPT = Experiment(
    claims=claims,
    name="fig10_windows",
    title="Figure 10: WSA in some rounds only",
    description=__doc__,
    comparisons=comparisons,
    seeds={"smoke": (0,), "short": (0,), "cpu": (0, 1, 2), "paper": (0, 1, 2)},
    claim=CLAIMS["figure 10"],
)
