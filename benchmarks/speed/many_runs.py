"""Rounds per second of 1, 4 and 16 runs: one after the other, or as one program.

    python -m benchmarks speed many_runs

Each run is a seed of the standard problem's CNN on images of 16x16 (10 clients, 5 steps of batch
50). Separate runs call `simulate` for each seed, and share its compiled round; `simulate_many` runs
them by map or by vmap, within one program. Sides take turns, after a first call that compiles; a
round is one run's, so that a side that gains nothing from company has the same rounds per second
whatever the number of runs. Nothing is evaluated.
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from benchmarks.record.ledger import RESULTS
from benchmarks.record.statistics import markdown_table
from benchmarks.script import Command, Summary
from benchmarks.speed.alternating import paired, summary, take_turns, timed
from benchmarks.speed.cores import available_cores
from benchmarks.speed.reporting import SpeedArgs, recorded
from wsa_jax.data.registry import DATASETS
from wsa_jax.federated import LocalSettings, iid, simulate, simulate_many
from wsa_jax.models import CNN
from wsa_jax.training import classification

WAYS: tuple[Literal["separate", "map", "vmap"], ...] = ("separate", "map", "vmap")


@dataclass(frozen=True, kw_only=True)
class Args(SpeedArgs):
    """What to measure and how often."""

    counts: tuple[int, ...] = (1, 4, 16)
    """Numbers of runs."""
    each: int = 5
    """Federated rounds of a run in a turn."""
    clients: int = 10
    steps: int = 5
    rounds: int = 3
    results: Path = RESULTS / "speed_many_runs.jsonl"


def sides(args: Args) -> dict[str, Callable[[], object]]:
    """Every way and number of runs as a function that returns when done."""
    info = dataclasses.replace(DATASETS["cifar10"], image_shape=(16, 16, 3))
    module = CNN(10, "reference", (16, 32), (192, 96), 3)
    task = classification(module, info, augmentation="none")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (100 * args.clients, 16, 16, 3), np.uint8)
    labels = rng.integers(0, 10, len(images), np.int32)
    partition = iid(labels, clients=args.clients, seed=0)
    settings = {
        "rounds": args.each,
        "local": LocalSettings(steps=args.steps, batch_size=50),
        "evaluate_every": args.each,
    }

    def work(way: Literal["separate", "map", "vmap"], count: int) -> object:
        keys, train = jax.random.split(jax.random.key(0), count), (images, labels)
        if way == "separate":
            return [simulate(key, task, train, partition, **settings).params for key in keys]
        found = simulate_many(keys, task, train, partition, runs=way, **settings)
        return jax.block_until_ready([result.params for result in found])

    return {
        f"{way}, {count}": functools.partial(work, way, count)
        for count in args.counts
        for way in WAYS
    }


def measure(args: Args) -> Summary:
    """Take turns; rounds per second, and the ratio of times over separate runs."""
    all_sides = sides(args)
    for side in all_sides.values():
        side()
    turns = take_turns(
        {name: lambda side=side: timed(side)[1:] for name, side in all_sides.items()}, args.rounds
    )
    times = {name: [seconds for seconds, _ in taken] for name, taken in turns.items()}
    medians = {name: float(np.median(taken)) for name, taken in times.items()}
    return {
        "benchmark": "many_runs",
        "ratios": {
            f"{way}_{count}": paired(times, f"{way}, {count}", f"separate, {count}")
            for count in args.counts
            for way in WAYS[1:]
        },
        "rounds_per_second": {
            name: round(args.each * int(name.split(", ")[1]) / median, 3)
            for name, median in medians.items()
        },
        **summary("seconds", times, 4),
        "settings": {
            "counts": list(args.counts),
            "each": args.each,
            "clients": args.clients,
            "steps": args.steps,
            "rounds": args.rounds,
            "threads": available_cores(),
        },
        "jax": jax.__version__,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def run(args: Args) -> Summary:
    if args.preset == "smoke":
        args = dataclasses.replace(args, counts=(2,), each=1, clients=2, steps=1, rounds=1)
    figures = measure(args)
    found = figures["rounds_per_second"]
    lines = [[way, *(f"{found[f'{way}, {count}']:.2f}" for count in args.counts)] for way in WAYS]
    head = ["rounds per second", *(f"{count} runs" for count in args.counts)]
    print(markdown_table(head, lines))
    return recorded(args, figures)


SCRIPT = Command(name="many_runs", description=__doc__, arguments=Args, function=run)
