"""Merge tables of trained models, recorded: what the NP Merge scripts share."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from benchmarks.merging.bench import Bench, MergingArgs, MergingExperiment, Preset, seeds_of
from benchmarks.merging.model_cell import ModelCell, Trained, cell_task, model_data
from benchmarks.merging.pairs import model_spec, plain
from benchmarks.record.claims import Claim
from benchmarks.record.figures import caption, draw_recorded, figure_legend
from benchmarks.record.ledger import cell_id
from benchmarks.record.statistics import Row, markdown_table, spread
from benchmarks.script import Findings, figure_name
from wsa_jax.merging import METHODS, Budget, Evidence, Model, merge_table
from wsa_jax.merging.table import Method

Line = dict[str, Any]
Growth = Mapping[int, Mapping[int, Row]]
"""Rows by what grows, then by seed."""


@dataclass(frozen=True, kw_only=True)
class TableCell:
    """One call of `merge_table`."""

    model: str
    """Label of the setting the models share."""
    models: tuple[str, ...]
    """Their ids in the ledger of models."""
    methods: tuple[str, ...]
    samples: int
    steps: int
    np_learning_rate: float = 0.1
    fine_tuning_rate: float = 1e-3
    part: str = "test"
    """Evaluated on: test, or validation to choose settings."""
    seed: int = 0


def samples_of(cell: ModelCell, count: int, seed: int, data_dir: str | None) -> tuple:
    """Samples that methods may look at: drawn from all models' training data together."""
    images, labels = model_data(dataclasses.replace(cell, split="all", part=0), data_dir).train
    rows = np.random.default_rng(1000 + seed).permutation(len(labels))[:count]
    return images[rows], labels[rows]


def table_row(
    bench: Bench,
    cells: Sequence[ModelCell],
    seed: int,
    *,
    methods: tuple[str, ...],
    samples: int,
    steps: int,
    rates: tuple[float, float] = (0.1, 1e-3),
    part: str = "test",
    extra: Mapping[str, Method] | None = None,
) -> Row | None:
    """Train or read the models, merge by every method, record the table as one row.

    ``extra`` are methods by name that are not among the library's, for the names in ``methods``.
    """
    config = TableCell(
        model=cells[0].label,
        models=tuple(cell_id(cell) for cell in cells),
        methods=methods,
        samples=samples,
        steps=steps,
        np_learning_rate=rates[0],
        fine_tuning_rate=rates[1],
        part=part,
        seed=seed,
    )

    def make(*trained: Trained) -> Row:
        models = [Model(one.params, one.model_state) for one in trained]
        spec = model_spec(cells[0], models[0].variables)
        known = {**METHODS, **(extra or {})}
        # Matched from one start, the published one, as on record.
        budget = Budget(
            steps=steps, np_learning_rate=rates[0], fine_tuning_rate=rates[1], restarts=1
        )
        lines = merge_table(
            jax.random.key(seed),
            models,
            spec,
            Evidence(cell_task(cells[0]), *samples_of(cells[0], samples, seed, bench.data_dir)),
            test=getattr(model_data(cells[0], bench.data_dir), part),
            methods={name: known[name] for name in methods},
            budget=budget,
        )
        return {"lines": [recorded(line) for line in lines]}

    return bench.row(config, make, cells)


def accuracy_of(row: Row | None, method: str) -> float | None:
    """Accuracy of a line, in percent; None where there is none, or its model diverged."""
    return next(iter(_accuracies([] if row is None else [row], lambda name: name == method)), None)


def score_of(row: Row | None, method: str) -> float | None:
    """What `choose_rates` goes by: the accuracy, the worst of all where the model diverged."""
    accuracy = accuracy_of(row, method)
    return -math.inf if accuracy is None and row is not None else accuracy


def choose_rates(
    score: Callable[[str, tuple[float, float]], float | None],
    grid: Sequence[tuple[float, float]],
) -> tuple[float, float] | None:
    """The learning rates of best validation accuracy, as many tried for each of the two.

    None while a trial is missing: the competition is open.

    Args:
      score: ``(method, rates) -> accuracy``, on the validation part; None where there is none.
      grid: rates of NP Merge and of fine-tuning to try.
    """
    best = []
    for index, method in enumerate(("NP Merge", "fine-tuning")):
        scores = {rates[index]: score(method, rates) for rates in grid}
        known = {rate: value for rate, value in scores.items() if value is not None}
        if len(known) < len(scores):
            return None
        best.append(max(known, key=lambda rate: known[rate]))
    return best[0], best[1]


def accuracies(rows: Iterable[Row], method: str) -> list[float]:
    """Accuracies of a line over rows, in percent; rows without it are left out."""
    return _accuracies(rows, lambda name: name == method)


def endpoints(rows: Iterable[Row]) -> list[float]:
    """Accuracies of the models themselves, in percent."""
    return _accuracies(rows, lambda name: name.startswith("model "))


def _accuracies(rows: Iterable[Row], wanted: Callable[[str], bool]) -> list[float]:
    # A row of models that diverged has no lines, and a merge that did has no loss.
    lines = (line for row in rows for line in row.get("lines", ()) if wanted(line["method"]))
    return [100 * line["accuracy"] for line in lines if line["loss"] is not None]


def recorded(line: Line) -> Line:
    """A line without its arrays."""
    kept = {
        name: plain(value)
        for name, value in line["info"].items()
        if name in ("best_step", "diverged", "diverged_step")
    }
    return {name: plain(line[name]) for name in ("method", "accuracy", "loss", "seconds")} | {
        "info": kept
    }


def growth_curves(found: Growth, method: str) -> list[tuple[list, list]]:
    """Accuracy against what grows, one run a seed, at the counts that all of the seeds have.

    Means over other seeds are not to be compared. A seed with less than half of the counts is left
    out, so that one just begun does not take away what the others show.
    """
    seeds = sorted({seed for rows in found.values() for seed in rows})
    kept = [
        seed for seed in seeds if 2 * sum(seed in rows for rows in found.values()) >= len(found)
    ]
    values = {
        count: [accuracy_of(rows.get(seed), method) for seed in kept]
        for count, rows in found.items()
    }
    shared = {count: line for count, line in values.items() if None not in line}
    return [(list(shared), list(run)) for run in zip(*shared.values(), strict=True)]


@dataclass(frozen=True, kw_only=True)
class Growing:
    """Merge tables against something that grows: samples, models."""

    name: str
    title: str
    growing: str
    """What grows."""
    row_of: Callable[[Bench, MergingArgs, int, int], Row | None]
    """Makes the row of a count and a seed."""
    counts: Mapping[Preset, Sequence[int]]
    seeds: Mapping[Preset, Sequence[int]]
    methods: Sequence[str]
    claim: str

    def collect(self, bench: Bench, args: MergingArgs) -> Growth:
        """The rows there are."""
        seeds = seeds_of(args, self.seeds)
        made = {
            count: {seed: self.row_of(bench, args, count, seed) for seed in seeds}
            for count in self.counts[args.preset]
        }
        return {
            count: kept
            for count, rows in made.items()
            if (kept := {seed: row for seed, row in rows.items() if row is not None})
        }

    def report(self, bench: Bench, args: MergingArgs, found: Growth) -> Findings:
        """The table, a line a count, and a figure with a line a method."""
        shown = (*self.methods, "ensemble")
        lines = [
            [f"{count:,}", spread(endpoints(rows.values()))]
            + [spread(accuracies(rows.values(), method)) for method in shown]
            + [str(len(rows))]
            for count, rows in found.items()
        ]
        head = [self.growing, "ends", *shown, "seeds"]
        accuracy = {
            str(count): {method: accuracies(rows.values(), method) for method in shown}
            for count, rows in found.items()
        }
        return Findings(
            title=f"{self.title}: test accuracy, % (± std)",
            text=f"{markdown_table(head, lines)}\n\nThe paper: {self.claim}",
            figures={
                figure_name(self.name, args.preset): lambda: self.draw(
                    found, self.counts[args.preset]
                )
            },
            summary={"accuracy": accuracy},
        )

    def draw(self, found: Growth, counts: Sequence[int]) -> Figure:
        """Accuracy of each method against what grows."""
        shown = (*self.methods, "ensemble")
        figure = Figure(figsize=(6.6, 4.4), layout="constrained")
        axes = figure.subplots()
        series = {method: growth_curves(found, method) for method in shown}
        draw_recorded(axes, series, xlabel=self.growing, ylabel="test accuracy, %", legend=False)
        figure_legend(figure, columns=4 if len(shown) <= 4 else 3)
        if counts[-1] > 10 * counts[0]:
            axes.set_xscale("log")
            axes.minorticks_off()
        axes.set_xticks(list(found), [f"{count:,}" for count in found])
        rows = next(iter(found.values())).values()
        models = ", ".join(dict.fromkeys(row["config"]["model"] for row in rows))
        return caption(figure, self.title, f"{models}; bands: {len(rows)} seeds")

    def leads(self, found: Growth, count: int, ours: str, theirs: str) -> list[float]:
        """One method's accuracy less another's at a count, in points, one a seed."""
        pairs = [
            (accuracy_of(row, ours), accuracy_of(row, theirs))
            for row in found.get(count, {}).values()
        ]
        return [mine - other for mine, other in pairs if mine is not None and other is not None]

    def script(
        self, description: str, claims: Callable[[], Sequence[Claim]] | None = None
    ) -> MergingExperiment:
        """The script of it; its description is the docstring of the module."""
        return MergingExperiment(
            name=self.name,
            description=description,
            collect=self.collect,
            report=self.report,
            claims=claims,
        )
