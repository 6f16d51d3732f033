"""What the scripts of the paper's federated tables and figures share: arguments, runs, reports.

A script states its comparisons, most decisive first, and what is drawn. Cells are shared by all
scripts through one ledger: a cell that one table has run, no other runs again.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.federated.cell import ALGORITHM_NAMES, DATASET_NAMES, PRESETS, Cell
from benchmarks.federated.comparison import (
    Comparison,
    RowsOf,
    comparison_table,
    paired_gains,
    summary,
)
from benchmarks.federated.figures import context, paired_figure
from benchmarks.federated.run_cells import RunOptions, run_cells
from benchmarks.record.data import missing_data
from benchmarks.record.figures import caption
from benchmarks.record.ledger import RESULTS, RUNS, Ledger, cell_id, is_finished
from benchmarks.record.statistics import Row
from benchmarks.refused import RefusedError
from benchmarks.script import (
    Findings,
    NothingRecordedError,
    Preset,
    Reported,
    State,
    Summary,
    figure_name,
)


@dataclass(frozen=True, kw_only=True)
class CommonArgs(RunOptions):
    """Arguments of every script; finished cells are skipped, interrupted ones resume."""

    preset: Preset = "cpu"
    """smoke: seconds, on embedded digits; short: 100 rounds, about an hour of two cores; cpu: the
    standard problem, half-size images and network at full length, ten minutes of a core a cell;
    paper: in full."""
    seed: tuple[int, ...] = ()
    """Seeds instead of the preset's."""
    rounds: int | None = None
    """Rounds instead of the preset's: cells of their own."""
    dry_run: bool = False
    """List the cells and how far they are, and run nothing."""
    report_only: bool = False
    """Print the table and draw the figure of what is recorded, and run nothing."""
    results: Path | None = None
    """Ledger; by default benchmarks/results/federated.jsonl, for smoke one in the output folder."""
    output: Path | None = None
    """Folder of the figure; by default benchmarks/results, for smoke a temporary folder."""

    def base(self, **extra: Any) -> dict[str, Any]:
        """The preset's settings of a cell, with others on top."""
        rounds = {} if self.rounds is None else {"rounds": self.rounds}
        chosen = PRESETS[self.preset] | rounds
        return chosen | extra

    def cell(self, **extra: Any) -> Cell:
        """A canonical cell of the preset, seed 0."""
        return Cell(**self.base(**extra)).canonical()


@dataclass(frozen=True, kw_only=True)
class Args(CommonArgs):
    """Arguments of scripts that compare one strength; those that compare strengths have none."""

    strength: float = 10.0
    """Of +WSA; the paper does not say its own."""


def data_name(cell: Cell) -> str:
    """A data set and how alike its clients are, as sections of tables are called."""
    return f"{DATASET_NAMES.get(cell.dataset, cell.dataset)}, alpha {cell.alpha:g}"


def against_wsa(
    args: Args, section: str, label: str, paper: tuple[float, float] | None = None, **extra: Any
) -> Comparison:
    """A setting without and with WSA, the rest alike."""
    return Comparison(
        section=section,
        label=label,
        baseline=args.cell(**extra),
        treated=args.cell(strength=args.strength, **extra),
        paper=paper,
    )


def algorithm_grid(
    args: Args,
    numbers: dict[tuple[str, float], dict[str, tuple[float, float]]],
    settings: Sequence[tuple[str, float]],
    algorithms: Sequence[str],
    **extra: Any,
) -> list[Comparison]:
    """Each algorithm without and with WSA, for each data set and alpha of a table."""
    return [
        against_wsa(
            args,
            data_name(args.cell(dataset=dataset, alpha=alpha)),
            f"{ALGORITHM_NAMES[algorithm]} +WSA",
            numbers.get((dataset, alpha), {}).get(algorithm),
            **({"dataset": dataset, "alpha": alpha, "algorithm": algorithm} | extra),
        )
        for dataset, alpha in settings
        for algorithm in algorithms
    ]


@dataclass(frozen=True, kw_only=True)
class Experiment(Reported):
    """One table or figure of the paper; its figure's file has its name, and its preset's."""

    title: str
    comparisons: Callable[[Any], list[Comparison]]
    """Of the arguments."""
    seeds: dict[Preset, tuple[int, ...]]
    arguments: type[CommonArgs] = Args
    claim: str = ""
    """What the paper says where it gives no numbers."""
    table: Callable[[Sequence[Comparison], RowsOf], str] | None = None
    """Another table than `comparison_table`."""
    figure: Callable[[Sequence[Comparison], RowsOf], Figure] = paired_figure

    def run(self, args: CommonArgs) -> Summary:
        """Run or resume the cells that are not done, then print the table and draw the figure."""
        options, ledger, output = resolve(args)
        seeds = args.seed or self.seeds[args.preset]
        cells = ordered_cells(self.comparisons(args), seeds)
        last: Summary = {"preset": args.preset}
        if args.dry_run:
            return last | print_states(cells, ledger, args.data_dir)
        if not args.report_only:
            last |= failures(run_cells(cells, options, ledger))
        return last | self._found(args, ledger).show(output)

    def findings(self, args: CommonArgs) -> Findings:
        return self._found(args, ledger_of(args))

    def _found(self, args: CommonArgs, ledger: Ledger) -> Findings:
        """The table and the figure of the cells on record."""
        comparisons, seeds = self.comparisons(args), args.seed or self.seeds[args.preset]
        rows_of = recorded(ledger, seeds)
        if not any(rows_of(cell) for cell in ordered_cells(comparisons, seeds)):
            raise NothingRecordedError(
                f"{ledger.path} holds none of these cells: nothing to report"
            )
        # A baseline without a partner is no picture.
        paired = any(
            paired_gains(rows_of(line.treated), rows_of(line.baseline)) for line in comparisons
        )
        figures = {
            figure_name(self.name, args.preset): lambda: caption(
                self.figure(comparisons, rows_of), self.title, context(comparisons, rows_of)
            )
        }
        return Findings(
            title=self.title,
            text=report(self, comparisons, rows_of),
            figures=figures if paired else {},
            summary={"lines": summary(comparisons, rows_of)},
        )

    def state(self, preset: Preset) -> State | None:
        """Finished cells of those that the preset asks for."""
        if preset not in self.seeds:
            return None
        args = dataclasses.replace(self.arguments(), preset=preset)
        return cells_state(ordered_cells(self.comparisons(args), self.seeds[args.preset]))


def resolve(args: CommonArgs) -> tuple[RunOptions, Ledger, Path]:
    """Options, ledger and figure folder; smoke runs never touch the committed results."""
    smoke = args.preset == "smoke"
    output = args.output
    if output is None and smoke and args.processes > 1:
        raise RefusedError(
            f"--processes {args.processes} and no --output: each would make a temporary folder of "
            "its own; give all of them one --output"
        )
    if output is None:
        output = Path(tempfile.mkdtemp(prefix="wsa_jax_smoke_")) if smoke else RESULTS
    output.mkdir(parents=True, exist_ok=True)
    smokes = smoke and args.results is None
    ledger = Ledger(output / "federated.jsonl") if smokes else ledger_of(args)
    if smoke and args.runs == RUNS / "federated":
        args = dataclasses.replace(args, runs=output / "runs")
    return args, ledger, output


def ledger_of(args: CommonArgs) -> Ledger:
    """Where the rows are of presets that keep them."""
    return Ledger(args.results or RESULTS / "federated.jsonl")


def with_seed(cell: Cell, seed: int) -> Cell:
    """The same setting on another seed."""
    return dataclasses.replace(cell, seed=seed)


def ordered_cells(comparisons: Sequence[Comparison], seeds: Sequence[int]) -> list[Cell]:
    """Every cell once: all comparisons on the first seed, then on the next."""
    cells = [
        with_seed(cell, seed)
        for seed in seeds
        for comparison in comparisons
        for cell in (comparison.baseline, comparison.treated)
    ]
    return list({cell_id(cell): cell for cell in cells}.values())


def recorded(ledger: Ledger, seeds: Sequence[int]) -> RowsOf:
    """Look up the rows of a setting that hold an evaluation, one a seed."""
    rows = {row["id"]: row for row in ledger.rows() if row["curve"]}

    def rows_of(cell: Cell) -> list[Row]:
        found = (rows.get(cell_id(with_seed(cell, seed))) for seed in seeds)
        return [row for row in found if row is not None]

    return rows_of


def states(cells: Sequence[Cell], ledger: Ledger, data_dir: str | None) -> list[str]:
    """How far each cell is: done, so many rounds, not begun, or without data here."""
    rows = {row["id"]: row for row in ledger.rows()}

    def state(cell: Cell) -> str:
        row = rows.get(cell_id(cell))
        if is_finished(row):
            return "done"
        if missing_data(cell.dataset, data_dir):
            return "no data here"
        if row is not None and row["status"] == "failed":
            return "failed"
        return "to run" if row is None else f"{row['rounds_done']} of {cell.rounds} rounds"

    return [state(cell) for cell in cells]


def report(experiment: Experiment, comparisons: Sequence[Comparison], rows_of: RowsOf) -> str:
    """The table, what befell its runs, and what the paper claims."""
    table = comparison_table if experiment.table is None else experiment.table
    told = [table(comparisons, rows_of)]
    cells = [cell for line in comparisons for cell in (line.baseline, line.treated)]
    rows = {row["id"]: row for cell in cells for row in rows_of(cell)}
    dropped: dict[str, int] = {}
    for row in rows.values():
        dropped[row["label"]] = dropped.get(row["label"], 0) + row.get("dropped", 0)
    for label, count in dropped.items():
        if count:
            told.append(f"{label}: {count} updates were not finite and were dropped.")
    for row in rows.values():
        if row["status"] == "diverged":
            seed = row["config"]["seed"]
            told.append(f"{row['label']}, seed {seed}: diverged, its loss is not finite.")
    if experiment.claim:
        told.append(f"The paper: {experiment.claim}")
    return "\n\n".join(told)


def cells_state(cells: Sequence[Cell], *, more: bool = False) -> State:
    """How many of the cells the committed ledger holds to their end."""
    rows = {row["id"]: row for row in Ledger(RESULTS / "federated.jsonl").rows()}
    finished = sum(is_finished(rows.get(cell_id(cell))) for cell in cells)
    return State(finished, len(cells), more)


def failures(rows: Sequence[Row]) -> Summary:
    """For the last line: the cells that failed, and why; nothing where none did."""
    failed = {
        f"{row['label']}, seed {row['config']['seed']}": row["reason"]
        for row in rows
        if row["status"] == "failed"
    }
    return {"failed": failed} if failed else {}


def print_states(cells: Sequence[Cell], ledger: Ledger, data_dir: str | None) -> Summary:
    """What --dry-run prints, and its part of the last line."""
    found = states(cells, ledger, data_dir)
    for cell, state in zip(cells, found, strict=True):
        print(f"{cell_id(cell)}  {state:>18}  {cell.label}, seed {cell.seed}")
    return {"cells": len(cells), "done": found.count("done")}
