"""Rows of runs that never ran, for the tests of tables and figures."""

import numpy as np

from benchmarks.federated.cell_row import new_row
from benchmarks.federated.experiment import with_seed


def planted_row(cell, accuracy, *, seed=None, rounds=None, clients=4):
    """A row whose curve rises to an accuracy; unfinished if it holds fewer rounds than its cell."""
    cell = cell if seed is None else with_seed(cell, seed)
    rounds = cell.rounds if rounds is None else rounds
    step = cell.evaluate_every
    marks = [*range(step, rounds, step), rounds]
    row = new_row(cell) | {
        "status": "done" if rounds == cell.rounds else "started",
        "rounds_done": rounds,
        "accuracy": accuracy,
        "curve": [
            [mark, float(accuracy * (1 - 0.5 ** (4 * mark / rounds)) * 16 / 15), 1.0]
            for mark in marks
        ],
    }
    row["curve"][-1][1] = accuracy
    if cell.client_scopes:
        rng = np.random.default_rng(0)
        kept = list(range(1, rounds + 1, max(1, rounds // 300)))
        walk = 0.04 + 1e-4 * rng.normal(size=(len(kept), clients)).cumsum(axis=0)
        row["client_scopes"] = {
            "round": kept,
            "mean": (walk - 0.04).tolist(),
            "std": walk.tolist(),
        }
    return row


def plant(ledger, cells, accuracy):
    """Write a finished row of each cell; `accuracy` maps a cell to its fraction."""
    for cell in cells:
        ledger.write(planted_row(cell, accuracy(cell)))
