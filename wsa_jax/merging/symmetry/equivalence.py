"""Check that moved parameters still compute the same function."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from wsa_jax.door import door, taken_by
from wsa_jax.tree import key_path
from wsa_jax.types import Leaf


@door
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
    output is a deviation. Complex numbers are compared as such, by the absolute value of the
    difference.

    Raises:
      ValueError: the deviation is above ``rtol``, or the outputs have different shapes; the message
        names the output if there is more than one.

    >>> import jax.numpy as jnp
    >>> x, w = jnp.ones((2, 3)), jnp.array([[1.0], [2.0], [4.0]])
    >>> check_equivalence(lambda w, x: x @ w, w, w[::-1], x)
    0.0
    """
    with taken_by("apply_fn", "params and these inputs"):
        expected_outputs = apply_fn(params, *inputs)
    with taken_by("apply_fn", "moved and these inputs"):
        other_outputs = apply_fn(moved, *inputs)
    outputs, structure = jax.tree_util.tree_flatten_with_path(expected_outputs)
    others, other_structure = jax.tree.flatten(other_outputs)
    if structure != other_structure:
        raise ValueError(
            f"the models' outputs have structures {structure} and {other_structure}; "
            "compare models of one architecture"
        )
    worst = 0.0
    for (path, output), other in zip(outputs, others, strict=True):
        if np.shape(output) != np.shape(other):
            raise ValueError(
                f"the models differ: {key_path(path) or 'the output'} has shape "
                f"{np.shape(output)} and {np.shape(other)}; compare models of one architecture"
            )
        expected, given = _wide(output), _wide(other)
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


def _wide(array: Leaf) -> np.ndarray:
    """In double precision; complex numbers stay complex."""
    wide = np.complex128 if jnp.iscomplexobj(array) else np.float64
    return np.asarray(array, wide)
