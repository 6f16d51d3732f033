"""Demo on embedded real data: federated rounds and interpolation, with and without WSA."""

import functools
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from wsa_jax.data import Dataset, load_dataset
from wsa_jax.federated import LocalSettings, WeightScopeAlignment, dirichlet_equal, simulate
from wsa_jax.merging import interpolate_path, loss_barrier
from wsa_jax.models import MLP
from wsa_jax.runs.files import make_folder, write_atomically
from wsa_jax.runs.identity import text_digest
from wsa_jax.schedules import check_non_negative
from wsa_jax.scope.scope import fuse_scopes, scope_divergence, weight_scope
from wsa_jax.training.fit import FitSettings, fit
from wsa_jax.training.task import Task, classification
from wsa_jax.tree import unstack
from wsa_jax.types import Json

# Rounds; a checkpoint takes as long as one or two of them.
_CHECKPOINT_EVERY = 20


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Settings of the demo."""

    output: Path = Path("wsa-jax-demo")
    """Folder for the figure and the numbers."""
    rounds: int = 60
    """Federated rounds."""
    clients: int = 10
    """Clients, all of which take part in every round."""
    alpha: float = 0.3
    """Dirichlet concentration of the clients' classes: smaller means less alike."""
    strength: float = 1.0
    """WSA's lambda in the federated part."""
    fit_strength: float = 1.0
    """WSA's lambda while the two models to be interpolated are trained."""
    seeds: int = 3
    """Independent repetitions, the same for all settings."""


def run_demo(settings: DemoSettings, advance: Callable[[str], None]) -> Json:
    """Run both experiments and return every number; ``advance`` is called after each piece of work.

    Until it ends, its runs are kept in the output folder: if it is interrupted, equal settings
    resume it.

    Raises:
      ValueError: a setting is invalid; the message names it in one line.
    """
    check_non_negative(settings.strength)
    check_non_negative(settings.fit_strength)
    if settings.seeds < 1:
        raise ValueError(f"seeds {settings.seeds} is below 1; give a positive number")
    begin = time.perf_counter()
    train, test = load_dataset("digits"), load_dataset("digits", split="test")
    task = classification(MLP(features=(64, 10)), train.info)
    federated = {
        name: [
            _federated(settings, task, train, test, seed, wsa, advance)
            for seed in range(settings.seeds)
        ]
        for name, wsa in (
            ("FedAvg", None),
            ("FedAvg+WSA", WeightScopeAlignment(strength=settings.strength)),
        )
    }
    interpolation: dict[str, list[Json]] = {"plain": [], "WSA": []}
    for seed in range(settings.seeds):
        plain, wsa = _interpolated(settings, task, train, test, seed)
        interpolation["plain"].append(plain)
        interpolation["WSA"].append(wsa)
        advance(f"interpolation, seed {seed}")
    shutil.rmtree(_unfinished(settings))
    return {
        "settings": asdict(settings) | {"output": str(settings.output)},
        "federated": federated,
        "interpolation": interpolation,
        "seconds": round(time.perf_counter() - begin, 1),
    }


def _unfinished(settings: DemoSettings) -> Path:
    """Folder of the runs of a demo of these settings, until it ends."""
    text = json.dumps(asdict(settings), default=str, sort_keys=True)
    return settings.output / f".unfinished-{text_digest(text)}"


def demo_steps(settings: DemoSettings) -> int:
    """Count how often `run_demo` calls ``advance``."""
    return settings.seeds * (2 * settings.rounds + 1)


def _federated(
    settings: DemoSettings,
    task: Task,
    train: Dataset,
    test: Dataset,
    seed: int,
    wsa: WeightScopeAlignment | None,
    advance: Callable[[str], None],
) -> list[Json]:
    partition = dirichlet_equal(
        train.labels, clients=settings.clients, alpha=settings.alpha, seed=seed
    )
    name = "FedAvg" if wsa is None else "FedAvg+WSA"
    shown = list[Json]()

    def show(row: Json) -> None:
        shown.append(row)
        advance(f"{name}, seed {seed}")

    history = simulate(
        jax.random.key(seed),
        task,
        (train.images, train.labels),
        partition,
        rounds=settings.rounds,
        wsa=wsa,
        learning_rate=0.05,
        local=LocalSettings(steps=20, batch_size=20),
        test=(test.images, test.labels),
        evaluate_every=2,
        directory=_unfinished(settings) / f"{name}-{seed}",
        checkpoint_every=_CHECKPOINT_EVERY,
        on_round=show,
    ).history
    for _ in history[len(shown) :]:  # found in the folder
        advance(f"{name}, seed {seed}")
    return history


def _interpolated(
    settings: DemoSettings, task: Task, train: Dataset, test: Dataset, seed: int
) -> tuple[Json, Json]:
    """Train two models without WSA, then again from the same seeds, held to their fused scope."""
    keys = jax.random.split(jax.random.key(seed), 2)
    run = functools.partial(
        fit,
        keys,
        task,
        train.images,
        train.labels,
        settings=FitSettings(steps=1000, batch_size=50, momentum=0.9),
        checkpoint_every=1000,  # takes two seconds
        learning_rate=0.05,
    )
    folder = _unfinished(settings)
    plain = run(directory=folder / f"plain-{seed}").params
    target = fuse_scopes(jax.vmap(weight_scope)(plain))
    held = {"target": target, "strength": settings.fit_strength}
    regularized = run(directory=folder / f"held-{seed}", **held).params
    return _path(task, plain, test, seed), _path(task, regularized, test, seed)


def _path(task: Task, models: PyTree, test: Dataset, seed: int) -> Json:
    first, second = unstack(models)
    path = interpolate_path(task, first, second, jnp.asarray(test.images), jnp.asarray(test.labels))
    between = scope_divergence(weight_scope(first), weight_scope(second))
    return {
        "seed": seed,
        "t": np.asarray(path.t).tolist(),
        "loss": np.asarray(path.loss).tolist(),
        "accuracy": np.asarray(path.accuracy).tolist(),
        "barrier": float(loss_barrier(path)),
        "scope_divergence": np.asarray(between).tolist(),
    }


def save_demo(results: Json) -> tuple[Path, Path]:
    """Write the figure and the numbers; return their paths."""
    from matplotlib.figure import Figure

    from wsa_jax.plots import draw_curves

    output = Path(results["settings"]["output"])
    make_folder(output)
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    accuracy, divergence, path = figure.subplots(1, 3)
    federated, interpolation = results["federated"], results["interpolation"]
    evaluated = {
        name: [[row for row in history if "test_accuracy" in row] for history in runs]
        for name, runs in federated.items()
    }

    # Rounds that were not evaluated have a divergence, but no accuracy to draw.
    def curves(groups: Json, value: Callable[[Json], float]) -> Json:
        return {
            name: [([row["round"] for row in rows], [value(row) for row in rows]) for rows in runs]
            for name, runs in groups.items()
        }

    draw_curves(
        accuracy,
        curves(evaluated, lambda row: 100 * row["test_accuracy"]),
        xlabel="round",
        ylabel="test accuracy, %",
    )
    draw_curves(
        divergence,
        curves(federated, lambda row: sum(row["client_divergence"])),
        xlabel="round",
        ylabel="divergence between clients, nats",
    )
    divergence.set_yscale("log")
    draw_curves(
        path,
        {name: [(run["t"], run["loss"]) for run in runs] for name, runs in interpolation.items()},
        xlabel="from one model (0) to the other (1)",
        ylabel="test loss",
    )
    accuracy.set_title("Federated: accuracy", fontsize=10)
    divergence.set_title("Federated: weight scopes", fontsize=10)
    path.set_title("Two models interpolated", fontsize=10)
    image, numbers = output / "demo.png", output / "demo.json"
    figure.savefig(image, dpi=150)
    write_atomically(numbers, json.dumps(results, indent=1))
    return image, numbers
