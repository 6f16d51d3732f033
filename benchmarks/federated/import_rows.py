"""Merge rows recorded elsewhere, or under an older configuration, into the ledger.

    python -m benchmarks import-rows FILE [--results benchmarks/results/federated.jsonl]

Ids and labels are made anew from each row's configuration, whose missing fields take their
defaults. Where the ledger has a cell already, the row that got further stays. Checkpoints are not
moved: an unfinished imported cell is run again from its start.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.federated.cell import Cell
from benchmarks.record.ledger import RESULTS, Ledger, cell_id, is_finished
from benchmarks.record.statistics import Row
from benchmarks.refused import RefusedError
from benchmarks.script import Command, Summary


@dataclass(frozen=True, kw_only=True)
class Args:
    """What to merge into what."""

    file: Annotated[Path, tyro.conf.Positional]
    """JSONL file of the rows to merge."""
    results: Path = RESULTS / "federated.jsonl"


def current_row(row: Row) -> Row:
    """The row with today's fields, id and label."""
    cell = Cell.from_config(row["config"])
    return row | {"id": cell_id(cell), "label": cell.label, "config": dataclasses.asdict(cell)}


def import_rows(rows: list[Row], ledger: Ledger) -> int:
    """Write the rows that got further than the ledger's own; return how many those are."""
    written = 0
    for row in map(current_row, rows):
        found = ledger.find(row["id"])
        if found is None or _progress(row) > _progress(found):
            ledger.write(row)
            written += 1
    return written


def _check(rows: list[Row], file: Path) -> None:
    """Refuse rows of other ledgers, whose settings are no federated cell's."""
    names = {field.name for field in dataclasses.fields(Cell)}
    for line, row in enumerate(rows, 1):
        if foreign := sorted(set(row.get("config", ())) - names):
            raise RefusedError(
                f"{file}, row {line}: {', '.join(foreign)} is no setting of a federated cell; "
                "give the rows of a federated.jsonl"
            )


def _progress(row: Row) -> tuple[bool, int]:
    return is_finished(row), row["rounds_done"]


def run(args: Args) -> Summary:
    if not args.file.is_file():
        raise RefusedError(f"{args.file} is no file; give the JSONL of the rows to merge")
    rows = Ledger(args.file).rows()
    _check(rows, args.file)
    return {"read": len(rows), "written": import_rows(rows, Ledger(args.results))}


SCRIPT = Command(name="import-rows", description=__doc__, arguments=Args, function=run)
