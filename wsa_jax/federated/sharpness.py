"""FedSAM: local steps that descend from the worst point nearby."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax
from jaxtyping import PyTree

from wsa_jax import checks
from wsa_jax.door import door
from wsa_jax.reductions import unit


@door
@functools.lru_cache(maxsize=64)
def sharpness_aware(
    radius: float | int = 0.05, *, momentum: float | int = 0.0
) -> Callable[[Any], optax.GradientTransformationExtraArgs]:
    r"""Return a local optimiser for `LocalSettings`: sharpness-aware minimisation, then SGD.

    .. math:: w_i \leftarrow w_i - \eta \, \nabla F_i\bigl(w_i + \rho \, g / \lVert g \rVert\bigr),
              \qquad g = \nabla F_i(w_i)

    With FedAvg this is FedSAM; FedProx and weight scope alignment compose with it. Both gradients
    are of the same batch. The ascent follows the loss with the algorithm's correction; the gradient
    at the point it reaches goes through all that a local step does: correction, weight scope
    alignment, clip and weight decay.

    Args:
      radius: length of the ascent, rho; 0 is SGD. FedSAM's experiments use 0.01 to 0.5.
      momentum: of the SGD that descends.

    Guarantees: the ascent has this length whatever the gradient's magnitude, and none where it is
    0. Equal settings return the same object. Costs a second gradient in each step.

    Raises:
      ValueError: radius is negative or not finite, or momentum not in [0, 1).

    >>> from wsa_jax.federated import LocalSettings
    >>> LocalSettings(optimizer=sharpness_aware(0.1)).optimizer is sharpness_aware(0.1)
    True

    Source: Foret et al., 2021, Algorithm 1; Qu et al., 2022 (FedSAM), Algorithm 1.
    """
    checks.number("radius", radius, 0, float("inf"), "0 for SGD, or a length")
    checks.number("momentum", momentum, 0, 1, "0 for none")

    def make(rate: Any) -> optax.GradientTransformationExtraArgs:
        descent = optax.sgd(rate, momentum=momentum or None)

        def update(
            updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
        ) -> tuple[PyTree, Any]:
            # The updates are what clip and weight decay make of the gradient where the step begins.
            del updates
            grad, grad_fn = extra["grad"], extra["grad_fn"]
            worst = jax.tree.map(lambda w, g: (w + radius * g).astype(w.dtype), params, unit(grad))
            return descent.update(grad_fn(worst, None), state, params)

        return optax.GradientTransformationExtraArgs(descent.init, update)

    return make
