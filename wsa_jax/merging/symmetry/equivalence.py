"""Check that moved parameters still compute the same function."""

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import PyTree

from wsa_jax.tree import key_path


def check_equivalence(
    apply_fn: Callable[..., PyTree],
    params: PyTree,
    moved: PyTree,
    *inputs: PyTree,
    rtol: float = 1e-4,
) -> float:
    r"""Check that two models compute the same function on given inputs, and measure the deviation.

    .. math:: \max_i \frac{|f(w')_i - f(w)_i|}{\max_j |f(w)_j|}

    the largest over all output arrays, in units of each array's largest element.

    Args:
      apply_fn: the function, ``apply_fn(params, *inputs)``.
      params: a model.
      moved: the same model with its units permuted or rescaled.
      inputs: inputs to compare on; random numbers reveal more than ones.
      rtol: the largest deviation that is attributed to rounding.

    Returns:
      The deviation, a plain number.

    Edge cases: for an output that is 0 everywhere, the absolute deviation counts. A NaN in either
    output is a deviation.

    Raises:
      ValueError: the deviation is above ``rtol``; the message names the output if there is more
        than one.

    >>> import jax.numpy as jnp
    >>> x, w = jnp.ones((2, 3)), jnp.array([[1.0], [2.0], [4.0]])
    >>> check_equivalence(lambda w, x: x @ w, w, w[::-1], x)
    0.0
    """
    outputs = jax.tree_util.tree_leaves_with_path(apply_fn(params, *inputs))
    others = jax.tree.leaves(apply_fn(moved, *inputs))
    worst = 0.0
    for (path, output), other in zip(outputs, others, strict=True):
        expected, given = np.asarray(output, np.float64), np.asarray(other, np.float64)
        scale = np.max(np.abs(expected), initial=0.0) or 1.0
        deviation = float(np.max(np.abs(given - expected), initial=0.0) / scale)
        if not deviation <= rtol:
            name = key_path(path) or "the output"
            raise ValueError(
                f"the models differ: {name} deviates by {deviation:.2g} of its largest element, "
                f"more than rtol {rtol:.2g}; the map does not preserve the function"
            )
        worst = max(worst, deviation)
    return worst
