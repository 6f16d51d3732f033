"""FedProx: hold local parameters near the global ones."""

import jax
from jaxtyping import PyTree

from wsa_jax.door import door
from wsa_jax.federated.algorithms.base import FederatedAlgorithm, LocalContext, one_object
from wsa_jax.federated.algorithms.fed_avg import apply_mean


@door
@one_object
def fed_prox(mu: float | int = 0.1) -> FederatedAlgorithm:
    r"""Return FedProx: a proximal term in each client's loss, averaging as in FedAvg.

    .. math:: F_i(w_i) + \frac{\mu}{2} \lVert w_i - w \rVert^2

    Args:
      mu: strength of the pull; the public experiments use 0.1 on CIFAR-10, 0.001 on CIFAR-100 and
        1 on CINIC-10.

    Guarantees: stateless; sums over clients only; mu = 0 is FedAvg. The term is part of the
    gradient that is clipped.

    Raises:
      ValueError: mu is negative or not finite.

    >>> fed_prox(0.1).settings, fed_prox() is fed_prox(mu=0.1)
    ((('mu', 0.1),), True)

    Source: Li et al., 2020 (FedProx), Algorithm 2, solved by the local steps of FedAvg.
    """
    if not 0 <= mu < float("inf"):
        raise ValueError(f"mu {mu} is negative or not finite; give 0 (FedAvg) or more")

    def correct(gradient: PyTree, params: PyTree, context: LocalContext) -> PyTree:
        return jax.tree.map(lambda g, w, v: g + mu * (w - v), gradient, params, context.params)

    return FederatedAlgorithm("fed_prox", apply_mean, (("mu", mu),), correct=correct)
