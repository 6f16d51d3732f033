"""Merge rows recorded elsewhere, or under an older configuration, into the ledger.

    python -m benchmarks.import_rows FILE [--results benchmarks/results/federated.jsonl]

Ids and labels are made anew from each row's configuration, whose missing fields take their
defaults. Where the ledger has a cell already, the row that got further stays. Checkpoints are not
moved: an unfinished imported cell is run again from its start.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from benchmarks.federated.cell import Cell
from benchmarks.record.ledger import RESULTS, Ledger, cell_id, is_finished


@dataclass(frozen=True, kw_only=True)
class Args:
    """What to merge into what."""

    file: Annotated[Path, tyro.conf.Positional]
    """JSONL file of the rows to merge."""
    results: Path = RESULTS / "federated.jsonl"


def current_row(row: dict[str, Any]) -> dict[str, Any]:
    """The row with today's fields, id and label."""
    cell = Cell.from_config(row["config"])
    return row | {"id": cell_id(cell), "label": cell.label, "config": dataclasses.asdict(cell)}


def import_rows(rows: list[dict[str, Any]], ledger: Ledger) -> int:
    """Write the rows that got further than the ledger's own; return how many those are."""
    written = 0
    for row in map(current_row, rows):
        found = ledger.find(row["id"])
        if found is None or _progress(row) > _progress(found):
            ledger.write(row)
            written += 1
    return written


def _progress(row: dict[str, Any]) -> tuple[bool, int]:
    return is_finished(row), row["rounds_done"]


def main(argv: list[str] | None = None) -> None:
    args = tyro.cli(Args, args=argv, description=__doc__)
    if not args.file.is_file():
        sys.exit(f"{args.file} is no file; give the JSONL of the rows to merge")
    rows = Ledger(args.file).rows()
    written = import_rows(rows, Ledger(args.results))
    print(json.dumps({"benchmark": "import_rows", "read": len(rows), "written": written}))


if __name__ == "__main__":
    main(sys.argv[1:])
