"""WSA's Figure 7: the loss in the plane of w1, w2 and the matched w2, without and with WSA.

    python -m benchmarks.fig7_landscape [--preset smoke|cpu|paper]

The models are those of `fig6_rebasin` (its default baseline and its WSA setting of strength 10).
cpu evaluates 21 x 21 points on 1,000 test images, paper 41 x 41 on all. smoke: MLPs on digits.
"""

import json
import sys
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.merging.fig6_rebasin import BASES, WSA, setting
from benchmarks.merging.model_cell import ModelCell, Trained, cell_task, model_data
from benchmarks.merging.pairs import Bench, MergingArgs, aligned, pair_cells, plain
from benchmarks.record.ledger import cell_id
from benchmarks.record.statistics import Row

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
        model=cell.label, first=cell_id(parts[0]), second=cell_id(parts[1]),
        resolution=resolution, examples=examples, seed=seed,
    )  # fmt: skip

    def make(*trained: Trained) -> Row:
        from wsa_jax.merging import loss_plane

        first, second = (model.variables for model in trained)
        matched, _ = aligned(cell, first, second, "weight", seed)
        images, labels = (part[:examples] for part in model_data(parts[0], bench.data_dir).test)
        plane = loss_plane(
            cell_task(cell), first["params"], second["params"], matched["params"], images, labels,
            resolution=resolution,
        )  # fmt: skip
        return {name: plain(getattr(plane, name)) for name in FIELDS}

    return bench.row(config, make, parts)


def numbers(row: Row, field: str) -> np.ndarray:
    """A field of a plane, NaN where the row has None: there the loss was not finite."""
    return np.asarray(row[field], float)


def draw(rows: dict[str, Row]) -> Any:
    """Both planes beside each other, on one scale of colours."""
    from matplotlib.figure import Figure

    from wsa_jax.merging.evaluate.plane import LossPlane
    from wsa_jax.merging.evaluate.plots import draw_plane

    values = np.concatenate([np.ravel(numbers(row, "loss")) for row in rows.values()])
    figure = Figure(figsize=(5.6 * len(rows), 4.6), layout="constrained")
    panels = np.ravel(figure.subplots(1, len(rows), squeeze=False))
    for axes, (name, row) in zip(panels, rows.items(), strict=True):
        plane = LossPlane(**{field: jnp.asarray(numbers(row, field)) for field in FIELDS})
        limits = (float(np.nanmin(values)), float(np.nanmax(values)))
        draw_plane(axes, plane, names=("w1", "w2", "matched w2"), limits=limits)
        axes.set_title(name, fontsize=10)
    return figure


def main(argv: list[str] | None = None) -> None:
    """Evaluate both planes and draw them side by side."""
    args = tyro.cli(MergingArgs, args=argv, description=__doc__)
    if len(args.seed) > 1:
        given = " ".join(map(str, args.seed))
        sys.exit(f"--seed {given} are {len(args.seed)} seeds, and the figure shows one; give one")
    bench, base, seed = Bench.open(args), BASES[args.preset], (args.seed or (0,))[0]
    cells = {"without WSA": base, "with WSA": setting(base, WSA[0])}
    rows = {
        name: plane_row(bench, cell, seed, RESOLUTION[args.preset], EXAMPLES[args.preset])
        for name, cell in cells.items()
    }
    rows = {
        name: row
        for name, row in rows.items()
        # None of models that diverged, and no loss may be finite on the plane of others.
        if row is not None and "loss" in row and np.isfinite(numbers(row, "loss")).any()
    }
    if not rows:
        sys.exit(f"{bench.rows.path} holds none of these rows: nothing to report")
    figure = bench.output / "fig7_landscape.png"
    draw(rows).savefig(figure, dpi=150)
    last: dict[str, Any] = {"benchmark": "fig7_landscape", "preset": args.preset}
    print("\n## Figure 7: the plane of w1, w2 and the matched w2\n")
    for name, row in rows.items():
        losses = numbers(row, "loss")
        least, greatest = float(np.nanmin(losses)), float(np.nanmax(losses))
        last[name] = {"least": least, "greatest": greatest}
        print(f"{name}: loss from {least:.3f} to {greatest:.3f}")
    print(f"\nThe paper: {CLAIM}\n\nfigure: {figure}")
    print(json.dumps(last | {"figure": str(figure)}))


if __name__ == "__main__":
    main(sys.argv[1:])
