"""NP Merge: learn by gradient descent how much each parameter takes from each of two models."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Key, PyTree, Real

from wsa_jax import checks
from wsa_jax.merging.combine.coefficients import (
    Coefficients,
    check_share,
    coefficient_shapes,
    distance_penalty,
    entropy_penalty,
    interpolate,
    log_shares,
)
from wsa_jax.merging.combine.learning import (
    Form,
    LearningRate,
    LearningSettings,
    LearningState,
    LossFn,
    Repair,
    learn,
)
from wsa_jax.merging.result import MergeResult
from wsa_jax.scope.layers import Rule, kernels
from wsa_jax.scope.regularization import check_strength, scope_penalty
from wsa_jax.scope.scope import fuse_scopes, weight_scope
from wsa_jax.tree import as_list

Strength = Real[ArrayLike, ""]


class Strengths(NamedTuple):
    """Strengths of the three penalties, in loss units; a Python 0 leaves the penalty out.

    Attributes:
      distance: multiplies the mean squared distance of the coefficients from their start.
      entropy: multiplies their mean entropy in nats, which pushes each towards one of the models.
      scope: multiplies the divergence of the merged weights' scopes from the fused scopes of the
        models, in nats (weight scope alignment).
    """

    distance: Strength = 0.0
    entropy: Strength = 0.0
    scope: Strength = 0.0


NO_PENALTY = Strengths()


class Penalty(NamedTuple):
    """The active penalties; equal fields make equal functions, so jit does not recompile."""

    active: tuple[bool, bool, bool]
    joint: bool
    select: Rule

    def __call__(
        self, variables: Coefficients, params: PyTree, reference: PyTree, strengths: Strengths
    ) -> Array:
        """Sum the penalties times their strengths."""
        center, target = reference
        distance, entropy, scope = self.active
        total = jnp.float32(0.0)
        logs = log_shares(variables, joint=self.joint) if distance or entropy else {}
        if distance:
            total += strengths.distance * distance_penalty(logs, center)
        if entropy:
            total += strengths.entropy * entropy_penalty(logs)
        if scope:
            total += strengths.scope * scope_penalty(params, target, select=self.select)
        return total


def np_merge(
    key: Key[Array, ""],
    loss_fn: LossFn,
    models: PyTree,
    examples: PyTree,
    *,
    settings: LearningSettings,
    learning_rate: LearningRate = 0.1,
    granularity: str = "parameter",
    init: Real[ArrayLike, ""] | Mapping[str, Array] = 0.5,
    strengths: Strengths = NO_PENALTY,
    select: Rule = kernels,
    model_state: PyTree = None,
    held_out: PyTree | None = None,
    repair: Repair | None = None,
    state: LearningState | None = None,
) -> MergeResult:
    r"""Merge two aligned models with a learned coefficient for each parameter.

    .. math:: W = B + \sigma(a) \odot (A - B), \qquad
              \min_a \; L(W) + \lambda_1 \text{distance} + \lambda_2 \text{entropy}
                             + \lambda_3 \text{scope}

    Args:
      key: draws the order of examples and the loss's own randomness.
      loss_fn: ``(key, params, model_state, batch) -> (loss, model_state)``, for example
        ``task.loss`` of `training.classification`. Each function object is compiled once: a
        lambda, optax schedule or optimiser created inside a loop compiles at every iteration.
      models: A and B, a list or a stack ``[2, ...]``, with units already in correspondence; they
        are not changed.
      examples: pytree of arrays ``[examples, ...]``; a batch is some of their rows.
        `labelled_examples` makes them for ``task.loss``.
      settings: steps, batch size, optimiser, dtype.
      learning_rate: a number or an optax schedule; it should be far larger than for weights.
      granularity: what has a coefficient of its own; the paper's is ``"parameter"``.
      init: share of A at the start, a number or shares by leaf as in ``info["coefficients"]``;
        shares of 0 and 1 do not move.
      strengths: strengths of the penalties.
      select: which leaves have a scope.
      model_state: non-parameter collections at the start. BatchNorm runs in training mode
        meanwhile; give ``repair`` to re-estimate its statistics.
      held_out: further examples, to select the best coefficients on; the start is a candidate, too.
      repair: ``(params, model_state) -> model_state``, applied at the end.
      state: ``info["state"]`` of an earlier call, to take ``settings.steps`` more steps. Its
        buffers are donated: use the new state afterwards.

    Returns:
      The merged model, and in ``info``: ``loss [steps]`` of each batch without penalties;
      ``held_out_loss [steps + 1]``, NaN where not evaluated, the last entry after the last step;
      ``coefficients``, the shares of A by leaf; ``best_step``, that of the coefficients returned;
      ``diverged`` and ``diverged_step`` (-1 for none); ``state``, to continue from.

    Guarantees: bitwise A where a = +inf and B where a = -inf. Where A = B, the gradient is 0 and
    the coefficient does not move. Two calls of n steps (through ``state``) equal one of 2n bitwise,
    given the same rate and ``init``. Traceable: ``jax.vmap`` over keys or stacked models runs many
    merges.

    Edge cases: a loss, a held-out loss or a weight that is not finite ends learning; the
      coefficients of the lowest loss until then are returned and ``diverged`` is true.
      Only floating-point leaves are mixed; the others are A's. Penalties whose strength is a
      Python or NumPy 0 are not computed.

    Raises:
      ValueError: fewer or more than two models; models that differ in a leaf (which is named) or
        hold NaN; no examples or fewer than a batch; an unknown granularity; a share outside [0, 1]
        or of a shape that does not fit its leaf; a negative strength; steps below 1.

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
    rates and start are not public: whatever is an argument here is our choice, as are the penalties
    and granularities other than ``"parameter"``.
    """
    models = as_list(models)
    if len(models) != 2:
        raise ValueError(
            f"np_merge takes two models, got {len(models)}; use np_merge_many or np_merge_joint"
        )
    checks.models(models)
    first, second = models
    variables, center = _start(first, granularity, init)
    active = active_penalties(strengths)
    reference = (
        center,
        fuse_scopes([weight_scope(model, select=select) for model in models])
        if active[2]
        else None,
    )
    penalty = Penalty(active, False, select) if any(active) else None
    form = Form(interpolate, penalty, _shares)
    return learn(
        key, loss_fn, form, variables, (first, second), examples,
        settings=settings, learning_rate=learning_rate, model_state=model_state,
        held_out=held_out, reference=reference, strengths=strengths, repair=repair, state=state,
    )  # fmt: skip


def active_penalties(strengths: Strengths) -> tuple[bool, bool, bool]:
    """Return which strengths are not a concrete 0.

    Raises:
      ValueError: a strength is negative or not finite.

    >>> active_penalties(Strengths(entropy=0.1))
    (False, True, False)
    """
    for name, value in strengths._asdict().items():
        check_strength(value, f"strengths.{name}", schedule=False)
    distance, entropy, scope = (
        isinstance(value, jax.core.Tracer) or bool(value != 0) for value in strengths
    )
    return distance, entropy, scope


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
    init: dict[str, Any], shapes: tuple[tuple[str, tuple[int, ...]], ...]
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
