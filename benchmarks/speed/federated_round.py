"""One whole federated round against other simulators, the sides taking turns.

    python benchmarks/speed/peers/make_venvs.py
    python -m benchmarks.speed.federated_round

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
the peaks of a side's processes (Flower has several, which share pages). The last line is JSON.

Run it on a machine that is otherwise idle: PyTorch's threads wait for one another at every
operation, and with two of them among busy processes its small batches took thirty times as long.
Ray's processes use about 3 % of one core while the other sides have their turns.

    python -m benchmarks.speed.federated_round --scaling

measures time and memory of our own rounds against the number of clients instead.
"""

import dataclasses
import json
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from benchmarks.ledger import RESULTS, ROOT, Ledger, provenance
from benchmarks.speed.peers.side import Kind, Side, environment
from benchmarks.speed.peers.turns import Data, Scenario, save

SIDES = {
    "ours": Kind("ours", "wsa_jax"),
    "ours_wsa": Kind("ours", "wsa_jax", "wsa"),
    "ours_vmap": Kind("ours", "wsa_jax", "vmap"),
    "torch_channels_last": Kind("torch_loop", "torch", "channels_last"),
    "torch_default": Kind("torch_loop", "torch", "default"),
    "pfl": Kind("pfl_peer", "pfl"),
    "flower": Kind("flower_peer", "flwr"),
    "fedjax": Kind("fedjax_peer", "fedjax"),
}
SHAPES: dict[str, dict[str, Any]] = {
    "silo": {
        "clients": 10, "participants": 10, "steps": 20, "batch": 50, "learning_rate": 0.01,
    },
    "small_clients": {
        "clients": 1000, "participants": 50, "steps": 5, "batch": 10, "learning_rate": 0.1,
    },
    "smoke": {"clients": 2, "participants": 2, "steps": 1, "batch": 10, "learning_rate": 0.1},
}  # fmt: skip
# Clients and participants: many clients of whom few take part, and all of few.
SCALING = (
    (10, 10), (30, 10), (100, 10), (300, 10), (1000, 10), (30, 30), (100, 100),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Args:
    """What to measure, against whom, and how often."""

    preset: Literal["smoke", "cpu"] = "cpu"
    """smoke: ours alone, tiny, nothing recorded; cpu: the recorded figures."""
    scenarios: tuple[str, ...] = ("silo", "small_clients")
    sides: tuple[str, ...] = tuple(SIDES)
    """Whom to measure; ours always takes part."""
    rounds: int = 7
    """Counted rounds; one more warms up."""
    threads: int = os.cpu_count() or 1
    """Processors each side may use."""
    peers: Path = ROOT.parent / ".peers"
    """Where make_venvs.py has put the environments of the peers."""
    scaling: bool = False
    """Measure time and memory against the number of clients, ours alone."""
    scaling_steps: int = 5
    algorithm: str = "fed_avg"
    """Ours under --scaling: a name in benchmarks.speed.peers.ours.ALGORITHMS."""
    results: Path = RESULTS / "speed_federated_round.jsonl"


def make_scenario(shape: dict[str, Any], args: Args, dataset: Any, folder: str) -> Scenario:
    """The scenario with its data dealt out and written to a folder; all clients hold equally many.

    As the examples are drawn without replacement, a client must hold as many as it trains on.
    """
    clients = shape["clients"]
    each = len(dataset) // clients
    order = np.random.default_rng(0).permutation(len(dataset))[: clients * each]
    indices = np.sort(order.reshape(clients, each), axis=1).astype(np.int32)
    save(Data(dataset.images, dataset.labels, indices), folder)
    info = dataset.info
    return Scenario(
        **shape, rounds=args.rounds + 1, threads=args.threads, data=folder,
        mean=info.mean, std=info.std, scale=info.scale,
    )  # fmt: skip


def start(args: Args, scenario: Scenario, names: list[str], sides: dict[str, Side]) -> None:
    """Start the sides one after another, each up to the end of its first round, and fill them in.

    What has been started is the caller's to close even where a later side fails.
    """
    for name in names:
        kind = SIDES[name]
        python = environment(kind, args.peers)
        if python is None:
            script = f"benchmarks/speed/peers/make_venvs.py --folder {args.peers}"
            print(f"{name} is left out; to install it: python {script}", flush=True)
            continue
        sides[name] = Side(name, python, kind, scenario)


def measure(args: Args, scenario: Scenario, names: list[str]) -> dict[str, Any]:
    """Take turns over all sides; medians, spreads, ratios, memory and losses."""
    sides: dict[str, Side] = {}
    try:
        start(args, scenario, names, sides)
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(args.rounds):
            for name, side in sides.items():
                times[name].append(side.round())
        peaks = {name: round(side.peak_mib()) for name, side in sides.items()}
        ends = {name: side.finish() for name, side in sides.items()}
    finally:
        for side in sides.values():
            side.close()

    def paired(numerator: str, denominator: str) -> float:
        pairs = zip(times[numerator], times[denominator], strict=True)
        return round(statistics.median(a / b for a, b in pairs), 3)

    ratios = {name: paired("ours", name) for name in sides if not name.startswith("ours")}
    for key, name in (("wsa_over_plain", "ours_wsa"), ("vmap_over_map", "ours_vmap")):
        if name in sides:
            ratios[key] = paired(name, "ours")
    return {
        "ratios": ratios,
        "seconds": {name: round(statistics.median(v), 4) for name, v in times.items()},
        "spread": {name: [round(min(v), 4), round(max(v), 4)] for name, v in times.items()},
        "startup_seconds": {name: round(side.startup, 1) for name, side in sides.items()},
        "compile_seconds": {
            name: round(end["compile_seconds"], 1)
            for name, end in ends.items()
            if "compile_seconds" in end
        },
        "peak_mib": peaks,
        "loss": {name: round(end["loss"], 4) for name, end in ends.items()},
        "packages": {name: end["packages"] for name, end in ends.items()},
        "settings": {
            key: value
            for key, value in dataclasses.asdict(scenario).items()
            if key not in ("data", "variant", "mean", "std", "scale")
        },
    }


def measure_scaling(args: Args, dataset: Any) -> list[dict[str, Any]]:
    """Seconds and peak memory of our rounds, a fresh process for every number of clients."""
    rows = []
    for clients, participants in SCALING:
        shape = SHAPES["silo"] | {
            "clients": clients, "participants": participants, "steps": args.scaling_steps,
        }  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            scenario = dataclasses.replace(
                make_scenario(shape, args, dataset, folder), algorithm=args.algorithm
            )
            figures = measure(args, scenario, ["ours"])
        rows.append(
            {"clients": clients, "participants": participants}
            | {
                key: figures[key]["ours"]
                for key in ("seconds", "spread", "peak_mib", "compile_seconds", "startup_seconds")
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def print_table(name: str, figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"One federated round, {name}, seconds")
    columns = ("", "median", "least", "greatest", "ours over it", "first", "compile", "MiB", "loss")
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for side, seconds in figures["seconds"].items():
        low, high = figures["spread"][side]
        table.add_row(
            side,
            f"{seconds:.3f}",
            f"{low:.3f}",
            f"{high:.3f}",
            str(figures["ratios"].get(side, "")),
            str(figures["startup_seconds"][side]),
            str(figures["compile_seconds"].get(side, "")),
            str(figures["peak_mib"][side]),
            str(figures["loss"][side]),
        )
    Console(width=110).print(table)


def run_scenarios(args: Args, dataset: Any) -> dict[str, Any]:
    figures: dict[str, Any] = {"benchmark": "federated_round"}
    for name in args.scenarios:
        # A cohort of few steps is where training all clients at once may pay on a CPU.
        left_out = {"ours"} if name == "small_clients" else {"ours", "ours_vmap"}
        names = ["ours", *(side for side in args.sides if side not in left_out)]
        with tempfile.TemporaryDirectory() as folder:
            scenario = make_scenario(SHAPES[name], args, dataset, folder)
            found = measure(args, scenario, names)
        print_table(name, found)
        figures |= {"small_clients": found} if name == "small_clients" else found
    return figures


def main(argv: list[str] | None = None) -> None:
    from wsa_jax.data import load_dataset

    args = tyro.cli(Args, args=argv, description=__doc__)
    if args.preset == "smoke":
        args = dataclasses.replace(
            args, scenarios=("smoke",), sides=("ours", "ours_wsa"), rounds=1, scaling=False
        )
    dataset = load_dataset("digits" if args.preset == "smoke" else "cifar10", split="train")
    if args.scaling:
        rows = measure_scaling(args, dataset)
        figures: dict[str, Any] = {"benchmark": "federated_scaling", "points": rows}
        figures |= {"algorithm": args.algorithm, "steps": args.scaling_steps}
    else:
        figures = run_scenarios(args, dataset)
    if args.preset != "smoke":
        where = provenance()
        figures["jax"] = where["versions"]["jax"]
        identity = f"{where['time']}-{figures['benchmark']}"
        Ledger(args.results).write({"id": identity} | figures | where)
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1:])
