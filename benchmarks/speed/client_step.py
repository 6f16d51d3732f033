"""One local step of a federated client against PyTorch and plain Flax, in one alternating run.

    python -m benchmarks speed client_step

Every side trains the federated CNN (batch 50, 32x32x3, global-norm clip, weight decay, SGD) on
the same cores, with one thread for each: ours inside `lax.scan` over steps inside `lax.map` over
clients, PyTorch as a hand-written loop in processes of its own. Times are milliseconds a step,
medians over rounds in which the sides take turns; compilation is reported apart.
"""

import contextlib
import dataclasses
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, PyTree

from benchmarks.record.ledger import RESULTS
from benchmarks.script import Command, Summary
from benchmarks.speed.alternating import (
    PeerError,
    leaving_out,
    ratios,
    summary,
    take_turns,
    timed,
)
from benchmarks.speed.cores import available_cores, use_cores
from benchmarks.speed.peers.side import Kind, Side, has_package, peak_mib
from benchmarks.speed.peers.turns import Scenario
from benchmarks.speed.reporting import SpeedArgs, print_sides, recorded
from wsa_jax.federated import LocalSettings
from wsa_jax.federated.client import RoundSettings, ScopeForm, local_optimizer
from wsa_jax.models import CNN
from wsa_jax.scope.scope import weight_scope

BATCH = 50


@dataclass(frozen=True, kw_only=True)
class Args(SpeedArgs):
    """What to measure and how often."""

    clients: int = 10
    steps: int = 20
    rounds: int = 9
    threads: int = dataclasses.field(default_factory=available_cores)
    """And cores, of every side: JAX has no more of them than PyTorch."""
    torch_python: str = sys.executable
    """A Python that has PyTorch 2.13."""
    plain_flax: bool = True
    """Measure flax.linen.Conv in the same scan too: slow, so few steps of one client."""
    results: Path = RESULTS / "speed_client_step.jsonl"


class PlainCNN(nn.Module):
    """The same network from Flax's own parts."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for channels in (32, 64):
            x = nn.relu(nn.Conv(channels, (5, 5), padding="VALID")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        for width in (384, 192):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


def compiled(
    module: nn.Module, clients: int, steps: int, strength: float | None
) -> tuple[Callable[[], float], float]:
    """A function that trains once and returns ms a step, and the seconds compilation took."""
    images = jax.random.normal(jax.random.key(0), (clients, steps, BATCH, 32, 32, 3))
    labels = jax.random.randint(jax.random.key(1), (clients, steps, BATCH), 0, 10)
    params = module.init(jax.random.key(2), images[0, 0])["params"]
    target = weight_scope(params)
    form = None if strength is None else ScopeForm()

    def loss(params: PyTree, x: Array, y: Array) -> Array:
        logits: Any = module.apply({"params": params}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def run(
        params: PyTree,
        moments: tuple[Array, Array],
        settings: RoundSettings,
        images: Array,
        labels: Array,
    ) -> PyTree:
        held_to = dataclasses.replace(target, mean=moments[0], std=moments[1])
        optimizer = local_optimizer(LocalSettings(), settings, form)

        def step(carry: tuple[PyTree, PyTree], batch: tuple[Array, Array]) -> Any:
            params, state = carry
            grads = jax.grad(loss)(params, *batch)
            updates, state = optimizer.update(grads, state, params, target=held_to)
            return (optax.apply_updates(params, updates), state), None

        def client(data: tuple[Array, Array]) -> PyTree:
            return jax.lax.scan(step, (params, optimizer.init(params)), data)[0][0]

        return jax.lax.map(client, (images, labels))

    settings = RoundSettings(jnp.float32(0.01), jnp.float32(strength or 0.0))
    arguments = (params, (target.mean, target.std), settings, images, labels)
    begin = time.perf_counter()
    executable = jax.jit(run).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - begin

    def once() -> float:
        _, seconds, _ = timed(lambda: jax.block_until_ready(executable(*arguments)))
        return 1000 * seconds / (clients * steps)

    return once, compile_seconds


def start_torch(args: Args, layout: str) -> Side:
    found = shutil.which(args.torch_python)
    # Absolute, but not resolved: an environment's Python is a link out of it.
    python = str(Path(found).absolute()) if found else ""
    if not python or not has_package(python, "torch"):
        raise PeerError(
            f"--torch-python {args.torch_python} has no PyTorch; name a Python that has, or "
            "pip install -e '.[peers]'"
        )
    scenario = Scenario(
        clients=args.clients,
        participants=args.clients,
        steps=args.steps,
        batch=BATCH,
        learning_rate=0.01,
        rounds=args.rounds,
        threads=args.threads,
    )
    return Side(python, Kind("torch_step", "torch", layout), scenario)


def measure(args: Args) -> Summary:
    """Take turns over all sides; return medians, spreads and ratios."""
    ours, compile_seconds = compiled(CNN(num_classes=10), args.clients, args.steps, None)
    ours()
    peak = peak_mib()
    with_wsa, _ = compiled(CNN(num_classes=10), args.clients, args.steps, 1.0)
    sides: dict[str, Callable[[], float]] = {"ours": ours, "ours_wsa": with_wsa}
    left_out: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        peers: dict[str, Side] = {}
        # Each is a process that imports PyTorch: one of them shows that all run.
        layouts = ("default",) if args.preset == "smoke" else ("channels_last", "default")
        for layout in layouts:
            name = f"torch_{layout}"
            with leaving_out(name, left_out):
                side = stack.enter_context(contextlib.closing(start_torch(args, layout)))
                peers[name] = side
                sides[name] = lambda side=side: 1000 * side.round() / (args.clients * args.steps)
        if args.plain_flax:
            sides["flax_conv"], _ = compiled(PlainCNN(), 1, 2, None)
        # Plain Flax takes seconds a step: three turns are enough for a ratio of fifty.
        times = take_turns(sides, args.rounds, at_most={"flax_conv": 3}, left_out=left_out)
        torch_peaks = [round(peers[name].peak_mib()) for name in peers if name in times]
    return {
        "benchmark": "client_step",
        "ratios": ratios(times),
        **summary("milliseconds", times, 2),
        "compile_seconds": round(compile_seconds, 1),
        "peak_mib": {"ours": round(peak), "torch": max(torch_peaks, default=None)},
        "torch": bool(torch_peaks),
        "left_out": left_out,
        "settings": {
            "clients": args.clients,
            "steps": args.steps,
            "rounds": args.rounds,
            "threads": args.threads,
        },
        "jax": jax.__version__,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def run(args: Args) -> Summary:
    if args.preset == "smoke":
        args = dataclasses.replace(args, clients=1, steps=1, rounds=1, plain_flax=False)
    use_cores(args.threads)
    figures = measure(args)
    title = f"One client step, ms, jax {figures['jax']}"
    print_sides(title, "milliseconds", figures, over="ours over it", digits=1)
    print(
        f"WSA on over off: {figures['ratios']['wsa_over_plain']:.3f}; "
        f"compilation {figures['compile_seconds']} s"
    )
    return recorded(args, figures)


SCRIPT = Command(name="client_step", description=__doc__, arguments=Args, function=run)
