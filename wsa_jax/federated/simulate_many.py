"""Many simulations as one program: seeds, partitions and plain numbers on a leading axis."""

import contextlib
import dataclasses
import functools
import inspect
import numbers
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Key, Real

from wsa_jax import checks
from wsa_jax.data.loading import Dataset
from wsa_jax.door import door, shown
from wsa_jax.federated.aggregate import Aggregation
from wsa_jax.federated.algorithms import FederatedAlgorithm
from wsa_jax.federated.alignment import WeightScopeAlignment
from wsa_jax.federated.checks import check_call, check_partition_of
from wsa_jax.federated.judging import HeldOut, judged
from wsa_jax.federated.local_settings import LocalSettings
from wsa_jax.federated.many_runs import AXIS, Run, Shared, run_together
from wsa_jax.federated.named import (
    AlgorithmName,
    RuleName,
    aggregation_of,
    algorithm_of,
    execution_of,
)
from wsa_jax.federated.options import ManyOptions, recording_of, schedules_of, sets_of
from wsa_jax.federated.partition import Partition
from wsa_jax.federated.run_directory import other_schedules, simulation_identity
from wsa_jax.federated.run_loop import OnRound, Recorder, Recording
from wsa_jax.federated.simulate import (
    SimulationResult,
    initial_model,
    planned,
    reference_learning_rate,
)
from wsa_jax.federated.train_clients import Execution, RoundPlan
from wsa_jax.progress import progress_bar
from wsa_jax.runs.run_directory import RunDirectory
from wsa_jax.training.task import Task
from wsa_jax.types import Examples, Schedule


@door
def simulate_many(
    keys: Key[Array, " runs"],
    task: Task,
    train: Examples | Dataset,
    partitions: Partition | Sequence[Partition],
    *,
    rounds: int,
    algorithm: FederatedAlgorithm | AlgorithmName | None = None,
    wsa: WeightScopeAlignment | Sequence[WeightScopeAlignment] | None = None,
    learning_rate: Real[ArrayLike, ""] | Schedule | Sequence[Any] = reference_learning_rate,
    local: LocalSettings = LocalSettings(),
    aggregation: Aggregation | RuleName = Aggregation(),
    test: Examples | Dataset | None = None,
    **options: Unpack[ManyOptions],
) -> list[SimulationResult]:
    """Simulate several runs in one compiled program: seeds, and settings that are plain numbers.

    Run i is ``simulate(keys[i], task, train, partitions[i], ..., wsa=wsa[i],
    learning_rate=learning_rate[i])``; what is given once, is given to all.

    Args:
      keys: a key a run, for example ``jax.random.split(key, 4)``.
      task: what is trained, the same for all runs.
      train: inputs and labels of all clients, shared by all runs.
      partitions: one for all runs, or one a run, with equally many clients.
      rounds: number of rounds of each run.
      algorithm: as in `simulate`.
      wsa: one for all runs, or one a run; these may differ in strength, in start, and in the values
        of a fixed target, but fused and fixed targets do not mix. A run without weight scope
        alignment beside others with it has strength 0.
      learning_rate: a number or a schedule for all runs, or a sequence of these, one a run.
      local: settings of local training.
      aggregation: as in `simulate`.
      test: inputs and labels to evaluate each run's global model on.
      **options: any of the keywords below; ``participants``, ``execution``, ``evidence``,
        ``evaluate_every``, ``checkpoint_every``, ``client_scopes`` and ``progress`` are those of
        `simulate`. Initial weights follow from the keys.

    * ``runs``: ``"map"`` runs one after the other within the program (the default: CPU, or little
      memory), ``"vmap"`` all at once, which fills an accelerator.
    * ``mesh``: devices to spread the runs over (`runs_mesh`); on each, ``runs`` applies. Where they
      do not divide the runs, stand-ins fill the last device.
    * ``directory``: run i is recorded in its folder ``run_i``, as `simulate` would, and either of
      them resumes it there.
    * ``on_round``: called as ``on_round(i, row)``; where it returns `STOP`, run i ends there, and
      stays so when it is started again, as in `simulate`.

    Returns:
      One `SimulationResult` a run, in order; ``seconds`` in its rows are those of all runs.

    Guarantees: one compilation, whatever the numbers; each run equals the separate one to rounding
    (with JAX's default keys, if partitions differ in capacity). Runs that were interrupted after
    unequally many rounds wait for one another, and a resumed run ends bitwise as it would have.

    Edge cases: a run that has ended computes on without effect while others run. With several
    processes it is refused: give each process runs of its own.

    Raises:
      ValueError: what `simulate` refuses of one of the runs; settings that differ in more than
        plain numbers; sequences of other lengths than the keys; or a mesh over clients besides.
      CheckpointError: a file of a directory is torn, or another process uses it.

    >>> from wsa_jax.federated import iid
    >>> from wsa_jax.training import classification_task
    >>> def init(key):
    ...     return {"w": 0.1 * jax.random.normal(key, (4, 2))}, {}
    >>> def apply(params, model_state, inputs, train, key):
    ...     return inputs @ params["w"], model_state
    >>> x = jax.random.normal(jax.random.key(1), (40, 4))
    >>> y = (x[:, 0] > 0).astype(int)
    >>> results = simulate_many(
    ...     jax.random.split(jax.random.key(0), 2), classification_task(init, apply), (x, y),
    ...     iid(y, clients=4, seed=0), rounds=2, learning_rate=[0.01, 0.3], test=(x, y),
    ... )
    >>> [round(result.history[-1]["learning_rate"], 2) for result in results]
    [0.01, 0.3]
    """
    aggregation, algorithm = aggregation_of(aggregation), algorithm_of(algorithm)
    execution = execution_of(options.get("execution", Execution()))
    sets = sets_of(train, test)
    shared = Shared(sets, options.get("evidence"), options.get("runs", "map"), options.get("mesh"))
    _check_many(keys, execution, shared)
    _check_callback(options.get("on_round"))
    recording = recording_of(options)
    rates = _one_a_run(learning_rate, len(keys), "learning_rate")
    _check_rates(learning_rate, rates)
    each = zip(
        keys,
        _one_a_run(partitions, len(keys), "partitions"),
        _one_a_run(wsa, len(keys), "wsa"),
        rates,
        strict=True,
    )
    # Every run is checked as if it were alone before anything is compiled or written.
    runs = [
        _run_of(
            *one,
            rounds,
            shared,
            task=task,
            participants=options.get("participants"),
            algorithm=algorithm,
            local=local,
            aggregation=aggregation,
            execution=execution,
        )
        for one in each
    ]
    plan = _common_plan(runs)
    with contextlib.ExitStack() as stack:
        if recording.directory is not None:
            folder = Path(recording.directory).expanduser()
            runs = [
                _resumed(stack, run, shared, folder / f"run_{number}", rounds)
                for number, run in enumerate(runs)
            ]
        first = min(run.done for run in runs)
        bar = progress_bar(recording.progress, rounds, done=first, what="rounds")
        recorders = _recorders(plan, runs, shared, recording)
        states = run_together(plan, runs, shared, recorders, stack.enter_context(bar))
    return [
        SimulationResult(
            state,
            plan.algorithm.evaluated(state.server, state.params),
            list(recorder.history),
            run.left_out,
        )
        for run, state, recorder in zip(runs, states, recorders, strict=True)
    ]


def _check_many(keys: Array, execution: Execution, shared: Shared) -> None:
    checks.one_of("runs", shared.how, ("map", "vmap"))
    if not len(keys):
        raise ValueError("keys are empty: there is no run; give a key a run")
    if execution.mesh is not None:
        raise ValueError(
            "execution.mesh spreads the clients of one run; leave it out, and give "
            "mesh=runs_mesh() to spread the runs"
        )
    if shared.mesh is not None and shared.mesh.axis_names != (AXIS,):
        raise ValueError(f"the mesh has axes {shared.mesh.axis_names}; give mesh=runs_mesh()")
    if jax.process_count() > 1:
        raise ValueError(
            f"simulate_many is of one process, but there are {jax.process_count()}; give each "
            "process runs of its own, or simulate one run with execution.mesh"
        )


def _check_callback(on_round: OnRound | None) -> None:
    """Raise a ValueError where a callback with a signature takes no number of a run and row."""
    if on_round is None:
        return
    try:
        signature = inspect.signature(on_round)
    except (TypeError, ValueError):  # a callable of C has none
        return
    try:
        signature.bind(0, {})
    except TypeError:
        raise ValueError(
            f"on_round takes {signature}; give a function of (i, row), the number of the run and "
            "the row"
        ) from None


def _one_a_run(value: Any, runs: int, name: str) -> list[Any]:
    """A sequence as it is, anything else for every run."""
    if not isinstance(value, list | tuple):
        return [value] * runs
    if len(value) != runs:
        raise ValueError(f"{name} are {len(value)}, but there are {runs} keys; give one a key")
    return list(value)


def _check_rates(given: Any, rates: list[Any]) -> None:
    """What a sequence holds is beyond the door's types."""
    for number, rate in enumerate(rates):
        if np.ndim(rate) and not callable(rate):
            of = "" if rate is given else f" of run {number}"
            raise ValueError(
                f"learning_rate{of} is an array of shape {np.shape(rate)}; give a list of numbers, "
                "one a run"
            )
        if not (callable(rate) or isinstance(rate, numbers.Real | np.ndarray | jax.Array)):
            raise ValueError(
                f"learning_rate of run {number} is {shown(rate)}; give a number, or a schedule of "
                "the round's index"
            )


def _run_of(
    key: Array,
    partition: Partition,
    wsa: WeightScopeAlignment | None,
    rate: Any,
    rounds: int,
    shared: Shared,
    *,
    task: Task,
    participants: int | None,
    aggregation: Aggregation,
    **static: Any,
) -> Run:
    """What `simulate` begins with, of one run."""
    check_call(key, shared.evidence, aggregation)
    check_partition_of(partition, len(shared.sets["train"][1]), rounds)
    schedules = schedules_of(rate, wsa, rounds)
    initial = initial_model(key, task, shared.sets, None, None)
    plan, state, left_out = planned(
        task, initial, partition, schedules, wsa, participants, aggregation=aggregation, **static
    )
    return Run(key, partition, wsa, schedules, initial, plan, state, left_out)


def _common_plan(runs: list[Run]) -> RoundPlan:
    """The plan of all runs: orders are drawn one by one, so more of them change no other."""
    epochs = max(run.plan.epochs for run in runs)
    first, *others = (dataclasses.replace(run.plan, epochs=epochs) for run in runs)
    for number, other in enumerate(others, 1):
        for field in dataclasses.fields(RoundPlan):
            if getattr(other, field.name) != getattr(first, field.name):
                # What the caller knows it by.
                name = {"fuse_target": "target, fused or fixed"}.get(field.name, field.name)
                raise ValueError(
                    f"run {number} differs from run 0 in {name}, which is part of the "
                    "compiled program; give runs that differ in plain numbers alone, or call "
                    "simulate_many for each kind"
                )
    return first


def _resumed(
    stack: contextlib.ExitStack, run: Run, shared: Shared, folder: Path, rounds: int
) -> Run:
    """The run where its own folder says that it is; open until the stack ends."""
    # As `simulate` tells it, which may go on with the run.
    identity = simulation_identity(
        run.key,
        run.plan,
        run.initial,
        run.partition,
        run.wsa,
        run.state.target,
        shared.sets | {"evidence": shared.evidence},
    )
    directory = stack.enter_context(RunDirectory(folder, identity, total=rounds))
    done, state, history = directory.resume(
        run.state, functools.partial(other_schedules, *run.schedules)
    )
    return run._replace(directory=directory, done=done, state=state, history=history)


def _recorders(
    plan: RoundPlan, runs: list[Run], shared: Shared, recording: Recording
) -> list[Recorder]:
    """One a run, all with the same intervals."""
    held_out = jax.tree.map(jnp.asarray, shared.sets.get("test"))
    judge = None
    if held_out is not None:
        judge = functools.partial(judged, plan, HeldOut(held_out, None))
    found = []
    for number, run in enumerate(runs):
        own = recording
        if recording.on_round is not None:
            own = dataclasses.replace(
                recording, on_round=functools.partial(recording.on_round, number)
            )
        found.append(
            Recorder(
                own,
                run.schedules,
                judge=judge,
                run=run.directory,
                history=list(run.history),
                # All runs share one bar.
                advance=_no_bar,
            )
        )
    return found


def _no_bar(*told: Any) -> None:
    """What a recorder tells of its rounds."""
