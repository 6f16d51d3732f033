"""One local step of a federated client against PyTorch and plain Flax, in one alternating run.

    python -m benchmarks.speed.client_step

Every side trains the federated CNN (batch 50, 32x32x3, global-norm clip, weight decay, SGD) with
the same number of threads: ours inside `lax.scan` over steps inside `lax.map` over clients, PyTorch
as a hand-written loop in a process of its own. Times are milliseconds a step, medians over rounds
in which the sides take turns; compilation is reported apart. The last line is one JSON object.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks.ledger import RESULTS, Ledger, provenance

BATCH = 50


@dataclass(frozen=True, kw_only=True)
class Args:
    """What to measure and how often."""

    preset: Literal["smoke", "cpu"] = "cpu"
    """smoke: one short round, nothing recorded; cpu: the recorded figures."""
    clients: int = 10
    steps: int = 20
    rounds: int = 9
    """Counted rounds; one more warms up."""
    threads: int = os.cpu_count() or 1
    """For PyTorch; restrict the whole run with taskset to give JAX fewer."""
    torch_python: str = sys.executable
    """A Python that has PyTorch 2.13."""
    plain_flax: bool = True
    """Measure flax.linen.Conv in the same scan too: slow, so few steps of one client."""
    results: Path = RESULTS / "speed_client_step.jsonl"


class TorchPeer:
    """A child process that trains when told to, and waits on a pipe meanwhile."""

    def __init__(self, python: str, threads: int):
        worker = Path(__file__).with_name("torch_client_step.py")
        self._process = subprocess.Popen(
            [python, str(worker), str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.available = bool(self._read_hello())
        self.peak_mib = 0.0

    def _read_hello(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def seconds(self, layout: str, steps: int) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{layout} {steps}\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        self.peak_mib = answer["peak_mib"]
        return answer["seconds"]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


def peak_mib() -> float:
    """Largest resident memory of this process; rusage would count the parent at the fork."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def plain_cnn() -> Any:
    """The same network from Flax's own parts."""
    from flax import linen as nn

    class PlainCNN(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            for channels in (32, 64):
                x = nn.relu(nn.Conv(channels, (5, 5), padding="VALID")(x))
                x = nn.max_pool(x, (2, 2), (2, 2))
            x = x.reshape(x.shape[0], -1)
            for width in (384, 192):
                x = nn.relu(nn.Dense(width)(x))
            return nn.Dense(10)(x)

    return PlainCNN()


def compiled(
    module: Any, clients: int, steps: int, strength: float | None
) -> tuple[Callable[[], float], float]:
    """A function that trains once and returns its seconds, and the seconds compilation took."""
    import jax
    import jax.numpy as jnp
    import optax

    import wsa_jax
    from wsa_jax.federated import LocalSettings
    from wsa_jax.federated.client import RoundSettings, ScopeForm, local_optimizer

    images = jax.random.normal(jax.random.key(0), (clients, steps, BATCH, 32, 32, 3))
    labels = jax.random.randint(jax.random.key(1), (clients, steps, BATCH), 0, 10)
    params = module.init(jax.random.key(2), images[0, 0])["params"]
    target = wsa_jax.weight_scope(params)
    form = None if strength is None else ScopeForm()

    def loss(params: Any, x: Any, y: Any) -> Any:
        logits = module.apply({"params": params}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def run(params: Any, moments: Any, settings: RoundSettings, images: Any, labels: Any) -> Any:
        held_to = dataclasses.replace(target, mean=moments[0], std=moments[1])
        optimizer = local_optimizer(LocalSettings(), settings, form)

        def step(carry: Any, batch: Any) -> Any:
            params, state = carry
            grads = jax.grad(loss)(params, *batch)
            updates, state = optimizer.update(grads, state, params, target=held_to)
            return (optax.apply_updates(params, updates), state), None

        def client(data: Any) -> Any:
            return jax.lax.scan(step, (params, optimizer.init(params)), data)[0][0]

        return jax.lax.map(client, (images, labels))

    settings = RoundSettings(jnp.float32(0.01), jnp.float32(strength or 0.0))
    arguments = (params, (target.mean, target.std), settings, images, labels)
    begin = time.perf_counter()
    executable = jax.jit(run).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - begin

    def once() -> float:
        begin = time.perf_counter()
        jax.block_until_ready(executable(*arguments))
        return time.perf_counter() - begin

    return once, compile_seconds


def measure(args: Args) -> dict[str, Any]:
    """Take turns over all sides; return medians, spreads and ratios."""
    import jax

    from wsa_jax.models import CNN

    ours, compile_seconds = compiled(CNN(num_classes=10), args.clients, args.steps, None)
    ours()
    peak = peak_mib()
    with_wsa, _ = compiled(CNN(num_classes=10), args.clients, args.steps, 1.0)
    total = args.clients * args.steps
    sides: dict[str, tuple[Callable[[], float], int]] = {
        "ours": (ours, total), "ours_wsa": (with_wsa, total),
    }  # fmt: skip
    torch = TorchPeer(args.torch_python, args.threads)
    if torch.available:
        sides["torch_channels_last"] = (lambda: torch.seconds("channels_last", total), total)
        sides["torch_default"] = (lambda: torch.seconds("default", total), total)
    if args.plain_flax:
        plain, _ = compiled(plain_cnn(), 1, 2, None)
        sides["flax_conv"] = (plain, 2)

    times: dict[str, list[float]] = {name: [] for name in sides}
    for index in range(args.rounds + 1):
        for name, (once, steps) in sides.items():
            # Plain Flax takes seconds a step: three turns are enough for a ratio of fifty.
            if name == "flax_conv" and index > 3:
                continue
            seconds = once()
            if index:
                times[name].append(1000 * seconds / steps)
    if torch.available:
        torch.close()
    milliseconds = {name: statistics.median(values) for name, values in times.items()}

    def paired(numerator: str, denominator: str) -> float:
        pairs = zip(times[numerator], times[denominator], strict=False)
        return round(statistics.median(a / b for a, b in pairs), 3)

    peers = [
        name for name in ("torch_channels_last", "torch_default", "flax_conv") if name in times
    ]
    return {
        "benchmark": "client_step",
        "ratios": {name: paired("ours", name) for name in peers}
        | {"wsa_over_plain": paired("ours_wsa", "ours")},
        "milliseconds": {name: round(value, 2) for name, value in milliseconds.items()},
        "spread": {name: [round(min(v), 2), round(max(v), 2)] for name, v in times.items()},
        "compile_seconds": round(compile_seconds, 1),
        "peak_mib": {
            "ours": round(peak),
            "torch": round(torch.peak_mib) if torch.available else None,
        },
        "torch": torch.available,
        "settings": {
            "clients": args.clients,
            "steps": args.steps,
            "rounds": args.rounds,
            "threads": args.threads,
        },
        "jax": jax.__version__,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def print_table(figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"One client step, ms, jax {figures['jax']}")
    for name in ("", "median", "least", "greatest", "ours over it"):
        table.add_column(name, justify="right" if name else "left")
    for name, value in figures["milliseconds"].items():
        low, high = figures["spread"][name]
        ratio = figures["ratios"].get(name)
        table.add_row(
            name,
            f"{value:.1f}",
            f"{low:.1f}",
            f"{high:.1f}",
            "" if ratio is None else f"{ratio:.3f}",
        )
    Console(width=100).print(table)
    if not figures["torch"]:
        print("no PyTorch in --torch-python: its rows are missing (pip install -e '.[peers]')")
    print(
        f"WSA on over off: {figures['ratios']['wsa_over_plain']:.3f}; "
        f"compilation {figures['compile_seconds']} s"
    )


def main(argv: list[str] | None = None) -> None:
    args = tyro.cli(Args, args=argv, description=__doc__)
    if args.preset == "smoke":
        args = Args(
            preset="smoke",
            clients=1,
            steps=1,
            rounds=1,
            plain_flax=False,
            torch_python=args.torch_python,
        )
    figures = measure(args)
    print_table(figures)
    if args.preset != "smoke":
        where = provenance()
        Ledger(args.results).write({"id": f"{where['time']}-jax{figures['jax']}"} | figures | where)
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1:])
