"""Scale one layer by hand: the same function at a different weight scope."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, PyTree, Real

from wsa_jax.door import door
from wsa_jax.merging.symmetry.spec import AxisSpec
from wsa_jax.merging.symmetry.units import check_scale, scale_units


@door
def scale_layer(
    spec: AxisSpec, params: PyTree, group: str, factor: float | int | Real[ArrayLike, ""]
) -> PyTree:
    r"""Multiply a layer and its bias by a positive factor, and divide the next by it.

    .. math:: W_l \to \alpha W_l, \quad b_l \to \alpha b_l, \quad W_{l+1} \to W_{l+1} / \alpha

    Args:
      spec: which axes move together.
      params: a model.
      group: name of the units between the two layers; for a residual stream, all layers that write
        to it are multiplied and all that read it are divided.
      factor: :math:`\alpha`; a traced number shares one compilation over a sweep.

    Guarantees: the function is unchanged up to rounding, and bit for bit for powers of two; the
    scope of the layer scales by alpha and that of the next by 1 / alpha. Differentiable in params
    and factor.

    Raises:
      ValueError: the group is unknown, admits permutations only (a norm lies between) or lies
        inside another; the factor is not positive and finite, or outside the range of a leaf's
        dtype (a traced factor is not checked).

    >>> from wsa_jax.merging.symmetry.spec import Tie, hand_written
    >>> params = {"a": jnp.array([[1.0, 2.0]]), "b": jnp.array([[1.0], [4.0]])}
    >>> ties = [Tie(leaf="a", axis=1), Tie(leaf="b", axis=0, role="consumed")]
    >>> spec = hand_written({"hidden": ties}, params, admits="scaling")
    >>> scaled = scale_layer(spec, params, "hidden", 4.0)
    >>> scaled["a"].tolist(), scaled["b"].tolist()
    ([[4.0, 8.0]], [[0.25], [1.0]])

    Source: WSA, Fig. 4.
    """
    if spec[group].parent is not None:
        raise ValueError(
            f"group {group} lies inside the units of {spec[group].parent} and is not scaled; "
            "scale a group without a parent"
        )
    if not isinstance(factor, jax.core.Tracer) and not 0 < np.asarray(factor) < np.inf:
        raise ValueError(
            f"factor {factor} of group {group} is not positive and finite; only positive factors "
            "pass a ReLU"
        )
    # Before it is rounded to float32, where 1e-46 is 0.
    check_scale(spec[group], factor, params)
    return scale_units(spec, params, {group: jnp.full(spec[group].size, factor, jnp.float32)})
