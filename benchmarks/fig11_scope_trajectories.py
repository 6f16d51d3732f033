"""WSA's Figure 11: mean and std of conv2 on each client over the rounds.

    python -m benchmarks.fig11_scope_trajectories [--preset smoke|cpu|paper]

One column a method (FedAvg, FedProx, FedAvg +WSA), a row each for mean and std, one colour a
client; the scopes are taken after local training, before the average. paper: 1,500 rounds, one
seed. cpu cuts the rounds to 100: 3 cells. smoke: the last layer of the MLP on digits.
"""

import sys
from collections.abc import Sequence

import numpy as np

from benchmarks.comparison import Comparison, Row, markdown_table
from benchmarks.figures import RowsOf, remark_absent
from benchmarks.paper_numbers import CLAIMS
from benchmarks.paper_table import Args, Experiment, run_experiment


def comparisons(args: Args) -> list[Comparison]:
    """FedProx and WSA, each held against FedAvg, with the scopes of one layer kept."""
    layer = "Dense_1/kernel" if args.preset == "smoke" else "Conv_1/kernel"
    baseline = args.cell(client_scopes=layer)
    methods = {
        "FedAvg +WSA": args.cell(client_scopes=layer, strength=args.strength),
        "FedProx": args.cell(client_scopes=layer, algorithm="fed_prox"),
    }
    return [
        Comparison(section=layer, label=label, baseline=baseline, treated=cell)
        for label, cell in methods.items()
    ]


def columns(lines: Sequence[Comparison], rows_of: RowsOf) -> dict[str, Row | None]:
    """The figure's columns in the paper's order, each the first recorded seed."""
    cells = {
        "FedAvg": lines[0].baseline,
        "FedProx": lines[1].treated,
        "FedAvg +WSA": lines[0].treated,
    }
    return {label: next(iter(rows_of(cell)), None) for label, cell in cells.items()}


def spread_between_clients(row: Row) -> list[float]:
    """Std between clients of their layer's std, in percent of its mean, for each kept round.

    Dropped clients have no scope and do not count.
    """
    stds = np.asarray(row["client_scopes"]["std"], float)
    return (100 * np.nanstd(stds, axis=1) / np.nanmean(stds, axis=1)).tolist()


def table(lines: Sequence[Comparison], rows_of: RowsOf) -> str:
    """How far the clients' stds lie apart, early and over all rounds."""
    body = []
    for label, row in columns(lines, rows_of).items():
        if row is None:
            body.append([label, "", "", ""])
            continue
        apart = spread_between_clients(row)
        early = apart[: max(1, len(apart) // 10)]
        body.append(
            [label, str(row["rounds_done"]), f"{np.mean(early):.4f}", f"{np.mean(apart):.4f}"]
        )
    head = ["method", "rounds", "spread of std, first tenth, %", "spread of std, all rounds, %"]
    return markdown_table(head, body)


def figure(lines: Sequence[Comparison], rows_of: RowsOf):
    """The paper's layout; the axes of a row are shared, so that methods can be held together."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    picture = Figure(figsize=(12, 6.2), layout="constrained")
    grid = picture.subplots(2, 3, sharex=True, sharey="row")
    found = columns(lines, rows_of)
    for column, (label, row) in enumerate(found.items()):
        grid[0, column].set_title(label, fontsize=11)
        grid[1, column].set_xlabel("round")
        for place, moment in enumerate(("mean", "std")):
            axes = grid[place, column]
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", color="#e3e7eb", linewidth=0.8)
            if row is None:
                continue
            values = np.asarray(row["client_scopes"][moment], float)
            for client in range(values.shape[1]):
                axes.plot(
                    row["client_scopes"]["round"], values[:, client], linewidth=1.1,
                    color=colormaps["tab10"](client % 10), label=f"client {client}",
                )  # fmt: skip
    for place, moment in enumerate(("mean", "std")):
        grid[place, 0].set_ylabel(f"{moment} of {lines[0].section}")
    shown = [axes for axes in grid[0] if axes.lines]
    handles, names = shown[0].get_legend_handles_labels()
    picture.legend(handles, names, loc="outside right center", frameon=False, fontsize=9)
    for column, row in enumerate(found.values()):
        if row is None:
            for axes in grid[:, column]:
                remark_absent(axes)
    return picture


EXPERIMENT = Experiment(
    name="fig11_scope_trajectories",
    title="Figure 11: the scope of conv2 on each client",
    description=__doc__,
    comparisons=comparisons,
    seeds={"smoke": (0,), "cpu": (0,), "paper": (0,)},
    claim=CLAIMS["figure 11"],
    table=table,
    figure=figure,
)


def main(argv: list[str] | None = None) -> None:
    run_experiment(EXPERIMENT, argv)


if __name__ == "__main__":
    main(sys.argv[1:])
