"""Solvers of the assignment problem on the costs that matching meets: SciPy's against lapx's.

    python -m benchmarks speed assignment

Pairs of MLPs with one hidden layer of 512 to 4,096 units are trained on digits from two seeds.
Their units are matched by products and by correlations of activations, by distances (OT Fusion),
and by products of weights: four matrices a width. Each solver gets each of them, in float64, in
turns. Ratios are of processor times, since all solvers have one thread. `equal` is the share of
units that are paired as by SciPy, `worse` by how much the objective falls short of SciPy's.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.optimize import linear_sum_assignment

from benchmarks.record.ledger import RESULTS
from benchmarks.script import Command, Summary
from benchmarks.speed.alternating import paired, summary, take_turns, timed
from benchmarks.speed.reporting import SpeedArgs, recorded
from wsa_jax.data import load_dataset
from wsa_jax.models import MLP
from wsa_jax.training import FitSettings, classification, fit

Solver = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Args(SpeedArgs):
    """What to measure and how often."""

    sizes: tuple[int, ...] = (512, 1024, 2048, 4096)
    steps: int = 300
    """Of training a model."""
    rounds: int = 3
    results: Path = RESULTS / "speed_assignment.jsonl"


def solvers() -> dict[str, Solver]:
    """Columns of the cheapest assignment, by name of a solver; lapx's if it is installed."""
    import lap

    return {
        "scipy": lambda cost: linear_sum_assignment(cost)[1],
        "lapjv": lambda cost: lap.lapjv(cost, return_cost=False)[0],
        "lapjvc": lambda cost: lap.lapjvc(cost, return_cost=False)[1],
        "lapjvs": lambda cost: lap.lapjvs(
            cost, return_cost=False, jvx_like=False, prefer_float32=False
        )[0],
    }


def costs(size: int, steps: int) -> dict[str, np.ndarray]:
    """Cost matrices of two trained models' hidden units, in float64."""
    data = load_dataset("digits", split="train")
    task = classification(MLP(features=(size, data.info.num_classes)), data.info)
    settings = FitSettings(steps=steps, batch_size=50)
    hidden, rows = [], []
    for seed in (0, 1):
        model = fit(
            jax.random.key(seed),
            task,
            data.images,
            data.labels,
            settings=settings,
            learning_rate=0.05,
        ).params
        first, second = (model[f"Dense_{layer}"] for layer in range(2))
        x = data.images.reshape(len(data.images), -1) / 16.0 - 0.5
        hidden.append(np.asarray(jnp.maximum(x @ first["kernel"] + first["bias"][None], 0.0)))
        parts = (first["kernel"], first["bias"][None], np.asarray(second["kernel"]).T)
        rows.append(np.concatenate([np.asarray(part) for part in parts]).T)
    a, b = (values.astype(np.float64) for values in hidden)
    v, w = (values.astype(np.float64) for values in rows)
    centred = [x - x.mean(0) for x in (a, b)]
    norms = [np.maximum(np.linalg.norm(x, axis=0), 1e-12) for x in centred]
    squares = np.square(a).sum(0)[:, None] + np.square(b).sum(0)[None] - 2 * a.T @ b
    return {
        "product": -a.T @ b / len(a),
        "correlation": -centred[0].T @ centred[1] / np.outer(*norms),
        "distance": np.sqrt(np.maximum(squares, 0.0) / len(a)),
        "weights": -v @ w.T,
    }


def compared(matrices: Mapping[str, np.ndarray], rounds: int) -> Summary:
    """Times of all matrices together, and how far results are from SciPy's."""
    found = solvers()

    def turn(solve: Solver) -> tuple[list[np.ndarray], float]:
        columns, _, processor = timed(lambda: [solve(cost) for cost in matrices.values()])
        return columns, processor

    turns = take_turns({n: lambda solve=solve: turn(solve) for n, solve in found.items()}, rounds)
    times = {name: [seconds for _, seconds in taken] for name, taken in turns.items()}
    reference = turns["scipy"][0][0]
    equal, worse = {}, {}
    for name, taken in turns.items():
        columns = taken[0][0]
        equal[name] = float(np.mean(np.equal(columns, reference)))
        worse[name] = max(
            (_total(cost, own) - _total(cost, best)) / abs(_total(cost, best))
            for cost, own, best in zip(matrices.values(), columns, reference, strict=True)
        )
    ratios = {name: paired(times, name, "scipy") for name in times if name != "scipy"}
    return {"ratios": ratios, "equal": equal, "worse": worse, **summary("seconds", times, 4)}


def _total(cost: np.ndarray, columns: np.ndarray) -> float:
    return float(cost[np.arange(len(cost)), columns].sum())


def measure(args: Args) -> Summary:
    """All sizes."""
    sizes = {str(size): compared(costs(size, args.steps), args.rounds) for size in args.sizes}
    return {
        "benchmark": "assignment",
        "ratios": {
            f"{name}_over_scipy_{size}": ratio
            for size, row in sizes.items()
            for name, ratio in row["ratios"].items()
        },
        "sizes": sizes,
        "settings": {"rounds": args.rounds, "steps": args.steps},
        "load_average": os.getloadavg()[0],
        "jax": jax.__version__,
    }


def run(args: Args) -> Summary:
    if args.preset == "smoke":
        args = dataclasses.replace(args, sizes=(16,), steps=2, rounds=1)
    figures = measure(args)
    table = Table(title="Assignment of four matrices, processor seconds")
    for heading in ("units", "solver", "seconds", "over SciPy", "equal pairs", "worse by"):
        table.add_column(heading, justify="right")
    for size, row in figures["sizes"].items():
        for name, seconds in row["seconds"].items():
            ratio = row["ratios"].get(name, 1.0)
            last = f"{row['equal'][name]:.4f}", f"{row['worse'][name]:.1e}"
            table.add_row(size, name, f"{seconds:.3f}", f"{ratio:.2f}", *last)
    Console(width=100).print(table)
    return recorded(args, figures)


SCRIPT = Command(name="assignment", description=__doc__, arguments=Args, function=run)
