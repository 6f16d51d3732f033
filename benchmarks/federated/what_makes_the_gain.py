"""What could make the paper's gain: settings that its text leaves open, with and without WSA.

    python -m benchmarks what_makes_the_gain [--preset smoke|cpu|paper]

FedAvg on CIFAR-10, alpha 0.5. First what changes without WSA (initial weights, learning rate, the
habit of the paper's group in other code), over plain FedAvg: a control that gains as much as the
paper's pair could stand behind it. Then WSA under each of these and with other targets, layers,
forms, scales and with its divergence the other way round, over the same setting without WSA. cpu:
the standard problem, three seeds. smoke: one pair.
"""

from typing import Any

from benchmarks.federated.comparison import Comparison
from benchmarks.federated.experiment import Args, Experiment
from benchmarks.federated.figures import gain_dots
from benchmarks.federated.paired_claims import FULL, STANDARD, size_claims
from benchmarks.federated.paper_numbers import TABLE2
from benchmarks.record.claims import Claim

# The habit of the paper's group in other published code.
_OWN_HABIT: dict[str, Any] = {
    "learning_rate": 0.03,
    "momentum": 0.9,
    "weight_decay": 1e-5,
    "clip_norm": 100.0,
    "augmentation": "example",
}

# What could make the paper's gain, for FedAvg; those with WSA get the chosen strength.
PLAIN: tuple[dict[str, Any], ...] = (
    {"init": "he"},
    {"init": "torchvision"},
    {"learning_rate": 0.1},
    _OWN_HABIT,
)
# Where the larger strengths would be unstable as explicit steps, in the proximal form.
WITH_WSA: tuple[dict[str, Any], ...] = (
    {"init": "he"},
    {"init": "torchvision", "form": "proximal"},
    {"target": "he"},
    {"target": "he_fused"},
    {"fusion": "sum"},
    {"fusion": "pooled"},
    {"direction": "target||weights"},
    {"learning_rate": 0.1, "form": "proximal"},
    _OWN_HABIT,
)
# Strengths of their own: small layers make strong explicit steps unstable.
OWN_STRENGTH: tuple[dict[str, Any], ...] = (
    {"strength": 1.0, "layers": "all"},
    {"strength": 1.0, "scale": "size", "form": "proximal"},
)
# What of a setting is WSA's own, and of no matter without it.
_OF_WSA = ("strength", "form", "scale", "layers", "target", "fusion", "direction")


def comparisons(args: Args) -> list[Comparison]:
    """Controls over FedAvg, then WSA over the same setting without it."""
    if args.preset == "smoke":
        return [_against(args, "WSA", {"strength": args.strength})]
    controls = [
        Comparison(
            section="without WSA, over FedAvg",
            label=_name(args, setting),
            baseline=args.cell(),
            treated=args.cell(**setting),
        )
        for setting in PLAIN
    ]
    with_wsa = [{"strength": args.strength} | setting for setting in (*WITH_WSA, *OWN_STRENGTH)]
    return controls + [
        _against(args, "with WSA, over the same setting without", setting) for setting in with_wsa
    ]


def _against(args: Args, section: str, setting: dict[str, Any]) -> Comparison:
    """WSA in a setting over the setting alone."""
    without = {name: value for name, value in setting.items() if name not in _OF_WSA}
    return Comparison(
        section=section,
        label=_name(args, setting),
        baseline=args.cell(**without),
        treated=args.cell(**setting),
        paper=TABLE2["cifar10", 0.5]["fed_avg"],
    )


def _name(args: Args, setting: dict[str, Any]) -> str:
    """The label of a setting without what all cells of the preset share."""
    shared = args.cell().label.removeprefix("FedAvg")
    return args.cell(**setting).label.removesuffix(shared)


def claims() -> list[Claim]:
    """WSA's own gains, at every size on record; the controls are no claim.

    Settings with several seeds stand each for itself, those with one together.
    """
    page = "federated.md#what-would-make-the-gain"
    return size_claims(
        comparisons,
        {FULL: page, STANDARD: page},
        source="our question",
        claim="a setting that the paper leaves open makes its gain",
        setting="FedAvg, one setting changed",
        choose=lambda lines: [line for line in lines if line.comparison.treated.strength],
        apart=lambda line: len(line.gains) > 1,
    )


SCRIPT = Experiment(
    claims=claims,
    name="what_makes_the_gain",
    title="What would make the gain?",
    description=__doc__,
    comparisons=comparisons,
    seeds={"smoke": (0,), "short": (0,), "cpu": (0, 1, 2), "paper": (0, 1, 2)},
    figure=gain_dots,
)
