"""What the demo trains and merges; every number of it."""

import functools
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from wsa_jax import checks
from wsa_jax.data import Dataset, load_dataset
from wsa_jax.merging import (
    AxisSpec,
    LearningSettings,
    align,
    fine_tune,
    interpolate_path,
    labelled_examples,
    loss_barrier,
    np_merge,
    trace_spec,
    weight_matching,
)
from wsa_jax.models import MLP
from wsa_jax.runs.identity import text_digest
from wsa_jax.schedules import check_non_negative
from wsa_jax.scope.scope import fuse_scopes, scope_divergence, weight_scope
from wsa_jax.training.evaluation import evaluate
from wsa_jax.training.fit import FitSettings, fit
from wsa_jax.training.task import Task, classification
from wsa_jax.tree import lerp, stack, unstack
from wsa_jax.types import Json

_LEARNING_RATE = 0.1
_NP_RATE, _FINE_TUNING_RATE = 0.1, 1e-3
# One program for all layers, where each operation on each shape would be one.
_scope = jax.jit(weight_scope)
# Small, so that coefficients and the choice among steps rest on what few labels tell.
_HELD_OUT = 100


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Settings of the demo."""

    output: Path = Path("wsa-jax-demo")
    """Folder for the figure and the numbers."""
    seeds: int = 3
    """Pairs of networks, and pairs of specialists."""
    steps: int = 2000
    """Training steps of each network."""
    examples: int = 200
    """Labelled examples that NP Merge and fine-tuning see."""
    strength: float = 10.0
    """WSA's lambda while the networks are trained again."""


def check_settings(settings: DemoSettings) -> None:
    """Raise a ValueError that names an invalid setting in one line."""
    for name in ("seeds", "steps", "examples"):
        checks.count(name, getattr(settings, name))
    check_non_negative(settings.strength)


class _Material(NamedTuple):
    """What all parts of the demo share."""

    settings: DemoSettings
    task: Task
    train: Dataset
    test: Dataset
    folder: Path


def run_demo(settings: DemoSettings, advance: Callable[[str], None]) -> Json:
    """Run all experiments and return every number; ``advance`` is called after each piece of work.

    Until it ends, its runs are kept in the output folder: if it is interrupted, equal settings
    resume it.

    Raises:
      ValueError: a setting is invalid; the message names it in one line.
    """
    check_settings(settings)
    begin = time.perf_counter()
    train, test = load_dataset("digits"), load_dataset("digits", split="test")
    text = json.dumps(asdict(settings), default=str, sort_keys=True)
    folder = settings.output / f".unfinished-{text_digest(text)}"
    task = classification(MLP(features=(64, 64, 64, 10)), train.info)
    material = _Material(settings, task, train, test, folder)

    plain = _train(material, "plain")
    advance("two networks")
    spec = trace_spec(_network(material.task), plain[0], train.images[:2])
    results: Json = {
        "settings": asdict(settings) | {"output": str(settings.output)},
        "spec": [
            {"group": group.name, "units": group.size, "leaves": [tie.leaf for tie in group.ties]}
            for group in spec.groups
        ],
        "plain": _pairs(material, spec, plain, advance),
        "specialists": _specialists(material, advance),
    }
    # The target is one scope for all: the fusion of those that the networks ended with.
    target = fuse_scopes(jax.vmap(weight_scope)(stack(plain)))
    held = _train(material, "held", target=target, strength=settings.strength)
    advance("two networks, held by WSA")
    results["held"] = _pairs(material, spec, held, advance)
    shutil.rmtree(folder)
    return results | {"seconds": round(time.perf_counter() - begin, 1)}


def demo_steps(settings: DemoSettings) -> int:
    """Count how often `run_demo` calls ``advance``."""
    return 3 + 3 * settings.seeds


def _network(task: Task) -> Callable[[PyTree, Any], Any]:
    return lambda params, images: task.logits(params, {}, images) if task.logits else None


def _train(material: _Material, name: str, **held: Any) -> list[PyTree]:
    """Train a pair of networks for each seed, all at once."""
    settings, train = material.settings, material.train
    fitted = fit(
        jax.random.split(jax.random.key(0), 2 * settings.seeds),
        material.task,
        train.images,
        train.labels,
        settings=FitSettings(steps=settings.steps),
        learning_rate=_LEARNING_RATE,
        directory=material.folder / name,
        checkpoint_every=settings.steps,
        **held,
    )
    return unstack(fitted.params)


def _pairs(
    material: _Material, spec: AxisSpec, models: list[PyTree], advance: Callable[[str], None]
) -> list[Json]:
    """What becomes of the average of each pair, before and after its units are matched."""
    rows = []
    for seed in range(material.settings.seeds):
        first, second = models[2 * seed : 2 * seed + 2]
        matching = weight_matching(jax.random.key(seed), spec, first, second)
        matched = align(spec, second, matching)
        between = scope_divergence(_scope(first), _scope(second))
        rows.append(
            {
                "accuracy": [_accuracy(material, model) for model in (first, second)],
                "scope_divergence": float(between.sum()),
                "as trained": _path(material, first, second),
                "matched": _path(material, first, matched),
            }
        )
        advance("units matched")
    return rows


def _path(material: _Material, first: PyTree, second: PyTree) -> Json:
    test = material.test
    path = interpolate_path(
        material.task,
        first,
        second,
        jnp.asarray(test.images),
        jnp.asarray(test.labels),
        num_points=11,
    )
    return {
        "t": np.asarray(path.t).tolist(),
        "loss": np.asarray(path.loss).tolist(),
        "barrier": float(loss_barrier(path)),
        "average": _accuracy(material, lerp(first, second, 0.5)),
    }


def _specialists(material: _Material, advance: Callable[[str], None]) -> list[Json]:
    """Two networks from one start, each of which sees half of the digits, and their merges."""
    settings, train = material.settings, material.train
    keys = jax.random.split(jax.random.key(1), settings.seeds)
    start, _ = jax.vmap(material.task.init)(keys)
    halves = [np.flatnonzero(train.labels < 5), np.flatnonzero(train.labels >= 5)]
    least = min(map(len, halves))  # of one size, so that one compilation serves both
    trained = [
        fit(
            keys,
            material.task,
            train.images[rows[:least]],
            train.labels[rows[:least]],
            settings=FitSettings(steps=settings.steps),
            learning_rate=_LEARNING_RATE,
            params=start,
            directory=material.folder / f"specialists {index}",
            checkpoint_every=settings.steps,
        ).params
        for index, rows in enumerate(halves)
    ]
    advance("specialists")
    rows = []
    for seed, models in enumerate(zip(*map(unstack, trained), strict=True)):
        merged = _merges(material, list(models), seed)
        rows.append({name: _accuracy(material, params) for name, params in merged.items()})
        advance("NP Merge")
    return rows


def _merges(material: _Material, models: list[PyTree], seed: int) -> dict[str, PyTree]:
    settings, train = material.settings, material.train
    order = np.random.default_rng(seed).permutation(len(train))
    few, held_out = (
        labelled_examples(train.images[rows], train.labels[rows])
        for rows in np.split(order[: settings.examples + _HELD_OUT], [settings.examples])
    )
    learn = functools.partial(
        _learn, material.task, few, held_out, min(50, settings.examples), jax.random.key(seed)
    )
    average = lerp(models[0], models[1], 0.5)
    return {
        "digits 0 to 4": models[0],
        "digits 5 to 9": models[1],
        "average": average,
        "average, fine-tuned": learn(fine_tune, average, _FINE_TUNING_RATE),
        "NP Merge": learn(np_merge, models, _NP_RATE),
    }


def _learn(
    task: Task,
    few: PyTree,
    held_out: PyTree,
    batch_size: int,
    key: Any,
    method: Callable[..., Any],
    models: PyTree,
    rate: float,
) -> PyTree:
    """Learn from the few examples; the best step is chosen on others."""
    return method(
        key,
        task.loss,
        models,
        few,
        settings=LearningSettings(steps=300, batch_size=batch_size),
        learning_rate=rate,
        held_out=held_out,
    ).params


def _accuracy(material: _Material, params: PyTree) -> float:
    sums = evaluate(material.task, params, {}, material.test.images, material.test.labels)
    return float(sums.means()["accuracy"])
