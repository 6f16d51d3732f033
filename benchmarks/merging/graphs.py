"""Do graph networks merge? The papers leave it open: GCN and GraphSAGE, matched or not, with WSA.

    python -m benchmarks graphs [--preset smoke|cpu|paper] [--data-dir FOLDER_OF_CORA]

Two models of one setting are trained from different seeds on the same nodes; the barrier (Eq. 7, on
the test nodes) is that of the line between them, before and after weight matching. Three baselines
and three WSA settings compete on seed 0 by the validation loss of the matched average, which weighs
the ends and the barrier; the winners meet on the other seeds, paired.

cpu and paper: Cora, two layers with 16 units, no dropout, 200 steps on all 140 labelled nodes, five
seeds beside seed 0. smoke: a GCN on a planted graph of 120 nodes.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree
from matplotlib.figure import Figure

from benchmarks.merging.bench import (
    Bench,
    MergingArgs,
    MergingExperiment,
    Preset,
    on_record,
    seeds_of,
)
from benchmarks.merging.pairs import barriers, plain
from benchmarks.record.claims import Claim, verdict_of, with_interval
from benchmarks.record.figures import caption, draw_recorded, figure_legend
from benchmarks.record.graphs import LabelledGraph, labelled_graph
from benchmarks.record.statistics import Row, Settings, markdown_table, spread
from benchmarks.script import Findings, figure_name
from wsa_jax import constant_target, scope_divergence, weight_scope
from wsa_jax.merging import (
    accuracy_barrier,
    align,
    interpolate_path,
    loss_barrier,
    trace_spec,
    weight_matching,
)
from wsa_jax.models import GCN, GraphSAGE
from wsa_jax.scope.scope import WeightScope
from wsa_jax.training import FitSettings, Task, fit, node_task

Network = Literal["gcn", "sage"]
NETWORKS: dict[Network, str] = {"gcn": "GCN", "sage": "GraphSAGE"}
MODULES = {"gcn": GCN, "sage": GraphSAGE}
ALIGNS = {"none": "as they are", "weight": "matched"}


@dataclass(frozen=True, kw_only=True)
class GraphPair:
    """Two models of one setting on a graph, and the line between them."""

    # Without defaults: ids hold them, and differ from those of other kinds of rows.
    dataset: str
    network: Network
    hidden: int = 16
    steps: int = 200
    learning_rate: float = 0.05
    weight_decay: float = 5e-4
    dropout: float = 0.0
    strength: float = 0.0
    target_std: float = 0.0
    """WSA's target: N(0, target_std²), or the initial scope of seed 0 where it is 0."""
    seed: int = 0


BASELINES: list[Settings] = [{}, {"learning_rate": 0.2}, {"weight_decay": 5e-3}]
WSA: list[Settings] = [{"strength": 1.0}, {"strength": 10.0}, {"strength": 1.0, "target_std": 0.1}]
SEEDS: dict[Preset, Sequence[int]] = {
    "smoke": (0, 1),
    "cpu": range(6),
    "paper": range(6),
}


DATA: dict[Preset, str] = {"smoke": "a planted graph", "cpu": "Cora", "paper": "Cora"}


class Outcome(NamedTuple):
    """The rows of one network, by competitor, and the winners."""

    rows: Mapping[str, Sequence[Row | None]]
    baseline: str | None
    wsa: str | None


def name_of(extra: Settings) -> str:
    """How tables call a competitor."""
    parts = {"learning_rate": "rate", "weight_decay": "weight decay", "strength": "WSA"}
    said = [f"{parts[key]} {value:g}" for key, value in extra.items() if key in parts]
    if "strength" in extra:
        std = extra.get("target_std")
        said.append(f"N(0, {std:g}²)" if std else "initial scope")
    return ", ".join(said) or "baseline"


def cell_of(preset: Preset, network: Network, extra: Settings, seed: int) -> GraphPair:
    """A competitor's pair."""
    smoke = {"dataset": "planted", "hidden": 4, "steps": 20}
    size: Settings = smoke if preset == "smoke" else {"dataset": "cora"}
    return GraphPair(**size | extra, network=network, seed=seed)


def pair_row(bench: Bench, cell: GraphPair) -> Row | None:
    """Train both, match, and measure the line before and after."""

    def make() -> Row:
        data = labelled_graph(cell.dataset, bench.data_dir)
        task = task_of(cell.network, cell.hidden, cell.dropout, cell.dataset, bench.data_dir)
        first, second = (trained(cell, task, data, 2 * cell.seed + part) for part in (0, 1))
        logits = task.logits
        assert logits is not None
        spec = trace_spec(lambda params, nodes: logits(params, {}, nodes), first, data.train[:2])
        found = weight_matching(jax.random.key(cell.seed), spec, first, second)
        ends = {"none": second, "weight": align(spec, second, found)}
        scopes = [weight_scope(params) for params in (first, second)]
        return {
            "layers": list(scopes[0].names),
            "std": [np.asarray(scope.std).tolist() for scope in scopes],
            "divergence": np.asarray(scope_divergence(*scopes)).tolist(),
            "data": data.digests(),
        } | {
            align: {part: path(task, first, end, data, part) for part in ("validation", "test")}
            for align, end in ends.items()
        }

    return bench.row(cell, make)


@functools.cache
def task_of(
    network: Network, hidden: int, dropout: float, dataset: str, data_dir: str | None
) -> Task:
    """One for all cells of a network, so that its steps are compiled once."""
    data = labelled_graph(dataset, data_dir)
    features = (hidden, int(data.labels.max()) + 1)
    return node_task(MODULES[network](features=features, dropout=dropout), data.graph)


def trained(cell: GraphPair, task: Task, data: LabelledGraph, seed: int) -> PyTree:
    """Parameters after full-batch training."""
    return fit(
        jax.random.key(seed),
        task,
        data.train,
        data.labels[data.train],
        settings=FitSettings(
            steps=cell.steps, batch_size=len(data.train), weight_decay=cell.weight_decay
        ),
        learning_rate=cell.learning_rate,
        target=target_of(cell, task) if cell.strength else None,
        strength=cell.strength,
    ).params


def target_of(cell: GraphPair, task: Task) -> WeightScope:
    """What WSA holds both models to."""
    initial = weight_scope(task.init(jax.random.key(0))[0])
    return constant_target(initial, std=cell.target_std) if cell.target_std else initial


def path(task: Task, first: PyTree, second: PyTree, data: LabelledGraph, part: str) -> Row:
    """Loss and accuracy on the line, on the nodes of a part, and both barriers."""
    nodes = getattr(data, part)
    line = interpolate_path(task, first, second, nodes, data.labels[nodes], num_points=11)
    return {
        "t": plain(line.t),
        "loss": plain(line.loss),
        "accuracy": plain(line.accuracy),
        "barrier": float(loss_barrier(line)),
        "accuracy_barrier": float(accuracy_barrier(line)),
    }


def under(rows: Sequence[Row | None], align: str) -> list[Row]:
    """What was measured after an align, of the rows there are."""
    return [row[align] for row in rows if row is not None and align in row]


def middle(row: Row) -> float:
    """Validation loss of the matched average, infinite where the models diverged."""
    losses = row.get("weight", {}).get("validation", {}).get("loss", [None])
    found = losses[len(losses) // 2]
    return math.inf if found is None else found


def collect(bench: Bench, args: MergingArgs) -> dict[Network, Outcome]:
    """Let the settings compete on the first seed, and the winners on all."""
    first, *others = seeds_of(args, SEEDS)
    outcomes: dict[Network, Outcome] = {}
    for network in ("gcn",) if args.preset == "smoke" else NETWORKS:
        rows: dict[str, list[Row | None]] = {}
        winners: list[str | None] = []
        for settings in (BASELINES, WSA):
            settings = settings[:1] if args.preset == "smoke" else settings
            trials = {
                name_of(extra): pair_row(bench, cell_of(args.preset, network, extra, first))
                for extra in settings
            }
            rows |= {name: [row] for name, row in trials.items()}
            known = {name: middle(row) for name, row in trials.items() if row is not None}
            complete = len(known) == len(trials)
            winners.append(min(known, key=lambda name: known[name]) if complete else None)
            for extra in settings if complete else ():
                if (name := name_of(extra)) == winners[-1]:
                    rows[name] += [
                        pair_row(bench, cell_of(args.preset, network, extra, seed))
                        for seed in others
                    ]
        if None in winners:
            bench.tally.undecided.add(network)
        if any(row is not None for line in rows.values() for row in line):
            outcomes[network] = Outcome(rows, *winners)
    return outcomes


def lower(outcome: Outcome, align: str) -> list[float]:
    """By how much WSA's barrier is lower, paired, on the seeds after the first."""
    if outcome.baseline is None or outcome.wsa is None:
        return []
    pairs = zip(outcome.rows[outcome.baseline][1:], outcome.rows[outcome.wsa][1:], strict=True)
    return differences([(under([a], align), under([b], align)) for a, b in pairs])


def helped(outcome: Outcome) -> list[float]:
    """By how much matching lowers the best baseline's barrier, on the seeds after the first."""
    rows = outcome.rows[outcome.baseline][1:] if outcome.baseline else []
    return differences([(under([row], "none"), under([row], "weight")) for row in rows])


def differences(pairs: Sequence[tuple[Sequence[Row], Sequence[Row]]]) -> list[float]:
    """First less second barrier, where both are there."""
    both = [(barriers(first), barriers(second)) for first, second in pairs]
    return [first[0] - second[0] for first, second in both if first and second]


def table(outcome: Outcome) -> str:
    """A line a competitor; winners have all seeds, and are judged by those after the first."""
    head = ["setting", "test accuracy of ends, %", "matched average: validation loss, seed 0"]
    head += [f"barrier, {said}" for said in ALIGNS.values()]
    head += [f"accuracy half-way, %, {said}" for said in ALIGNS.values()]
    lines = []
    for name, rows in outcome.rows.items():
        won = name in (outcome.baseline, outcome.wsa)
        shown = rows[1:] if won and len(rows) > 1 else rows
        ends = [
            100 * one["test"]["accuracy"][end] for one in under(rows, "none") for end in (0, -1)
        ]
        line = [f"**{name}**" if won else name, spread(ends)]
        line.append("" if rows[0] is None else f"{middle(rows[0]):.3f}")
        line += [spread(barriers(under(shown, align))) for align in ALIGNS]
        line += [
            spread([100 * one["test"]["accuracy"][5] for one in under(shown, align)])
            for align in ALIGNS
        ]
        lines.append([*line, str(len(under(shown, "none")))])
    return markdown_table([*head, "seeds"], lines)


def draw(outcomes: Mapping[Network, Outcome]) -> Figure:
    """Test loss on the line of both winners, a panel a network."""
    figure = Figure(figsize=(4.6 * len(outcomes), 4.0), layout="constrained")
    panels = figure.subplots(1, len(outcomes), squeeze=False)[0]
    for axes, (network, outcome) in zip(panels, outcomes.items(), strict=True):
        winners = {"without WSA": outcome.baseline, "with WSA": outcome.wsa}
        series = {
            f"{said}, {aligned}": [
                (one["test"]["t"], one["test"]["loss"])
                for one in under(outcome.rows[name] if name else [], align)
            ]
            for said, name in winners.items()
            for align, aligned in ALIGNS.items()
        }
        draw_recorded(
            axes, series, xlabel="from w1 (0) to w2 (1)", ylabel="test loss", legend=False
        )
        axes.set_title(NETWORKS[network], fontsize=10)
    figure_legend(figure, columns=2)
    return caption(figure, "the line between two models, best settings; bands: all seeds")


def report(bench: Bench, args: MergingArgs, outcomes: dict[Network, Outcome]) -> Findings:
    """A table a network, and one figure."""
    dataset = DATA[args.preset]
    told = [
        f"{NETWORKS[network]} on {dataset}: test loss barriers (Eq. 7; ± std)\n\n{table(outcome)}"
        for network, outcome in outcomes.items()
    ]
    return Findings(
        title="Graph networks: barriers before and after matching, with and without WSA",
        text="\n\n".join(told),
        figures={figure_name("graphs", args.preset): lambda: draw(outcomes)},
        summary={
            network: {
                "baseline": outcome.baseline,
                "wsa": outcome.wsa,
                "matching lowers by": helped(outcome),
            }
            | {f"wsa lowers by, {said}": lower(outcome, align) for align, said in ALIGNS.items()}
            for network, outcome in outcomes.items()
        },
    )


def claims() -> list[Claim]:
    """Three questions a network."""
    # Preset paper asks for the same cells.
    found = on_record(collect).get("small networks", {})
    lines = []
    for network, outcome in found.items():
        said = NETWORKS[network]
        asked = [("matching lowers the barrier of graph networks", helped(outcome), said)]
        asked += [
            (f"WSA lowers the barrier, {how}", lower(outcome, align), f"{said}, best of 3 a side")
            for align, how in (("none", "not matched"), ("weight", "matched"))
        ]
        lines += [
            Claim(
                "our question",
                claim,
                f"{run}, Cora",
                f"lower by {with_interval(values)}",
                "",
                verdict_of(values),
                "barriers.md#graph-networks",
            )
            for claim, values, run in asked
            if values
        ]
    return lines


SCRIPT = MergingExperiment(
    name="graphs", description=__doc__, collect=collect, report=report, claims=claims, data=DATA
)
