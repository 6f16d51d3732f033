"""Settings without and with WSA that compete on one seed, and the winners that meet on the others.

A row has the line between two models under each align (none, weight), on validation and test data.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from benchmarks.merging.bench import Bench
from benchmarks.merging.pairs import barriers
from benchmarks.record.claims import Claim, verdict_of, with_interval
from benchmarks.record.figures import caption, draw_recorded, figure_legend
from benchmarks.record.statistics import Row, Settings, check_same_data, markdown_table, spread
from benchmarks.script import Summary

ALIGNS = {"none": "as they are", "weight": "matched"}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The rows of a competition, by competitor and one a seed, and the winners."""

    rows: Mapping[str, Sequence[Row | None]]
    baseline: str | None
    """None while a trial is missing: the competition is open."""
    wsa: str | None
    chosen_by: str
    """The align whose average's validation loss decides: it weighs the ends and the barrier."""

    def finals(self, name: str | None) -> Sequence[Row | None]:
        """The rows of a winner on the seeds after the first."""
        return self.rows[name][1:] if name else []


def compete(
    bench: Bench,
    sides: tuple[Sequence[Settings], Sequence[Settings]],
    row_of: Callable[[Settings, int], Row | None],
    seeds: Sequence[int],
    *,
    name_of: Callable[[Settings], str],
    chosen_by: str,
    called: str,
    on_winner: bool = False,
) -> Outcome | None:
    """Let the settings of each side compete on the first seed, and the winners on all.

    Args:
      bench: where an open competition is noted.
      sides: settings without WSA, and with it.
      row_of: makes or finds the row of settings and a seed.
      seeds: the first is that of the trials.
      name_of: what settings are called.
      chosen_by: the align by which winners are chosen.
      called: what an open competition is called.
      on_winner: whether WSA is added to the winning baseline's settings; its trials wait for them.
    """
    first, *others = seeds
    rows: dict[str, list[Row | None]] = {}
    winners: list[Settings | None] = []
    for side in sides:
        added = winners[0] if on_winner and winners else {}
        trials = [] if added is None else [added | extra for extra in side]
        found = [row_of(settings, first) for settings in trials]
        rows |= {name_of(extra): [row] for extra, row in zip(trials, found, strict=True)}
        scores = [middle(row, chosen_by) for row in found if row is not None]
        complete = bool(trials) and len(scores) == len(trials)
        winners.append(trials[scores.index(min(scores))] if complete else None)
        if (winner := winners[-1]) is not None:
            rows[name_of(winner)] += [row_of(winner, seed) for seed in others]
    if None in winners:
        bench.tally.undecided.add(called)
    if not any(row is not None for line in rows.values() for row in line):
        return None
    baseline, wsa = (None if winner is None else name_of(winner) for winner in winners)
    return Outcome(rows=rows, baseline=baseline, wsa=wsa, chosen_by=chosen_by)


def under(rows: Sequence[Row | None], align: str) -> list[Row]:
    """What was measured after an align, of the rows there are."""
    return [row[align] for row in rows if row is not None and align in row]


def middle(row: Row, align: str) -> float:
    """Validation loss of the average after an align, infinite where the models diverged."""
    losses = row.get(align, {}).get("validation", {}).get("loss", [None])
    found = losses[len(losses) // 2]
    return math.inf if found is None else found


def finals(outcome: Outcome) -> list[tuple[Row, Row]]:
    """Rows without and with WSA of each seed after the first that has both, of the same data."""
    both = zip(outcome.finals(outcome.baseline), outcome.finals(outcome.wsa), strict=False)
    pairs = [(plain, wsa) for plain, wsa in both if plain is not None and wsa is not None]
    for plain, wsa in pairs:
        check_same_data(plain, wsa)
    return pairs


def lower(outcome: Outcome, align: str) -> list[float]:
    """By how much WSA's barrier is lower, paired, on the seeds after the first."""
    return differences(
        [(under([plain], align), under([wsa], align)) for plain, wsa in finals(outcome)]
    )


def better(outcome: Outcome, align: str) -> list[float]:
    """By how many points WSA's average is more accurate, paired, on the seeds after the first."""
    pairs = [(half_way([wsa], align), half_way([plain], align)) for plain, wsa in finals(outcome)]
    return [wsa[0] - plain[0] for wsa, plain in pairs if wsa and plain]


def helped(outcome: Outcome) -> list[float]:
    """By how much matching lowers the best baseline's barrier, on the seeds after the first."""
    rows = outcome.finals(outcome.baseline)
    return differences([(under([row], "none"), under([row], "weight")) for row in rows])


def differences(pairs: Sequence[tuple[Sequence[Row], Sequence[Row]]]) -> list[float]:
    """First less second barrier, where both are there."""
    both = [(barriers(first), barriers(second)) for first, second in pairs]
    return [first[0] - second[0] for first, second in both if first and second]


def half_way(rows: Sequence[Row | None], align: str) -> list[float]:
    """Test accuracy of the average, in percent."""
    found = (one["test"]["accuracy"] for one in under(rows, align))
    return [100 * accuracy[len(accuracy) // 2] for accuracy in found]


def table(outcome: Outcome) -> str:
    """A line a competitor; winners have all seeds, and are judged by those after the first."""
    average = {"none": "average", "weight": "matched average"}[outcome.chosen_by]
    head = ["setting", "test accuracy of ends, %", f"{average}: validation loss, seed 0"]
    head += [f"barrier, {said}" for said in ALIGNS.values()]
    head += [f"accuracy half-way, %, {said}" for said in ALIGNS.values()]
    lines = []
    for name, rows in outcome.rows.items():
        won = name in (outcome.baseline, outcome.wsa)
        shown = rows[1:] if won and len(rows) > 1 else rows
        ends = [
            100 * one["test"]["accuracy"][end] for one in under(rows, "none") for end in (0, -1)
        ]
        line = [f"**{name}**" if won else name, spread(ends)]
        line.append("" if rows[0] is None else f"{middle(rows[0], outcome.chosen_by):.3f}")
        line += [spread(barriers(under(shown, align))) for align in ALIGNS]
        line += [spread(half_way(shown, align)) for align in ALIGNS]
        lines.append([*line, str(len(under(shown, "none")))])
    return markdown_table([*head, "seeds"], lines)


def summary_of(outcome: Outcome) -> Summary:
    """The winners and their paired differences, for the last line."""
    return {
        "baseline": outcome.baseline,
        "wsa": outcome.wsa,
        "matching lowers by": helped(outcome),
        "wsa's average is better by": better(outcome, outcome.chosen_by),
    } | {f"wsa lowers by, {said}": lower(outcome, align) for align, said in ALIGNS.items()}


def draw(outcomes: Mapping[str, Outcome], measures: Sequence[str] = ("loss",)) -> Figure:
    """The line of both winners on test data; a panel an outcome and measure."""
    asked = [(title, measure) for title in outcomes for measure in measures]
    figure = Figure(figsize=(4.6 * len(asked), 4.0), layout="constrained")
    panels = figure.subplots(1, len(asked), squeeze=False)[0]
    for axes, (title, measure) in zip(panels, asked, strict=True):
        outcome = outcomes[title]
        winners = {"without WSA": outcome.baseline, "with WSA": outcome.wsa}
        series = {
            f"{said}, {aligned}": [
                (one["test"]["t"], one["test"][measure])
                for one in under(outcome.rows[name] if name else [], align)
            ]
            for said, name in winners.items()
            for align, aligned in ALIGNS.items()
        }
        draw_recorded(
            axes, series, xlabel="from w1 (0) to w2 (1)", ylabel=f"test {measure}", legend=False
        )
        axes.set_title(title, fontsize=10)
    figure_legend(figure, columns=2)
    return caption(figure, "the line between two models, best settings; bands: all seeds")


def lower_claims(
    outcome: Outcome, source: str, said: Mapping[str, str], run: str, page: str
) -> list[Claim]:
    """A line for each align, with what is claimed of it: that WSA lowers the barrier."""
    lines = []
    for align, claim in said.items():
        values = lower(outcome, align)
        ours = f"lower by {with_interval(values)}" if values else ""
        lines.append(Claim(source, claim, run, ours, "", verdict_of(values), page))
    return lines
