"""What `simulate` and `simulate_many` are given alike: further keywords, examples, schedules."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

import numpy as np
from jax.sharding import Mesh
from jaxtyping import ArrayLike, PyTree, Real

from wsa_jax.data.loading import Dataset
from wsa_jax.door import shown, taken_by
from wsa_jax.federated.alignment import WeightScopeAlignment
from wsa_jax.federated.named import ClientsName
from wsa_jax.federated.partition import Partition
from wsa_jax.federated.round import ServerState
from wsa_jax.federated.run_loop import OnRound, Recording, Schedules
from wsa_jax.federated.train_clients import Execution
from wsa_jax.schedules import check_non_negative
from wsa_jax.scope.layers import Rule
from wsa_jax.types import Examples, Json, Schedule


class CommonOptions(TypedDict, total=False):
    """Further keywords of both, described at `simulate`."""

    participants: int | None
    execution: Execution | ClientsName
    evidence: PyTree | None
    evaluate_every: int
    directory: str | os.PathLike[str] | None
    checkpoint_every: int | None
    on_round: OnRound | None
    client_scopes: bool
    progress: bool


class SimulationOptions(CommonOptions, total=False):
    """Those of `simulate` alone."""

    params: PyTree | None
    model_state: PyTree | None
    state: ServerState | None
    keep_local: Rule | None
    test_partition: Partition | Sequence[object] | Mapping[int, object] | None


class ManyOptions(CommonOptions, total=False):
    """Those of `simulate_many` alone, where they are described."""

    runs: Literal["map", "vmap"]
    mesh: Mesh | None


def recording_of(options: Mapping[str, Any]) -> Recording:
    """The part of the options that says what is recorded."""
    names = [field.name for field in dataclasses.fields(Recording)]
    given: Json = {name: options[name] for name in names if name in options}
    return Recording(**given)


def sets_of(train: Examples | Dataset, test: Examples | Dataset | None) -> dict[str, Examples]:
    """Inputs and labels by what they are for, of data sets as well."""
    sets = {"train": _pair_of(train)}
    return sets if test is None else sets | {"test": _pair_of(test)}


def _pair_of(examples: Examples | Dataset) -> Examples:
    if isinstance(examples, Dataset):
        return examples.images, examples.labels
    if len(examples) != 2:
        raise ValueError(f"{len(examples)} arrays are given; give inputs and labels, a pair")
    inputs, labels = examples
    if isinstance(labels, list | tuple) and all(
        isinstance(one, int | np.integer) for one in labels
    ):
        labels = np.asarray(labels)
    return inputs, labels


def schedules_of(
    learning_rate: Real[ArrayLike, ""] | Schedule, wsa: WeightScopeAlignment | None, rounds: int
) -> Schedules:
    """The numbers of all rounds, checked."""
    return Schedules(
        _values_of(learning_rate, rounds, "learning_rate"),
        _values_of(wsa.strength if wsa else 0.0, rounds, "strength"),
    )


def _values_of(value: Real[ArrayLike, ""] | Schedule, rounds: int, name: str) -> np.ndarray:
    with taken_by(f"the schedule of {name}", "a round's index"):
        values = [value(i) for i in range(rounds)] if callable(value) else [value] * rounds
    for index, one in enumerate(values):
        if np.ndim(one) or not np.issubdtype(np.asarray(one).dtype, np.number):
            what = f"an array of shape {np.shape(one)}" if np.ndim(one) else shown(one)
            raise ValueError(f"{name} of round {index} is {what}; give one number")
    array = np.asarray(values, np.float64)
    check_non_negative(array, name)
    return array
