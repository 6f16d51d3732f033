"""Apply what an align found to a model: its permutations, its scales, both, or other maps."""

from typing import TypeAlias

from jaxtyping import PyTree

from wsa_jax.door import door
from wsa_jax.merging.align.assignment import Matching, permuted, rescaled
from wsa_jax.merging.align.rescale_and_match import ScaledMatching
from wsa_jax.merging.align.rescaling import Rescaling
from wsa_jax.merging.align.unit_maps import UnitMaps, map_units
from wsa_jax.merging.symmetry.spec import AxisSpec, check_spec

__all__ = ["align"]

Found: TypeAlias = Matching | Rescaling | ScaledMatching | UnitMaps


@door
def align(spec: AxisSpec, second: PyTree, found: Found) -> PyTree:
    """Bring the second model into correspondence with the first; its function is unchanged.

    Under `UnitMaps`, which need not be permutations, the function may change (each of the functions
    that make them says when), and the result has the first model's widths.

    Args:
      spec: which axes move together.
      second: the model that was matched or rescaled; statistics that the spec names (BatchNorm)
        move with it.
      found: the result of `weight_matching`, `activation_matching`, `straight_through`, `rescale`,
        `normalize_scales` or `rescale_and_match`, of which scales are applied first; or a model's
        own part of what `activation_transport`, `weight_transport`, `canonical_correlation` or
        `zip_units` returns.

    Returns:
      The moved model, with the structure and dtypes of ``second``. Permuted and scaled, it equals
      the results of `scale_units` and `permute_units`, but is compiled.

    >>> import numpy as np
    >>> from wsa_jax.merging.symmetry.spec import Tie, hand_written
    >>> params = {"a": np.array([[1.0, 2.0]]), "b": np.array([[1.0], [4.0]])}
    >>> ties = [Tie(leaf="a", axis=1), Tie(leaf="b", axis=0, role="consumed")]
    >>> spec = hand_written({"hidden": ties}, params, admits="scaling")
    >>> swap, scales = {"hidden": np.array([1, 0])}, {"hidden": np.float32([1.0, 2.0])}
    >>> align(spec, params, Matching(swap, {}))["b"].tolist()
    [[4.0], [1.0]]
    >>> align(spec, params, ScaledMatching(swap, scales, {}))["b"].tolist()
    [[2.0], [1.0]]
    """
    if isinstance(found, UnitMaps):
        return map_units(spec, second, found)
    check_spec(spec, second)  # the whole model: from here on, only what moves is looked at
    if not isinstance(found, Matching):
        second = rescaled(spec, second, found.scales)
    return second if isinstance(found, Rescaling) else permuted(spec, second, found.permutations)
