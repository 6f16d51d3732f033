"""WSA's Figure 7: the loss in the plane of w1, w2 and the matched w2, without and with WSA.

    python -m benchmarks fig7 [--preset smoke|cpu|paper]

The models are those of `fig6_rebasin` (its default baseline and its WSA setting of strength 10).
cpu evaluates 21 x 21 points on 1,000 test images, paper 41 x 41 on all. smoke: MLPs on digits.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from benchmarks.merging.bench import Bench, MergingArgs, MergingExperiment, on_record
from benchmarks.merging.fig6_rebasin import BASES, WSA, setting
from benchmarks.merging.model_cell import ModelCell, Trained, cell_task, model_data
from benchmarks.merging.pairs import aligned, pair_cells, plain
from benchmarks.record.claims import Claim, verdict_of
from benchmarks.record.figures import caption
from benchmarks.record.ledger import cell_id
from benchmarks.record.statistics import Row
from benchmarks.refused import RefusedError
from benchmarks.script import Findings, Summary, figure_name
from wsa_jax.merging import loss_plane
from wsa_jax.merging.evaluate.plane import LossPlane
from wsa_jax.merging.evaluate.plots import draw_plane

RESOLUTION = {"smoke": 5, "cpu": 21, "paper": 41}
EXAMPLES = {"smoke": 200, "cpu": 1_000, "paper": 10_000}
FIELDS = ("x", "y", "loss", "accuracy", "models")
CLAIM = (
    "without WSA an obvious peak between w1 and w2; with WSA it is lower, and w1 and the matched "
    "w2 lie in one basin (a picture; no numbers)."
)


@dataclass(frozen=True, kw_only=True)
class PlaneCell:
    """The plane of two models and the second one matched to the first."""

    model: str
    first: str
    second: str
    resolution: int
    examples: int
    seed: int = 0


def plane_row(
    bench: Bench, cell: ModelCell, seed: int, resolution: int, examples: int
) -> Row | None:
    """Evaluate the plane; one ledger row."""
    parts = pair_cells(cell, seed)
    config = PlaneCell(
        model=cell.label,
        first=cell_id(parts[0]),
        second=cell_id(parts[1]),
        resolution=resolution,
        examples=examples,
        seed=seed,
    )

    def make(*trained: Trained) -> Row:
        first, second = (model.variables for model in trained)
        matched, _ = aligned(cell, first, second, "weight", seed)
        images, labels = (part[:examples] for part in model_data(parts[0], bench.data_dir).test)
        plane = loss_plane(
            cell_task(cell),
            first["params"],
            second["params"],
            matched["params"],
            images,
            labels,
            resolution=resolution,
        )
        return {name: plain(getattr(plane, name)) for name in FIELDS}

    return bench.row(config, make, parts)


def numbers(row: Row, field: str) -> np.ndarray:
    """A field of a plane, NaN where the row has None: there the loss was not finite."""
    return np.asarray(row[field], float)


def draw(rows: dict[str, Row]) -> Figure:
    """Both planes beside each other, on one scale of colours."""
    values = np.concatenate([np.ravel(numbers(row, "loss")) for row in rows.values()])
    figure = Figure(figsize=(5.6 * len(rows), 4.6), layout="constrained")
    panels = np.ravel(figure.subplots(1, len(rows), squeeze=False))
    for axes, (name, row) in zip(panels, rows.items(), strict=True):
        plane = LossPlane(**{field: jnp.asarray(numbers(row, field)) for field in FIELDS})
        limits = (float(np.nanmin(values)), float(np.nanmax(values)))
        draw_plane(axes, plane, names=("w1", "w2", "matched w2"), limits=limits)
        axes.set_title(name, fontsize=10)
    models = dict.fromkeys(row["config"]["model"] for row in rows.values())
    return caption(figure, f"test loss in the plane, {next(iter(models))}")


def collect(bench: Bench, args: MergingArgs) -> dict[str, Row]:
    """Both planes, where their models did not diverge and some loss on them is finite."""
    if len(args.seed) > 1:
        given = " ".join(map(str, args.seed))
        raise RefusedError(
            f"--seed {given} are {len(args.seed)} seeds, and the figure shows one; give one"
        )
    base, seed = BASES[args.preset], (args.seed or (0,))[0]
    cells = {"without WSA": base, "with WSA": setting(base, WSA[0])}
    rows = {
        name: plane_row(bench, cell, seed, RESOLUTION[args.preset], EXAMPLES[args.preset])
        for name, cell in cells.items()
    }
    return {
        name: row
        for name, row in rows.items()
        if row is not None and "loss" in row and np.isfinite(numbers(row, "loss")).any()
    }


def report(bench: Bench, args: MergingArgs, rows: dict[str, Row]) -> Findings:
    """Both planes side by side, and how far their losses reach."""
    last: Summary = {}
    lines = []
    for name, row in rows.items():
        losses = numbers(row, "loss")
        least, greatest = float(np.nanmin(losses)), float(np.nanmax(losses))
        last[name] = {"least": least, "greatest": greatest}
        lines.append(f"* {name}: loss from {least:.3f} to {greatest:.3f}")
    return Findings(
        title="Figure 7: the plane of w1, w2 and the matched w2",
        text="\n".join(lines) + f"\n\nThe paper: {CLAIM}",
        figures={figure_name("fig7_landscape", args.preset): lambda: draw(rows)},
        summary=last,
    )


def claims() -> list[Claim]:
    """How high the loss rises between w1 and w2, on one seed."""
    lines = []
    for size, rows in on_record(collect).items():
        highest = {name: float(np.nanmax(numbers(row, "loss"))) for name, row in rows.items()}
        if len(highest) == 2:
            without, with_wsa = highest["without WSA"], highest["with WSA"]
            lines.append(
                Claim(
                    "WSA, Figure 7",
                    "the peak is lower with WSA",
                    f"plane of Figure 6's ResNets, {size}",
                    f"highest loss {without:.2f} without, {with_wsa:.2f} with WSA (1 seed)",
                    "",
                    verdict_of([without - with_wsa]),
                    "barriers.md#figure-7-the-plane-of-w1-w2-and-the-matched-w2",
                )
            )
    return lines


SCRIPT = MergingExperiment(
    name="fig7_landscape", description=__doc__, collect=collect, report=report, claims=claims
)
