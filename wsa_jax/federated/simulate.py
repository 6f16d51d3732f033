"""Federated simulation: rounds compiled once, evaluated, recorded, checkpointed and resumed."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, ArrayLike, Key, PyTree, Real

from wsa_jax import checks
from wsa_jax.data.loading import Dataset
from wsa_jax.door import door
from wsa_jax.federated.aggregate import Aggregation
from wsa_jax.federated.algorithms import FederatedAlgorithm
from wsa_jax.federated.alignment import WeightScopeAlignment, initial_target
from wsa_jax.federated.checks import (
    check_call,
    check_partition_of,
    diagnosed_layers,
    tests_of_clients,
)
from wsa_jax.federated.client import LocalSettings, epochs_needed
from wsa_jax.federated.judging import HeldOut, judged
from wsa_jax.federated.local_leaves import check_kept
from wsa_jax.federated.mesh import place_on_mesh, state_spec
from wsa_jax.federated.named import (
    AlgorithmName,
    RuleName,
    aggregation_of,
    algorithm_of,
    execution_of,
)
from wsa_jax.federated.options import SimulationOptions, recording_of, schedules_of, sets_of
from wsa_jax.federated.partition import Partition, as_partition
from wsa_jax.federated.round import (
    ServerState,
    check_participants,
    continued_state,
    initial_state,
    jitted_round,
)
from wsa_jax.federated.run_directory import other_schedules, simulation_identity
from wsa_jax.federated.run_loop import (
    Recorder,
    Schedules,
    run_rounds,
)
from wsa_jax.federated.train_clients import Execution, FederatedData, RoundPlan
from wsa_jax.progress import progress_bar
from wsa_jax.runs.run_directory import RunDirectory
from wsa_jax.scope.layers import Rule, without
from wsa_jax.scope.scope import weight_scope
from wsa_jax.scope.stability import check_bound
from wsa_jax.training.checks import check_data, check_statistics
from wsa_jax.training.task import Task
from wsa_jax.types import Examples, Json, Schedule


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
    history: list[Json]
    left_out: tuple[str, ...]


def reference_learning_rate(round_index: int) -> float:
    """Return the learning rate of the public reference experiments: 0.01 times 0.998^(round + 1).

    >>> round(reference_learning_rate(0), 8)
    0.00998
    """
    return 0.01 * 0.998 ** (round_index + 1)


@door
def simulate(
    key: Key[Array, ""],
    task: Task,
    train: Examples | Dataset,
    partition: Partition | Sequence[object] | Mapping[int, object],
    *,
    rounds: int,
    algorithm: FederatedAlgorithm | AlgorithmName | None = None,
    wsa: WeightScopeAlignment | None = None,
    learning_rate: Real[ArrayLike, ""] | Schedule = reference_learning_rate,
    local: LocalSettings = LocalSettings(),
    aggregation: Aggregation | RuleName = Aggregation(),
    test: Examples | Dataset | None = None,
    **options: Unpack[SimulationOptions],
) -> SimulationResult:
    """Simulate federated rounds: FedAvg or another algorithm, with or without WSA.

    Args:
      key: a JAX key; initial weights, participants, batches and augmentation all follow from it.
      task: what is trained, for example `wsa_jax.training.classification`.
      train: inputs and labels of all clients, ``[examples, ...]`` and ``[examples]``, or a
        `wsa_jax.data.Dataset`.
      partition: which client owns which examples, or a list of the rows of each client.
      rounds: number of rounds in all, including those of a resumed run.
      algorithm: FedAvg by default, or another; a name, such as ``"scaffold"``, for its defaults.
      wsa: weight scope alignment, None for the plain algorithm; a schedule of its strength is
        called with the round's index, from 0.
      learning_rate: rate of local SGD, a number or a schedule of the round's index, from 0.
      local: settings of local training.
      aggregation: mean or another rule, clipping of updates, and how NaN is handled; the name of a
        rule, such as ``"median"``, for the rest as it is.
      test: inputs and labels to evaluate the global model on.
      **options: any of the keywords below.

    Who takes part, where the run starts, and how it executes:

    * ``participants``: clients drawn per round; all by default.
    * ``params``: initial parameters instead of the task's own. In half precision, local steps below
      its resolution are lost; the server computes in float32 and keeps the parameters' dtype.
    * ``model_state``: initial state that is not trained (BatchNorm statistics), instead of the
      task's own; required with ``params`` if the task has any.
    * ``state``: the state of an earlier result; its run is continued up to ``rounds`` in all, given
      otherwise equal arguments. The history is that of the further rounds; the state is copied.
    * ``evidence``: arrays that the server has besides the clients' models, for an aggregation whose
      rule is a function (`Aggregation`).
    * ``execution``: an `Execution`, or ``"map"`` or ``"vmap"``; none of its settings changes a
      result beyond rounding, with JAX's default keys.

    * ``keep_local``: a rule of the leaves of parameters and model state that stay at the clients,
      such as ``matching(".*BatchNorm.*")`` (FedBN) or ``matching("Dense_1/.*")`` (FedPer's head).
      They are trained and remembered by each client and never sent; weight scope alignment leaves
      them out. The server has no whole model then: give ``test_partition`` to judge the clients'.

    What is recorded, and when (`Recording`):

    * ``test_partition``: which rows of ``test`` are each client's own test split (`split_clients`);
      evaluated rounds then hold ``test_client_accuracy`` and ``test_client_loss``, means over the
      clients, and the same with ``_worst``, over the worst tenth of them (at least one).
    * ``evaluate_every``: rounds between evaluations, 5 by default; the last is always evaluated.
    * ``directory``: where checkpoints and ``metrics.jsonl`` go; a run found there is resumed.
    * ``checkpoint_every``: rounds between checkpoints, by default every evaluation.
    * ``on_round``: called as ``on_round(row)`` with the row of each round that is run here, in
      order, but not with those that a resumed run finds in its directory. It may put numbers of its
      own into the row, which is written afterwards, and return `STOP` to end the run after the
      rounds that have been run; the last row then has ``ended_by``, and a run found so in its
      directory is returned as it is, or goes on if no ``on_round`` is given. A callback that needs
      two arguments is called as ``on_round(row, state)`` at the end of every round, which the host
      then waits for, and stops the run there; the next round may reuse the state's buffers, so copy
      what you keep. With several processes it is called on each, and must answer the same on each.
    * ``client_scopes``: put each participant's means and stds into the rows.
    * ``progress``: show a progress bar.

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

    >>> from wsa_jax.federated import iid
    >>> from wsa_jax.training import classification_task
    >>> def init(key):
    ...     return {"w": 0.1 * jax.random.normal(key, (4, 2))}, {}
    >>> def apply(params, model_state, inputs, train, key):
    ...     return inputs @ params["w"], model_state
    >>> x = jax.random.normal(jax.random.key(1), (40, 4))
    >>> y = (x[:, 0] > 0).astype(int)
    >>> def until_good(row):
    ...     return "stop" if row.get("test_accuracy", 0) > 0.8 else None
    >>> result = simulate(
    ...     jax.random.key(0), classification_task(init, apply), (x, y),
    ...     iid(y, clients=4, seed=0), rounds=50, learning_rate=0.1, test=(x, y),
    ...     on_round=until_good,
    ... )
    >>> len(result.history) < 50, result.history[-1]["test_accuracy"] > 0.8
    (True, True)

    Source: WSA, Algorithm 1 and section 5.3.
    """
    evidence = options.get("evidence")
    aggregation = aggregation_of(aggregation)
    check_call(key, evidence, aggregation)
    sets = sets_of(train, test)
    execution = execution_of(options.get("execution", Execution()))
    recording = recording_of(options)
    # All arguments are checked before anything is compiled or written.
    partition = as_partition(partition)
    check_partition_of(partition, len(sets["train"][1]), rounds)
    schedules = schedules_of(learning_rate, wsa, rounds)
    own_tests = tests_of_clients(options, partition.clients, sets.get("test"), rounds)
    initial = initial_model(key, task, sets, options.get("params"), options.get("model_state"))
    plan, state, left_out = planned(
        task,
        initial,
        partition,
        schedules,
        wsa,
        options.get("participants"),
        algorithm=algorithm_of(algorithm),
        local=local,
        aggregation=aggregation,
        execution=execution,
        keep_local=options.get("keep_local"),
    )
    if (given := options.get("state")) is not None:
        state = continued_state(given, state, rounds, recording.directory)
    run, history = None, list[Json]()
    if recording.directory is not None:
        looked_at = sets | {"evidence": evidence, "test_partition": own_tests}
        identity = simulation_identity(key, plan, initial, partition, wsa, state.target, looked_at)
        run = RunDirectory(recording.directory, identity, total=rounds)
        _, state, history = run.resume(state, functools.partial(other_schedules, *schedules))

    place = functools.partial(_placed, execution)
    arrays = (*sets["train"], partition.indices, partition.sizes, evidence)
    state, data, held_out = _on_devices(place, state, arrays, sets.get("test"), partition.clients)
    round_key = place(jax.random.fold_in(key, 1))
    shows = recording.progress and jax.process_index() == 0
    with (
        run or contextlib.nullcontext(),
        progress_bar(shows, rounds, done=int(state.round), what="rounds") as advance,
    ):
        recorder = Recorder(
            recording,
            schedules,
            judge=None
            if held_out is None
            else functools.partial(judged, plan, HeldOut(held_out, own_tests)),
            run=run,
            history=history,
            advance=advance,
        )
        state = run_rounds(jitted_round(plan), round_key, state, data, schedules, recorder, place)
    kept = plan.algorithm.evaluated(state.server, state.params)
    return SimulationResult(state, kept, history, left_out)


def initial_model(
    key: Array, task: Task, sets: dict[str, Examples], params: PyTree, model_state: PyTree
) -> tuple[PyTree, PyTree]:
    """The parameters and model state that the first round begins with, checked against the data."""
    initial, collections = task.init(jax.random.fold_in(key, 0))
    check_statistics(params, model_state, collections)
    collections = collections if model_state is None else model_state
    initial = initial if params is None else params
    checks.floating(initial)
    initial = jax.tree.map(jnp.asarray, initial)
    checks.finite(initial)
    check_data(task, initial, collections, sets)
    return initial, collections


def planned(
    task: Task,
    initial: tuple[PyTree, PyTree],
    partition: Partition,
    schedules: Schedules,
    wsa: WeightScopeAlignment | None,
    participants: int | None,
    *,
    algorithm: FederatedAlgorithm,
    local: LocalSettings,
    aggregation: Aggregation,
    execution: Execution,
    keep_local: Rule | None = None,
) -> tuple[RoundPlan, ServerState, tuple[str, ...]]:
    """What is static in a round, the state of the first one, and the layers left out."""
    participants = partition.clients if participants is None else participants
    check_participants(participants, partition.clients)
    local.check_clients(partition.clients)
    params, model_state = initial
    # Layers without spread have no scope, and explicit forms a strength beyond which they diverge.
    select, left_out = diagnosed_layers(params, wsa)
    if keep_local is not None:
        select = without(select, check_kept(params, model_state, keep_local))
    scope = weight_scope(params, select=select)
    target = initial_target(scope, wsa)
    form = wsa.static(select) if wsa else None
    if form is not None and form.form != "proximal" and local.optimizer is None:
        check_bound(scope, target, *schedules, scale=form.scale, direction=form.direction)
    smallest = int(partition.sizes[partition.sizes > 0].min())
    plan = RoundPlan(
        task=task,
        algorithm=algorithm,
        participants=participants,
        epochs=epochs_needed(smallest, steps=local.longest, batch_size=local.batch_size),
        local=local,
        scope_form=form,
        select=select,
        fuse_target=wsa is None or isinstance(wsa.target, str),
        aggregation=aggregation,
        execution=execution,
        keep_local=keep_local,
    )
    state = initial_state(
        algorithm,
        params,
        clients=partition.clients,
        target=target,
        model_state=model_state,
        keep_local=keep_local,
    )
    return plan, state, left_out


def _on_devices(
    place: Callable[..., PyTree],
    state: ServerState,
    arrays: tuple[PyTree, ...],
    test: Examples | None,
    clients: int,
) -> tuple[ServerState, FederatedData, Examples | None]:
    """What a round takes, on the devices that run it."""
    arrays, held_out = jax.tree.map(jnp.asarray, (arrays, test))
    state = dataclasses.replace(
        place(dataclasses.replace(state, clients=())), clients=place(state.clients, clients=clients)
    )
    return state, place(FederatedData(*arrays)), held_out


def _placed(execution: Execution, tree: PyTree, clients: int | None = None) -> PyTree:
    """Put arrays on the mesh, if there is one: on every device, or client states as they lie."""
    if execution.mesh is None:
        return tree
    spec = PartitionSpec() if clients is None else state_spec(clients, execution.mesh)
    return place_on_mesh(tree, execution.mesh, spec)
