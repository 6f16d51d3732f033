"""FedAvg with and without WSA on the way to the last round: accuracy and gain at some rounds.

    python -m benchmarks on_the_way [--preset cpu|paper]

The pair is Table 2's first line; a run that is under way shows how far it got.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.federated.comparison import paired_curves
from benchmarks.federated.experiment import Args as CommonArgs
from benchmarks.federated.experiment import ledger_of, recorded
from benchmarks.federated.paired_claims import SEEDS
from benchmarks.record.statistics import Row, markdown_table
from benchmarks.refused import RefusedError
from benchmarks.script import Findings, Reported, Summary

MARKS = (100, 250, 500, 750, 1_000, 1_250, 1_500)


@dataclass(frozen=True, kw_only=True)
class Args(CommonArgs):
    """Which pair."""


def accuracy_at(row: Row, rounds: int) -> str:
    """In percent, empty where the run was not evaluated then."""
    return next((f"{100 * point[1]:.2f}" for point in row["curve"] if point[0] == rounds), "")


def table(theirs: Sequence[Row], ours: Sequence[Row], strength: float) -> str:
    """Three lines a seed: without, with, and the gain; the newest round of a run under way too."""
    last = [row["rounds_done"] for row in (*theirs, *ours) if row["rounds_done"] < MARKS[-1]]
    marks = sorted({*MARKS, *last})
    body = []
    gains = paired_curves(ours, theirs)
    with_wsa = {row["config"]["seed"]: row for row in ours}
    for row in theirs:
        seed = row["config"]["seed"]
        body.append([f"FedAvg, seed {seed}", *(accuracy_at(row, mark) for mark in marks)])
        if seed in with_wsa:
            other = [accuracy_at(with_wsa[seed], mark) for mark in marks]
            points = dict(zip(*gains[seed], strict=True))
            gained = [f"{points[mark]:+.2f}" if mark in points else "" for mark in marks]
            body += [[f"FedAvg +WSA {strength:g}, seed {seed}", *other]]
            body += [[f"gain, seed {seed}", *gained]]
    return markdown_table(["rounds", *(f"{mark:,}" for mark in marks)], body)


def found(args: Args) -> Findings:
    """The pair's table."""
    rows_of = recorded(ledger_of(args), args.seed or SEEDS)
    theirs, ours = (rows_of(args.cell(strength=strength)) for strength in (0.0, args.strength))
    if not theirs:
        raise RefusedError(f"{ledger_of(args).path} holds no FedAvg of preset {args.preset}")
    return Findings(
        title="Accuracy on the way, %",
        text=table(theirs, ours, args.strength),
        summary={"preset": args.preset, "seeds": len(theirs)},
    )


@dataclass(frozen=True, kw_only=True)
class OnTheWay(Reported):
    """A report of rows that other scripts make."""

    def run(self, args: Args) -> Summary:
        return found(args).show(ledger_of(args).path.parent)

    def findings(self, args: Args) -> Findings:
        return found(args)


SCRIPT = OnTheWay(name="on_the_way", description=__doc__, arguments=Args)
