"""What tables say of recorded rows: means, errors, paired differences, and Markdown."""

import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

Row = dict[str, Any]
"""One line of a ledger: JSON, made by the experiment that its kind names."""

Settings = dict[str, Any]
"""Fields of a configuration and their values."""


def check_same_data(row: Row, other: Row) -> None:
    """Exit where rows to be compared saw different data; older ones do not say what they saw."""
    mine, theirs = row.get("data"), other.get("data")
    if mine and theirs and mine != theirs:
        said = " and ".join(
            ", ".join(f"{part} {digest}" for part, digest in data.items())
            for data in (mine, theirs)
        )
        sys.exit(
            f"rows {row['id']} and {other['id']} saw different data (digests {said}); run one of "
            "them again with --data-dir at the other's copy"
        )


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error, None for a single value."""
    error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else None
    return float(np.mean(values)), None if error is None else float(error)


def t_reach(values: Sequence[float], *, level: float = 0.95) -> float | None:
    """Half of the t interval of the mean, None for a single value.

    >>> round(t_reach([1.0, 2.0, 3.0]), 2), t_reach([2.0])
    (2.48, None)
    """
    _, error = mean_and_error(values)
    if error is None:
        return None
    # Not by scipy.stats, which takes each worker half a second to load.
    return float(stdtrit(len(values) - 1, (1 + level) / 2)) * error


def verdict(gains: Sequence[float], *, level: float = 0.95) -> str:
    """What paired differences say: "gain" or "loss" if the t interval leaves 0 out, or "undecided".

    >>> verdict([1.0, 1.2, 1.1]), verdict([-1.0, -1.2, -1.1]), verdict([1.0, -1.2, 0.1])
    ('gain', 'loss', 'undecided')
    >>> verdict([2.0])
    'undecided'
    """
    mean, reach = np.mean(gains), t_reach(gains, level=level)
    if reach is None:
        return "undecided"
    return "gain" if mean > reach else "loss" if mean < -reach else "undecided"


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation over seeds, the mean alone for one.

    >>> spread([70.0, 72.0]), spread([70.0]), spread([])
    ('71.00 ± 1.41', '70.00', '')
    """
    if not values:
        return ""
    mean = f"{np.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.2f}"


def signed(values: Sequence[float]) -> str:
    """Mean gain with its sign, ± its standard error where there is one.

    >>> signed([1.0, 2.0]), signed([])
    ('+1.50 ± 0.50', '')
    """
    if not values:
        return ""
    mean, error = mean_and_error(values)
    return f"{mean:+.2f}" if error is None else f"{mean:+.2f} ± {error:.2f}"


def markdown_table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    body = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in body)
