"""What the speed scripts share around measuring: settings, the table, and the row of a ledger."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from benchmarks.record.ledger import Ledger, provenance
from benchmarks.refused import RefusedError
from benchmarks.script import Summary


@dataclass(frozen=True, kw_only=True)
class SpeedArgs:
    """What to measure and how often."""

    preset: Literal["smoke", "cpu"] = "cpu"
    """smoke: one tiny round, nothing recorded; cpu: the recorded figures."""
    rounds: int
    """Counted rounds; what comes before warms up and compiles."""
    results: Path
    """The ledger that rows are written to."""

    def __post_init__(self):
        if self.rounds < 1:
            raise RefusedError(f"--rounds {self.rounds}: give at least 1")


class Recorder:
    """The one row of a run, written again whenever more of it is known; none in a smoke test."""

    def __init__(self, args: SpeedArgs):
        self._args = args

    @functools.cached_property
    def _provenance(self) -> dict[str, Any]:
        # Not before the first row: to name its devices JAX starts, and takes memory, here too.
        return provenance()

    def write(self, figures: Summary) -> None:
        if self._args.preset == "smoke":
            return
        where = self._provenance
        identity = f"{where['time']}-jax{where['versions']['jax']}"
        Ledger(self._args.results).write({"id": identity} | figures | where)


def recorded(args: SpeedArgs, figures: Summary) -> Summary:
    """The figures, after they were recorded."""
    Recorder(args).write(figures)
    return figures


def print_sides(
    title: str,
    unit: str,
    figures: Summary,
    *,
    over: str,
    digits: int,
    columns: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """A line a side.

    Args:
      title: of the table.
      unit: the name under which the figures hold medians.
      figures: with `spread` and `ratios` beside them.
      over: heading of the ratios.
      digits: decimals of times.
      columns: more values by side, by heading.
    """
    columns = {over: figures["ratios"]} | dict(columns or {})
    table = Table(title=title)
    for heading in ("", "median", "least", "greatest", *columns):
        table.add_column(heading, justify="right" if heading else "left")
    for name, median in figures[unit].items():
        times = (median, *figures["spread"][name])
        more = (column.get(name, "") for column in columns.values())
        table.add_row(name, *(f"{time:.{digits}f}" for time in times), *map(str, more))
    Console(width=110).print(table)
