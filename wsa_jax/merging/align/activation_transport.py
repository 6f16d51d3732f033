"""OT Fusion by activations: transport one model's units to another's by what they compute."""

import time
from collections.abc import Sequence

import numpy as np
from jaxtyping import PyTree

from wsa_jax.door import door
from wsa_jax.merging.align.feature_moments import FeatureMoments, Functions, features_of
from wsa_jax.merging.align.transport_plan import (
    Masses,
    check_transport,
    mass_of,
    plan_maps,
    transport_plan,
)
from wsa_jax.merging.align.unit_maps import UnitMaps, identity_maps
from wsa_jax.merging.symmetry.spec import AxisSpec
from wsa_jax.types import Inputs

__all__ = ["activation_transport"]


@door
def activation_transport(
    spec: AxisSpec,
    models: Sequence[PyTree],
    activations: Functions,
    inputs: Inputs,
    *,
    solver: str = "exact",
    epsilon: float | int = 0.05,
    masses: Sequence[Masses] | None = None,
    batch_size: int = 100,
) -> tuple[UnitMaps, ...]:
    r"""Transport each model's units to the first one's by their activations on the same inputs.

    .. math:: \min_T \sum_{ij} T_{ij} \sqrt{\mathrm{E}[(a_i - b_j)^2]}, \qquad
              W' = \operatorname{diag}(\mu)^{-1} T\, W\, \operatorname{diag}(\nu_0)^{-1} T_0^\top

    where T is ``[units, own units]`` with row sums :math:`\mu` and column sums :math:`\nu`, W is
    written ``[outputs, inputs]``, and :math:`T_0, \nu_0` are those of the group that W reads. A
    unit of the result takes the mean of the incoming weights of the units transported to it, and of
    a unit's outgoing weights the share that was transported. Biases, norms and statistics move with
    the units, residual sums are one group, and convolutions move by channels.

    Args:
      spec: which axes of the first model move together.
      models: the first stays as it is; others may be wider or narrower.
      activations: ``(params, inputs) -> {group: [examples, ..., units]}``, from `taps`; one
        function, or one for each model where widths differ. With ``where="produced"`` they are read
        before the non-linearity, as in the public code; groups without activations stay.
      inputs: ``[examples, ...]`` or a pytree of such arrays: calibration data, without labels.
      solver: ``"exact"`` or ``"sinkhorn"`` (extra ``transport``), as in `transport_plan`.
      epsilon: Sinkhorn's regularisation, relative to the mean cost.
      masses: how much each unit counts, ``{group: [units]}`` for each model, positive and of any
        sum (norms of weights, deviations of activations); groups that are not named, or None, are
        uniform.
      batch_size: examples at once.

    Returns:
      For each model `UnitMaps`, which `align` applies; the average of the aligned models is OT
      Fusion. ``info`` has ``cost`` by group, ``unmoved`` (groups left as they are, nested ones for
      example, and why) and ``seconds``.

    Guarantees: exact, with equal widths and uniform masses, the maps are permutations and the
    function is kept. Otherwise units are mixed: then it is kept only where the mixed units compute
    the same (a copy of each unit, its outgoing weights divided between them), for a ReLU does not
    commute with a mean, and a path towards the aligned model does not end at the original.

    Raises:
      ValueError: models that differ in more than their widths, a width that cannot be mapped
        (nested units, layers stacked in one leaf), no inputs, or an unknown solver.

    >>> import jax, jax.numpy as jnp
    >>> from wsa_jax.merging import taps, trace_spec
    >>> from wsa_jax.merging.align import align
    >>> apply_fn = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]
    >>> first = {"a": jnp.array([[1.0, -1.0]]), "b": jnp.array([[2.0], [3.0]])}
    >>> second = {"a": jnp.array([[-1.0, 1.0]]), "b": jnp.array([[3.0], [2.0]])}
    >>> x = jnp.array([[1.0], [-2.0], [0.5]])
    >>> spec = trace_spec(apply_fn, first, x)
    >>> _, maps = activation_transport(spec, [first, second], taps(apply_fn, spec), x)
    >>> align(spec, second, maps)["b"].tolist()
    [[2.0], [3.0]]

    Source: Singh and Jaggi, Model Fusion via Optimal Transport, NeurIPS 2020. Where widths differ
    its outgoing weights are means; sums of shares, which keep the function, are added here.
    """
    begin = time.perf_counter()
    check_transport(len(models), solver, epsilon, masses)
    features = features_of(spec, models, activations, inputs, batch_size=batch_size)
    found = [identity_maps(spec, features.moments, {"cost": {}, "unmoved": features.unmoved})]
    for index in range(1, len(models)):
        forward, backward, costs = {}, {}, {}
        for name, moments in features.moments.items():
            cost = _distances(moments, index)
            both = (mass_of(masses, at, name, moments.sizes[at]) for at in (0, index))
            plan = transport_plan(cost, *both, solver=solver, epsilon=epsilon)
            forward[name], backward[name] = plan_maps(plan)
            costs[name] = float(np.sum(plan * cost))
        info = {"cost": costs, "unmoved": features.unmoved}
        found.append(UnitMaps(forward, backward, info))
    seconds = time.perf_counter() - begin
    return tuple(maps._replace(info=maps.info | {"seconds": seconds}) for maps in found)


def _distances(moments: FeatureMoments, index: int) -> np.ndarray:
    """Root mean square differences of the first model's units from another's."""
    ours, theirs = moments.part(0), moments.part(index)
    square = np.diag(moments.covariance)
    apart = moments.mean[ours, None] - moments.mean[None, theirs]
    total = square[ours, None] + square[None, theirs] - 2 * moments.covariance[ours, theirs]
    return np.sqrt(np.maximum(total + apart**2, 0.0))
