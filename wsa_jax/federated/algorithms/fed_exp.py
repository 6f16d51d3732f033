"""FedExP: extrapolate the mean update where the clients' updates disagree."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Integer, PyTree

from wsa_jax.door import door
from wsa_jax.federated.algorithms.base import (
    FederatedAlgorithm,
    LocalContext,
    ServerContext,
    add_update,
    one_object,
)
from wsa_jax.tree import sum_of_squares


def _finish(update: PyTree, context: LocalContext) -> tuple[tuple[()], Array]:
    del context
    return (), sum_of_squares(update)


def _mean_of_iterates(server: PyTree, params: PyTree) -> PyTree:
    """``(w_t + w_{t-1}) / 2`` in each leaf's dtype."""
    return jax.tree.map(lambda w, v: w + ((v - w) / 2).astype(w.dtype), params, server)


@door
@one_object
def fed_exp(
    epsilon: float = 1e-3,
    *,
    epsilon_form: Literal["code", "paper"] = "code",
    epsilon_decay: float | int = 0.998,
) -> FederatedAlgorithm:
    r"""Return FedExP: FedAvg with a server step size that adapts to the clients' disagreement.

    .. math::
        \eta_g = \max\Bigl(1, \frac{\sum_i p_i \lVert \Delta_i \rVert^2 / \sum_i p_i}
                 {2 (\lVert \bar\Delta \rVert^2 + \epsilon_t)}\Bigr), \qquad
        w \leftarrow w + \eta_g \bar\Delta

    Args:
      epsilon: keeps the denominator above 0. The public code uses 1e-3 for CIFAR-10.
      epsilon_form: ``"paper"`` is the formula above; ``"code"`` multiplies epsilon by the number of
        participants, as the authors' code does.
      epsilon_decay: decay of the learning rate per round;
        ``epsilon_t = epsilon decay^(2 (t + 1))``. Give 1 for a constant epsilon.

    Guarantees: sums over clients only; equal updates give a step size of exactly 1. The model to
    evaluate is the mean of the last two iterates (after round 1, the first iterate); training
    continues from the last.

    Raises:
      ValueError: epsilon is not positive, epsilon_decay not in (0, 1], or epsilon_form unknown.

    >>> fed_exp(epsilon_form="paper").settings
    (('epsilon', 0.001), ('epsilon_form', 'paper'), ('epsilon_decay', 0.998))

    Source: Jhunjhunwala et al., 2023, Eq. 6 and section 3; decay and iterates as in their
    experiments.
    """
    if not (epsilon > 0 and 0 < epsilon_decay <= 1):
        raise ValueError(
            f"epsilon {epsilon} must be positive and epsilon_decay {epsilon_decay} in (0, 1]"
        )
    if epsilon_form not in ("code", "paper"):
        raise ValueError(f"epsilon_form {epsilon_form!r} is unknown; give 'code' or 'paper'")

    def apply(server: PyTree, context: ServerContext) -> tuple[PyTree, PyTree]:
        small = epsilon * jnp.float32(epsilon_decay) ** (2 * (context.round + 1))
        if epsilon_form == "code":
            small = small * context.participants
        denominator = 2 * (sum_of_squares(context.update) + small)
        # 0 where nothing moves and epsilon has decayed below the least float32: then any step does.
        divisor = jnp.where(denominator > 0, denominator, 1.0)
        ratio = jnp.where(denominator > 0, context.message / divisor, 1.0)
        step = jnp.clip(ratio, 1.0, jnp.finfo(ratio.dtype).max)
        params = add_update(context.params, context.update, step)
        return params, _previous(context, params)

    settings = (
        ("epsilon", epsilon),
        ("epsilon_form", epsilon_form),
        ("epsilon_decay", epsilon_decay),
    )
    return FederatedAlgorithm(
        "fed_exp",
        apply,
        settings,
        # The server remembers the previous iterate; before the first round there is none.
        init_server=lambda params: jax.tree.map(jnp.array, params),
        finish=_finish,
        evaluated=_mean_of_iterates,
    )


def _previous(context: ServerContext, params: PyTree) -> PyTree:
    first: Integer[Array, ""] = context.round == 0
    return jax.tree.map(lambda new, old: jnp.where(first, new, old), params, context.params)
