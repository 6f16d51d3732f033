"""Where could the paper's gain come from? Each hypothesis, how far it was run, and its number.

    python -m benchmarks gain_hypotheses

The paper reports +3.97 points for FedAvg +WSA on CIFAR-10 at alpha 0.5. Hypotheses are settings
that its text leaves open: without WSA, over plain FedAvg; with WSA, over the same setting without;
and clients that differ. Each is shown at full size and as the standard problem, as far as rows are
there, also of runs under way.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.federated import heterogeneous_clients, what_makes_the_gain
from benchmarks.federated.chosen_strength import chosen_strength
from benchmarks.federated.comparison import (
    Comparison,
    RowsOf,
    accuracies,
    late_gains,
    paired_gains,
    sides,
)
from benchmarks.federated.experiment import Args as TableArgs
from benchmarks.federated.experiment import (
    CommonArgs,
    against_wsa,
    cells_state,
    ordered_cells,
    recorded,
)
from benchmarks.federated.paired_claims import FULL, SEEDS, STANDARD, Size
from benchmarks.federated.paper_numbers import PAPER_ROUNDS, TABLE2
from benchmarks.record.claims import Claim, verdict_at_the_end, with_interval
from benchmarks.record.ledger import RESULTS, Ledger
from benchmarks.record.statistics import Row, markdown_table
from benchmarks.script import Findings, Preset, Report, State

BEFORE, AFTER = TABLE2["cifar10", 0.5]["fed_avg"]
PAGE = "federated.md#where-could-4-points-come-from"
NOT_RUN = "not run yet"


@dataclass(frozen=True, kw_only=True)
class Args:
    """Which rows to look at."""

    results: Path = RESULTS / "federated.jsonl"


def hypotheses(args: TableArgs) -> list[Comparison]:
    """The pair itself, what could stand behind its gain, and clients that differ.

    Labels leave out the strength that all lines of a size share: sizes may differ in it.
    """
    pair = against_wsa(args, "the paper's line", "FedAvg +WSA")
    asked = [
        dataclasses.replace(line, label=line.label.replace(f" +WSA {args.strength:g}", " +WSA"))
        for line in what_makes_the_gain.comparisons(args)
    ]
    differing = [
        dataclasses.replace(
            line, section="WSA where clients differ", label=f"{line.label}, {line.section}"
        )
        for line in heterogeneous_clients.comparisons(args)
    ]
    return [pair, *asked, *differing]


def arguments(size: Size, ledger: Ledger) -> TableArgs:
    """Of a size; the standard problem's strength is what validation chose, once it did."""
    args = TableArgs(preset=size.preset)
    chosen = chosen_strength(CommonArgs(preset="cpu"), ledger) if size == STANDARD else None
    return args if chosen is None else dataclasses.replace(args, strength=chosen)


def state_of(line: Comparison, rows_of: RowsOf) -> tuple[str, str]:
    """A hypothesis at one size: its number and how far it was run, and the verdict that allows."""
    theirs, ours = sides(line, rows_of)
    gains = paired_gains(ours, theirs)
    if not gains:
        return NOT_RUN, NOT_RUN
    done = min(row["rounds_done"] for row in ours)
    late, rounds = late_gains(ours, theirs), (done, PAPER_ROUNDS)
    verdict = verdict_at_the_end(gains, late, AFTER - BEFORE, rounds=rounds)
    of = "" if done == PAPER_ROUNDS else f" of {PAPER_ROUNDS:,}"
    return f"{with_interval(gains)}, {done:,}{of} rounds", verdict


def table(ledger: Ledger) -> str:
    """One line a hypothesis: its number at each size, and the verdicts where there are any.

    What was run stands first.
    """
    rows_of = recorded(ledger, SEEDS)
    sizes = (FULL, STANDARD)
    body = list[list[str]]()
    of_sizes = [arguments(size, ledger) for size in sizes]
    for lines in zip(*map(hypotheses, of_sizes), strict=True):
        states = [state_of(line, rows_of) for line in lines]
        verdicts = [
            f"{size.name}: {verdict}"
            for size, (_, verdict) in zip(sizes, states, strict=True)
            if verdict != NOT_RUN
        ]
        said = "; ".join(verdicts) or NOT_RUN
        body.append([lines[0].section, lines[0].label, *(number for number, _ in states), said])
    head = ["compared", "hypothesis", *(f"{size.name}: gain" for size in sizes), "verdict"]
    strengths = " and ".join(
        f"{args.strength:g} ({size.name})" for args, size in zip(of_sizes, sizes, strict=True)
    )
    told = f"+WSA has strength {strengths} where no other is said."
    return f"{markdown_table(head, sorted(body, key=lambda line: line[-1] == NOT_RUN))}\n\n{told}"


def he_claim(size: Size, ledger: Ledger) -> Claim | None:
    """He's initialisation alone against plain FedAvg, with both accuracies; None without rows."""
    rows_of = recorded(ledger, SEEDS)
    args = arguments(size, ledger)
    line = Comparison(section="", label="", baseline=args.cell(), treated=args.cell(init="he"))
    theirs, ours = sides(line, rows_of)
    number, verdict = state_of(line, rows_of)
    if verdict == NOT_RUN:
        return None
    seeds = {row["config"]["seed"] for row in theirs}
    alone = [row for row in rows_of(line.baseline) if row["config"]["seed"] not in seeds]
    others = f" (plain {_seeds(alone)}: {_percent(alone)} %)" if alone else ""
    return Claim(
        "our question",
        "He's initialisation alone, without WSA, gains what the paper's WSA does",
        f"FedAvg, {_percent(ours)} against {_percent(theirs)} %, {_seeds(ours)}{others}, "
        f"{size.name}",
        number,
        f"{AFTER - BEFORE:+.2f}",
        verdict,
        PAGE,
    )


def _percent(rows: Sequence[Row]) -> str:
    return ", ".join(f"{value:.2f}" for value in accuracies(rows))


def _seeds(rows: Sequence[Row]) -> str:
    seeds = [str(row["config"]["seed"]) for row in rows]
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}"


def claims() -> list[Claim]:
    """The control that is worth as much as the paper's gain, at every size on record."""
    ledger = Ledger(RESULTS / "federated.jsonl")
    return [claim for size in (FULL, STANDARD) if (claim := he_claim(size, ledger))]


def found(args: Args) -> Findings:
    """The table."""
    return Findings(
        title="Where could the paper's gain come from?",
        text=table(Ledger(args.results)),
        summary={"paper": round(AFTER - BEFORE, 2)},
    )


def count(preset: Preset) -> State | None:
    """Cells of the sizes that it shows, the first seed of each."""
    sizes = [size for size in (FULL, STANDARD) if size.preset == preset]
    if not sizes:
        return None
    lines = hypotheses(arguments(sizes[0], Ledger(RESULTS / "federated.jsonl")))
    return cells_state(ordered_cells(lines, (0,)))


SCRIPT = Report(
    name="gain_hypotheses",
    description=__doc__,
    arguments=Args,
    claims=claims,
    found=found,
    output=lambda args: args.results.parent,
    count=count,
)
