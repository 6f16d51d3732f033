"""Federated simulation: rounds compiled once, evaluated, recorded, checkpointed and resumed."""

import contextlib
import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from wsa_jax.checkpoint import CheckpointError, Checkpoints
from wsa_jax.federated.algorithms import FederatedAlgorithm, fed_avg
from wsa_jax.federated.client import Form, LocalSettings, RoundSettings, ScopeForm, epochs_needed
from wsa_jax.federated.partition import Partition
from wsa_jax.federated.round import Execution, FederatedData, RoundInfo, ServerState, make_round
from wsa_jax.regularization import Scale, check_stability, check_strength
from wsa_jax.scope import WeightScope, check_same_layers, constant_target, weight_scope
from wsa_jax.select import Rule, constant_layers, kernels, without
from wsa_jax.training import Task, evaluate
from wsa_jax.tree import check_finite

Schedule = Callable[[int], Any]


@dataclass(frozen=True, kw_only=True)
class WeightScopeAlignment:
    """Weight scope alignment as an add-on to any federated algorithm ("+WSA").

    Attributes:
      strength: the paper's lambda, a number or a schedule of the round (`wsa_jax.scope_window`).
      form: ``"gradient"`` (analytic), ``"penalty"`` (loss term, autodiff) or ``"proximal"``.
      scale: ``"sum"`` over layers (the paper's) or ``"size"`` (each times its number of weights).
      select: which leaves are layers.
      target: ``"fused"`` after each round (Eq. 4), the first being the initial model's own scope;
        ``(mean, std)`` for one fixed Gaussian in all layers; or a fixed `WeightScope`.
    """

    strength: float | Schedule = 1.0
    form: Form = "gradient"
    scale: Scale = "sum"
    select: Rule = kernels
    target: Literal["fused"] | tuple[float, float] | WeightScope = "fused"

    def __post_init__(self):
        check_strength(self.strength)
        ScopeForm(form=self.form, scale=self.scale, select=self.select)
        if isinstance(self.target, str) and self.target != "fused":
            raise ValueError(
                f"target {self.target!r} is unknown; give 'fused', (mean, std) or a scope"
            )


class SimulationResult(NamedTuple):
    """What a simulation leaves behind.

    Attributes:
      state: server state after the last round.
      history: one dictionary a round; evaluated rounds hold test_accuracy and test_loss.
      left_out: selected layers without a scope, because their initial weights are all equal.
    """

    state: ServerState
    history: list[dict[str, Any]]
    left_out: tuple[str, ...]


def reference_learning_rate(round_index: int) -> float:
    """Return the learning rate of the public reference experiments: 0.01 times 0.998^(round + 1).

    >>> reference_learning_rate(0)
    0.00998
    """
    return 0.01 * 0.998 ** (round_index + 1)


def simulate(
    key: Key[Array, ""],
    task: Task,
    train: tuple[Any, Any],
    partition: Partition,
    *,
    rounds: int,
    algorithm: FederatedAlgorithm | None = None,
    wsa: WeightScopeAlignment | None = None,
    participants: int | None = None,
    learning_rate: float | Schedule = reference_learning_rate,
    local: LocalSettings = LocalSettings(),  # noqa: B008 (frozen)
    execution: Execution = Execution(),  # noqa: B008 (frozen)
    params: PyTree | None = None,
    test: tuple[Any, Any] | None = None,
    evaluate_every: int = 5,
    directory: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    on_round: Callable[[dict[str, Any]], None] | None = None,
    progress: bool = False,
) -> SimulationResult:
    """Simulate federated rounds: FedAvg or another algorithm, with or without WSA.

    Args:
      key: a JAX key; initial weights, participants, batches and augmentation all follow from it.
      task: what is trained, for example `wsa_jax.training.classification`.
      train: images and labels of all clients, ``[examples, ...]`` and ``[examples]``.
      partition: which client owns which examples.
      rounds: number of rounds in all, those of a resumed run included.
      algorithm: FedAvg by default.
      wsa: weight scope alignment, None for the plain algorithm.
      participants: clients drawn a round; all by default.
      learning_rate: of local SGD, a number or a schedule of the round.
      local: settings of local training.
      execution: performance settings; none changes a result beyond rounding.
      params: initial parameters instead of the task's own.
      test: images and labels to evaluate the global model on.
      evaluate_every: rounds between evaluations; the last round is always evaluated.
      directory: where checkpoints and ``metrics.jsonl`` go; a run found there is resumed.
      checkpoint_every: rounds between checkpoints, by default every evaluation.
      on_round: called with each round's row, in order.
      progress: show a progress bar.

    Guarantees: one compilation of the round, whatever the plain numbers; a run killed at any moment
    and started again ends in bitwise the same parameters.

    Raises:
      ValueError: settings that do not fit, NaN in the parameters, a target of other layers, explicit
        WSA outside its stability bound, or a directory that holds another run.
      CheckpointError: the newest checkpoint is torn.

    Source: WSA, Algorithm 1 and section 5.3.
    """
    images, labels = train
    participants = partition.clients if participants is None else participants
    _check_settings(partition, len(labels), rounds, participants, evaluate_every, checkpoint_every)
    algorithm = fed_avg() if algorithm is None else algorithm
    rates = _values(learning_rate, rounds, "learning_rate")
    strengths = _values(wsa.strength if wsa else 0.0, rounds, "strength")

    initial, model_state = task.init(jax.random.fold_in(key, 0))
    initial = jax.tree.map(jnp.array, initial if params is None else params)
    check_finite(initial)
    select = wsa.select if wsa else kernels
    left_out = constant_layers(initial, select)
    if left_out:
        select = without(select, left_out)
    target = _initial_target(initial, wsa, select)
    form = ScopeForm(form=wsa.form, scale=wsa.scale, select=select) if wsa else None
    if form is not None and form.form != "proximal":
        _check_bound(initial, target, form, rates, strengths)

    state = ServerState(
        params=initial,
        model_state=model_state,
        target=target,
        server=algorithm.init_server(initial),
        clients=jax.vmap(lambda _: algorithm.init_client(initial))(jnp.arange(partition.clients)),
        round=jnp.zeros((), jnp.int32),
    )
    round_fn = make_round(
        task,
        algorithm,
        participants=participants,
        epochs=epochs_needed(
            int(partition.sizes[partition.sizes > 0].min()),
            steps=local.steps,
            batch_size=local.batch_size,
        ),
        local=local,
        scope_form=form,
        diagnose=ScopeForm(select=select),
        fuse_target=wsa is None or isinstance(wsa.target, str),
        execution=execution,
    )
    run = None
    history: list[dict[str, Any]] = []
    if directory is not None:
        identity = _identity(key, algorithm, partition, participants, local, wsa, form, labels)
        run = _RunDirectory(Path(directory), identity)
        state, history = run.resume(state, rates, strengths)

    data = FederatedData(
        jnp.asarray(images),
        jnp.asarray(labels),
        jnp.asarray(partition.indices),
        jnp.asarray(partition.sizes),
    )
    held_out = None if test is None else (jnp.asarray(test[0]), jnp.asarray(test[1]))
    round_key = jax.random.fold_in(key, 1)
    checkpoint_every = checkpoint_every or evaluate_every
    pending: list[tuple[int, RoundInfo]] = []
    since, done = time.perf_counter(), int(state.round)
    with _progress(progress, done, rounds) as advance:
        for index in range(done, rounds):
            settings = RoundSettings(jnp.float32(rates[index]), jnp.float32(strengths[index]))
            state, info = round_fn(round_key, state, data, settings)
            pending.append((index, info))
            last = index + 1 == rounds
            evaluates = last or (index + 1) % evaluate_every == 0
            saves = last or (index + 1) % checkpoint_every == 0
            if not (evaluates or saves):
                advance(None)
                continue
            jax.block_until_ready(info.loss)
            seconds = (time.perf_counter() - since) / len(pending)
            rows = [_row(i, info, rates[i], strengths[i], seconds) for i, info in pending]
            pending.clear()
            if evaluates and held_out is not None:
                sums = evaluate(
                    task, state.params, state.model_state, *held_out,
                    batch_size=execution.evaluation_batch,
                )  # fmt: skip
                rows[-1]["test_accuracy"] = _number(sums.correct / sums.count)
                rows[-1]["test_loss"] = _number(sums.loss / sums.count)
            history.extend(rows)
            if run is not None:
                run.append(rows)
                if saves:
                    run.save(index + 1, state)
            for row in rows:
                if on_round is not None:
                    on_round(row)
            advance(rows[-1])
            since = time.perf_counter()
    return SimulationResult(state, history, left_out)


class _RunDirectory:
    """Metrics, identity and checkpoints of one run, on disk."""

    def __init__(self, directory: Path, identity: dict[str, Any]):
        directory.mkdir(parents=True, exist_ok=True)
        self._metrics = directory / "metrics.jsonl"
        settings = directory / "run.json"
        if settings.exists():
            found = json.loads(settings.read_text())
            for name, value in identity.items():
                if found.get(name) != value:
                    raise ValueError(
                        f"{directory} holds a run with {name} = {found.get(name)}, this one has "
                        f"{value}; give another directory or delete that one"
                    )
        else:
            write_atomically(settings, json.dumps(identity, indent=1))
        self._checkpoints = Checkpoints(directory / "checkpoints")

    def resume(
        self, state: ServerState, rates: np.ndarray, strengths: np.ndarray
    ) -> tuple[ServerState, list[dict[str, Any]]]:
        done = self._checkpoints.latest()
        if done is None:
            write_atomically(self._metrics, "")
            return state, []
        lines = self._metrics.read_text().splitlines() if self._metrics.exists() else []
        if len(lines) < done:
            raise CheckpointError(
                f"{self._metrics} has {len(lines)} rows, the checkpoint is of round {done}; delete "
                f"{self._metrics.parent} to start again"
            )
        rows = [json.loads(line) for line in lines[:done]]
        for row in rows:
            for name, values in (("learning_rate", rates), ("strength", strengths)):
                i = row["round"] - 1
                if i < len(values) and not np.isclose(row[name], values[i], rtol=1e-6):
                    raise ValueError(
                        f"{self._metrics.parent} holds a run with {name} {row[name]} in round {i + 1}, "
                        f"this one has {values[i]}; give another directory"
                    )
        # Rows past the checkpoint are of rounds that will be done again.
        write_atomically(self._metrics, "".join(line + "\n" for line in lines[:done]))
        return self._checkpoints.restore(done, state), rows

    def append(self, rows: list[dict[str, Any]]) -> None:
        with self._metrics.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())

    def save(self, step: int, state: ServerState) -> None:
        self._checkpoints.save(step, state)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader, or a crash, sees all of it or the old one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def _check_settings(
    partition: Partition,
    examples: int,
    rounds: int,
    participants: int,
    evaluate_every: int,
    checkpoint_every: int | None,
) -> None:
    if rounds < 1:
        raise ValueError(f"rounds {rounds} is below 1; give a positive number")
    if not 1 <= participants <= partition.clients:
        raise ValueError(
            f"participants {participants} of {partition.clients} clients; "
            f"give 1 <= participants <= {partition.clients}"
        )
    if evaluate_every < 1 or (checkpoint_every is not None and checkpoint_every < 1):
        raise ValueError(
            f"evaluate_every {evaluate_every} and checkpoint_every {checkpoint_every} must be positive"
        )
    if partition.indices.max() >= examples or not partition.sizes.any():
        raise ValueError(
            f"the partition points at example {partition.indices.max()} and holds "
            f"{partition.sizes.sum()} in all, but there are {examples}; make it from these labels"
        )


def _values(value: float | Schedule, rounds: int, name: str) -> np.ndarray:
    values = [value(i) for i in range(rounds)] if callable(value) else [value] * rounds
    array = np.asarray(values, np.float64)
    check_strength(array, name)
    return array


def _initial_target(params: PyTree, wsa: WeightScopeAlignment | None, select: Rule) -> WeightScope:
    scope = weight_scope(params, select=select)
    if wsa is None or isinstance(wsa.target, str):
        return scope
    if isinstance(wsa.target, tuple):
        mean, std = wsa.target
        return constant_target(scope, mean=mean, std=std)
    check_same_layers(scope, wsa.target)
    return wsa.target


def _check_bound(
    params: PyTree, target: WeightScope, form: ScopeForm, rates: np.ndarray, strengths: np.ndarray
) -> None:
    """The bound at the round with the largest product; later rounds show theirs in the info."""
    worst = int(np.argmax(rates * strengths))
    check_stability(
        weight_scope(params, select=form.select),
        target,
        learning_rate=float(rates[worst]),
        strength=float(strengths[worst]),
        scale=form.scale,
    )


def _identity(
    key: Array,
    algorithm: FederatedAlgorithm,
    partition: Partition,
    participants: int,
    local: LocalSettings,
    wsa: WeightScopeAlignment | None,
    form: ScopeForm | None,
    labels: Any,
) -> dict[str, Any]:
    """What must be the same for a run to be resumed; plain numbers a round are in its rows."""
    digest = hashlib.sha256()
    for array in (partition.indices, partition.sizes, np.asarray(labels)):
        digest.update(np.ascontiguousarray(array).tobytes())
    target = None
    if wsa is not None:
        scope = wsa.target if isinstance(wsa.target, WeightScope) else None
        target = (
            wsa.target
            if scope is None
            else [np.asarray(scope.mean).tolist(), np.asarray(scope.std).tolist()]
        )
    identity = {
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "algorithm": algorithm.name,
        "participants": participants,
        "local": dataclasses.asdict(local),
        "form": None if form is None else [form.form, form.scale],
        "target": target,
        "data": digest.hexdigest()[:16],
    }
    return json.loads(json.dumps(identity))


def _row(
    index: int, info: RoundInfo, rate: float, strength: float, seconds: float
) -> dict[str, Any]:
    def numbers(values: Array) -> list[float | None]:
        return [_number(value) for value in np.asarray(values)]

    return {
        "round": index + 1,
        "learning_rate": float(rate),
        "strength": float(strength),
        "train_loss": _number(info.loss.mean()),
        "update_norm": _number(info.update_norm.mean()),
        "mean_update_norm": _number(info.mean_update_norm),
        "layers": list(info.average.names),
        "client_divergence": numbers(info.client_divergence),
        "target_divergence": numbers(info.target_divergence),
        "client_mean": numbers(info.clients.mean.mean(axis=0)),
        "client_std": numbers(info.clients.std.mean(axis=0)),
        "average_std": numbers(info.average.std),
        "fused_std": numbers(info.fused.std),
        "stability": _number(info.stability.max()),
        "seconds": round(seconds, 4),
    }


def _number(value: Any) -> float | None:
    """A JSON number; NaN and infinity have none."""
    number = float(value)
    return number if np.isfinite(number) else None


@contextlib.contextmanager
def _progress(
    enabled: bool, done: int, rounds: int
) -> Iterator[Callable[[dict[str, Any] | None], None]]:
    if not enabled:
        yield lambda row: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
        bar_task = bar.add_task("rounds", total=rounds, completed=done)

        def advance(row: dict[str, Any] | None) -> None:
            accuracy = (row or {}).get("test_accuracy")
            if accuracy is not None:
                bar.update(bar_task, description=f"rounds, test accuracy {accuracy:.3f}")
            bar.advance(bar_task)

        yield advance
