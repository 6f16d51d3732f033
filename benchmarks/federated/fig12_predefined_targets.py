"""WSA's Figure 12: fixed Gaussian targets in place of the fused one.

    python -m benchmarks fig12 [--preset smoke|short|cpu|paper]

The paper names N(0, 0.1²) alone; the others are ours, inside the explicit step's stable range. He
initialisation stands beside them, because a fixed target acts on the initial weights' scale as
well. paper: 1,500 rounds, three seeds. short cuts the rounds to 100 and the seeds to one: 8 cells.
cpu: the standard problem. smoke: the MLP on digits.
"""

from typing import Any

from benchmarks.federated.comparison import Comparison
from benchmarks.federated.experiment import Args, Experiment, data_name
from benchmarks.federated.paired_claims import FULL, STANDARD, Size, size_claims, worst
from benchmarks.federated.paper_numbers import CLAIMS
from benchmarks.record.claims import Claim

TARGETS = ((0.0, 0.1), (0.0, 0.05), (0.0, 0.2), (0.0, 0.02), (0.1, 0.1))


def comparisons(args: Args) -> list[Comparison]:
    """The fused target and the paper's named one first."""
    baseline = args.cell()
    settings: dict[str, dict[str, Any]] = {"fused target": {"strength": args.strength}}
    for mean, std in TARGETS[: 1 if args.preset == "smoke" else None]:
        settings[f"target N({mean:g}, {std:g}²)"] = {
            "strength": args.strength,
            "target": "fixed",
            "target_mean": mean,
            "target_std": std,
        }
    if args.preset != "smoke":
        settings["no WSA, He initialisation"] = {"init": "he"}
    return [
        Comparison(
            section=data_name(args.cell()),
            label=label,
            baseline=baseline,
            treated=args.cell(**setting),
        )
        for label, setting in settings.items()
    ]


def claims() -> list[Claim]:
    """The fused target's gain less that of each fixed one, at every size on record."""
    page = "scopes.md#figure-12-fixed-targets-with-the-control-that-explains-them"
    return size_claims(
        fused_against_fixed,
        {FULL: page, STANDARD: page, Size("full size", "short", 25): page},
        source="WSA, Figure 12",
        claim="the fused target beats every fixed one",
        setting="against the best fixed one",
        choose=worst,
    )


def fused_against_fixed(args: Args) -> list[Comparison]:
    """The fused target held against each fixed one."""
    fused, *others = comparisons(args)
    return [
        Comparison(
            section=other.section,
            label=f"fused against {other.label}",
            baseline=other.treated,
            treated=fused.treated,
        )
        for other in others
        if other.treated.strength
    ]


SCRIPT = Experiment(
    claims=claims,
    name="fig12_predefined_targets",
    title="Figure 12: fixed targets",
    description=__doc__,
    comparisons=comparisons,
    seeds={"smoke": (0,), "short": (0,), "cpu": (0, 1, 2), "paper": (0, 1, 2)},
    claim=CLAIMS["figure 12"],
)
