"""One whole federated round against other simulators, the sides taking turns.

    python benchmarks/speed/peers/make_venvs.py
    python -m benchmarks speed federated_round

A round is the training of all participants and the aggregation, without evaluation; FedAvg, the
federated CNN, CIFAR-10 dealt at random (IID). Two scenarios: `silo`, 10 clients x 20 steps of
batch 50 (learning rate 0.01), and `small_clients`, the shape of pfl-research's benchmark: 50 of
1,000 clients with 50 examples each, batch 10, one local epoch (learning rate 0.1); the network is
the same in both. All sides clip the gradient's global norm to 10, decay weights by 1e-4, and turn
uint8 images into normalised floats inside the round, as the first layer of the network.

Every side is a process of its own, in the environment its versions need, on equally many
processors. The first round of each, with start-up and compilation, is reported apart. Ratios are
medians of ours over theirs, round by round. The loss is that of the model after the last round,
on the same 2,000 training examples everywhere: seeds differ, so it is near, not equal. Memory sums
the peaks of a side's processes (Flower has several, which share pages). A peer that is not
installed, does not start or dies is left out, with its reason, and every scenario is recorded as
soon as it is finished.

Run it on a machine that is otherwise idle: PyTorch's threads wait for one another at every
operation, and with two of them among busy processes its small batches took thirty times as long.
Ray's processes use about 3 % of one core while the other sides have their turns.

    python -m benchmarks speed federated_round --scaling

measures time and memory of our own rounds against the number of clients instead, and records them
after every point.
"""

import dataclasses
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal, get_args

from benchmarks.record.ledger import RESULTS, ROOT
from benchmarks.refused import RefusedError
from benchmarks.script import Command, Summary
from benchmarks.speed.alternating import leave_out
from benchmarks.speed.cores import available_cores, use_cores
from benchmarks.speed.reporting import Recorder, SpeedArgs, print_sides
from benchmarks.speed.scenarios import (
    SHAPES,
    ScenarioName,
    Shape,
    SideName,
    make_scenario,
    measure,
)
from wsa_jax.data import Dataset, load_dataset

# Clients and participants: many clients of whom few take part, and all of few.
SCALING = (
    (10, 10),
    (30, 10),
    (100, 10),
    (300, 10),
    (1000, 10),
    (30, 30),
    (100, 100),
)


@dataclass(frozen=True, kw_only=True)
class Args(SpeedArgs):
    """What to measure, against whom, and how often."""

    scenarios: tuple[ScenarioName, ...] = get_args(ScenarioName)
    sides: tuple[SideName, ...] = get_args(SideName)
    """Whom to measure; ours always takes part. The smoke preset has ours alone."""
    rounds: int = 7
    threads: int = dataclasses.field(default_factory=available_cores)
    """And cores, of every side."""
    peers: Path = ROOT.parent / ".peers"
    """Where make_venvs.py has put the environments of the peers."""
    scaling: bool = False
    """Measure time and memory against the number of clients, ours alone."""
    scaling_steps: int = 5
    algorithm: Literal["fed_avg", "scaffold"] = "fed_avg"
    """Ours under --scaling."""
    results: Path = RESULTS / "speed_federated_round.jsonl"


def check(args: Args) -> None:
    """Refuse settings that would go unused."""
    if args.scaling and args.preset == "smoke":
        raise RefusedError("--scaling has no smoke preset: leave out --scaling or --preset smoke")
    if not args.scenarios:
        raise RefusedError("--scenarios is empty: name silo, small_clients or both")
    defaults, unused = Args(), ("algorithm", "scaling_steps")
    without, remedy = "without --scaling", "add it, or leave the setting out"
    if args.scaling:
        unused = ("sides", "scenarios")
        without, remedy = "under --scaling, of ours alone", "leave it out"
    for name in unused:
        value = getattr(args, name)
        if value != getattr(defaults, name):
            given = " ".join(value) if isinstance(value, tuple) else value
            flag = name.replace("_", "-")
            raise RefusedError(f"--{flag} {given} has no effect {without}: {remedy}")


def measure_shape(
    shape: Shape, args: Args, dataset: Dataset, sides: list[str], left_out: dict[str, str]
) -> Summary:
    with tempfile.TemporaryDirectory() as folder:
        scenario = make_scenario(
            shape,
            dataset,
            folder,
            rounds=args.rounds,
            threads=args.threads,
            algorithm=args.algorithm,
        )
        return measure(scenario, sides, args.peers, left_out)


def run_scaling(args: Args, dataset: Dataset) -> Iterator[Summary]:
    """Seconds and peak memory of our rounds, a fresh process for every number of clients.

    Yields the figures after every point, with all points so far.
    """
    points: list[Summary] = []
    for clients, participants in SCALING:
        shape = dataclasses.replace(
            SHAPES["silo"], clients=clients, participants=participants, steps=args.scaling_steps
        )
        found = measure_shape(shape, args, dataset, ["ours"], {})
        points.append(
            {"clients": clients, "participants": participants}
            | {
                key: found[key]["ours"]
                for key in ("seconds", "spread", "peak_mib", "compile_seconds", "startup_seconds")
            }
        )
        print(json.dumps(points[-1]), flush=True)
        yield {
            "benchmark": "federated_scaling",
            "ratios": {},
            "points": points,
            "algorithm": args.algorithm,
            "steps": args.scaling_steps,
        }


def run_scenarios(args: Args, dataset: Dataset) -> Iterator[Summary]:
    """Yields the figures after every scenario, with all scenarios so far.

    Those of the small clients are an object of their own; the ratios at the top are the silo's, or
    theirs where there is no silo.
    """
    figures: Summary = {"benchmark": "federated_round"}
    for name in ("smoke",) if args.preset == "smoke" else args.scenarios:
        sides, left_out = list(dict.fromkeys(("ours", *args.sides))), {}
        # A cohort of few steps is where training all clients at once may pay on a CPU.
        if name != "small_clients" and "ours_vmap" in sides:
            sides.remove("ours_vmap")
            leave_out(
                "ours_vmap", f"it is measured in small_clients alone, not in {name}", left_out
            )
        found = measure_shape(SHAPES[name], args, dataset, sides, left_out)
        columns = {
            "first": found["startup_seconds"],
            "compile": found["compile_seconds"],
            "MiB": found["peak_mib"],
            "loss": found["loss"],
        }
        title = f"One federated round, {name}, seconds"
        print_sides(title, "seconds", found, over="ours over it", digits=3, columns=columns)
        figures |= {"small_clients": found} if name == "small_clients" else found
        figures = {"ratios": found["ratios"]} | figures
        yield figures


def run(args: Args) -> Summary:
    check(args)
    if args.preset == "smoke":
        args = dataclasses.replace(args, sides=("ours", "ours_wsa"), rounds=1)
    use_cores(args.threads)
    dataset = load_dataset("digits" if args.preset == "smoke" else "cifar10", split="train")
    recorder, figures = Recorder(args), {}
    parts = run_scaling if args.scaling else run_scenarios
    for found in parts(args, dataset):
        figures = found | {"jax": metadata.version("jax")}
        # What is done stays recorded where a later part fails.
        recorder.write(figures | {"unfinished": True})
    recorder.write(figures)
    return figures


SCRIPT = Command(name="federated_round", description=__doc__, arguments=Args, function=run)
