"""Pairs of trained models: aligned, interpolated, measured, and recorded in the ledger."""

import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from jaxtyping import PyTree

from benchmarks.merging.model_cell import ModelCell, Trained, cell_task, model_data, train_model
from benchmarks.record.data import data_digests
from benchmarks.record.ledger import RESULTS, RUNS, Ledger, cell_id, provenance
from benchmarks.record.statistics import Row

Preset = Literal["smoke", "cpu", "paper"]
Align = Literal["none", "weight", "rescale+weight", "rescale"]


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
class Bench:
    """Where a script's models, rows and figures are."""

    models: Ledger
    rows: Ledger
    runs: Path
    output: Path
    data_dir: str | None
    report_only: bool

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
        to measure: the row says so, and holds nothing else.
        """
        found = self.rows.find(cell_id(config))
        if found is not None or self.report_only:
            return found
        models = [self.train(cell) for cell in cells]
        finite = all(model.finite for model in models)
        row = {"id": cell_id(config), "kind": type(config).__name__}
        row |= {"status": "done" if finite else "diverged", "config": dataclasses.asdict(config)}
        row |= make(*models) if finite else {}
        row["data"] = data_digests(cells[0].dataset if cells else config.dataset, self.data_dir)
        row["model_digests"] = {model.row["id"]: model.digest for model in models}
        return self.rows.write(row | provenance())


@dataclass(frozen=True, kw_only=True)
class PathCell:
    """The line between a model and another one, aligned to it."""

    model: str
    """Label of the setting both models share."""
    first: str
    second: str
    """Their ids in the ledger of models."""
    align: Align = "none"
    points: int = 11
    examples: int = 0
    """Test examples evaluated; 0 is all."""
    seed: int = 0


def pair_cells(cell: ModelCell, seed: int) -> list[ModelCell]:
    """The models of one seed: their own initial weights, data order and part of the data."""
    return [
        dataclasses.replace(cell, seed=cell.parts * seed + part, part=part)
        for part in range(cell.parts)
    ]


def apply_fn(cell: ModelCell) -> Callable[[PyTree, Any], Any]:
    """``(variables, images) -> logits`` in evaluation mode, on uint8 images."""
    from wsa_jax.merging import Model

    task = cell_task(cell)

    def apply(tree: PyTree, images: Any) -> Any:
        return task.logits(*Model.of(tree), images)

    return apply


def model_spec(cell: ModelCell, tree: PyTree) -> Any:
    """Which axes of a cell's variables move together, traced."""
    import jax
    import jax.numpy as jnp

    from wsa_jax.data import dataset_info
    from wsa_jax.merging import trace_spec

    shape = (2, *dataset_info(cell.dataset).image_shape)
    return trace_spec(apply_fn(cell), tree, jax.ShapeDtypeStruct(shape, jnp.uint8))


def aligned(
    cell: ModelCell, first: PyTree, second: PyTree, align: Align, seed: int
) -> tuple[PyTree, dict[str, Any]]:
    """The second model moved towards the first, and what the align says of itself."""
    import jax

    from wsa_jax.merging import permute_units, rescale, scale_units, weight_matching

    spec, key, info = model_spec(cell, first), jax.random.key(seed), dict[str, Any]()
    if "rescale" in align:
        rescaling = rescale(spec, first, second)
        second = scale_units(spec, second, rescaling.scales)
        info |= plain(rescaling.info)
    if "weight" in align:
        matching = weight_matching(key, spec, first, second)
        second = permute_units(spec, second, matching.permutations)
        info |= plain(matching.info)
    return second, info


def path_row(
    bench: Bench, cell: ModelCell, seed: int, align: Align, *, points: int, examples: int
) -> Row | None:
    """Train or read the pair, align, and evaluate the line; one ledger row."""
    pair = pair_cells(cell, seed)
    config = PathCell(
        model=cell.label, first=cell_id(pair[0]), second=cell_id(pair[1]), align=align,
        points=points, examples=examples, seed=seed,
    )  # fmt: skip

    def make(first: Trained, second: Trained) -> Row:
        from wsa_jax.scope.scope import scope_divergence, weight_scope

        data = model_data(pair[0], bench.data_dir)
        anchor = first.variables
        moved, info = aligned(cell, anchor, second.variables, align, seed)
        scopes = [weight_scope(tree["params"]) for tree in (anchor, moved)]
        return {
            "divergence": np.asarray(scope_divergence(scopes[1], scopes[0])).tolist(),
            "layers": list(scopes[0].names),
            "info": info,
            "validation": measured_path(cell, anchor, moved, data.validation, points),
            "test": measured_path(cell, anchor, moved, data.test, points, examples),
        }

    return bench.row(config, make, pair)


def barriers(rows: Iterable[Row | None], part: str = "test") -> list[float]:
    """Eq. 7 of every row there is, but for lines that are not finite and models that diverged."""
    found = (row.get(part, {}).get("barrier") for row in rows if row is not None)
    return [barrier for barrier in found if barrier is not None]


def measured_path(
    cell: ModelCell,
    first: PyTree,
    second: PyTree,
    part: tuple[np.ndarray, np.ndarray],
    points: int,
    examples: int = 0,
) -> dict[str, Any]:
    """Loss and accuracy on the line, and both barriers."""
    from wsa_jax.merging import Model, accuracy_barrier, interpolate_path, loss_barrier

    images, labels = (array[: examples or None] for array in part)
    (params, state), (other, other_state) = Model.of(first), Model.of(second)
    path = interpolate_path(
        cell_task(cell), params, other, images, labels,
        model_state=state, second_state=other_state, num_points=points,
    )  # fmt: skip
    return {
        "t": plain(path.t), "loss": plain(path.loss), "accuracy": plain(path.accuracy),
        "barrier": float(loss_barrier(path)),
        "barrier_endpoints": float(loss_barrier(path, definition="endpoints")),
        "accuracy_barrier": float(accuracy_barrier(path)),
    }  # fmt: skip


def plain(value: Any) -> Any:
    """Arrays as lists of a few digits, for JSON."""
    if isinstance(value, dict):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if hasattr(value, "dtype"):
        return plain(np.asarray(value).tolist())
    return float(f"{value:.6g}") if isinstance(value, float) else value


def seeds_of(args: MergingArgs, presets: Mapping[str, Sequence[int]]) -> Sequence[int]:
    """The seeds asked for, or the preset's."""
    return args.seed or presets[args.preset]
