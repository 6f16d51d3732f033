"""WSA's Figure 11: mean and std of conv2 on each client over the rounds.

    python -m benchmarks fig11 [--preset smoke|short|cpu|paper]

One column a method (FedAvg, FedProx, FedAvg +WSA), a line a client, and a row for how far apart the
stds are, which the paper's scale hides; the scopes are taken after local training, before the
average. Rows keep the means as well. paper: 1,500 rounds, one seed. short cuts the rounds
to 100: 3 cells. cpu: the standard problem. smoke: the last layer of the MLP on digits.
"""

import sys
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from benchmarks.federated.comparison import Comparison, RowsOf
from benchmarks.federated.experiment import Args, Experiment, recorded
from benchmarks.federated.figures import on_shared_seeds
from benchmarks.federated.paired_claims import SEEDS
from benchmarks.federated.paper_numbers import CLAIMS, PAPER_ROUNDS
from benchmarks.record.claims import Claim, verdict_of
from benchmarks.record.figures import INK, colors_of, plain_axes
from benchmarks.record.ledger import RESULTS, Ledger
from benchmarks.record.statistics import Row, markdown_table

MOMENTS = {"std": "std after local training", "apart": "off the clients' mean std, %"}
"""The figure's rows."""


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
    """The figure's columns in the paper's order, all on the first seed that those run share."""
    cells = {
        "FedAvg": lines[0].baseline,
        "FedProx": lines[1].treated,
        "FedAvg +WSA": lines[0].treated,
    }
    shared = on_shared_seeds(lines, rows_of)
    found = {label: next(iter(shared(cell)), None) for label, cell in cells.items()}
    if not any(found.values()) and any(rows_of(cell) for cell in cells.values()):
        sys.exit("the methods were run on different seeds; give one --seed to run them all on it")
    return found


def spread_between_clients(row: Row) -> list[float]:
    """Std between clients of their layer's std, in percent of its mean, for each kept round.

    Dropped clients have no scope and do not count.
    """
    return np.nanstd(trajectory(row, "apart"), axis=1).tolist()


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


def trajectory(row: Row, moment: str) -> np.ndarray:
    """What a row of the figure shows, for each kept round and client: [rounds, clients]."""
    if moment != "apart":
        return np.asarray(row["client_scopes"][moment], float)
    stds = trajectory(row, "std")
    return 100 * (stds / np.nanmean(stds, axis=1, keepdims=True) - 1)


def figure(lines: Sequence[Comparison], rows_of: RowsOf) -> Figure:
    """The clients' stds, a column a method, and below how far each is from the others'.

    The axes of a row are shared, so that methods can be held together. The means, which the paper
    shows as well, look alike in all columns.
    """
    shown = {name: row for name, row in columns(lines, rows_of).items() if row is not None}
    picture = Figure(figsize=(3.6 * len(shown) + 0.8, 5.4), layout="constrained")
    grid = picture.subplots(2, len(shown), sharex=True, sharey="row", squeeze=False)
    seeds = {row["config"]["seed"] for row in shown.values()}
    where = "".join(f", seed {seed}" for seed in seeds)
    picture.suptitle(f"{lines[0].section} on each client{where}", fontsize=10, color=INK)
    colors = colors_of(shown)
    for column, (label, row) in zip(grid.T, shown.items(), strict=True):
        column[0].set_title(label, fontsize=10)
        column[-1].set_xlabel("round")
        for axes, moment in zip(column, MOMENTS, strict=True):
            plain_axes(axes)
            values = trajectory(row, moment)
            axes.plot(
                row["client_scopes"]["round"], values, color=colors[label], linewidth=0.9, alpha=0.7
            )
    for axes, moment in zip(grid[:, 0], MOMENTS, strict=True):
        axes.set_ylabel(MOMENTS[moment])
        axes.ticklabel_format(axis="y", useOffset=False)
    picture.align_ylabels(grid[:, 0])
    grid[0, 0].xaxis.get_major_locator().set_params(integer=True)
    return picture


def claims() -> list[Claim]:
    """How far the clients' stds are apart with WSA, less than without, at every size on record."""
    found = []
    ledger = Ledger(RESULTS / "federated.jsonl")
    sizes = {"full size": Args(preset="paper"), "standard problem": Args(preset="cpu")}
    for size, args in (sizes | {"full size, cut": Args(preset="short", rounds=25)}).items():
        shown = columns(comparisons(args), recorded(ledger, SEEDS))
        rows = [row for name, row in shown.items() if row is not None and name != "FedProx"]
        if len(rows) < 2:
            continue
        without, with_wsa = (float(np.mean(spread_between_clients(row))) for row in rows)
        rounds = min(row["rounds_done"] for row in rows)
        found.append(
            Claim(
                "WSA, Figure 11",
                "clients' stds spread apart, with WSA they do not",
                f"conv2 of 10 clients, {rounds:,} rounds, {size}",
                f"{without:.3f} % apart without, {with_wsa:.3f} % with WSA (1 seed)",
                "",
                verdict_of([without - with_wsa], rounds=(rounds, PAPER_ROUNDS)),
                "scopes.md#figure-11-the-scope-of-conv2-on-each-client",
            )
        )
    return found


SCRIPT = Experiment(
    claims=claims,
    name="fig11_scope_trajectories",
    title="Figure 11: the scope of conv2 on each client",
    description=__doc__,
    comparisons=comparisons,
    seeds={"smoke": (0,), "short": (0,), "cpu": (0,), "paper": (0,)},
    claim=CLAIMS["figure 11"],
    table=table,
    figure=figure,
)
