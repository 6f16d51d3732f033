"""Weight matching of VGG16 and ResNet20 width 4: how far it is from its assignment solver alone.

    python -m benchmarks speed matching

Matches two randomly initialised networks (nothing is alike, so that many sweeps follow) from the
identity, the published start. `total_over_solver` is the time of the whole call, checks and exact
objective included, over the time inside SciPy's solver, which is the floor; compilation is apart.
Ratios of processor times stand beside those of the clock: they count both threads of a product, and
tell a busy machine from a slow path. Then git-re-basin's issue 8: a residual MLP without norms,
planted permutations, recovered from the published start and with the sorted one beside it.
"""

import dataclasses
import os
import statistics
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import PyTree
from rich.console import Console
from rich.table import Table

from benchmarks.record.ledger import RESULTS
from benchmarks.script import Command, Summary
from benchmarks.speed.alternating import spread, timed
from benchmarks.speed.peers.side import peak_mib
from benchmarks.speed.reporting import SpeedArgs, recorded
from wsa_jax.merging import (
    AxisSpec,
    Matching,
    Tie,
    hand_written,
    permute_units,
    trace_spec,
    weight_matching,
)
from wsa_jax.models.resnet import resnet20
from wsa_jax.models.vgg import vgg16


@dataclass(frozen=True, kw_only=True)
class Args(SpeedArgs):
    """What to measure and how often."""

    width: float = 1.0
    """Factor on VGG16's channel counts; ResNet20 has four times as much."""
    rounds: int = 3
    restarts: int = 1
    seeds: int = 100
    """Planted residual MLPs of each size."""
    results: Path = RESULTS / "speed_matching.jsonl"


def pair(network: str, width: float) -> tuple[AxisSpec, PyTree, PyTree]:
    """A spec, and two models of different seeds."""
    module: nn.Module = (
        vgg16(10, width=width) if network == "vgg16" else resnet20(10, width=4 * width)
    )
    images = jnp.zeros((1, 32, 32, 3))
    init = jax.jit(lambda key: module.init(key, images))
    first, second = (init(jax.random.key(seed)) for seed in (0, 1))
    spec = trace_spec(lambda variables, x: module.apply(variables, x), first, images)
    return spec, first, second


def matching(network: str, args: Args) -> Summary:
    """Figures of one network."""
    spec, first, second = pair(network, args.width)

    def once() -> Matching:
        return weight_matching(jax.random.key(0), spec, first, second, restarts=args.restarts)

    _, cold, _ = timed(once)
    rounds = [timed(once) for _ in range(args.rounds)]
    info = rounds[0][0].info
    seconds = statistics.median(total for _, total, _ in rounds)
    over = [total / result.info["solver_seconds"] for result, total, _ in rounds]
    # The solver has one thread and never waits: off its clock, a busy machine alone keeps it.
    solver = min(result.info["solver_seconds"] for result, _, _ in rounds)
    return {
        "seconds": round(seconds, 3),
        "solver_seconds": round(solver, 3),
        "processor_seconds": round(min(processor for *_, processor in rounds), 3),
        "compile_seconds": round(cold - seconds, 1),
        "total_over_solver": round(statistics.median(over), 3),
        "spread": spread(over, 3),
        "objective": info["objective"],
        "distance": info["distance"],
        "sweeps": info["sweeps"],
        "assignments": info["assignments"],
        "groups": len(spec.groups),
        "peak_mib": round(peak_mib()),
    }


def recovered(stream: int, inner: int, seeds: int) -> dict[str, int]:
    """How often a planted permutation of a residual MLP is found, by starts."""
    shapes, ties = {}, {"stream": [], "inner0": [], "inner1": []}
    for block in ("0", "1"):
        up, down, own = f"up{block}", f"down{block}", f"inner{block}"
        shapes |= {up: (stream, inner), f"{up}/bias": (inner,)}
        shapes |= {down: (inner, stream), f"{down}/bias": (stream,)}
        ties["stream"] += [Tie(leaf=up, axis=0, role="consumed"), Tie(leaf=down, axis=1)]
        ties["stream"] += [Tie(leaf=f"{down}/bias", axis=0)]
        ties[own] += [Tie(leaf=up, axis=1), Tie(leaf=f"{up}/bias", axis=0)]
        ties[own] += [Tie(leaf=down, axis=0, role="consumed")]
    found = {"published": 0, "with_sorted_start": 0}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        first = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
        spec = hand_written(ties, first)
        planted = {group.name: rng.permutation(group.size) for group in spec.groups}
        second = permute_units(spec, first, planted)
        for restarts, name in enumerate(found, start=1):
            key = jax.random.key(seed)
            result = weight_matching(key, spec, first, second, restarts=restarts)
            found[name] += all(
                np.array_equal(order[result.permutations[name]], np.arange(order.size))
                for name, order in planted.items()
            )
    return found


def measure(args: Args) -> Summary:
    """All figures."""
    networks = {name: matching(name, args) for name in ("vgg16", "resnet20")}
    ratios = {f"total_over_solver_{n}": row["total_over_solver"] for n, row in networks.items()}
    return {
        "benchmark": "matching",
        "ratios": {"total_over_solver": max(ratios.values())} | ratios,
        "networks": networks,
        "recovered": {f"{a}/{b}": recovered(a, b, args.seeds) for a, b in ((3, 5), (30, 50))},
        "settings": {
            "width": args.width,
            "rounds": args.rounds,
            "restarts": args.restarts,
            "seeds": args.seeds,
        },
        "load_average": os.getloadavg()[0],
        "jax": jax.__version__,
    }


def print_table(figures: Summary) -> None:
    table = Table(title=f"Weight matching, seconds, jax {figures['jax']}")
    for name in ("", "total", "solver", "total / solver", "objective", "sweeps", "MiB"):
        table.add_column(name, justify="right" if name else "left")
    for name, row in figures["networks"].items():
        table.add_row(
            name,
            f"{row['seconds']:.2f}",
            f"{row['solver_seconds']:.2f}",
            f"{row['total_over_solver']:.2f}",
            f"{row['objective']:.2f}",
            " ".join(map(str, row["sweeps"])),
            str(row["peak_mib"]),
        )
    Console(width=100).print(table)
    for sizes, found in figures["recovered"].items():
        print(
            f"residual MLP {sizes}: {found['published']} of {figures['settings']['seeds']} planted "
            f"permutations from the published start, {found['with_sorted_start']} with the sorted"
        )


def run(args: Args) -> Summary:
    if args.preset == "smoke":
        args = dataclasses.replace(args, width=0.0625, rounds=1, seeds=2)
    figures = measure(args)
    print_table(figures)
    return recorded(args, figures)


SCRIPT = Command(name="matching", description=__doc__, arguments=Args, function=run)
