"""Claims of the paper's federated tables and figures, judged by paired gains on equal seeds.

An experiment may be on record at several sizes: in full, as the standard problem, or cut short.
Each size whose rows are there makes a line, so that full-size rows stand beside the small ones.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarks.federated.chosen_strength import chosen_strength
from benchmarks.federated.comparison import Comparison, late_gains, paired_gains, sides
from benchmarks.federated.experiment import Args, CommonArgs, recorded
from benchmarks.federated.paper_numbers import PAPER_ROUNDS
from benchmarks.record.claims import ALONE, Claim, together, verdict_at_the_end, with_interval
from benchmarks.record.ledger import RESULTS, Ledger
from benchmarks.record.statistics import mean_and_error
from benchmarks.script import Preset

SEEDS = tuple(range(5))
"""Those that any record has."""


class Size(NamedTuple):
    """At which an experiment is on record."""

    name: str
    preset: Preset
    rounds: int | None = None
    """Instead of the preset's."""


FULL = Size("full size", "paper")
STANDARD = Size("standard problem", "cpu")
Table = dict[tuple[str, float], dict[str, tuple[float, float]]]
"""As `paper_numbers` has them."""


class Line(NamedTuple):
    """A comparison and what its rows say."""

    comparison: Comparison
    gains: list[float]
    """At the last evaluation, one a seed."""
    late: list[float]
    """Means over the last three evaluations."""
    rounds: int
    """Done by all."""


def lines_of(
    comparisons: Callable[[Any], list[Comparison]], arguments: type[CommonArgs], size: Size
) -> list[Line]:
    """The comparisons of a size of which both sides are on record."""
    ledger = Ledger(RESULTS / "federated.jsonl")
    args = dataclasses.replace(arguments(), preset=size.preset, rounds=size.rounds)
    if isinstance(args, Args) and size.preset == "cpu":
        strength = chosen_strength(CommonArgs(preset="cpu"), ledger)
        args = args if strength is None else dataclasses.replace(args, strength=strength)
    rows_of = recorded(ledger, SEEDS)
    found = []
    for comparison in comparisons(args):
        theirs, ours = sides(comparison, rows_of)
        if gains := paired_gains(ours, theirs):
            done = min(row["rounds_done"] for row in ours)
            found.append(Line(comparison, gains, late_gains(ours, theirs), done))
    return found


def gain_text(lines: Sequence[Line]) -> str:
    """One line's gain with its interval; the means of several from least to greatest.

    Where only the last evaluation has a gain, the last three stand beside it.
    """
    if len(lines) == 1:
        last, late = with_interval(lines[0].gains), with_interval(lines[0].late)
        return f"{last}; last three evaluations {late}" if judged(lines[0]) == ALONE else last
    means = sorted(mean_and_error(line.gains)[0] for line in lines)
    seeds = sorted({len(line.gains) for line in lines})
    count = " to ".join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))
    return f"{means[0]:+.2f} to {means[-1]:+.2f} ({count} seed{'s' if seeds[-1] > 1 else ''} each)"


def paper_text(lines: Sequence[Line]) -> str:
    """The paper's gains, from least to greatest."""
    gains = sorted(paper for line in lines if (paper := paper_gain(line)) is not None)
    if not gains:
        return ""
    return " to ".join(f"{gain:+.2f}" for gain in dict.fromkeys((gains[0], gains[-1])))


def paper_gain(line: Line) -> float | None:
    """What the paper reports for a line."""
    numbers = line.comparison.paper
    return None if numbers is None else numbers[1] - numbers[0]


def judged(line: Line) -> str:
    """The verdict on one line: rows cut short decide nothing about the paper's 1,500 rounds."""
    rounds = (line.rounds, PAPER_ROUNDS)
    return verdict_at_the_end(line.gains, line.late, paper_gain(line), rounds=rounds)


def several(lines: list[Line]) -> list[Line]:
    """None where one line alone is there, which other tables have as well."""
    return lines if len(lines) > 1 else []


def worst(lines: list[Line]) -> list[Line]:
    """The line of the least gain, for a claim about all of them."""
    return sorted(several(lines), key=lambda line: mean_and_error(line.gains)[0])[:1]


def gain_range(table: Table) -> str:
    """The least and the greatest gain of one of the paper's tables.

    >>> gain_range({("cifar10", 0.5): {"fed_avg": (60.0, 62.5), "fed_prox": (61.0, 66.04)}})
    '2.5 to 5.0'
    """
    gains = [after - before for line in table.values() for before, after in line.values()]
    return f"{min(gains):.1f} to {max(gains):.1f}"


def size_claims(
    comparisons: Callable[[Any], list[Comparison]],
    sizes: dict[Size, str],
    *,
    source: str,
    claim: str,
    setting: str,
    arguments: type[CommonArgs] = Args,
    choose: Callable[[list[Line]], list[Line]] = lambda lines: lines,
    apart: Callable[[Line], bool] = lambda line: False,
) -> list[Claim]:
    """A line for each size that has rows, and in tables for each data set of full length.

    Args:
      comparisons: of the experiment.
      sizes: for each size, the page and heading that tell more.
      source: paper and table or figure.
      claim: what it says there.
      setting: what was run, without size, data and rounds.
      arguments: of the experiment.
      choose: which of a size's lines the claim rests on.
      apart: which lines of full length are each a claim of their own.
    """
    found = []
    for size, page in sizes.items():
        lines = choose(lines_of(comparisons, arguments, size))
        groups: dict[tuple[str, str], list[Line]] = {}
        for line in lines:
            compared, full = line.comparison, not size.rounds
            own = full and apart(line)
            # Short runs say too little for a line a data set.
            section = compared.section if own or (full and compared.paper) else ""
            label = compared.label if own else ""
            groups.setdefault((section, label), []).append(line)
        for (section, _), group in groups.items():
            rounds = min(line.rounds for line in group)
            names = dict.fromkeys(line.comparison.label for line in group)
            name = next(iter(names)) if len(names) == 1 else setting
            what = [section, _with_strength(name, group)]
            what += [f"{rounds:,} rounds", size.name]
            found.append(
                Claim(
                    source,
                    claim,
                    ", ".join(part for part in what if part),
                    gain_text(group),
                    paper_text(group),
                    together([judged(line) for line in group]),
                    page,
                )
            )
    missing = Claim(source, claim, setting, "", "", "not run yet", next(iter(sizes.values())))
    return found or [missing]


def _with_strength(name: str, lines: Sequence[Line]) -> str:
    """A name whose +WSA says its strength, where all lines share one."""
    first, *others = {line.comparison.treated.strength for line in lines}
    return name if others else re.sub(r"\+WSA(?! \d)", f"+WSA {first:g}", name)
