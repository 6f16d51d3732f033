"""The rounds of a simulation one after another, and what is recorded of them."""

import inspect
import json
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from wsa_jax import checks
from wsa_jax.door import check_fields, shown
from wsa_jax.federated.diagnostics import RoundInfo
from wsa_jax.federated.local_settings import RoundSettings
from wsa_jax.federated.round import RoundFn, ServerState
from wsa_jax.federated.run_directory import json_number, round_row
from wsa_jax.federated.train_clients import FederatedData
from wsa_jax.progress import Advance
from wsa_jax.runs.run_directory import RunDirectory
from wsa_jax.types import Json

STOP = "stop"
"""What ``on_round`` returns to end a run."""

_ENDED_BY = {"ended_by": "on_round"}

OnRound = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What a simulation records, and when; `simulate` takes these by name.

    Attributes:
      evaluate_every: rounds between evaluations; the last round is always evaluated.
      directory: where checkpoints and ``metrics.jsonl`` go; a run found there is resumed.
      checkpoint_every: rounds between checkpoints, by default every evaluation.
      on_round: called with the row of each round that is run here, in order, before it is written;
        see `simulate`.
      client_scopes: put each participant's means and stds into the rows.
      progress: show a progress bar.
    """

    evaluate_every: int = 5
    directory: str | os.PathLike[str] | None = None
    checkpoint_every: int | None = None
    on_round: OnRound | None = None
    client_scopes: bool = False
    progress: bool = False

    def __post_init__(self):
        checks.count("evaluate_every", self.evaluate_every)
        if self.checkpoint_every is not None:
            checks.count("checkpoint_every", self.checkpoint_every)
        check_fields(self)
        if self.on_round is not None:
            check_callback(self.on_round)


class Schedules(NamedTuple):
    """The plain numbers of every round, ``[rounds]``."""

    rates: np.ndarray
    strengths: np.ndarray


def run_rounds(
    round_fn: RoundFn,
    key: Array,
    state: ServerState,
    data: FederatedData,
    schedules: Schedules,
    recorder: "Recorder",
    place: Callable[[PyTree], PyTree],
) -> ServerState:
    """Run the rounds that a state lacks, and return the last state.

    The host dispatches rounds without waiting, until the recorder wants to see them.
    """
    rates, strengths = schedules
    if recorder.ended:
        return state
    for index in range(int(state.round), len(rates)):
        settings = place(RoundSettings(jnp.float32(rates[index]), jnp.float32(strengths[index])))
        state, info = round_fn(key, state, data, settings)
        if recorder.add(index, info, state):
            break
    return state


class Recorder:
    """Rows of a run: made from the rounds' diagnostics, evaluated, shown to the caller, written.

    Args:
      recording: what is recorded, and when.
      schedules: numbers of all rounds.
      judge: ``state -> {name: value}``, the evaluation, or None for none.
      run: the directory, or None.
      history: rows of earlier rounds; new ones are appended.
      advance: called for each round, with what is known of it, for a progress bar.
    """

    def __init__(
        self,
        recording: Recording,
        schedules: Schedules,
        *,
        judge: Callable[[ServerState], Json] | None,
        run: RunDirectory | None,
        history: list[Json],
        advance: Advance,
    ):
        self.history = history
        self._recording, self._schedules = recording, schedules
        self._judge, self._run, self._advance = judge, run, advance
        self._pending: list[tuple[int, RoundInfo]] = []
        self._since = time.perf_counter()
        self._told: set[str] = set()
        self._sees_state = recording.on_round is not None and takes_state(recording.on_round)

    @property
    def ended(self) -> bool:
        """Whether a callback has ended the run, now or before; without one, it goes on."""
        last = self.history[-1] if self.history else {}
        return self._recording.on_round is not None and _ENDED_BY.items() <= last.items()

    def due(self, index: int) -> bool:
        """Whether a round is looked at when it is done, so that the host waits for it."""
        return self._evaluates(index) or self._saves(index) or self._sees_state

    def _evaluates(self, index: int) -> bool:
        return self._is_last(index) or (index + 1) % self._recording.evaluate_every == 0

    def _saves(self, index: int) -> bool:
        every = self._recording.checkpoint_every or self._recording.evaluate_every
        return self._is_last(index) or (index + 1) % every == 0

    def _is_last(self, index: int) -> bool:
        return index + 1 == len(self._schedules.rates)

    def add(self, index: int, info: RoundInfo, state: ServerState) -> bool:
        """Take note of a round; return whether the caller wants the run to stop."""
        self._pending.append((index, info))
        if not self.due(index):
            self._advance()
            return False
        rows = self._rows(info)
        if self._evaluates(index) and self._judge is not None:
            for name, value in self._judge(state).items():
                rows[-1][f"test_{name}"] = json_number(value)
        # The caller's own numbers are part of the row, so it is written after the call.
        stops = self._show(rows, state)
        if stops:
            rows[-1] |= _ENDED_BY
        self.history.extend(rows)
        if self._run is not None:
            self._run.append(rows)
            if self._saves(index) or stops:
                self._run.save(index + 1, state)
        accuracy = rows[-1].get("test_accuracy")
        self._advance(1, None if accuracy is None else f"rounds, test accuracy {accuracy:.3f}")
        self._since = time.perf_counter()
        return stops

    def _rows(self, info: RoundInfo) -> list[Json]:
        """Rows of the rounds since the last ones; waits for the newest."""
        jax.block_until_ready(info.loss)
        seconds = (time.perf_counter() - self._since) / len(self._pending)
        rates, strengths = self._schedules
        rows = [
            round_row(i, info, rates[i], strengths[i], seconds, self._recording.client_scopes)
            for i, info in self._pending
        ]
        self._warn(rows)
        self._pending.clear()
        return rows

    def _warn(self, rows: list[Json]) -> None:
        """Say, once a run for each kind, what was left out."""
        first, last = rows[0]["round"], rows[-1]["round"]
        dropped = next((row for row in rows if row["dropped"]), None)
        refused = next((row for row in rows if row["refused"]), None)
        if not any(np.asarray(info.accepted).any() for _, info in self._pending):
            self._warn_once(
                "nobody accepted",
                f"no client's update was accepted in rounds {first} to {last}: all were NaN or "
                "infinite, or came from clients without examples; lower learning_rate "
                f"{rows[-1]['learning_rate']} or check the loss",
            )
        elif dropped is not None:
            self._warn_once(
                "dropped",
                f"{dropped['dropped']} of the clients of round {dropped['round']} sent NaN, "
                "infinity or an update too large to be squared, and were left out; rows count them "
                "as dropped",
            )
        if refused is not None:
            self._warn_once(
                "refused",
                f"round {refused['round']} was refused and changed nothing, because a sum of what "
                "clients sent, or the parameters or state that the server made of it, was not "
                "finite; rows count such rounds as refused",
            )

    def _show(self, rows: list[Json], state: ServerState) -> bool:
        """Call ``on_round`` with each row; return whether it said stop."""
        on_round, stops = self._recording.on_round, False
        if on_round is None:
            return stops
        for row in rows:
            said = on_round(row, state) if self._sees_state else on_round(row)
            stops |= isinstance(said, str) and said == STOP
            for name, value in row.items():
                row[name] = _json_value(name, value, row["round"])
        return stops

    def _warn_once(self, kind: str, message: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            # Attributed to the caller of simulate, behind its door.
            warnings.warn(message, stacklevel=8)


def check_callback(on_round: OnRound) -> None:
    """Raise a ValueError where a callback with a signature cannot be called with one row, or two.

    >>> check_callback(lambda: None)
    Traceback (most recent call last):
    ValueError: on_round takes (); give a function of (row) or of (row, state)
    """
    try:
        signature = inspect.signature(on_round)
    except (TypeError, ValueError):  # a callable of C without a signature
        return
    try:
        signature.bind(*[None] * (2 if takes_state(on_round) else 1))
    except TypeError:
        raise ValueError(
            f"on_round takes {signature}; give a function of (row) or of (row, state)"
        ) from None


def takes_state(on_round: OnRound) -> bool:
    """Whether a callback takes the state besides the row: whether it needs two arguments.

    >>> takes_state(lambda row: None), takes_state(lambda row, state: None), takes_state([].append)
    (False, True, False)
    """
    try:
        parameters = inspect.signature(on_round).parameters.values()
    except (TypeError, ValueError):  # a callable of C without a signature
        return False
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters if p.kind in named and p.default is p.empty]
    return len(needed) > 1


def _json_value(name: str, value: object, number: int) -> object:
    """A value of a row as JSON holds it; numbers of NumPy and JAX become Python's."""
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        value = np.asarray(value).tolist()
    if isinstance(value, float):
        return json_number(value)
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"on_round put {name} = {shown(value)} into the row of round {number}, "
            "which JSON lacks; give a number, a string, or a list of them"
        ) from None
    return value
