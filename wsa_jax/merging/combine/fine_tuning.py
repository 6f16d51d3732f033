"""Fine-tuning of a merged model: the baseline of NP Merge on the same examples and steps."""

from jaxtyping import Array, Key, PyTree

from wsa_jax import checks
from wsa_jax.door import door
from wsa_jax.leaves import is_traced
from wsa_jax.merging.combine.coefficients import replace_weights, weights_by_name
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
from wsa_jax.merging.result import MergeResult
from wsa_jax.types import LearningRate


def _combine(weights: dict[str, Array], models: tuple[PyTree, ...]) -> PyTree:
    (params,) = models
    return replace_weights(params, weights)


# Module-level, so that every call reuses the compiled function.
_WEIGHTS = Objective(_combine)


@door
def fine_tune(
    key: Key[Array, ""],
    loss_fn: LossFn,
    params: PyTree,
    examples: PyTree,
    *,
    settings: LearningSettings,
    learning_rate: LearningRate = 1e-3,
    model_state: PyTree = None,
    held_out: PyTree | None = None,
    repair: Repair | None = None,
    state: LearningState | None = None,
) -> MergeResult:
    """Train a model further on a few examples, with the budget and batches of `np_merge`.

    The arguments are those of `np_merge`, except that

      params: are the start, such as the average of the models; all floating-point leaves are
        trained.
      learning_rate: is for weights.

    The key given to `np_merge` draws the same batches in the same order.

    Returns:
      The trained model; ``info`` as in `np_merge`, without ``coefficients``.

    Guarantees, edge cases and errors: those of `np_merge`. Leaves that are not floating-point
    arrays are kept.

    >>> import jax, jax.numpy as jnp
    >>> def loss_fn(key, params, model_state, batch):
    ...     return jnp.mean((params["w"] - batch) ** 2), model_state
    >>> settings = LearningSettings(steps=200, batch_size=2)
    >>> start = {"w": jnp.zeros(())}
    >>> result = fine_tune(
    ...     jax.random.key(0), loss_fn, start, jnp.ones(4), settings=settings, learning_rate=0.05
    ... )
    >>> round(float(result.params["w"]), 1)
    1.0
    """
    if not is_traced(params):
        checks.finite(params)
    check_learnable([params])
    learning = Learning(
        loss_fn=loss_fn,
        examples=examples,
        settings=settings,
        learning_rate=learning_rate,
        model_state=model_state,
        held_out=held_out,
        repair=repair,
    )
    return train_weights(key, learning, params, state)


def train_weights(
    key: Key[Array, ""], learning: Learning, params: PyTree, state: LearningState | None = None
) -> MergeResult:
    """Train a model that is known to be learnable, as `fine_tune` does."""
    return learn(key, learning, _WEIGHTS, weights_by_name(params), (params,), state=state)
