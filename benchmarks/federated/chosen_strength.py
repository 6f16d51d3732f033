"""WSA's strength on the standard problem: chosen once, on a validation split, for FedAvg."""

from benchmarks.federated.best_against_best import winner
from benchmarks.federated.cell import Cell
from benchmarks.federated.experiment import CommonArgs, recorded
from benchmarks.record.ledger import Ledger

STRENGTHS = (1.0, 5.0, 10.0, 50.0)


def trials(args: CommonArgs) -> list[Cell]:
    """The strengths on validation."""
    strengths = STRENGTHS[:2] if args.preset == "smoke" else STRENGTHS
    return [args.cell(strength=strength, evaluate_on="validation") for strength in strengths]


def control(args: CommonArgs) -> Cell:
    """Plain FedAvg on the same split, which is not chosen from: what the strengths are held to."""
    return args.cell(evaluate_on="validation")


def chosen_strength(args: CommonArgs, ledger: Ledger) -> float | None:
    """The strength of the highest validation accuracy, None while trials are missing."""
    best = winner(trials(args), recorded(ledger, (0,)))
    return None if best is None else best.strength
