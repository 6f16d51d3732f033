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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np
from jaxtyping import PyTree

from benchmarks.merging import competition
from benchmarks.merging.bench import (
    Bench,
    MergingArgs,
    MergingExperiment,
    Preset,
    on_record,
    seeds_of,
)
from benchmarks.merging.competition import Outcome, compete
from benchmarks.merging.pairs import measured_line
from benchmarks.record.claims import Claim, verdict_of, with_interval
from benchmarks.record.graphs import LabelledGraph, labelled_graph
from benchmarks.record.statistics import Row, Settings
from benchmarks.script import Findings, figure_name
from wsa_jax import constant_target, scope_divergence, weight_scope
from wsa_jax.merging import Model, align, trace_spec, weight_matching
from wsa_jax.models import GCN, GraphSAGE
from wsa_jax.scope.scope import WeightScope
from wsa_jax.training import FitSettings, Task, fit, node_task

Network = Literal["gcn", "sage"]
NETWORKS: dict[Network, str] = {"gcn": "GCN", "sage": "GraphSAGE"}
MODULES = {"gcn": GCN, "sage": GraphSAGE}


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
        parts = {
            part: (nodes, data.labels[nodes])
            for part, nodes in (("validation", data.validation), ("test", data.test))
        }
        scopes = [weight_scope(params) for params in (first, second)]
        return {
            "layers": list(scopes[0].names),
            "std": [np.asarray(scope.std).tolist() for scope in scopes],
            "divergence": np.asarray(scope_divergence(*scopes)).tolist(),
            "data": data.digests(),
        } | {
            align: {
                part: measured_line(task, (Model(first, {}), Model(end, {})), *examples)
                for part, examples in parts.items()
            }
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


def collect(bench: Bench, args: MergingArgs) -> dict[Network, Outcome]:
    """Let the settings compete on the first seed, and the winners on all."""
    trials = 1 if args.preset == "smoke" else None
    outcomes: dict[Network, Outcome] = {}
    for network in ("gcn",) if args.preset == "smoke" else NETWORKS:

        def row_of(extra: Settings, seed: int, network: Network = network) -> Row | None:
            return pair_row(bench, cell_of(args.preset, network, extra, seed))

        found = compete(
            bench,
            (BASELINES[:trials], WSA[:trials]),
            row_of,
            seeds_of(args, SEEDS),
            name_of=name_of,
            chosen_by="weight",
            called=network,
        )
        if found is not None:
            outcomes[network] = found
    return outcomes


def report(bench: Bench, args: MergingArgs, outcomes: Mapping[Network, Outcome]) -> Findings:
    """A table a network, and one figure."""
    dataset = DATA[args.preset]
    told = [
        f"{NETWORKS[network]} on {dataset}: test loss barriers (Eq. 7; ± std)\n\n"
        f"{competition.table(outcome)}"
        for network, outcome in outcomes.items()
    ]
    panels = {NETWORKS[network]: outcome for network, outcome in outcomes.items()}
    return Findings(
        title="Graph networks: barriers before and after matching, with and without WSA",
        text="\n\n".join(told),
        figures={figure_name("graphs", args.preset): functools.partial(competition.draw, panels)},
        summary={network: competition.summary_of(outcome) for network, outcome in outcomes.items()},
    )


def claims() -> list[Claim]:
    """Three questions a network."""
    # Preset paper asks for the same cells.
    found = on_record(collect).get("small networks", {})
    page, source = "barriers.md#graph-networks", "our question"
    lines = []
    for network, outcome in found.items():
        said = NETWORKS[network]
        if helps := competition.helped(outcome):
            claim = "matching lowers the barrier of graph networks"
            ours = f"lower by {with_interval(helps)}"
            lines.append(Claim(source, claim, f"{said}, Cora", ours, "", verdict_of(helps), page))
        asked = {
            "none": "WSA lowers the barrier, not matched",
            "weight": "WSA lowers the barrier, matched",
        }
        run = f"{said}, best of 3 a side, Cora"
        lines += competition.lower_claims(outcome, source, asked, run, page)
    return lines


SCRIPT = MergingExperiment(
    name="graphs", description=__doc__, collect=collect, report=report, claims=claims, data=DATA
)
