"""FedAvg with and without WSA on the way to the last round: accuracy and gain at some rounds.

    python -m benchmarks on_the_way [--preset cpu|paper]

The pair is Table 2's first line; beside it stand FedAvg from He's initialisation, without WSA, and
with WSA towards He's scope, as far as they were run. A run that is under way shows how far it got.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.federated.comparison import paired_curves
from benchmarks.federated.experiment import Args as CommonArgs
from benchmarks.federated.experiment import ledger_of, recorded
from benchmarks.federated.paired_claims import SEEDS
from benchmarks.record.statistics import Row, markdown_table
from benchmarks.refused import RefusedError
from benchmarks.script import Findings, Report

MARKS = (100, 250, 500, 750, 1_000, 1_250, 1_500)


@dataclass(frozen=True, kw_only=True)
class Args(CommonArgs):
    """Which pair."""


def accuracy_at(row: Row, rounds: int) -> str:
    """In percent, empty where the run was not evaluated then."""
    return next((f"{100 * point[1]:.2f}" for point in row["curve"] if point[0] == rounds), "")


def table(theirs: Sequence[Row], others: Mapping[str, Sequence[Row]]) -> str:
    """For each seed FedAvg, then each other setting and its gain, at some rounds.

    The newest round of a run under way is among them.
    """
    rows = [*theirs, *(row for group in others.values() for row in group)]
    last = [row["rounds_done"] for row in rows if row["rounds_done"] < MARKS[-1]]
    marks = sorted({*MARKS, *last})
    body = []
    for row in theirs:
        seed = row["config"]["seed"]
        body.append([f"FedAvg, seed {seed}", *(accuracy_at(row, mark) for mark in marks)])
        for name, group in others.items():
            gains = paired_curves(group, [row])
            for other in (one for one in group if one["config"]["seed"] == seed):
                points = dict(zip(*gains.get(seed, ((), ())), strict=True))
                gained = [f"{points[mark]:+.2f}" if mark in points else "" for mark in marks]
                body += [[f"{name}, seed {seed}", *(accuracy_at(other, mark) for mark in marks)]]
                body += [[f"gain of it, seed {seed}", *gained]]
    return markdown_table(["rounds", *(f"{mark:,}" for mark in marks)], body)


def found(args: Args) -> Findings:
    """The table."""
    rows_of = recorded(ledger_of(args), args.seed or SEEDS)
    theirs = rows_of(args.cell())
    others = {
        f"FedAvg +WSA {args.strength:g}": rows_of(args.cell(strength=args.strength)),
        "FedAvg, He init": rows_of(args.cell(init="he")),
        f"FedAvg +WSA {args.strength:g}, He's scope": rows_of(
            args.cell(strength=args.strength, target="he")
        ),
    }
    if not theirs:
        raise RefusedError(f"{ledger_of(args).path} holds no FedAvg of preset {args.preset}")
    return Findings(
        title="Accuracy on the way, %",
        text=table(theirs, others),
        summary={"preset": args.preset, "seeds": len(theirs)},
    )


SCRIPT = Report(
    name="on_the_way",
    description=__doc__,
    arguments=Args,
    found=found,
    output=lambda args: ledger_of(args).path.parent,
)
