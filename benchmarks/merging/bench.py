"""What the merging experiments share: arguments, and where models, rows and figures are."""

import dataclasses
import functools
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from matplotlib.figure import Figure

from benchmarks.federated.cell import DATASET_NAMES
from benchmarks.merging.model_cell import ModelCell, Trained, train_model
from benchmarks.record.data import data_digests
from benchmarks.record.failure import FAILURES, reason
from benchmarks.record.figures import caption
from benchmarks.record.ledger import RESULTS, RUNS, Ledger, cell_id, is_finished, provenance
from benchmarks.record.statistics import Row
from benchmarks.script import Findings, NothingRecordedError, Reported, State, Summary

Preset = Literal["smoke", "cpu", "paper"]


@dataclass(frozen=True, kw_only=True)
class MergingArgs:
    """Arguments of every merging script; models trained and rows recorded before are kept."""

    preset: Preset = "cpu"
    """smoke: seconds, on embedded digits; cpu: two cores; paper: accelerator."""
    seed: tuple[int, ...] = ()
    """Seeds of pairs instead of the preset's."""
    data_dir: Annotated[
        str | None, tyro.conf.arg(help_behavior_hint="(default: TFDS_DATA_DIR)")
    ] = None
    report_only: bool = False
    """Print the table and draw the figure of what is recorded, and run nothing."""
    results: Path | None = None
    """Folder of the ledgers; by default benchmarks/results, for smoke the output folder."""
    runs: Path = RUNS
    """Trained models."""
    output: Path | None = None
    """Folder of figures; by default benchmarks/results, for smoke a temporary folder."""


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What an experiment has asked its bench for."""

    asked: dict[str, bool] = field(default_factory=dict)
    """Whether a row was on record, by id."""
    failed: dict[str, str] = field(default_factory=dict)
    """Why a row could not be made, by id."""
    undecided: set[str] = field(default_factory=set)
    """Choices that wait for rows: what follows from them was not asked for."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where a script's models, rows and figures are."""

    models: Ledger
    rows: Ledger
    runs: Path
    output: Path
    data_dir: str | None
    report_only: bool
    tally: Tally = field(default_factory=Tally)

    @classmethod
    def open(cls, args: MergingArgs) -> "Bench":
        """Resolve the folders; smoke runs never touch the committed results."""
        smoke = args.preset == "smoke"
        output = args.output or (
            Path(tempfile.mkdtemp(prefix="wsa_jax_smoke_")) if smoke else RESULTS
        )
        output.mkdir(parents=True, exist_ok=True)
        results = args.results or (output if smoke else RESULTS)
        return cls(
            models=Ledger(results / "models.jsonl"),
            rows=Ledger(results / "merging.jsonl"),
            runs=output / "runs" if smoke and args.runs == RUNS else args.runs,
            output=output,
            data_dir=args.data_dir,
            report_only=args.report_only,
        )

    def train(self, cell: ModelCell) -> Trained:
        """Train a model, or read it."""
        return train_model(cell, self.models, self.runs, self.data_dir)

    def row(
        self, config: Any, make: Callable[..., Row], cells: Sequence[ModelCell] = ()
    ) -> Row | None:
        """The recorded row of a configuration; made and recorded where it is not, unless
        only a report is wanted.

        ``make`` gets the trained models of ``cells``. Where one of them diverged there is nothing
        to measure: the row says so, and holds nothing else. Where something fails the row says
        why, there is none to show, and the next start tries again.
        """
        name = cell_id(config)
        found = self.rows.find(name)
        found = found if is_finished(found) else None
        self.tally.asked[name] = found is not None
        if found is not None or self.report_only:
            return found
        row = {"id": name, "kind": type(config).__name__, "config": dataclasses.asdict(config)}
        try:
            row |= self._made(config, make, cells)
        except FAILURES as error:
            self.tally.failed[name] = reason(error)
            print(f"{row['kind']} {name} failed: {reason(error)}", file=sys.stderr)
            self.rows.write(row | {"status": "failed", "reason": reason(error)} | provenance())
            return None
        return self.rows.write(row | provenance())

    def _made(self, config: Any, make: Callable[..., Row], cells: Sequence[ModelCell]) -> Row:
        models = [self.train(cell) for cell in cells]
        finite = all(model.finite for model in models)
        row: Row = {"status": "done" if finite else "diverged"}
        row |= make(*models) if finite else {}
        # What has data of its own kind says so itself.
        if "data" not in row:
            dataset = cells[0].dataset if cells else config.dataset
            side = cells[0].side if cells else 0
            row["data"] = data_digests(dataset, self.data_dir, side)
        return row | {"model_digests": {model.row["id"]: model.digest for model in models}}


class MissingTrialsError(SystemExit):
    """All that is shown depends on a choice whose trials are not on record."""


@dataclass(frozen=True, kw_only=True)
class MergingExperiment(Reported):
    """One table or figure of merged models."""

    arguments: type[MergingArgs] = MergingArgs
    collect: Callable[[Bench, Any], Any]
    """The rows there are, made where they are not and may be; something empty for none."""
    report: Callable[[Bench, Any, Any], Findings]
    """The tables and figures of what was collected."""
    data: Mapping[Preset, str] = field(default_factory=dict)
    """What figures are of, where that is no data set that the arguments name."""

    def run(self, args: MergingArgs) -> Summary:
        bench = Bench.open(args)
        shown = self._found(bench, args).show(bench.output)
        failed = {"failed": bench.tally.failed} if bench.tally.failed else {}
        return {"preset": args.preset} | shown | failed

    def findings(self, args: MergingArgs) -> Findings:
        args = dataclasses.replace(args, report_only=True)
        return self._found(Bench.open(args), args)

    def _found(self, bench: Bench, args: MergingArgs) -> Findings:
        found = self.collect(bench, args)
        if not found:
            raise NothingRecordedError(
                f"{bench.rows.path} holds none of these rows: nothing to report"
            )
        findings = self.report(bench, args, found)
        chosen = "digits" if args.preset == "smoke" else getattr(args, "dataset", None)
        named = DATASET_NAMES.get(chosen or "cifar10", "digits")
        data = self.data.get(args.preset, named)
        drawn = {
            name: functools.partial(_of_data, draw, data) for name, draw in findings.figures.items()
        }
        return dataclasses.replace(findings, figures=drawn)

    def state(self, preset: str) -> State | None:
        """Rows on record of those that the preset asks for."""
        if preset not in ("cpu", "paper"):
            return None
        bench = Bench.open(MergingArgs(preset=preset, report_only=True))
        args = dataclasses.replace(self.arguments(), preset=preset, report_only=True)
        try:
            self.collect(bench, args)
        except MissingTrialsError:
            bench.tally.undecided.add("rates")
        asked = bench.tally.asked.values()
        return State(sum(asked), len(asked), bool(bench.tally.undecided))


def _of_data(draw: Callable[[], Figure], data: str) -> Figure:
    """A figure whose title begins with the data it is of."""
    figure = draw()
    return caption(figure, data, join=": ")


def on_record(
    collect: Callable[[Bench, Any], Any], arguments: type[MergingArgs] = MergingArgs, **extra: Any
) -> dict[str, Any]:
    """What an experiment has on record, by size; nothing runs, and sizes without rows are left out.

    ``extra`` are further arguments of the experiment.
    """
    found = {}
    sizes: dict[str, Preset] = {"full size": "paper", "small networks": "cpu"}
    for size, preset in sizes.items():
        args = dataclasses.replace(arguments(**extra), preset=preset, report_only=True)
        try:
            found[size] = collect(Bench.open(args), args)
        except MissingTrialsError:
            continue
    return {size: rows for size, rows in found.items() if rows}


def seeds_of(args: MergingArgs, presets: Mapping[Preset, Sequence[int]]) -> Sequence[int]:
    """The seeds asked for, or the preset's."""
    return args.seed or presets[args.preset]
