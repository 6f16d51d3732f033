"""What a merge is learnt from, how, and what is kept meanwhile: NP Merge, joint, fine-tuning."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Integer, PyTree

from wsa_jax.door import check_fields, shown
from wsa_jax.merging.combine.best_so_far import BestSoFar
from wsa_jax.merging.combine.coefficients import check_granularity
from wsa_jax.merging.combine.examples import check_examples, check_finite_examples
from wsa_jax.schedules import check_non_negative
from wsa_jax.types import LearningRate

LossFn = Callable[[Array, PyTree, PyTree, PyTree], tuple[Array, PyTree]]
"""``(key, params, model_state, batch) -> (mean loss, model_state)``, as `training.Task.loss`."""

Repair = Callable[[PyTree, PyTree], PyTree]
"""``(params, model_state) -> model_state``: re-estimates statistics of the merged model."""

Optimizer = optax.GradientTransformation | Callable[..., optax.GradientTransformation]


@dataclass(frozen=True, kw_only=True)
class LearningSettings:
    """Static settings of learning on a few examples; a different value compiles again.

    Attributes:
      steps: number of gradient steps.
      batch_size: examples per step, drawn without replacement in each epoch.
      optimizer: a function of the learning rate such as ``optax.adam``, so that a sweep over rates
        shares one compilation; or an optax transformation as it is, which leaves the rate unused.
        It may take ``value``, ``grad`` and ``value_fn`` of the batch (Polyak steps, line searches).
      eval_every: steps between two evaluations on the held-out examples.
      granularity: what has a coefficient of its own in NP Merge: each ``"parameter"`` (the
        paper's), ``"channel"`` (index of a leaf's last axis) or ``"layer"`` (leaf), or the model as
        a whole (``"scalar"``). Fine-tuning has no coefficients and takes the same settings.
      compute_dtype: dtype in which the loss gets the parameters (and ``classification`` the
        images); what is learnt keeps its own.
      batch_sharding: sharding of each batch's leading axis over devices, or None.
      progress: show a progress bar of the steps, which are then taken in pieces; the result is
        bitwise the same.

    Raises:
      ValueError: a field is of another type, steps or eval_every is below 1, or the granularity is
        unknown.
    """

    steps: int
    batch_size: int = 50
    optimizer: Optimizer = optax.adam
    eval_every: int = 10
    granularity: str = "parameter"
    compute_dtype: Any = None
    batch_sharding: jax.sharding.Sharding | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("steps", "eval_every"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} {value} is below 1; give at least 1")
        check_granularity(self.granularity)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LearningState:
    """What the next step needs: pass it back to continue, bitwise as if there had been no break.

    Attributes:
      step: steps taken so far.
      variables: what is learnt, by key path of the leaf: logits of coefficients, or weights.
      opt_state: state of the optimiser.
      model_state: non-parameter collections, as updated in training mode.
      best: the variables of the lowest held-out loss, or batch loss if nothing is held out, and
        the first step that was not finite.
    """

    # Updated by every step.
    step: Integer[Array, "*merges"]
    variables: dict[str, Array]
    opt_state: PyTree
    model_state: PyTree
    # Updated by a step that is better than all before, or that diverges.
    best: BestSoFar


class Objective(NamedTuple):
    """What is learnt: how variables and frozen models give parameters, and a penalty on them.

    Equal fields make equal objectives, so jitted callers do not compile twice.

    Attributes:
      combine: ``(variables, models) -> params``.
      penalty: ``(variables, params, penalty_inputs) -> scalar``, added to the loss, or None.
      shares: ``variables -> coefficients`` for ``info["coefficients"]``, or None.
    """

    combine: Callable[[dict[str, Array], tuple[PyTree, ...]], PyTree]
    penalty: Callable[[dict[str, Array], PyTree, Any], Array] | None = None
    shares: Callable[[dict[str, Array]], dict[str, Array]] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Learning:
    """What variables are learnt from, and how: the arguments that all learned merges share.

    `np_merge` documents them. They are checked here, once for any number of merges.
    """

    loss_fn: LossFn
    examples: PyTree
    settings: LearningSettings
    learning_rate: LearningRate
    model_state: PyTree
    held_out: PyTree | None
    repair: Repair | None

    def __post_init__(self) -> None:
        check_examples(self.examples, self.settings.batch_size)
        check_finite_examples(self.examples)
        if self.held_out is not None:
            check_examples(self.held_out, 1, "held_out")
        check_non_negative(self.learning_rate, "learning_rate")
        if callable(self.learning_rate):
            _check_schedule(self.learning_rate, "learning_rate")


def _check_schedule(schedule: Callable[[Any], Any], name: str) -> None:
    """Raise a ValueError unless a schedule gives one number for each step."""
    try:
        found = jax.eval_shape(schedule, jax.ShapeDtypeStruct((), jnp.int32))
    except (TypeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"{name} is {shown(schedule)}, which gives no number for a step: {reason}"
        ) from error
    if getattr(found, "shape", None) != ():
        raise ValueError(
            f"{name} is {shown(schedule)}, which gives {shown(found)}; give a schedule of numbers"
        )
