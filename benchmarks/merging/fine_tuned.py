"""What experiments on models fine-tuned from one base share: fine-tuning, merging, tables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import jax
import numpy as np
import optax
from matplotlib.figure import Figure

from benchmarks.merging.adam import fit_by_adam
from benchmarks.merging.merge_rows import accuracies, accuracy_of, endpoints, recorded
from benchmarks.record.claims import Claim, verdict_of, with_interval
from benchmarks.record.figures import METHODS as FIGURE_METHODS
from benchmarks.record.figures import caption, plain_axes
from benchmarks.record.statistics import Row, markdown_table, spread
from wsa_jax import kernels, scope_divergence, weight_scope
from wsa_jax.merging import (
    Budget,
    Evidence,
    MergeResult,
    Model,
    merge_table,
    slerp,
    trace_spec,
)
from wsa_jax.merging.table import Method
from wsa_jax.runs.identity import digest
from wsa_jax.scope.layers import Rule
from wsa_jax.scope.scope import WeightScope
from wsa_jax.training import FitSettings, Task, fit

TRAININGS = {"plain": 0.0, "WSA": 10.0}
"""Strengths of WSA towards the base's scope, by the name of the training."""


def trainings(preset: str) -> dict[str, float]:
    """Strengths by training; smoke runs have the plain one alone."""
    return {"plain": 0.0} if preset == "smoke" else TRAININGS


Found = Mapping[str, Sequence[Row]]
"""Rows by training, one a seed."""


class FineTuning(Protocol):
    """The settings of a cell that fine-tuning looks at."""

    @property
    def epochs(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def strength(self) -> float: ...
    @property
    def seed(self) -> int: ...


class Examples(NamedTuple):
    """Inputs and labels."""

    inputs: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Training:
    """How models are fine-tuned, beside what their cells say."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    """SGD has momentum 0.9."""
    weight_decay: float = 5e-4
    clip_norm: float = 5.0
    select: Rule = kernels
    """The layers that WSA acts on."""


def tuned(
    cell: FineTuning,
    task: Task,
    start: Model,
    data: Examples,
    part: int,
    *,
    target: WeightScope,
    training: Training,
    runs: Path,
) -> Model:
    """One of a cell's models, fine-tuned on its data; kept in the runs folder.

    Args:
      cell: epochs, batch, rate and strength; the rate warms up over a tenth and falls as a cosine.
      task: what it is trained for.
      start: the pretrained model.
      data: what it is trained on.
      part: which model of the cell it is: it draws an order of the data of its own.
      target: the scope that WSA holds it to, if the strength is not 0.
      training: how.
      runs: where it is kept, under a digest of all that it depends on: cells share models.
    """
    steps = max(1, cell.epochs * (len(data.labels) // cell.batch_size))
    seed, adam = 2 * cell.seed + part, training.optimizer == "adam"
    numbers = [seed, cell.learning_rate, cell.strength, steps, cell.batch_size]
    numbers += [training.weight_decay, training.clip_norm, adam]
    parts = [*jax.tree.leaves((start, target)), *data, np.asarray(numbers, np.float64)]
    settings = FitSettings(
        steps=steps,
        batch_size=cell.batch_size,
        weight_decay=training.weight_decay,
        clip_norm=training.clip_norm,
        select=training.select,
    )
    shared: dict[str, Any] = {
        "settings": settings,
        "learning_rate": optax.warmup_cosine_decay_schedule(
            0.0, cell.learning_rate, max(1, steps // 10), steps
        ),
        "target": target if cell.strength else None,
        "strength": cell.strength,
        "params": start.params,
        "model_state": start.model_state,
        "directory": runs / "tuned" / digest(*parts),
    }
    given = jax.random.key(seed), task, data.inputs, data.labels
    if adam:
        found = fit_by_adam(*given, **shared)
    else:
        found = fit(*given, **shared, checkpoint_every=max(1, steps // 2))
    return Model(found.params, found.model_state)


def drawn(data: Examples, count: int, seed: int) -> Examples:
    """Samples that methods may look at."""
    rows = np.random.default_rng(2_000 + seed).permutation(len(data.labels))[:count]
    return Examples(data.inputs[rows], data.labels[rows])


def spherical(key: Any, spec: Any, models: Sequence[Model], evidence: Evidence, *, budget: Budget):
    """Half-way on the great circle of each leaf, as a method of `merge_table`."""
    del key, spec, evidence, budget
    first, second = models
    return MergeResult(slerp(first.params, second.params, 0.5), first.model_state, {})


def merged(
    cell: FineTuning,
    task: Task,
    base: Model,
    parts: Sequence[Examples],
    test: Examples,
    *,
    methods: Mapping[str, Method],
    budget: Budget,
    samples: Examples,
    training: Training,
    runs: Path,
) -> Row:
    """Fine-tune a model on each part, and merge them by every method, which see the samples."""
    logits = task.logits
    assert logits is not None
    target = weight_scope(base.params, select=training.select)
    models = [
        tuned(cell, task, base, data, part, target=target, training=training, runs=runs)
        for part, data in enumerate(parts)
    ]
    spec = trace_spec(
        lambda tree, inputs: logits(*Model.of(tree), inputs), base.variables, parts[0].inputs[:2]
    )
    lines = merge_table(
        jax.random.key(cell.seed),
        models,
        spec,
        Evidence(task, samples.inputs, samples.labels, base=base),
        test=(test.inputs, test.labels),
        methods=methods,
        budget=budget,
    )
    return {
        "lines": [recorded(line) for line in lines],
        "layers": list(target.names),
        "divergence": divergences(models, target, training.select),
        "base": digest(*jax.tree.leaves(base)),
    }


def divergences(models: Sequence[Model], target: WeightScope, select: Rule) -> list[list[float]]:
    """Of each model's layers from a scope, in nats."""
    scopes = [weight_scope(model.params, select=select) for model in models]
    return [np.asarray(scope_divergence(scope, target)).tolist() for scope in scopes]


def shown_methods(found: Found) -> list[str]:
    """Methods on record, in their order, without the ends and the ensemble."""
    names = [line["method"] for rows in found.values() for row in rows for line in row["lines"]]
    return [
        name
        for name in dict.fromkeys(names)
        if not name.startswith("model ") and name != "ensemble"
    ]


def table(found: Found) -> str:
    """A line a method, a column a training."""
    lines = [["one model alone", *(spread(endpoints(rows)) for rows in found.values())]]
    lines += [
        [name, *(spread(accuracies(rows, name)) for rows in found.values())]
        for name in [*shown_methods(found), "ensemble"]
    ]
    lines.append(["loss: average less ends", *(spread(half_way(rows)) for rows in found.values())])
    moved = [f"{np.mean([row['divergence'] for row in rows]):.2g}" for rows in found.values()]
    lines.append(["KL from the base's scope, nats", *moved])
    seeds = [
        f"{name}, {len(rows)} {'seed' if len(rows) == 1 else 'seeds'}"
        for name, rows in found.items()
    ]
    return markdown_table(["method", *seeds], lines)


def half_way(rows: Sequence[Row]) -> list[float]:
    """By how much the average's test loss is above the mean of both models' (Eq. 7 half-way)."""
    found = []
    for row in rows:
        losses = {line["method"]: line["loss"] for line in row.get("lines", ())}
        middle, first, second = (losses.get(name) for name in ("average", "model 1", "model 2"))
        if middle is not None and first is not None and second is not None:
            found.append(middle - (first + second) / 2)
    return found


def summary_of(found: Found) -> dict[str, dict[str, list[float]]]:
    """Accuracies of the last line, by training and method."""
    return {
        training: {name: accuracies(rows, name) for name in shown_methods(found)}
        for training, rows in found.items()
    }


def by_training(
    strengths: Mapping[str, float],
    seeds: Sequence[int],
    row_of: Callable[[float, int], Row | None],
) -> Found:
    """The rows there are, of a strength and a seed; seed by seed, so that pairs are whole early."""
    found: dict[str, list[Row]] = {}
    for seed in seeds:
        for name, strength in strengths.items():
            if (row := row_of(strength, seed)) is not None:
                found.setdefault(name, []).append(row)
    return found


def answers(run: str, page: str, asked: Sequence[tuple[str, Sequence[float]]]) -> list[Claim]:
    """A line for each question, with its gains, one a seed, or that nothing was run."""
    return [
        Claim("our question", claim, run, with_interval(values), "", verdict_of(values), page)
        for claim, values in asked
    ]


def on_shared_seeds(found: Found) -> Found:
    """The rows of the seeds that every training has, so that means can be compared."""
    seeds = [{row["config"]["seed"] for row in rows} for rows in found.values()]
    shared = set.intersection(*seeds)
    return {
        name: [row for row in rows if row["config"]["seed"] in shared]
        for name, rows in found.items()
    }


def draw(panels: Mapping[str, Found]) -> Figure:
    """Mean accuracy of each method over the seeds that all trainings have, a bar a training.

    A panel has the name of what it is of, and no name where it is the only one.
    """
    shared = {name: on_shared_seeds(found) for name, found in panels.items()}
    most = max(len(shown_methods(found)) for found in shared.values())
    size = (max(6.8, 4.2 * len(shared)), 0.34 * (most + 1) + 1.4)
    figure = Figure(figsize=size, layout="constrained")
    for axes, (panel, found) in zip(
        figure.subplots(1, len(shared), squeeze=False)[0], shared.items(), strict=True
    ):
        names = [*shown_methods(found), "ensemble"]
        for index, (training, rows) in enumerate(found.items()):
            means = [np.mean(accuracies(rows, name) or [np.nan]) for name in names]
            places = np.arange(len(names)) + 0.38 * index
            color = FIGURE_METHODS["with WSA" if training == "WSA" else "without WSA"]
            axes.barh(places, means, 0.36, label=training, color=color)
        axes.set_yticks(np.arange(len(names)) + 0.19, names, fontsize=8)
        axes.invert_yaxis()
        axes.set_title(panel, fontsize=10)
        axes.set_xlabel("test accuracy over all classes, %")
        plain_axes(axes, grid="x")
    bars = figure.axes[0].get_legend_handles_labels()
    figure.legend(*bars, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    counts = sorted({len(rows) for found in shared.values() for rows in found.values()})
    seeds = "1 seed" if counts == [1] else f"means over {counts[0]} seeds"
    return caption(figure, f"two models fine-tuned from one, merged; {seeds}")


def gains(found: Found, method: str, other: str, training: str = "plain") -> list[float]:
    """Accuracy of a method less another's, in points, one a seed."""
    pairs = [(accuracy_of(r, method), accuracy_of(r, other)) for r in found.get(training, ())]
    return [mine - theirs for mine, theirs in pairs if mine is not None and theirs is not None]


def wsa_gains(found: Found, method: str) -> list[float]:
    """What WSA adds to a method's accuracy, in points, paired by seed."""
    by_seed = [
        {row["config"]["seed"]: accuracy_of(row, method) for row in found.get(name, ())}
        for name in ("WSA", "plain")
    ]
    both = by_seed[0].keys() & by_seed[1].keys()
    pairs = [(by_seed[0][seed], by_seed[1][seed]) for seed in sorted(both)]
    return [mine - theirs for mine, theirs in pairs if mine is not None and theirs is not None]
