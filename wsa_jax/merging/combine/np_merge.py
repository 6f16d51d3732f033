"""NP Merge: learn by gradient descent how much each parameter takes from each of two models."""

import functools
from collections.abc import Mapping
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Key, PyTree, Real

from wsa_jax.door import door
from wsa_jax.merging.combine.coefficients import (
    Coefficients,
    check_share,
    coefficient_shapes,
    interpolate,
)
from wsa_jax.merging.combine.examples import check_learnable
from wsa_jax.merging.combine.gradient_steps import learn
from wsa_jax.merging.combine.learning import (
    Learning,
    LearningSettings,
    LearningState,
    LossFn,
    Objective,
    Repair,
)
from wsa_jax.merging.combine.penalties import (
    NO_PENALTY,
    EarlierKeywords,
    Strengths,
    learning_from,
    penalise,
)
from wsa_jax.merging.result import MergeResult
from wsa_jax.tree import as_list
from wsa_jax.types import Json, LearningRate


@door
def np_merge(
    key: Key[Array, ""],
    loss_fn: LossFn,
    models: PyTree,
    examples: PyTree,
    *,
    settings: LearningSettings,
    learning_rate: LearningRate = 0.1,
    init: Real[ArrayLike, ""] | Mapping[str, Array] = 0.5,
    strengths: Strengths = NO_PENALTY,
    model_state: PyTree = None,
    held_out: PyTree | None = None,
    repair: Repair | None = None,
    state: LearningState | None = None,
    **earlier: Unpack[EarlierKeywords],
) -> MergeResult:
    r"""Merge two aligned models with a learned coefficient for each parameter.

    .. math:: W = B + \sigma(a) \odot (A - B), \qquad
              \min_a \; L(W) + \lambda_1 \text{distance} + \lambda_2 \text{entropy}
                             + \lambda_3 \text{scope}

    Args:
      key: draws the order of examples and the loss's own randomness.
      loss_fn: ``(key, params, model_state, batch) -> (loss, model_state)``, for example
        ``task.loss``. Each function object is compiled once, so make it outside of loops.
      models: A and B, a list or a stack ``[2, ...]``, with units already in correspondence.
      examples: pytree of arrays ``[examples, ...]``; a batch is some of their rows.
        `labelled_examples` makes them for ``task.loss``.
      settings: steps, batch size, optimiser, granularity of the coefficients, dtype.
      learning_rate: a number or an optax schedule; it should be far larger than for weights.
      init: share of A at the start, a number or shares by leaf as in ``info["coefficients"]``;
        shares of 0 and 1 do not move.
      strengths: strengths of the penalties.
      model_state: non-parameter collections at the start. BatchNorm runs in training mode
        meanwhile; give ``repair`` to re-estimate its statistics.
      held_out: further examples, to select the best coefficients on; the start is a candidate, too.
      repair: ``(params, model_state) -> model_state``, applied at the end.
      state: ``info["state"]`` of an earlier call, to take ``settings.steps`` more steps; donated.
      **earlier: ``granularity`` and ``select``, fields of settings and strengths, as keywords.

    Returns:
      The merged model, in A's dtypes and with A's leaves that are not floating-point. ``info``:
      ``loss [steps]`` of each batch without penalties; ``held_out_loss [steps + 1]``, NaN where not
      evaluated, the last entry after the last step; ``coefficients``, the shares of A by leaf;
      ``best_step``, that of the coefficients returned; ``diverged`` and ``diverged_step`` (-1 for
      none); ``state``, to continue from.

    Guarantees: bitwise A where a = +inf and B where a = -inf; where A = B, a does not move. Two
    calls of n steps (through ``state``) equal one of 2n bitwise, given the same rate and ``init``.
    Traceable: ``jax.vmap`` over keys or stacked models runs many merges.

    Edge cases: a loss, a held-out loss or a weight that is not finite ends learning; the
      coefficients of the lowest loss until then are returned and ``diverged`` is true.

    Raises:
      ValueError: not two models; models that differ in a leaf or its dtype (which is named), hold
        NaN or are not arrays alone; no examples, fewer than a batch, or NaN in them; a share
        outside [0, 1] or of a shape that does not fit its leaf; a negative strength or rate.

    >>> def loss_fn(key, params, model_state, batch):
    ...     return jnp.mean((batch[:, :2] @ params["w"] - batch[:, 2]) ** 2), model_state
    >>> x = jax.random.normal(jax.random.key(0), (64, 2))
    >>> examples = jnp.concatenate([x, x @ jnp.array([[1.0], [4.0]])], axis=1)
    >>> a, b = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([3.0, 4.0])}
    >>> settings = LearningSettings(steps=100, batch_size=32)
    >>> result = np_merge(jax.random.key(1), loss_fn, (a, b), examples, settings=settings)
    >>> result.info["coefficients"]["w"].round().tolist()
    [1.0, 0.0]

    Source: Orozco Camacho et al., "Non-Uniform Parameter-Wise Model Merging", 2024. Its optimiser,
    rates and start are not public, and penalties and other granularities are ours.
    """
    models = as_list(models)
    if len(models) != 2:
        raise ValueError(
            f"np_merge takes two models, got {len(models)}; use np_merge_many or np_merge_joint"
        )
    check_learnable(models)
    learning, strengths = learning_from(
        settings,
        strengths,
        earlier,
        loss_fn=loss_fn,
        examples=examples,
        learning_rate=learning_rate,
        model_state=model_state,
        held_out=held_out,
        repair=repair,
    )
    return merge_pair(key, learning, models[0], models[1], init, strengths, state)


def merge_pair(
    key: Key[Array, ""],
    learning: Learning,
    first: PyTree,
    second: PyTree,
    init: Real[ArrayLike, ""] | Mapping[str, Array],
    strengths: Strengths,
    state: LearningState | None = None,
) -> MergeResult:
    """Merge two models that are known to be finite and of one structure, as `np_merge` does."""
    variables, center = _start(first, learning.settings.granularity, init)
    penalty, penalty_inputs = penalise(strengths, (first, second), center, joint=False)
    return learn(
        key,
        learning,
        Objective(interpolate, penalty, _shares),
        variables,
        (first, second),
        penalty_inputs=penalty_inputs,
        state=state,
    )


def _start(params: PyTree, granularity: str, init: Any) -> tuple[Coefficients, dict[str, Array]]:
    """The initial logits, and the shares of both models in shapes that broadcast."""
    shapes = coefficient_shapes(params, granularity)
    if isinstance(init, Mapping):
        if set(init) != set(shapes):
            odd = sorted(set(init) ^ set(shapes))[0]
            raise ValueError(
                f"init and the coefficients of granularity {granularity!r} do not both name {odd}; "
                "give a share for each leaf"
            )
    else:
        init = dict.fromkeys(shapes, init)
    for name, share in init.items():
        check_share(share, f"init of {name}")
        if not _fits(np.shape(share), shapes[name]):
            raise ValueError(
                f"init of {name} has shape {np.shape(share)}, its coefficients have "
                f"{shapes[name]}; give shares that broadcast"
            )
    return _logits_and_center(dict(init), tuple(shapes.items()))


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a shape broadcasts to another one."""
    try:
        return np.broadcast_shapes(shape, wanted) == wanted
    except ValueError:
        return False


# Jitted as a whole: leaf by leaf, every new shape would compile separately.
@functools.partial(jax.jit, static_argnames="shapes")
def _logits_and_center(
    init: Json, shapes: tuple[tuple[str, tuple[int, ...]], ...]
) -> tuple[Coefficients, dict[str, Array]]:
    center, logits = {}, {}
    for name, shape in shapes:
        first = jnp.asarray(init[name], jnp.float32)
        # As many axes as the coefficients, of size 1 for a number: it takes no memory.
        first = first.reshape((1,) * (len(shape) - first.ndim) + first.shape)
        center[name] = jnp.stack([first, 1 - first])
        logits[name] = jnp.broadcast_to(jax.scipy.special.logit(first), shape)
    return logits, center


def _shares(logits: Coefficients) -> Coefficients:
    return {name: jax.nn.sigmoid(logit) for name, logit in logits.items()}
