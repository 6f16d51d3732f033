"""REPAIR: give each unit of a merged model the mean and std that it has in the models."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import ArrayLike, PyTree, Real

from wsa_jax import checks
from wsa_jax.door import door
from wsa_jax.merging.repair.site_moments import check_repair, moved, site_moments, sites_of
from wsa_jax.tree import as_list
from wsa_jax.types import Inputs


@door
def repair_forward(
    apply_fn: Callable[..., PyTree],
    merged: PyTree,
    models: PyTree,
    inputs: Inputs,
    *,
    weights: Sequence[float | int] | Real[ArrayLike, " models"] | None = None,
    batch_size: int = 500,
) -> PyTree:
    r"""Move each unit of a merged model to the mean and the standard deviation of its models.

    .. math:: y \to s\,(y - \mu) + \sum_m p_m \mu_m, \qquad s = \frac{\sum_m p_m \sigma_m}{\sigma}

    for y a hidden unit before its non-linearity, of mean :math:`\mu` and std :math:`\sigma` over
    examples and positions. Averaging models leaves the variance of y too small, layer after layer;
    standard deviations are averaged here, not variances. The change is taken up by what makes y: a
    kernel and its bias, or a norm's scale and bias.

    Args:
      apply_fn: any JAX function ``apply_fn(variables, inputs)`` in evaluation mode; make it once,
        since each function object is compiled once.
      merged: the variables of the merged model.
      models: those of the models that were merged, their units in correspondence; a list or a
        stack.
      inputs: calibration examples, ``[examples, ...]`` or a pytree of such arrays; some hundreds.
      weights: the models' shares p in the merge, with any sum; equal if None.
      batch_size: examples at once.

    Returns:
      The merged variables with other kernels, scales and biases.

    Guarantees: on the calibration examples, every repaired unit has its target mean and std to
    float32 rounding, since layers are repaired one after the other in the order of execution, each
    with a pass over the examples. What was merged with itself is itself, up to rounding. Outputs
    are left as they are, and so is a layer without a bias of its own, or one inside a loop.

    Edge cases: a unit that is constant on the examples gets the mean alone. With BatchNorm in the
    model, `reset_batch_norm` is what REPAIR does, at the price of one pass.

    Raises:
      NotAdmittedError: fewer than two examples, no hidden layer that has a bias, or one of complex
        numbers.
      ValueError: models that differ in a leaf or hold NaN, or weights that are no shares.

    >>> import numpy as np, jax.numpy as jnp
    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["w"] + params["b"][None], 0) @ params["v"]
    >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]], np.float32)
    >>> one = {"w": np.eye(2, dtype=np.float32), "b": np.zeros(2), "v": np.ones((2, 1))}
    >>> two = one | {"w": np.array([[0.0, 1.0], [1.0, 0.0]], np.float32)}  # units are swapped
    >>> half = one | {"w": (one["w"] + two["w"]) / 2}
    >>> repaired = repair_forward(apply, half, [one, two], x)
    >>> [round(float(std), 3) for std in np.std(x @ repaired["w"], axis=0)]
    [0.816, 0.816]

    Source: Jordan et al., "REPAIR: REnormalizing Permuted Activations for Interpolation Repair",
    ICLR 2023.
    """
    models = as_list(models)
    share = check_repair(models, merged, inputs, weights)
    checks.count("batch_size", batch_size)
    sites = sites_of(apply_fn, merged, inputs)
    goals = site_moments(apply_fn, models, inputs, batch_size)
    # One after the other: what a layer sees depends on the repair of those before it.
    for site in sites:
        now = site_moments(apply_fn, [merged], inputs, batch_size)[site.bias.leaf]
        goal = goals[site.bias.leaf].goal(share)
        merged = moved(merged, site, now.of_average(np.ones(1)), goal)
    return merged
