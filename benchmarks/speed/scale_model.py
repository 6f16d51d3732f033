"""A cost model of one federated round, fitted to the recorded curves, and what it predicts.

    python -m benchmarks speed federated_round --scaling
    python -m benchmarks speed scale_model

For S sampled of C clients on D devices, a round takes

    T = fixed + ceil(S / D) steps t + all_reduce(B, D) + gather(S, D) [client states only]

seconds and each device holds

    M = model copies + data + C (index row) + (C / D + 2 S) (client state)

bytes. The fixed part and t are fitted to this machine's curves by least squares. For an
accelerator they, the links and the memory are settings, printed beside what follows from them:
assumptions, not measurements. "Data streamed" marks rounds whose examples fit no device: the
library keeps all of them there today.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.record.ledger import RESULTS, Ledger
from benchmarks.record.statistics import Row
from benchmarks.script import Command, Summary

MIB = 2**20
CNN_BYTES = 4 * 744_330
IMAGE_BYTES = 32 * 32 * 3 + 4


@dataclass(frozen=True, kw_only=True)
class Args:
    """An accelerator; its numbers are assumptions until measured."""

    results: Path = RESULTS / "speed_federated_round.jsonl"
    steps: int = 20
    examples: int = 500
    """Examples a client."""
    step_seconds: float = 4e-4
    """One local step of the CNN, batch 50: kernel launches, not arithmetic, set it."""
    fixed_seconds: float = 2e-3
    memory_gib: float = 139.0
    """Of one device."""
    link_gb: float = 50.0
    """All-reduce bandwidth of a device, GB/s."""
    latency: float = 2e-5
    """Of one hop of a collective, s."""
    host_gb: float = 20.0
    """From host memory to a device, GB/s, where the data does not fit on it."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a round's cost depends on."""

    step_seconds: float
    fixed_seconds: float
    memory: float
    link: float
    latency: float
    host: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A round: seconds by part, bytes by part on one device, and what is the most of it."""

    seconds: dict[str, float]
    memory: dict[str, float]
    fits: bool

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def fit(points: list[Row], steps: int) -> tuple[float, float]:
    """Fixed seconds of a round and seconds of a step, by least squares on relative errors."""
    participants = np.array([point["participants"] for point in points], float)
    seconds = np.array([point["seconds"] for point in points])
    columns = np.stack([np.ones_like(participants), participants * steps], axis=1)
    fixed, step = np.linalg.lstsq(columns / seconds[:, None], np.ones_like(seconds), rcond=None)[0]
    return float(fixed), float(step)


def fit_memory(points: list[Row]) -> tuple[float, float]:
    """MiB of a process, and MiB more for each client, where ten take part."""
    few = [point for point in points if point["participants"] == 10]
    clients = np.array([point["clients"] for point in few], float)
    slope, base = np.polyfit(clients, [point["peak_mib"] for point in few], 1)
    return float(base), float(slope)


def predict(
    machine: Machine,
    sampled: int,
    devices: int,
    *,
    clients: int,
    steps: int,
    examples: int,
    state_bytes: int = 0,
) -> Prediction:
    """One round of `map` clients on every device, with the data on the device if it fits."""
    block = math.ceil(sampled / devices)
    hops = math.ceil(math.log2(devices)) if devices > 1 else 0
    share = 2 * (devices - 1) / devices
    reduced = CNN_BYTES + 4 * sampled * 24  # the sums, and each participant's row of diagnostics
    data = clients * examples * IMAGE_BYTES
    memory = {
        "model": 6.0 * CNN_BYTES,
        "indices": 4.0 * clients * (examples + 1),
        # The reduce-scatter and the gather each hold a row for every participant.
        "client states": clients * state_bytes / devices + 2.0 * sampled * state_bytes,
        "data": float(data),
    }
    streams = sum(memory.values()) > machine.memory
    seconds = {
        "local compute": machine.fixed_seconds + block * steps * machine.step_seconds,
        "all-reduce": share * reduced / machine.link + hops * machine.latency,
        "client states": share * sampled * state_bytes / machine.link,
        "host input": block * examples * IMAGE_BYTES / machine.host if streams else 0.0,
    }
    if streams:
        chunk = 2 * min(block, 1000)  # one in use, one on its way
        memory["data"] = float(chunk * examples * IMAGE_BYTES)
        memory["indices"] = 4.0 * chunk * (examples + 1)
    return Prediction(seconds=seconds, memory=memory, fits=sum(memory.values()) <= machine.memory)


def rows_of(machine: Machine, args: Args) -> list[Row]:
    """Predictions for 1,000 to 1,000,000 sampled clients, a tenth of all, on 1 to 256 devices."""
    rows = []
    for sampled in (10**3, 10**4, 10**5, 10**6):
        for devices in (1, 8, 64, 256):
            row: Row = {"sampled": sampled, "devices": devices}
            for name, state in (("fed_avg", 0), ("scaffold", CNN_BYTES)):
                found = predict(
                    machine,
                    sampled,
                    devices,
                    clients=10 * sampled,
                    steps=args.steps,
                    examples=args.examples,
                    state_bytes=state,
                )
                most = max(found.seconds, key=lambda part: found.seconds[part])
                largest = max(found.memory, key=lambda part: found.memory[part])
                row[name] = {
                    "seconds": float(f"{found.total:.3g}"),
                    "most": f"{most} {found.seconds[most] / found.total:.0%}",
                    "gib": float(f"{sum(found.memory.values()) / 2**30:.3g}"),
                    "largest": largest,
                    "fits": found.fits,
                    "streams": found.seconds["host input"] > 0,
                }
            rows.append(row)
    return rows


def markdown(rows: list[Row]) -> str:
    lines = [
        "| sampled, of ten times as many | devices | FedAvg, s | most of it | GiB a device "
        "| SCAFFOLD, s | most of it | GiB a device |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [f"{row['sampled']:,}", str(row["devices"])]
        for name in ("fed_avg", "scaffold"):
            one = row[name]
            gib = f"{one['gib']:,.3g}" + (
                "" if one["fits"] else f": **{one['largest']} too large**"
            )
            cells += [f"{one['seconds']:,.3g}", one["most"], gib]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def fitted_curve(row: Row) -> Summary:
    """The costs that a recorded curve has, and how far the curve is from them."""
    fixed, step = fit(row["points"], row["steps"])
    base, slope = fit_memory(row["points"])
    errors = [
        abs(fixed + point["participants"] * row["steps"] * step - point["seconds"])
        / point["seconds"]
        for point in row["points"]
    ]
    return {
        "fixed_seconds": round(fixed, 4),
        "step_seconds": round(step, 5),
        "largest_error": round(max(errors), 3),
        "base_mib": round(base),
        "mib_a_client": round(slope, 4),
    }


def run(args: Args) -> Summary:
    curves = {
        row["algorithm"]: row
        for row in Ledger(args.results).rows()
        if row["benchmark"] == "federated_scaling" and not row.get("unfinished")
    }
    if not curves:
        sys.exit(
            f"{args.results} holds no finished curve; make one with "
            "python -m benchmarks speed federated_round --scaling"
        )
    fitted = {name: fitted_curve(row) for name, row in curves.items()}
    for name, costs in fitted.items():
        print(
            f"{name}: a round of this machine = {costs['fixed_seconds']:.3f} s + participants x "
            f"steps x {1000 * costs['step_seconds']:.2f} ms (largest error "
            f"{costs['largest_error']:.0%}); memory = {costs['base_mib']:.0f} MiB + "
            f"{costs['mib_a_client']:.3f} MiB a client"
        )
    machine = Machine(
        step_seconds=args.step_seconds,
        fixed_seconds=args.fixed_seconds,
        memory=args.memory_gib * 2**30,
        link=args.link_gb * 1e9,
        latency=args.latency,
        host=args.host_gb * 1e9,
    )
    rows = rows_of(machine, args)
    print(f"\nAssumed accelerator: {machine}\n\n{markdown(rows)}")
    return {"ratios": {}, "fitted": fitted, "predicted": rows}


SCRIPT = Command(name="scale_model", description=__doc__, arguments=Args, function=run)
