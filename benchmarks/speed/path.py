"""A loss barrier over 25 points against 25 plain evaluations, in one alternating run.

    python -m benchmarks speed path

Both sides evaluate one network on the same images, in the same batches and with the same threads:
`interpolate_path` and `loss_barrier` on one side, on the other 25 calls of
`wsa_jax.training.evaluate`, compiled once, on models that lie ready. What is above 1 is the
interpolation, the host's check of the weights and the loop. Times are seconds for all points,
medians over rounds in which the sides take turns; the ratio of processor times beside that of the
clock tells a busy machine from a slow path.
"""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from benchmarks.record.ledger import RESULTS
from benchmarks.script import Command, Summary
from benchmarks.speed.alternating import paired, summary, take_turns, timed
from benchmarks.speed.cores import available_cores
from benchmarks.speed.reporting import SpeedArgs, recorded
from wsa_jax.data.registry import DATASETS
from wsa_jax.merging import interpolate_path, loss_barrier
from wsa_jax.models import CNN, MLP
from wsa_jax.training import classification, evaluate
from wsa_jax.tree import lerp


@dataclass(frozen=True, kw_only=True)
class Args(SpeedArgs):
    """What to measure and how often."""

    network: Literal["mlp", "cnn"] = "cnn"
    """mlp: 256-256-10; cnn: the federated CNN. On 32x32x3 images."""
    examples: int = 2000
    points: int = 25
    rounds: int = 7
    results: Path = RESULTS / "speed_path.jsonl"


def sides(args: Args) -> tuple[dict[str, Callable[[], Any]], Callable[[], float]]:
    """Both sides as functions that return when done, and by how much their losses differ."""
    module: nn.Module = (
        MLP(features=(256, 256, 10)) if args.network == "mlp" else CNN(num_classes=10)
    )
    task = classification(module, DATASETS["cifar10"])
    (first, _), (second, _) = (task.init(jax.random.key(seed)) for seed in (0, 1))
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(0, 256, (args.examples, 32, 32, 3), np.uint8))
    labels = jnp.asarray(rng.integers(0, 10, args.examples, np.int32))
    between = [lerp(first, second, t) for t in np.linspace(0.0, 1.0, args.points, dtype=np.float32)]

    def barrier() -> Any:
        path = interpolate_path(task, first, second, images, labels, num_points=args.points)
        return jax.block_until_ready((path, loss_barrier(path)))

    def plain() -> Any:
        sums = [evaluate(task, params, {}, images, labels) for params in between]
        return jax.block_until_ready(sums)

    def difference() -> float:
        losses = np.array([float(one.loss / one.count) for one in plain()])
        return float(np.abs(np.asarray(barrier()[0].loss) - losses).max())

    return {"barrier": barrier, "plain": plain}, difference


def measure(args: Args) -> Summary:
    """Take turns; return medians, spreads and the ratio."""
    both, difference = sides(args)
    turns = take_turns(
        {name: lambda side=side: timed(side)[1:] for name, side in both.items()}, args.rounds
    )
    times = {name: [seconds for seconds, _ in taken] for name, taken in turns.items()}
    processor = {name: [seconds for _, seconds in taken] for name, taken in turns.items()}
    return {
        "benchmark": "path",
        "ratios": {
            "barrier_over_plain": paired(times, "barrier", "plain"),
            "barrier_over_plain_cpu": paired(processor, "barrier", "plain"),
        },
        **summary("seconds", times, 4),
        "largest_difference": difference(),
        "settings": {
            "network": args.network,
            "examples": args.examples,
            "points": args.points,
            "rounds": args.rounds,
            "threads": available_cores(),
        },
        "jax": jax.__version__,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def run(args: Args) -> Summary:
    if args.preset == "smoke":
        args = dataclasses.replace(args, network="mlp", examples=20, points=3, rounds=1)
    figures = measure(args)
    for name, seconds in figures["seconds"].items():
        print(f"{name}: {1000 * seconds:.1f} ms for {figures['settings']['points']} points")
    return recorded(args, figures)


SCRIPT = Command(name="path", description=__doc__, arguments=Args, function=run)
