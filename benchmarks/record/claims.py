"""What the papers claim, and the verdict that recorded rows allow: words that follow from numbers.

A verdict rests on paired differences, one a seed, and their 95 % t interval. It is at most five
words long, and never "not confirmed" where the interval still holds what the paper reports.
"""

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.record.statistics import mean_and_error, t_reach

UNDECIDED = "undecided"
GAINS = ("confirmed", "gain, but smaller")
"""Verdicts that say that there is one."""
ALONE = "gain, last round alone"


class Claim(NamedTuple):
    """One line of the table of results."""

    source: str
    """Paper, table or figure."""
    claim: str
    """What the paper says, in a few words."""
    run: str
    """What was run."""
    ours: str
    paper: str
    """Its number, empty where it gives none."""
    verdict: str
    page: str
    """Page and heading that tell more, as in `federated.md#table-2`."""


def interval(values: Sequence[float], *, level: float = 0.95) -> tuple[float, float] | None:
    """The t interval of the mean, None for fewer than two values.

    >>> low, high = interval([1.0, 2.0, 3.0])
    >>> round(low, 2), round(high, 2)
    (-0.48, 4.48)
    """
    reach = t_reach(values, level=level) if values else None
    if reach is None:
        return None
    mean, _ = mean_and_error(values)
    return mean - reach, mean + reach


def with_interval(values: Sequence[float], *, digits: int = 2) -> str:
    """Mean with its sign, ± half of the 95 % interval, and the number of seeds.

    >>> with_interval([1.0, 2.0, 3.0]), with_interval([-0.5]), with_interval([])
    ('+2.00 ± 2.48 (3 seeds)', '-0.50 (1 seed)', '')
    """
    if not values:
        return ""
    mean = f"{mean_and_error(values)[0]:+.{digits}f}"
    found = interval(values)
    if found is None:
        return f"{mean} (1 seed)"
    return f"{mean} ± {(found[1] - found[0]) / 2:.{digits}f} ({len(values)} seeds)"


def verdict_of(
    values: Sequence[float], paper: float | None = None, *, rounds: tuple[int, int] | None = None
) -> str:
    """The verdict on a claimed gain: values above 0 are for the paper.

    Args:
      values: paired differences, one a seed.
      paper: the gain that the paper reports, None where it only says that there is one.
      rounds: how many were done, and how many the paper's number is of.

    >>> verdict_of([4.0, 4.1, 3.9], 4.0), verdict_of([1.0, 1.1, 0.9], 4.0)
    ('confirmed', 'gain, but smaller')
    >>> verdict_of([0.1, -0.1, 0.0], 4.0), verdict_of([-0.5, -0.6, -0.4], 4.0)
    ('no gain', 'the reverse')
    >>> verdict_of([6.0, -2.0, 1.0], 4.0), verdict_of([4.0], 4.0)
    ('undecided', 'undecided: one seed')
    >>> verdict_of([0.1, -0.1, 0.0]), verdict_of([], 4.0)
    ('undecided', 'not run yet')
    >>> verdict_of([0.0, 0.0])
    'no gain'
    >>> verdict_of([-0.5, -0.6, -0.4], 4.0, rounds=(25, 1500))
    'undecided: 25 of 1,500 rounds'
    """
    if not values:
        return "not run yet"
    if rounds is not None and rounds[0] < rounds[1]:
        return f"{UNDECIDED}: {rounds[0]:,} of {rounds[1]:,} rounds"
    found = interval(values)
    if found is None:
        return f"{UNDECIDED}: one seed"
    low, high = found
    if low == high == 0:
        return "no gain"
    if high < 0:
        return "the reverse"
    if low > 0:
        return "gain, but smaller" if paper is not None and high < paper else "confirmed"
    return "no gain" if paper is not None and high < paper else UNDECIDED


def verdict_at_the_end(
    last: Sequence[float],
    late: Sequence[float],
    paper: float | None = None,
    *,
    rounds: tuple[int, int] | None = None,
) -> str:
    """The verdict on the last evaluation, with a gain that those before it lack told apart.

    Args:
      last: paired differences at the last evaluation, one a seed.
      late: their means over the last three.
      paper: as in `verdict_of`.
      rounds: as in `verdict_of`.

    >>> verdict_at_the_end([0.04, 0.02, 0.03], [-0.1, 0.02, 0.03], 4.0)
    'gain, last round alone'
    >>> verdict_at_the_end([4.0, 4.1, 3.9], [4.2, 3.9, 4.0], 4.0)
    'confirmed'
    """
    found, before = (verdict_of(values, paper, rounds=rounds) for values in (last, late))
    return ALONE if found in GAINS and before not in GAINS else found


def together(verdicts: Sequence[str]) -> str:
    """One verdict for several lines: theirs where they agree.

    >>> together(["confirmed", "confirmed"]), together(["confirmed", "no gain", "no gain"])
    ('confirmed', 'mixed: no gain in 2')
    >>> together([])
    'not run yet'
    """
    found = [verdict for verdict in verdicts if verdict != "not run yet"]
    if not found:
        return "not run yet"
    if len(set(found)) == 1:
        return found[0]
    most = max(dict.fromkeys(found), key=found.count)
    return f"mixed: {most.split(':')[0]} in {found.count(most)}"
