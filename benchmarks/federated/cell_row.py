"""The row of a federated cell: begun, carried on round by round, or given up."""

import dataclasses
from pathlib import Path
from typing import Any

from benchmarks.federated.cell import Cell
from benchmarks.record.failure import reason
from benchmarks.record.ledger import cell_id, provenance
from benchmarks.record.statistics import Row
from wsa_jax.runs.run_directory import read_rows

# Rounds whose client scopes a row keeps at most, evenly spaced, so that a ledger stays small.
_KEPT_ROUNDS = 300


def new_row(cell: Cell) -> Row:
    """The row of a cell before its first round."""
    return {
        "id": cell_id(cell),
        "label": cell.label,
        "config": dataclasses.asdict(cell),
        "status": "started",
        "rounds_done": 0,
        "accuracy": None,
        "curve": [],
        "diagnostics": [],
        "dropped": 0,
        "seconds": 0.0,
        "stability": 0.0,
    }


def add_round(row: Row, cell: Cell, update: Row) -> None:
    """Add what the simulation says of one round to a row."""
    row["seconds"] = round(row["seconds"] + update["seconds"], 4)
    row["rounds_done"] = update["round"]
    # Rounds recorded before clients could be dropped do not say it of themselves.
    row["dropped"] += update.get("dropped", 0)
    # Weights are smallest, and the share largest, in the first rounds, which nobody evaluates.
    row["stability"] = max(row["stability"], _short(update["stability"]) or 0.0)
    if "test_accuracy" in update:
        row["accuracy"] = update["test_accuracy"]
        row["curve"].append([update["round"], update["test_accuracy"], update["test_loss"]])
        row["diagnostics"].append(_diagnostics(update))
    if cell.client_scopes and (update["round"] - 1) % -(-cell.rounds // _KEPT_ROUNDS) == 0:
        layer = update["layers"].index(cell.client_scopes)
        kept = row.setdefault("client_scopes", {"round": [], "mean": [], "std": []})
        kept["round"].append(update["round"])
        for moment in ("mean", "std"):
            clients = update["client_scopes"][moment]
            # Clients differ in the fifth digit.
            kept[moment].append([_short(client[layer], digits=8) for client in clients])


def restored_rows(metrics: Path, directory: Path) -> list[Row]:
    """The rows of rounds that a checkpoint covers; simulate calls on_round for the others."""
    steps = [
        int(path.name) for path in (directory / "checkpoints").glob("[0-9]*") if path.name.isdigit()
    ]
    if not steps or not metrics.exists():
        return []
    return read_rows(metrics, max(steps))[1]


def _diagnostics(update: Row) -> Row:
    names = (
        "round",
        "train_loss",
        "update_norm",
        "mean_update_norm",
        "layers",
        "client_divergence",
        "target_divergence",
        "client_std",
        "average_std",
        "fused_std",
        "stability",
    )
    return {name: _short(update[name]) for name in names}


def _short(value: Any, *, digits: int = 5) -> Any:
    """Some significant digits of every float."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    return [_short(item, digits=digits) for item in value] if isinstance(value, list) else value


def failed_row(found: Row | None, cell: Cell, error: BaseException) -> Row:
    """What is kept of a cell that failed: how far it got, and why it got no further."""
    row = new_row(cell) | provenance() if found is None else found
    return row | {"status": "failed", "reason": reason(error)}
