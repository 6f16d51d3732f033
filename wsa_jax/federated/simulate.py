"""Federated simulation: rounds compiled once, evaluated, recorded, checkpointed and resumed."""

import contextlib
import dataclasses
import functools
import os
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, ArrayLike, Key, PyTree, Real

from wsa_jax import checks
from wsa_jax.federated.add_on import WeightScopeAlignment, initial_target
from wsa_jax.federated.aggregate import Aggregation
from wsa_jax.federated.algorithms import FederatedAlgorithm, fed_avg
from wsa_jax.federated.checks import (
    check_partition,
    diagnosed_layers,
)
from wsa_jax.federated.client import LocalSettings, RoundSettings, ScopeForm, epochs_needed
from wsa_jax.federated.diagnostics import RoundInfo
from wsa_jax.federated.mesh import local_copy, place_on_mesh, state_spec
from wsa_jax.federated.partition import Partition
from wsa_jax.federated.round import (
    ServerState,
    check_participants,
    initial_state,
    make_round,
)
from wsa_jax.federated.run_directory import (
    json_number,
    other_schedules,
    round_row,
    simulation_identity,
)
from wsa_jax.federated.train_clients import Execution, FederatedData
from wsa_jax.runs.run_directory import RunDirectory
from wsa_jax.scope.regularization import check_strength
from wsa_jax.scope.scope import weight_scope
from wsa_jax.scope.stability import check_bound
from wsa_jax.training.checks import check_data, check_statistics
from wsa_jax.training.evaluation import evaluate
from wsa_jax.training.task import Task

Schedule = Callable[[int], Any]


class SimulationResult(NamedTuple):
    """Result of a simulation.

    Attributes:
      state: server state after the last round.
      params: the model to keep: the state's parameters, or what the algorithm makes of them (FedExP
        keeps the mean of its last two iterates).
      history: one dictionary per round, as in ``metrics.jsonl``; see `round_row`. Evaluated rounds
        also hold ``test_accuracy`` (a share) and ``test_loss``.
      left_out: selected layers without a scope, because their initial weights are all equal.
    """

    state: ServerState
    params: PyTree
    history: list[dict[str, Any]]
    left_out: tuple[str, ...]


def reference_learning_rate(round_index: int) -> float:
    """Return the learning rate of the public reference experiments: 0.01 times 0.998^(round + 1).

    >>> round(reference_learning_rate(0), 8)
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
    learning_rate: Real[ArrayLike, ""] | Schedule = reference_learning_rate,
    local: LocalSettings = LocalSettings(),
    aggregation: Aggregation = Aggregation(),
    execution: Execution = Execution(),
    params: PyTree | None = None,
    model_state: PyTree | None = None,
    test: tuple[Any, Any] | None = None,
    evaluate_every: int = 5,
    directory: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    on_round: Callable[[dict[str, Any]], None] | None = None,
    client_scopes: bool = False,
    progress: bool = False,
) -> SimulationResult:
    """Simulate federated rounds: FedAvg or another algorithm, with or without WSA.

    Args:
      key: a JAX key; initial weights, participants, batches and augmentation all follow from it.
      task: what is trained, for example `wsa_jax.training.classification`.
      train: images and labels of all clients, ``[examples, ...]`` and ``[examples]``.
      partition: which client owns which examples.
      rounds: number of rounds in all, including those of a resumed run.
      algorithm: FedAvg by default.
      wsa: weight scope alignment, None for the plain algorithm; a schedule of its strength is
        called with the round's index, from 0.
      participants: clients drawn per round; all by default.
      learning_rate: rate of local SGD, a number or a schedule of the round's index, from 0.
      local: settings of local training.
      aggregation: mean or a robust rule, clipping of updates, and how NaN is handled.
      execution: performance settings; none of them changes a result beyond rounding.
      params: initial parameters instead of the task's own. In half precision, local steps below
        its resolution are lost; the server computes in float32 and keeps the parameters' dtype.
      model_state: initial state that is not trained (BatchNorm statistics), instead of the task's
        own; required with params if the task has any.
      test: images and labels to evaluate the global model on.
      evaluate_every: rounds between evaluations; the last round is always evaluated.
      directory: where checkpoints and ``metrics.jsonl`` go; a run found there is resumed.
      checkpoint_every: rounds between checkpoints, by default every evaluation.
      on_round: called with the row of each round that is run here, in order, but not with those
        that a resumed run finds in its directory. With several processes, called on each.
      client_scopes: put each participant's means and stds into the rows.
      progress: show a progress bar.

    Guarantees: the round is compiled once, whatever the plain numbers; a run killed at any moment
    and started again ends with bitwise the same parameters. With several processes
    (`jax.distributed`), each calls this with the same arguments; the first one writes.

    Edge cases: models without a kernel are diagnosed on all their leaves. A warning says when no
    client was accepted in any round since the last evaluation.

    Raises:
      ValueError: invalid settings or arrays, NaN in the parameters, parameters that are not
        floating-point arrays, a target of other layers, explicit WSA outside its stability bound,
        or a directory that holds another run.
      CheckpointError: a file of the directory is torn or cannot be written, or another process uses
        the directory.

    Source: WSA, Algorithm 1 and section 5.3.
    """
    images, labels = train
    participants = partition.clients if participants is None else participants
    _check_settings(partition, len(labels), rounds, participants, evaluate_every, checkpoint_every)
    check_partition(partition)
    algorithm = fed_avg() if algorithm is None else algorithm
    rates = _values(learning_rate, rounds, "learning_rate")
    strengths = _values(wsa.strength if wsa else 0.0, rounds, "strength")

    initial, collections = task.init(jax.random.fold_in(key, 0))
    check_statistics(params, model_state, collections)
    collections = collections if model_state is None else model_state
    initial = initial if params is None else params
    checks.floating(initial)
    initial = jax.tree.map(jnp.asarray, initial)
    checks.finite(initial)
    sets = {"train": train} if test is None else {"train": train, "test": test}
    check_data(task, initial, collections, sets)
    select, left_out = diagnosed_layers(initial, wsa)
    scope = weight_scope(initial, select=select)
    target = initial_target(scope, wsa)
    form = ScopeForm(form=wsa.form, scale=wsa.scale, select=select) if wsa else None
    if form is not None and form.form != "proximal":
        check_bound(scope, target, rates, strengths, scale=form.scale)

    state = initial_state(
        algorithm, initial, clients=partition.clients, target=target, model_state=collections
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
        select=select,
        fuse_target=wsa is None or isinstance(wsa.target, str),
        aggregation=aggregation,
        execution=execution,
    )
    run = None
    history: list[dict[str, Any]] = []
    if directory is not None:
        identity = simulation_identity(
            key, task, (initial, collections), algorithm, partition, participants, local,
            aggregation, wsa, form, target.names, train, test,
        )  # fmt: skip
        run = RunDirectory(directory, identity, total=rounds)
        _, state, history = run.resume(state, functools.partial(other_schedules, rates, strengths))

    done = int(state.round)
    data = FederatedData(*map(jnp.asarray, (images, labels, partition.indices, partition.sizes)))
    held_out = None if test is None else (jnp.asarray(test[0]), jnp.asarray(test[1]))
    round_key = jax.random.fold_in(key, 1)
    put = functools.partial(_on_mesh, mesh=execution.mesh)
    spec = PartitionSpec()
    if execution.mesh is not None:
        spec = state_spec(partition.clients, execution.mesh)
    state = dataclasses.replace(
        put(dataclasses.replace(state, clients=())), clients=put(state.clients, spec=spec)
    )
    data, round_key = put((data, round_key))
    checkpoint_every = checkpoint_every or evaluate_every
    pending: list[tuple[int, RoundInfo]] = []
    since = time.perf_counter()
    with (
        run or contextlib.nullcontext(),
        _progress(progress and jax.process_index() == 0, done, rounds) as advance,
    ):
        for index in range(done, rounds):
            numbers = RoundSettings(jnp.float32(rates[index]), jnp.float32(strengths[index]))
            settings = put(numbers)
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
            rows = [
                round_row(i, info, rates[i], strengths[i], seconds, client_scopes)
                for i, info in pending
            ]
            if not any(np.asarray(info.accepted).any() for _, info in pending):
                warnings.warn(
                    f"no client's update was accepted in rounds {rows[0]['round']} to {index + 1}: "
                    "all were NaN or infinite, or came from clients without examples; lower "
                    f"learning_rate {rates[index]} or check the loss",
                    stacklevel=2,
                )
            pending.clear()
            if evaluates and held_out is not None:
                server, params, model_state = local_copy(
                    (state.server, state.params, state.model_state)
                )
                sums = evaluate(
                    task, algorithm.evaluated(server, params), model_state, *held_out,
                    batch_size=execution.evaluation_batch,
                )  # fmt: skip
                for name, value in sums.means().items():
                    rows[-1][f"test_{name}"] = json_number(value)
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
    kept = algorithm.evaluated(state.server, state.params)
    return SimulationResult(state, kept, history, left_out)


def _on_mesh(tree: PyTree, mesh: Mesh | None, spec: PartitionSpec = PartitionSpec()) -> PyTree:
    return tree if mesh is None else place_on_mesh(tree, mesh, spec)


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
    check_participants(participants, partition.clients)
    checks.count("evaluate_every", evaluate_every)
    if checkpoint_every is not None:
        checks.count("checkpoint_every", checkpoint_every)
    if partition.indices.max() >= examples or not partition.sizes.any():
        raise ValueError(
            f"the partition points at example {partition.indices.max()} and holds "
            f"{partition.sizes.sum()} in all, but there are {examples}; make it from these labels"
        )


def _values(value: Real[ArrayLike, ""] | Schedule, rounds: int, name: str) -> np.ndarray:
    values = [value(i) for i in range(rounds)] if callable(value) else [value] * rounds
    array = np.asarray(values, np.float64)
    check_strength(array, name)
    return array


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
