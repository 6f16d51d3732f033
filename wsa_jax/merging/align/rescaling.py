"""Rescaling: bring the weight scopes of two trained models together by positive scales.

A ReLU net is unchanged when what produces a unit is multiplied by c > 0 and what consumes it is
divided by c.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, PyTree

from wsa_jax import checks
from wsa_jax.door import door
from wsa_jax.merging.align import scale_fit
from wsa_jax.merging.align.scale_tables import (
    ScaleGranularity,
    frozen,
    layer_tables,
    leaf_tables,
    log_scales_of,
    movable,
    scales_of,
)
from wsa_jax.merging.result import check_real
from wsa_jax.merging.symmetry.spec import AxisSpec, check_spec
from wsa_jax.merging.symmetry.units import scale_units
from wsa_jax.scope.layers import Rule, kernels
from wsa_jax.scope.scope import scope_divergence, weight_scope
from wsa_jax.types import Json

__all__ = ["Rescaling", "normalize_scales", "rescale"]

Objective = Literal["divergence", "log_std", "distance"]


class Rescaling(NamedTuple):
    """Scales that `wsa_jax.merging.scale_units` applies.

    Attributes:
      scales: by group, positive, ``[units]``, float32; only groups that were fitted.
      info: ``objective`` (its value at scales of 1, at the start, and after each step; a mean over
        layers, or, for distances, in units of the models' squared norms), ``converged``,
        ``frozen`` (by group, how many units keep scale 1 because their incoming or outgoing weights
        are all 0), and, from `rescale`, ``layers``, ``divergence_before``, ``divergence_after``.
    """

    scales: dict[str, Float[np.ndarray, " units"]]
    info: Json


@door
def rescale(
    spec: AxisSpec,
    first: PyTree,
    second: PyTree,
    *,
    granularity: ScaleGranularity = "group",
    objective: Objective = "divergence",
    groups: Sequence[str] | None = None,
    select: Rule = kernels,
    weight_by: Literal["layer", "size"] = "layer",
    max_steps: int = 500,
) -> Rescaling:
    r"""Scale the second model's units, keeping its function, until its scopes fit the first's.

    With x = log c and, for layer l between groups, :math:`s_l = x_{out(l)} - x_{in(l)}`:

    .. math:: \text{divergence:}\quad \sum_l \mathrm{KL}(\mathcal{N}(e^{s_l} \mu_l, e^{2 s_l}
              \sigma_l^2) \,\|\, \mathcal{N}(\tilde\mu_l, \tilde\sigma_l^2)) \qquad
              \text{log_std:}\quad \sum_l (\log \sigma_l + s_l - \log \tilde\sigma_l)^2

    .. math:: \text{distance:}\quad \sum_l \| \tilde W_l - e^{s_l} W_l \|^2

    Args:
      spec: which axes move together; groups that admit permutations only, or lie inside another,
        are not scaled.
      first: the model whose scopes are the target.
      second: the model to scale, of the same structure.
      granularity: one scale per ``"group"``, or one per ``"unit"``. With ``"unit"`` the scope
        objectives match the root mean square of each unit's weights, incoming and outgoing, in each
        layer, instead of the layer's std.
      objective: ``"divergence"`` is what WSA trains with (Eq. 3). ``"log_std"`` treats too large
        and too small alike; per group it is a linear least-squares problem in closed form (with
        layers that read a concatenation, the closed form is only the start). ``"distance"`` needs
        units that already correspond: between unrelated models its best scales are those of the
        smallest weights, whatever the first model's scopes.
      groups: names of the groups to scale; by default all that admit scaling.
      select: layers that have a scope. Biases move with their layer; they count in ``"distance"``
        but in no scope objective.
      weight_by: ``"layer"`` counts all layers equally, as in WSA; ``"size"`` counts them by size.
      max_steps: maximum number of L-BFGS steps.

    Returns:
      The scales of ``second``, and the WSA divergence of its layers from the first's, before and
      after.

    Guarantees: deterministic; float64 on the host; the objective is never above its value at scales
      of 1; equal models give scales of exactly 1; the search starts from the better of scales of 1
      and the ``log_std`` fit.

    Edge cases: a unit (or group) whose incoming or outgoing weights are all 0 in either model keeps
    scale 1; rows and layers with a std below `wsa_jax.scope.STD_FLOOR` are left out of the fit.

    Raises:
      NotAdmittedError: no group admits scaling, or no selected layer is of one that does, or
        weights are complex.
      ValueError: a named group admits none; models differ in structure, hold NaN, or do not fit the
        spec; or a setting is unknown.

    >>> import jax.numpy as jnp
    >>> from wsa_jax.merging.symmetry.spec import Tie, hand_written
    >>> first = {"0": {"w": jnp.array([[1.0, 2.0]])}, "1": {"w": jnp.array([[1.0], [4.0]])}}
    >>> second = {"0": {"w": jnp.array([[8.0, 4.0]])}, "1": {"w": jnp.array([[1.0], [0.25]])}}
    >>> ties = [Tie(leaf="0/w", axis=1), Tie(leaf="1/w", axis=0, role="consumed")]
    >>> spec = hand_written({"hidden": ties}, first, admits="scaling")
    >>> rescale(spec, first, second).scales["hidden"].tolist()
    [0.25, 0.25]

    Source: new here; the scale symmetry is that of Path-SGD (Neyshabur et al., 2015), the scopes
    and the divergence are WSA's, Eq. 1-3.
    """
    _check_choice("granularity", granularity, ("group", "unit"))
    _check_choice("objective", objective, ("divergence", "log_std", "distance"))
    _check_choice("weight_by", weight_by, ("layer", "size"))
    checks.same_structure(first, second)
    check_real(second, "a rescaling")
    check_spec(spec, second)
    checks.finite(first, "first")
    checks.finite(second, "second")
    variables = log_scales_of(spec, granularity, groups)
    layers = layer_tables(spec, variables, first, second, granularity, select, weight_by)
    tables = layers if objective != "distance" else leaf_tables(spec, variables, first, second)
    # A unit that is all 0 on one side says nothing of its scale, and would run away.
    free = movable(tables, variables.size)

    # From the better of no scaling and a fit of log stds, which is convex: divergence is not.
    starts = [np.zeros(variables.size)]
    log_std = scale_fit.scope_fun(layers, free, scale_fit.log_std)
    if granularity == "group":
        starts.append(scale_fit.closed_form(layers, free))
    elif objective != "log_std":
        starts.append(scale_fit.minimise(log_std, starts, max_steps)[0])
    fun = {
        "log_std": log_std,
        "divergence": scale_fit.scope_fun(layers, free, scale_fit.divergence),
        "distance": scale_fit.distance_fun(tables, free),
    }[objective]
    x, info = scale_fit.minimise(fun, starts, max_steps)

    # Reported in WSA's own terms, whatever was minimised.
    scales = scales_of(variables, x)
    target = weight_scope(first, select=select)
    before = weight_scope(second, select=select)
    after = weight_scope(scale_units(spec, second, scales), select=select)
    info |= {
        "frozen": frozen(variables, free),
        "layers": target.names,
        "divergence_before": np.asarray(scope_divergence(before, target)),
        "divergence_after": np.asarray(scope_divergence(after, target)),
    }
    return Rescaling(scales, info)


@door
def normalize_scales(
    spec: AxisSpec, params: PyTree, *, granularity: ScaleGranularity = "unit", max_steps: int = 500
) -> Rescaling:
    r"""Find the scales that make a model's weights smallest: the balanced gauge.

    .. math:: \min_c \sum_l \|W_l(c)\|^2, \quad\text{where each unit has }
              \|\text{incoming}\| = \|\text{outgoing}\|

    Two models that differ only by scales become equal, so matching units in this gauge does not
    depend on the scales. Biases count as incoming.

    Guarantees: the objective is convex in log c, so there is one minimum; it is never above its
    value at scales of 1.

    Edge cases: a unit whose incoming or outgoing weights are all 0 cannot be balanced and keeps
    scale 1.

    Raises:
      ValueError: as for `rescale`.

    >>> import jax.numpy as jnp
    >>> from wsa_jax.merging.symmetry.spec import Tie, hand_written
    >>> params = {"a": jnp.array([[8.0]]), "b": jnp.array([[0.5]])}
    >>> ties = [Tie(leaf="a", axis=1), Tie(leaf="b", axis=0, role="consumed")]
    >>> spec = hand_written({"hidden": ties}, params, admits="scaling")
    >>> normalize_scales(spec, params).scales["hidden"].tolist()  # to a = b = 2
    [0.25]

    Source: the balanced weights of Neyshabur et al., 2015; fixed point as in Stock et al., 2019.
    """
    _check_choice("granularity", granularity, ("group", "unit"))
    check_spec(spec, params)
    check_real(params, "a rescaling")
    checks.finite(params)
    variables = log_scales_of(spec, granularity, None)
    # The distance to a model of zeros is the squared norm.
    tables = [
        table._replace(first_square=np.zeros_like(table.count), cross=np.zeros_like(table.count))
        for table in leaf_tables(spec, variables, params, params)
    ]
    free = movable(tables, variables.size, of_first=False)
    x, info = scale_fit.minimise(
        scale_fit.distance_fun(tables, free), [np.zeros(variables.size)], max_steps
    )
    return Rescaling(
        scales_of(variables, x),
        info | {"frozen": frozen(variables, free)},
    )


def _check_choice(setting: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{setting} {value!r} is unknown; give one of {', '.join(choices)}")
