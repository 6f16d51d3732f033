"""CCA Merge: map one model's units to another's by the linear combinations that agree most."""

import time
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, PyTree

from wsa_jax import checks
from wsa_jax.door import door
from wsa_jax.merging.align.feature_moments import (
    FeatureMoments,
    Functions,
    check_samples,
    features_of,
)
from wsa_jax.merging.align.unit_maps import UnitMaps, identity_maps
from wsa_jax.merging.symmetry.spec import AxisSpec
from wsa_jax.types import Inputs, Json

__all__ = ["canonical_correlation"]

# Pulls directions without variance to where they are; far below any correlation that counts.
_TIE_BREAK = 1e-9


@door
def canonical_correlation(
    spec: AxisSpec,
    models: Sequence[PyTree],
    activations: Functions,
    inputs: Inputs,
    *,
    regularization: float | int = 1.0,
    batch_size: int = 100,
) -> tuple[UnitMaps, ...]:
    r"""Map each model's units to the first one's by canonical correlation analysis.

    .. math:: S_a^{-1/2} S_{ab} S_b^{-1/2} = U \Sigma V^\top, \qquad
              M = S_a^{1/2} U V^\top S_b^{-1/2}, \qquad W' = M\, W\, M_0^{-1}

    with M ``[units, own units]``, W written ``[outputs, inputs]`` and :math:`M_0` the map of the
    group that W reads; where widths differ, :math:`S_b^{1/2} V U^\top S_a^{-1/2}` stands for the
    inverse. Both models' activations are whitened, turned to where they correlate most, and
    coloured again as the first model's are: a unit of the result is a linear combination of units,
    not one of them. The covariances S are regularised by a share of their own mean variance.

    Args:
      spec: which axes of the first model move together.
      models: the first stays as it is; all others, of any number and width, are mapped to it.
      activations: ``(params, inputs) -> {group: [examples, ..., units]}``, from `taps`; one
        function, or one for each model where widths differ. Groups without activations stay.
      inputs: ``[examples, ...]`` or a pytree of such arrays: calibration data, without labels.
      regularization: added to the diagonal of each covariance, as a multiple of its mean. Small
        ones trust directions of little variance, which the ReLU then spoils; with large ones maps
        become rotations. The default lies on a plateau, found on validation data of MLPs and
        ResNets: 1, 10 and 100 merge equally well within chance, 0.01 loses 6 points of accuracy and
        0.001 loses 10 (`python -m benchmarks align_settings`).
      batch_size: examples at once; one pass serves all models and groups.

    Returns:
      For each model `UnitMaps`, which `align` applies; the average of the aligned models is CCA
      Merge. ``info`` has ``correlations`` (the canonical ones by group, greatest first),
      ``unmoved`` (groups left as they are, and why), ``samples`` and ``seconds``.

    Guarantees: covariances are accumulated about running means in float64 on the host; maps are
    finite where units are dead or activations depend on each other linearly. Where each covariance
    has full rank, a permuted copy is mapped back to the model.

    The map is linear and a ReLU is not: between models that differ by more than an order of units,
    **the aligned model is not the same function**, and a path towards it does not end at the
    original. BatchNorm's scales, biases and statistics move linearly, too; estimate statistics
    again (`reset_batch_norm`).

    Raises:
      NotAdmittedError: no more samples than units in a group: correlations would all be 1.
      ValueError: as for `activation_transport`, or a regularization that is not positive.

    >>> import jax.numpy as jnp
    >>> from wsa_jax.merging import Tie, hand_written
    >>> from wsa_jax.merging.align import align
    >>> first = {"a": np.array([[1.0, 2.0], [0.0, 1.0]]), "b": np.array([[1.0], [4.0]])}
    >>> second = {"a": first["a"][:, ::-1], "b": first["b"][::-1]}
    >>> ties = [Tie(leaf="a", axis=1), Tie(leaf="b", axis=0, role="consumed")]
    >>> spec = hand_written({"hidden": ties}, first)
    >>> x = np.array([[1.0, 1.0], [1.0, -1.0], [0.0, 2.0]])
    >>> maps = canonical_correlation(spec, [first, second], lambda p, x: {"hidden": x @ p["a"]}, x)
    >>> np.round(align(spec, second, maps[1])["b"], 3).tolist()
    [[1.0], [4.0]]

    Source: Horoi, Camacho, Belilovsky and Wolf, Harmony in Diversity, ICML 2024 (CCA Merge). The
    relative regularization and models of other widths are added here.
    """
    begin = time.perf_counter()
    checks.positive("regularization", regularization)
    features = features_of(spec, models, activations, inputs, batch_size=batch_size)
    check_samples(features, "canonical correlation")
    shared: Json = {
        "unmoved": features.unmoved,
        "samples": {name: moments.count for name, moments in features.moments.items()},
    }
    found = [identity_maps(spec, features.moments, {"correlations": {}})]
    for index in range(1, len(models)):
        forward, backward, correlations = {}, {}, {}
        for name, moments in features.moments.items():
            forward[name], backward[name], correlations[name] = _maps(
                moments, index, float(regularization)
            )
        found.append(UnitMaps(forward, backward, {"correlations": correlations}))
    shared["seconds"] = time.perf_counter() - begin
    return tuple(maps._replace(info=maps.info | shared) for maps in found)


def _maps(
    moments: FeatureMoments, index: int, regularization: float
) -> tuple[
    Float[np.ndarray, "units others"], Float[np.ndarray, "others units"], Float[np.ndarray, " few"]
]:
    """Both maps, and the canonical correlations."""
    ours, theirs = moments.part(0), moments.part(index)
    color, white = _roots(moments.covariance[ours, ours], regularization)
    other_color, other_white = _roots(moments.covariance[theirs, theirs], regularization)
    cross = white @ moments.covariance[ours, theirs] @ other_white
    left, correlations, right = np.linalg.svd(
        cross + _TIE_BREAK * np.eye(*cross.shape), full_matrices=False
    )
    turn = left @ right
    return color @ turn @ other_white, other_color @ turn.T @ white, correlations


def _roots(covariance: np.ndarray, regularization: float) -> tuple[np.ndarray, np.ndarray]:
    """The symmetric square root of a regularised covariance, and its inverse."""
    mean = float(np.trace(covariance)) / len(covariance) or 1.0
    values, vectors = np.linalg.eigh(covariance)
    roots = np.sqrt(np.maximum(values, 0.0) + regularization * mean)
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T
