"""What experiments on models fine-tuned from one base share: fine-tuning, merging, tables."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import optax
from matplotlib.figure import Figure

from benchmarks.merging.merge_rows import accuracies, accuracy_of, endpoints, recorded
from benchmarks.merging.pairs import plain
from benchmarks.record.figures import METHODS as FIGURE_METHODS
from benchmarks.record.figures import caption, plain_axes
from benchmarks.record.statistics import Row, markdown_table, spread
from wsa_jax import scope_divergence, weight_scope
from wsa_jax.merging import (
    METHODS,
    Budget,
    Evidence,
    MergeResult,
    Model,
    interpolate_path,
    loss_barrier,
    merge_table,
    slerp,
    trace_spec,
)
from wsa_jax.runs.identity import digest
from wsa_jax.training import FitSettings, Task, fit

TRAININGS = {"plain": 0.0, "WSA": 10.0}
"""Strengths of WSA towards the base's scope, by the name of the training."""


def trainings(preset: str, share: float = 1.0) -> dict[str, float]:
    """Strengths by training, a share of the usual ones; smoke runs have the plain one alone."""
    kept = {"plain": 0.0} if preset == "smoke" else TRAININGS
    return {name: share * strength for name, strength in kept.items()}


Found = Mapping[str, Sequence[Row]]
"""Rows by training, one a seed."""


class FineTuning(Protocol):
    """The settings of a cell that fine-tuning and merging look at."""

    @property
    def epochs(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def strength(self) -> float: ...
    @property
    def samples(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def seed(self) -> int: ...


class Examples(NamedTuple):
    """Inputs and labels."""

    inputs: np.ndarray
    labels: np.ndarray


def tuned(cell: FineTuning, task: Task, base: Model, data: Examples, part: int) -> Model:
    """The base fine-tuned on one model's data."""
    steps = max(1, cell.epochs * (len(data.labels) // cell.batch_size))
    found = fit(
        jax.random.key(2 * cell.seed + part),
        task,
        data.inputs,
        data.labels,
        settings=FitSettings(
            steps=steps, batch_size=cell.batch_size, weight_decay=5e-4, clip_norm=5.0
        ),
        learning_rate=optax.warmup_cosine_decay_schedule(
            0.0, cell.learning_rate, max(1, steps // 10), steps
        ),
        target=weight_scope(base.params) if cell.strength else None,
        strength=cell.strength,
        params=base.params,
        model_state=base.model_state,
    )
    return Model(found.params, found.model_state)


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
    methods: Sequence[str],
) -> Row:
    """Fine-tune a model on each part, merge them by every method, and measure the line."""
    logits = task.logits
    assert logits is not None
    models = [tuned(cell, task, base, data, part) for part, data in enumerate(parts)]
    spec = trace_spec(
        lambda tree, inputs: logits(*Model.of(tree), inputs), base.variables, parts[0].inputs[:2]
    )
    rows = np.random.default_rng(2_000 + cell.seed).permutation(
        sum(len(data.labels) for data in parts)
    )[: cell.samples]
    pool = [np.concatenate(arrays)[rows] for arrays in zip(*parts, strict=True)]
    known = METHODS | {"slerp": spherical}
    lines = merge_table(
        jax.random.key(cell.seed),
        models,
        spec,
        Evidence(task, pool[0], pool[1], base=base),
        test=(test.inputs, test.labels),
        methods={name: known[name] for name in methods},
        budget=Budget(steps=cell.steps, restarts=1),
    )
    scopes = [weight_scope(model.params) for model in (base, *models)]
    return {
        "lines": [recorded(line) for line in lines],
        "layers": list(scopes[0].names),
        "divergence": [np.asarray(scope_divergence(s, scopes[0])).tolist() for s in scopes[1:]],
        "base": digest(*jax.tree.leaves(base)),
    }


def line_between(task: Task, models: Sequence[Model], test: Examples) -> Row:
    """Loss and accuracy on the line between two models without statistics, and its barrier."""
    first, second = (model.params for model in models)
    path = interpolate_path(task, first, second, *test, num_points=11)
    return {
        "t": plain(path.t),
        "loss": plain(path.loss),
        "accuracy": plain(path.accuracy),
        "barrier": float(loss_barrier(path)),
    }


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
    lines = [["one half alone", *(spread(endpoints(rows)) for rows in found.values())]]
    lines += [
        [name, *(spread(accuracies(rows, name)) for rows in found.values())]
        for name in [*shown_methods(found), "ensemble"]
    ]
    seeds = [
        f"{name}, {len(rows)} {'seed' if len(rows) == 1 else 'seeds'}"
        for name, rows in found.items()
    ]
    return markdown_table(["method", *seeds], lines)


def on_shared_seeds(found: Found) -> Found:
    """The rows of the seeds that every training has, so that means can be compared."""
    seeds = [{row["config"]["seed"] for row in rows} for rows in found.values()]
    shared = set.intersection(*seeds)
    return {
        name: [row for row in rows if row["config"]["seed"] in shared]
        for name, rows in found.items()
    }


def draw(found: Found) -> Figure:
    """Mean accuracy of each method over the seeds that all trainings have, a bar a training."""
    found = on_shared_seeds(found)
    names = [*shown_methods(found), "ensemble"]
    figure = Figure(figsize=(6.8, 0.34 * len(names) + 1.2), layout="constrained")
    axes = figure.subplots()
    for index, (training, rows) in enumerate(found.items()):
        means = [np.mean(accuracies(rows, name) or [np.nan]) for name in names]
        places = np.arange(len(names)) + 0.38 * index
        color = FIGURE_METHODS["with WSA" if training == "WSA" else "without WSA"]
        axes.barh(places, means, 0.36, label=training, color=color)
    axes.set_yticks(np.arange(len(names)) + 0.19, names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("test accuracy over all classes, %")
    plain_axes(axes, grid="x")
    axes.legend(frameon=False, fontsize=8)
    count = min(map(len, found.values()))
    seeds = "1 seed" if count == 1 else f"means over {count} seeds"
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
