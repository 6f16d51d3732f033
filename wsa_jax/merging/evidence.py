"""What merging methods get: models with their state, evidence, and a budget."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, PyTree, Shaped

from wsa_jax import checks
from wsa_jax.door import check_fields, shown
from wsa_jax.schedules import check_non_negative
from wsa_jax.training.task import Task
from wsa_jax.types import Inputs


class Model(NamedTuple):
    """Parameters and the non-parameter collections that belong to them."""

    params: PyTree
    model_state: PyTree

    @property
    def variables(self) -> dict[str, PyTree]:
        """Both as one tree, Linen's variables, which specs name and aligns move."""
        return {"params": self.params, **self.model_state}

    @classmethod
    def of(cls, variables: PyTree) -> "Model":
        """The inverse of `variables`."""
        state = {name: part for name, part in variables.items() if name != "params"}
        return cls(variables["params"], state)


class Evidence(NamedTuple):
    """What methods may use besides weights: the same for all of them.

    Attributes:
      task: what the models were trained for.
      inputs: examples, an array ``[examples, ...]`` or a pytree of such arrays.
      labels: their labels, ``[examples]`` or ``[examples, ...]`` where each has several; None for
        unlabelled examples, which some methods do with.
      base: the model that all were fine-tuned from, for methods of task vectors; its units must be
        in the order of the first model's. None where there is none.
    """

    task: Task
    inputs: Inputs
    labels: Shaped[Array | np.ndarray, "examples ..."] | None = None
    base: Model | None = None

    @property
    def images(self) -> Inputs:
        """The inputs, by their earlier name."""
        return self.inputs


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What learned methods may spend.

    Attributes:
      steps: number of gradient steps.
      batch_size: examples per step; fewer where there are fewer examples.
      np_learning_rate: Adam's learning rate for NP Merge; coefficients pass through a sigmoid and
        need a far larger rate than weights.
      fine_tuning_rate: Adam's learning rate for fine-tuning.
      held_out: the fraction held out to select the best step, in [0, 1); one example is left.
      restarts: starts of `weight_matching`, of which the best is kept.
      ada_learning_rate: Adam's learning rate for AdaMerging's scales, which are no logits.
    """

    steps: int = 200
    batch_size: int = 50
    np_learning_rate: float | int = 0.1
    fine_tuning_rate: float | int = 1e-3
    held_out: float | int = 0.2
    restarts: int = 2
    ada_learning_rate: float | int = 1e-3

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("steps", "batch_size", "restarts"):
            checks.count(name, getattr(self, name))
        for name in ("np_learning_rate", "fine_tuning_rate", "ada_learning_rate"):
            check_non_negative(getattr(self, name), name)
        if not 0 <= self.held_out < 1:
            raise ValueError(
                f"held_out {self.held_out} is not a share in [0, 1); 0.2 is the default"
            )


def check_are_models(models: Sequence[object], where: str) -> None:
    """Raise a ValueError unless all of them are a `Model`.

    >>> check_are_models([{"w": 1.0}], "merge_table")
    Traceback (most recent call last):
    ValueError: model 1 of merge_table is {'w': 1.0}; give Model(params, model_state)
    """
    for index, model in enumerate(models):
        if not isinstance(model, Model):
            raise ValueError(
                f"model {index + 1} of {where} is {shown(model)}; give Model(params, model_state)"
            )


def check_pair(data: object, what: str) -> None:
    """Raise a ValueError unless data is a pair of inputs and labels.

    >>> check_pair([], "test")
    Traceback (most recent call last):
    ValueError: test is []; give a pair (inputs, labels)
    """
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise ValueError(f"{what} is {shown(data)}; give a pair (inputs, labels)")
    if data[1] is None:
        raise ValueError(f"{what} has no labels, which losses need; give a pair (inputs, labels)")


def rows_of(evidence: Evidence) -> int:
    """The number of examples.

    Raises:
      ValueError: there are none, or arrays differ in their number.
    """
    named = jax.tree_util.tree_leaves_with_path(evidence.inputs)
    counts = {np.shape(leaf)[:1] for _, leaf in named}
    if not counts or counts & {(), (0,)}:
        raise ValueError("evidence has no examples; give at least one")
    if len(counts) > 1:
        raise ValueError(
            f"arrays of the evidence have {sorted(count for (count,) in counts)} rows; give each "
            "the same number"
        )
    return counts.pop()[0]


def labels_of(evidence: Evidence) -> Array | np.ndarray:
    """The labels.

    Raises:
      ValueError: there are none.
    """
    if evidence.labels is None:
        raise ValueError(
            "the evidence has no labels, which are needed here; give Evidence(task, inputs, labels)"
        )
    return evidence.labels


@functools.lru_cache(maxsize=16)
def apply_of(task: Task) -> Callable[[PyTree, Inputs], Array]:
    """The logits as a function of variables and stored inputs: one function for each task.

    Raises:
      ValueError: the task has none.
    """
    if task.logits is None:
        raise ValueError("the task has no logits, which activations are read with; set them")
    logits = task.logits
    return lambda variables, inputs: logits(*Model.of(variables), inputs)
