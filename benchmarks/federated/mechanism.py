"""What WSA does to the scopes: how far clients are apart, and what averaging costs.

    python -m benchmarks mechanism [--rounds 1500]

The rows are those of `first_record`: FedAvg and FedAvg +WSA 10 in the reference setting.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.federated.first_record import Args, groups_of, named, where
from benchmarks.record.figures import Curve, caption, draw_recorded, figure_legend, shared_length
from benchmarks.record.statistics import Row, markdown_table
from benchmarks.refused import RefusedError
from benchmarks.script import Findings, Report

# What a panel shows of a round, of its diagnostics by layer.
_PANELS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "divergence between clients, nats": (
        lambda layers: max(layers.sum(), 1e-12),
        ("client_divergence",),
    ),
    "fused std of the last layer": (lambda fused: fused[-1], ("fused_std",)),
    "std lost by averaging, last layer, %": (
        lambda average, fused: 100 * (1 - average[-1] / fused[-1]),
        ("average_std", "fused_std"),
    ),
}


def controls(groups: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """FedAvg and FedAvg +WSA 10 in the reference setting."""
    return {
        label: group
        for label, group in groups.items()
        if group[0]["config"]["strength"] in (0, 10)
        and group[0]["config"]["learning_rate"] == 0.01
        and group[0]["config"]["init"] == "reference"
    }


def curve(row: Row, panel: str) -> Curve:
    """A panel's values over the evaluated rounds of a run."""
    value, names = _PANELS[panel]
    # None, which a round without an accepted client has, becomes NaN.
    series = [[np.asarray(each[name], float) for name in names] for each in row["diagnostics"]]
    return [each["round"] for each in row["diagnostics"]], [float(value(*of)) for of in series]


def table(shown: dict[str, list[Row]]) -> str:
    """Each panel at the first evaluated round and at the last, a line a run."""
    head = ["setting", "seed"]
    head += [f"{panel}: {when}" for panel in _PANELS for when in ("first", "last")]
    lines = []
    for label, group in shown.items():
        for row in group:
            line = [label, str(row["config"]["seed"])]
            for panel in _PANELS:
                rounds, values = curve(row, panel)
                line += [f"{values[at]:.2g} (round {rounds[at]})" for at in (0, -1)]
            lines.append(line)
    return markdown_table(head, lines)


def figure(shown: dict[str, list[Row]], rounds: int) -> Figure:
    """A panel a quantity, against rounds."""
    picture = Figure(figsize=(11, 4.2), layout="constrained")
    for axes, panel in zip(picture.subplots(1, 3), _PANELS, strict=True):
        drawn = {
            label: shared_length([curve(row, panel) for row in group])
            for label, group in shown.items()
        }
        draw_recorded(axes, drawn, xlabel="round", ylabel=panel, legend=False)
    picture.axes[0].set_yscale("log")
    # Under all panels: below one of them, the names would widen the gap beside it.
    figure_legend(picture)
    return caption(picture, f"{where(shown, rounds)}; bands: seeds")


def found(args: Args) -> Findings:
    """The table and the figure."""
    shown = controls(groups_of(args))
    if not shown:
        raise RefusedError(
            f"{args.results} holds no FedAvg and no +WSA 10 at learning rate 0.01 of "
            f"{args.rounds} rounds; make them with python -m benchmarks federated"
        )
    return Findings(
        title=f"What WSA does to the scopes, {args.rounds:,} rounds",
        text=table(shown),
        figures={named("mechanism", args): lambda: figure(shown, args.rounds)},
        summary={"rounds": args.rounds, "settings": list(shown)},
    )


SCRIPT = Report(
    name="mechanism",
    description=__doc__,
    arguments=Args,
    found=found,
)
