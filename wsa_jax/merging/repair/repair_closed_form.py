"""REPAIR without the merged model: its variances follow from how the models' units correlate."""

from collections.abc import Callable, Sequence

import jax
from jaxtyping import ArrayLike, PyTree, Real

from wsa_jax import checks
from wsa_jax.door import door
from wsa_jax.leaves import key_path
from wsa_jax.merging.repair.site_moments import check_repair, moved, site_moments, sites_of
from wsa_jax.merging.result import NotAdmittedError
from wsa_jax.merging.symmetry.tracing.trace_spec import is_statistic
from wsa_jax.tree import as_list
from wsa_jax.types import Inputs


@door
def repair_closed_form(
    apply_fn: Callable[..., PyTree],
    merged: PyTree,
    models: PyTree,
    inputs: Inputs,
    *,
    weights: Sequence[float | int] | Real[ArrayLike, " models"] | None = None,
    batch_size: int = 500,
) -> PyTree:
    r"""Repair a merged model by its models' activations alone, in one pass over the examples.

    As `repair_forward`, but for the merged unit's mean and variance it takes those that it would
    have if it were the average of the models' units:

    .. math:: \mu = \sum_m p_m \mu_m, \qquad
              \sigma^2 = \sum_{m, k} p_m p_k \, \rho_{mk} \sigma_m \sigma_k

    The arguments, the result and the errors are those of `repair_forward`; besides, a model with
    BatchNorm is refused, whose running statistics no such average has.

    Guarantees: in a first layer, which sees the examples themselves, equal to `repair_forward` up
    to rounding. In later layers the average of units is not the merged unit, so targets are met
    approximately.

    >>> import numpy as np, jax.numpy as jnp
    >>> def apply(params, x):
    ...     return jnp.maximum(x @ params["w"] + params["b"][None], 0) @ params["v"]
    >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]], np.float32)
    >>> one = {"w": np.eye(2, dtype=np.float32), "b": np.zeros(2), "v": np.ones((2, 1))}
    >>> two = one | {"w": np.array([[0.0, 1.0], [1.0, 0.0]], np.float32)}
    >>> half = one | {"w": (one["w"] + two["w"]) / 2}
    >>> repaired = repair_closed_form(apply, half, [one, two], x)
    >>> [round(float(std), 3) for std in np.std(x @ repaired["w"], axis=0)]
    [0.816, 0.816]

    Source: Jordan et al., ICLR 2023, of two models; of more, the variance of a sum.
    """
    models = as_list(models)
    share = check_repair(models, merged, inputs, weights)
    checks.count("batch_size", batch_size)
    for path, leaf in jax.tree_util.tree_leaves_with_path(merged):
        if is_statistic(key_path(path), leaf):
            raise NotAdmittedError(
                f"leaf {key_path(path)} is a running statistic, which no average of activations "
                "has; use reset_batch_norm, which is REPAIR for BatchNorm, or fold_batch_norm first"
            )
    sites = sites_of(apply_fn, merged, inputs)
    moments = site_moments(apply_fn, models, inputs, batch_size)
    for site in sites:
        found = moments[site.bias.leaf]
        merged = moved(merged, site, found.of_average(share), found.goal(share))
    return merged
