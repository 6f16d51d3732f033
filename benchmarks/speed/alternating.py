"""What the speed scripts share in measuring: sides that take turns, and ratios of their pairs."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from benchmarks.script import Summary

T = TypeVar("T")
Times = Mapping[str, Sequence[float]]


class PeerError(Exception):
    """A peer cannot take part, or no longer can; the message is the reason, in one line."""


def leave_out(name: str, reason: str, left_out: dict[str, str]) -> None:
    left_out[name] = reason
    print(f"{name} is left out: {reason}", flush=True)


@contextlib.contextmanager
def leaving_out(name: str, left_out: dict[str, str]) -> Iterator[None]:
    """Go on without a peer that fails; where a side of our own fails there is nothing to compare.

    Sides of our own are named "ours", or "ours_" and their variant.
    """
    try:
        yield
    except PeerError as error:
        if name.startswith("ours"):
            raise RuntimeError(f"{name} failed: {error}") from error
        leave_out(name, str(error), left_out)


def take_turns(
    sides: Mapping[str, Callable[[], T]],
    rounds: int,
    *,
    warm_ups: int = 1,
    at_most: Mapping[str, int] | None = None,
    left_out: dict[str, str] | None = None,
) -> dict[str, list[T]]:
    """What every side returned in its counted turns.

    Args:
      sides: run one turn each.
      rounds: counted turns of a side.
      warm_ups: turns before the counted ones.
      at_most: counted turns of those sides that are too slow for all of them.
      left_out: reasons by name; a peer that fails is entered, and then has no turns at all.
    """
    at_most, left_out = at_most or {}, {} if left_out is None else left_out
    found: dict[str, list[T]] = {name: [] for name in sides}
    for index in range(warm_ups + rounds):
        present = [
            name
            for name in sides
            if name not in left_out and index < warm_ups + at_most.get(name, rounds)
        ]
        # The side that goes first changes, so that a drifting clock favours none.
        first = index % len(present)
        for name in present[first:] + present[:first]:
            with leaving_out(name, left_out):
                result = sides[name]()
                if index >= warm_ups:
                    found[name].append(result)
    return {name: results for name, results in found.items() if name not in left_out}


def timed(run: Callable[[], T]) -> tuple[T, float, float]:
    """What a function returns, its seconds, and its processor seconds."""
    begin, processor = time.perf_counter(), time.process_time()
    result = run()
    return result, time.perf_counter() - begin, time.process_time() - processor


def paired(times: Times, numerator: str, denominator: str) -> float:
    """The median of the ratios, round by round."""
    # A side with fewer turns has had the first ones.
    pairs = zip(times[numerator], times[denominator], strict=False)
    return round(statistics.median(a / b for a, b in pairs), 3)


def ratios(times: Times) -> dict[str, float]:
    """Ours over each peer, and variants of ours over ours."""
    found = {name: paired(times, "ours", name) for name in times if not name.startswith("ours")}
    for key, name in (("wsa_over_plain", "ours_wsa"), ("vmap_over_map", "ours_vmap")):
        if name in times:
            found[key] = paired(times, name, "ours")
    return found


def spread(values: Sequence[float], digits: int) -> list[float]:
    """The least and the greatest."""
    return [round(min(values), digits), round(max(values), digits)]


def summary(unit: str, times: Times, digits: int) -> Summary:
    """Medians, under the name of their unit, and spreads."""
    return {
        unit: {name: round(statistics.median(v), digits) for name, v in times.items()},
        "spread": {name: spread(values, digits) for name, values in times.items()},
    }
