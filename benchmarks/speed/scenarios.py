"""The scenarios of `speed federated_round`, and how one of them is measured."""

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.speed.alternating import PeerError, leaving_out, ratios, summary, take_turns
from benchmarks.speed.peers.side import Kind, Side, environment
from benchmarks.speed.peers.turns import Data, Scenario, save
from wsa_jax.data import Dataset

ScenarioName = Literal["silo", "small_clients"]
SideName = Literal[
    "ours",
    "ours_wsa",
    "ours_vmap",
    "torch_channels_last",
    "torch_default",
    "pfl",
    "flower",
    "fedjax",
]
SIDES: dict[str, Kind] = {
    "ours": Kind("ours", "wsa_jax"),
    "ours_wsa": Kind("ours", "wsa_jax", "wsa"),
    "ours_vmap": Kind("ours", "wsa_jax", "vmap"),
    "torch_channels_last": Kind("torch_loop", "torch", "channels_last"),
    "torch_default": Kind("torch_loop", "torch", "default"),
    "pfl": Kind("pfl_peer", "pfl"),
    "flower": Kind("flower_peer", "flwr"),
    "fedjax": Kind("fedjax_peer", "fedjax"),
}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Who trains how in one round."""

    clients: int
    participants: int
    steps: int
    batch: int
    learning_rate: float


SHAPES: dict[str, Shape] = {
    "silo": Shape(clients=10, participants=10, steps=20, batch=50, learning_rate=0.01),
    "small_clients": Shape(clients=1000, participants=50, steps=5, batch=10, learning_rate=0.1),
    "smoke": Shape(clients=2, participants=2, steps=1, batch=10, learning_rate=0.1),
}


def make_scenario(
    shape: Shape,
    dataset: Dataset,
    folder: str,
    *,
    rounds: int,
    threads: int,
    algorithm: str = "fed_avg",
) -> Scenario:
    """The scenario with its data dealt out and written to a folder; all clients hold equally many.

    As the examples are drawn without replacement, a client must hold as many as it trains on.
    """
    clients = shape.clients
    each = len(dataset) // clients
    order = np.random.default_rng(0).permutation(len(dataset))[: clients * each]
    indices = np.sort(order.reshape(clients, each), axis=1).astype(np.int32)
    save(Data(dataset.images, dataset.labels, indices), folder)
    info = dataset.info
    return Scenario(
        **dataclasses.asdict(shape),
        rounds=rounds + 1,
        threads=threads,
        data=folder,
        mean=info.mean,
        std=info.std,
        scale=info.scale,
        algorithm=algorithm,
    )


def start(name: str, scenario: Scenario, peers: Path) -> Side:
    kind = SIDES[name]
    python = environment(kind, peers)
    if python is None:
        script = f"benchmarks/speed/peers/make_venvs.py --folder {peers}"
        raise PeerError(f"it is not installed; to install it: python {script}")
    return Side(python, kind, scenario)


def measure(
    scenario: Scenario, names: list[str], peers: Path, left_out: dict[str, str]
) -> dict[str, Any]:
    """Take turns over all sides; medians, spreads, ratios, memory and losses.

    A peer that fails is entered in `left_out`, and the others go on.
    """
    sides: dict[str, Side] = {}
    with contextlib.ExitStack() as stack:
        for name in names:
            with leaving_out(name, left_out):
                sides[name] = stack.enter_context(contextlib.closing(start(name, scenario, peers)))
        times = take_turns(
            {name: side.round for name, side in sides.items()},
            # The first has been part of the sides' start, and has warmed them up.
            scenario.rounds - 1,
            warm_ups=0,
            left_out=left_out,
        )
        peaks = {name: round(sides[name].peak_mib()) for name in times}
        ends: dict[str, dict[str, Any]] = {}
        for name in times:
            with leaving_out(name, left_out):
                ends[name] = sides[name].finish()
    times = {name: times[name] for name in ends}
    return {
        "ratios": ratios(times),
        **summary("seconds", times, 4),
        "startup_seconds": {name: round(sides[name].startup, 1) for name in ends},
        "compile_seconds": {
            name: round(end["compile_seconds"], 1)
            for name, end in ends.items()
            if "compile_seconds" in end
        },
        "peak_mib": {name: peaks[name] for name in ends},
        "loss": {name: round(end["loss"], 4) for name, end in ends.items()},
        "packages": {name: end["packages"] for name, end in ends.items()},
        "left_out": left_out,
        "settings": {
            key: value
            for key, value in dataclasses.asdict(scenario).items()
            if key not in ("data", "variant", "mean", "std", "scale")
        },
    }
