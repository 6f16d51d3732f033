"""A server with a proxy set merges its clients by learned coefficients instead of the mean.

    python -m benchmarks np_merge_federated [--preset smoke|cpu|paper]

Each round clients train from the global model as in FedAvg; the server then learns a softmax over
the clients at each parameter on its proxy samples (NP Merge, joint), beginning at the weighted
mean. Rivals: FedAvg, FedAvg +WSA, and FedAvg whose server fine-tunes the mean on the same samples,
with as many steps. Bytes count both directions: the server's learning sends none.

paper: the CNN on CIFAR-10, Dirichlet 0.5, 10 clients and 100 with 10 a round, 200 rounds, 1,000
proxy samples, held out from all clients. cpu cuts to 12 rounds and 20 server steps a round; smoke:
an MLP on digits, without WSA. The learning rates of both learning servers are chosen on images that
neither clients nor server see, five tried for each, in half the rounds, on seed 0 of the first
federation.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array, PyTree
from matplotlib.figure import Figure

from benchmarks.federated.cell import Cell
from benchmarks.federated.cell_parts import cell_model, cell_partition
from benchmarks.merging.bench import (
    Bench,
    MergingArgs,
    MergingExperiment,
    MissingTrialsError,
    Preset,
    on_record,
    seeds_of,
)
from benchmarks.merging.merge_rows import choose_rates
from benchmarks.record.claims import Claim, verdict_of, with_interval
from benchmarks.record.data import load_split
from benchmarks.record.figures import caption, draw_recorded, figure_legend
from benchmarks.record.statistics import Row, Settings, markdown_table, spread
from benchmarks.script import Findings, figure_name
from wsa_jax.data import dataset_info, train_validation_split
from wsa_jax.federated import (
    Aggregation,
    LocalSettings,
    WeightScopeAlignment,
    bytes_per_round,
    fed_avg,
    simulate,
)
from wsa_jax.merging import LearningSettings, fine_tune, labelled_examples, np_merge_joint
from wsa_jax.training import Task, classification
from wsa_jax.tree import weighted_mean

Found = dict[str, dict[str, list[Row]]]
"""By federation and method, one a seed."""
Server = Literal["mean", "fine-tuning", "NP Merge"]
BASES: dict[Preset, Settings] = {
    "smoke": {"dataset": "digits", "model": "mlp", "rounds": 2, "augmentation": "none"},
    "cpu": {"rounds": 12, "init": "he"},
    "paper": {"rounds": 200, "init": "he"},
}
CLIENTS: dict[Preset, tuple[tuple[int, int], ...]] = {
    "smoke": ((4, 4),),
    "cpu": ((10, 10), (100, 10)),
    "paper": ((10, 10), (100, 10)),
}
SEEDS: dict[Preset, Sequence[int]] = {"smoke": (0,), "cpu": (0, 1, 2), "paper": (0, 1, 2)}
PROXY = {"smoke": 100, "cpu": 1_000, "paper": 1_000}
STEPS = {"smoke": 5, "cpu": 20, "paper": 100}
METHODS: tuple[tuple[str, Server, float], ...] = (
    ("FedAvg", "mean", 0.0),
    ("FedAvg +WSA 10", "mean", 10.0),
    ("FedAvg, server fine-tuning", "fine-tuning", 0.0),
    ("NP Merge, joint", "NP Merge", 0.0),
)
# Rates of the server on NP Merge and on fine-tuning; the global model comes back every round, so
# fine-tuning wants lower ones than a single merge does.
GRID = ((0.01, 1e-4), (0.03, 3e-4), (0.1, 1e-3), (0.3, 3e-3), (1.0, 1e-2))
GRIDS = {"smoke": GRID[2:3], "cpu": GRID, "paper": GRID}
DEFAULT_RATES: dict[Server, float] = {"mean": 0.0, "NP Merge": 0.1, "fine-tuning": 1e-3}


@dataclass(frozen=True, kw_only=True)
class FederatedMerge:
    """One run."""

    dataset: str = "cifar10"
    model: Literal["cnn", "mlp"] = "cnn"
    clients: int = 10
    participants: int = 10
    alpha: float = 0.5
    rounds: int = 12
    strength: float = 0.0
    server: Server = "mean"
    proxy: int = 1_000
    server_steps: int = 20
    init: Literal["reference", "he"] = "he"
    augmentation: Literal["none", "batch", "example"] = "batch"
    learning_rate: float = 0.01
    steps: int = 20
    batch_size: int = 50
    server_rate: float = 0.0
    """Learning rate of the server; 0 is the library's default for what it learns."""
    evaluate_on: Literal["test", "validation"] = "test"
    """Validation: held-out training images that are no proxy samples."""
    seed: int = 0

    @property
    def cell(self) -> Cell:
        """The same federation as the other scripts know it."""
        return Cell(
            dataset=self.dataset,
            model=self.model,
            init=self.init,
            clients=self.clients,
            participants=self.participants,
            alpha=self.alpha,
            seed=self.seed,
        )


def server_rule(config: FederatedMerge, task: Task) -> Any:
    """How the server combines its clients: ``(key, models, weights, proxy) -> params``, or mean."""
    if config.server == "mean":
        return "mean"
    rate = config.server_rate or DEFAULT_RATES[config.server]
    return learning_rule(config.server, task, rate, config.server_steps, config.batch_size)


@functools.cache
def learning_rule(server: Server, task: Task, rate: float, steps: int, batch_size: int) -> Any:
    """A rule that learns on the proxy; the same function for equal settings.

    Rounds of equal plans compile once, whatever the seeds, and a plan is equal where its rule is.
    """
    settings = LearningSettings(steps=steps, batch_size=batch_size, eval_every=steps)
    learned = {"settings": settings, "model_state": {}, "learning_rate": rate}

    def fine_tuned(key: Array, models: PyTree, weights: Array, proxy: PyTree) -> PyTree:
        mean = weighted_mean(models, weights)
        return fine_tune(key, task.loss, mean, proxy, **learned).params

    def merged(key: Array, models: PyTree, weights: Array, proxy: PyTree) -> PyTree:
        return np_merge_joint(key, task.loss, models, proxy, init=weights, **learned).params

    return merged if server == "NP Merge" else fine_tuned


def run(config: FederatedMerge, data_dir: str | None) -> Row:
    """Simulate the rounds; accuracy and loss after each."""
    info = dataset_info(config.dataset)
    train = load_split(config.dataset, info.splits[0], data_dir)
    kept, held_out = train_validation_split(
        train.labels, fraction=max(0.1, config.proxy / len(train.labels)), seed=0
    )
    held_out = np.random.default_rng(config.seed).permutation(held_out)
    chosen, unseen = held_out[: config.proxy], held_out[config.proxy :]
    judged = (train.images[unseen], train.labels[unseen])
    if config.evaluate_on == "test":
        test = load_split(config.dataset, "test", data_dir)
        judged = (test.images, test.labels)
    proxy = labelled_examples(train.images[chosen], train.labels[chosen])
    task = classification(
        cell_model(config.cell, info.num_classes), info, augmentation=config.augmentation
    )
    wsa = WeightScopeAlignment(strength=config.strength) if config.strength else None
    result = simulate(
        jax.random.key(config.seed),
        task,
        (train.images[kept], train.labels[kept]),
        cell_partition(config.cell, train.labels[kept]),
        rounds=config.rounds,
        wsa=wsa,
        participants=config.participants,
        learning_rate=lambda index: config.learning_rate * 0.998 ** (index + 1),
        local=LocalSettings(steps=config.steps, batch_size=config.batch_size),
        aggregation=Aggregation(rule=server_rule(config, task)),
        evidence=None if config.server == "mean" else proxy,
        test=judged,
        evaluate_every=1,
    )
    sent = bytes_per_round(fed_avg(), result.params, wsa=wsa)
    return {
        "accuracy": [number(row["test_accuracy"]) for row in result.history],
        "loss": [number(row["test_loss"]) for row in result.history],
        "megabytes_per_round": round(config.participants * sum(sent) / 1e6, 3),
    }


def number(value: float | None) -> float:
    """A metric of a row, which holds None where it is not finite."""
    return math.nan if value is None else value


def draw(found: Found) -> Figure:
    """Accuracy against rounds and bytes, a panel a number of clients."""
    figure = Figure(figsize=(4.8 * len(found), 4.4), layout="constrained")
    for axes, (title, methods) in zip(
        np.ravel(figure.subplots(1, len(found), squeeze=False)), found.items(), strict=True
    ):
        series = {
            name: [
                (
                    [row["megabytes_per_round"] * (i + 1) for i in range(len(row["accuracy"]))],
                    [100 * value for value in row["accuracy"]],
                )
                for row in rows
            ]
            for name, rows in methods.items()
        }
        draw_recorded(
            axes,
            series,
            xlabel="megabytes sent and received",
            ylabel="test accuracy, %",
            legend=False,
        )
        megabytes = next(rows[0] for rows in methods.values() if rows)["megabytes_per_round"]
        rounds = axes.secondary_xaxis(
            "top", functions=(lambda x, m=megabytes: x / m, lambda x, m=megabytes: x * m)
        )
        rounds.set_xlabel(f"rounds, {title}")
    figure_legend(figure, columns=4)
    return figure


def configuration(
    preset: Preset, server: Server, rate: float = 0.0, **extra: Any
) -> FederatedMerge:
    """A run of a preset; a rate that is the default is left unsaid, so that ids stay."""
    values: Settings = BASES[preset] | {
        "server": server,
        "proxy": PROXY[preset],
        "server_steps": 0 if server == "mean" else STEPS[preset],
        "server_rate": 0.0 if rate == DEFAULT_RATES[server] else rate,
    }
    return FederatedMerge(**(values | extra))


def methods_of(preset: Preset) -> tuple[tuple[str, Server, float], ...]:
    """What is compared; smoke runs leave WSA, a program more, to the other federated scripts."""
    return tuple(line for line in METHODS if not line[2] or preset != "smoke")


def last_rounds(row: Row) -> float:
    """Mean accuracy of the last three rounds, in percent: single rounds swing by points."""
    return 100 * float(np.mean(row["accuracy"][-3:]))


def seed_count(rows: list[Row]) -> str:
    """How many seeds a line rests on, and how many of them diverged."""
    lost = sum(row["status"] == "diverged" for row in rows)
    return f"{len(rows)}, {lost} diverged" if lost else str(len(rows))


def rates_of(bench: Bench, preset: Preset) -> dict[Server, float]:
    """The rates of best validation accuracy on seed 0 of the first federation; exits without."""
    clients, participants = CLIENTS[preset][0]

    def score(method: str, rates: tuple[float, float]) -> float | None:
        server: Server = "NP Merge" if method == "NP Merge" else "fine-tuning"
        config = configuration(
            preset,
            server,
            rates[server == "fine-tuning"],
            clients=clients,
            participants=participants,
            rounds=BASES[preset]["rounds"] // 2,
            evaluate_on="validation",
        )
        row = bench.row(config, lambda: run(config, bench.data_dir))
        if row is not None and row["status"] == "diverged":
            return -math.inf
        return None if row is None else last_rounds(row)

    rates = choose_rates(score, GRIDS[preset])
    if rates is None:
        raise MissingTrialsError(
            f"{bench.rows.path} lacks trials of the servers' learning rates: none is chosen; "
            "run without --report-only"
        )
    np_rate, fine_tuning_rate = rates
    return {"mean": 0.0, "NP Merge": np_rate, "fine-tuning": fine_tuning_rate}


def collect(bench: Bench, args: MergingArgs) -> Found:
    """Run every method on every federation."""
    seeds = seeds_of(args, SEEDS)
    rates = rates_of(bench, args.preset)
    found: Found = {}
    for clients, participants in CLIENTS[args.preset]:
        title = f"{clients} clients, {participants} a round"
        for seed in seeds:
            for name, server, strength in methods_of(args.preset):
                config = configuration(
                    args.preset,
                    server,
                    rates[server],
                    clients=clients,
                    participants=participants,
                    seed=seed,
                    strength=strength,
                )
                row = bench.row(config, functools.partial(run, config, args.data_dir))
                lines = found.setdefault(title, {}).setdefault(name, [])
                lines += [] if row is None else [row]
    return {title: methods for title, methods in found.items() if any(methods.values())}


def report(bench: Bench, args: MergingArgs, found: Found) -> Findings:
    """A line a federation and method, and accuracy against bytes."""
    head = ["clients", "method", "MB a round", "half-way, %", "last three rounds, %", "seeds"]
    lines = [
        [
            title,
            name,
            f"{rows[0]['megabytes_per_round']:.1f}",
            spread([100 * row["accuracy"][(len(row["accuracy"]) - 1) // 2] for row in rows]),
            spread([last_rounds(row) for row in rows]),
            seed_count(rows),
        ]
        for title, methods in found.items()
        for name, rows in methods.items()
        if rows
    ]
    rates = rates_of(bench, args.preset)
    chosen = f"NP Merge {rates['NP Merge']:g}, fine-tuning {rates['fine-tuning']:g}"
    accuracy = {
        title: {name: [last_rounds(row) for row in rows] for name, rows in methods.items()}
        for title, methods in found.items()
    }
    model = configuration(args.preset, "mean").model
    return Findings(
        title="Federated: the server merges by NP Merge (± std)",
        text=f"{markdown_table(head, lines)}\n\nRates chosen on validation: {chosen}.",
        figures={
            figure_name("np_merge_federated", args.preset): lambda: caption(
                draw(found), f"{model.upper()}, {PROXY[args.preset]:,} proxy images; bands: seeds"
            )
        },
        summary={"rates": rates, "accuracy": accuracy},
    )


def claims() -> list[Claim]:
    """A server that learns shares less one that learns weights, on equal seeds."""
    lines = []
    for size, found in on_record(collect).items():
        for clients, methods in found.items():
            ours, theirs = (
                {row["config"]["seed"]: last_rounds(row) for row in methods[name]}
                for name in ("NP Merge, joint", "FedAvg, server fine-tuning")
            )
            values = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
            rounds = len(methods["FedAvg"][0]["accuracy"])
            lines.append(
                Claim(
                    "our question",
                    "as a server, NP Merge beats fine-tuning",
                    f"CNN, CIFAR-10, {clients}, {rounds} rounds, {size}",
                    with_interval(values),
                    "",
                    verdict_of(values),
                    "np_merge.md#np-merge-as-a-federated-server",
                )
            )
    return lines


SCRIPT = MergingExperiment(
    name="np_merge_federated",
    description=__doc__,
    collect=collect,
    report=report,
    claims=claims,
)
