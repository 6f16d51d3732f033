"""Penalties on learned coefficients: their strengths, and what they measure from."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from wsa_jax.merging.combine.coefficients import (
    Coefficients,
    distance_penalty,
    entropy_penalty,
    log_shares,
)
from wsa_jax.merging.combine.learning import Learning, LearningSettings
from wsa_jax.schedules import check_non_negative
from wsa_jax.scope.layers import Rule, kernels
from wsa_jax.scope.regularization import scope_penalty
from wsa_jax.scope.scope import WeightScope, fuse_scopes, weight_scope
from wsa_jax.types import Scalar


class Strengths(NamedTuple):
    """Strengths of the three penalties, in loss units; a Python 0 leaves the penalty out.

    Attributes:
      distance: multiplies the mean squared distance of the coefficients from their start.
      entropy: multiplies their mean entropy in nats, which pushes each towards one of the models.
      scope: multiplies the divergence of the merged weights' scopes from the fused scopes of the
        models, in nats (weight scope alignment).
      select: rule that says which leaves have a scope.
    """

    distance: Scalar = 0.0
    entropy: Scalar = 0.0
    scope: Scalar = 0.0
    select: Rule = kernels


NO_PENALTY = Strengths()


class EarlierKeywords(TypedDict, total=False):
    """Keywords of learned merges that are fields now, and are taken as before.

    Attributes:
      granularity: of the settings.
      select: of the strengths.
    """

    granularity: str
    select: Rule


def with_earlier(
    settings: LearningSettings, strengths: Strengths, earlier: EarlierKeywords
) -> tuple[LearningSettings, Strengths]:
    """Put the earlier keywords into the fields that they are now."""
    if "granularity" in earlier:
        settings = dataclasses.replace(settings, granularity=earlier["granularity"])
    if "select" in earlier:
        strengths = strengths._replace(select=earlier["select"])
    return settings, strengths


def learning_from(
    settings: LearningSettings, strengths: Strengths, earlier: EarlierKeywords, **others: Any
) -> tuple[Learning, Strengths]:
    """What a learned merge's arguments say, with earlier keywords in the fields that they are now.

    ``others`` are the other fields of `Learning`, as the merge was given them.
    """
    settings, strengths = with_earlier(settings, strengths, earlier)
    return Learning(settings=settings, **others), strengths


class PenaltyInputs(NamedTuple):
    """What the penalties measure from, and how strongly they count; traced.

    Attributes:
      center: the shares of the models at the start, ``[models, ...]`` by leaf.
      target: the fused scope of the models, or None if it has no strength.
      strengths: those of distance, entropy and scope.
    """

    center: Coefficients
    target: WeightScope | None
    strengths: tuple[Scalar, Scalar, Scalar]


class Penalty(NamedTuple):
    """The active penalties; equal fields make equal functions, so jit does not recompile.

    Attributes:
      active: whether distance, entropy and scope are.
      joint: whether logits are those of a softmax over all models, or of the first of two.
      select: which leaves have a scope.
    """

    active: tuple[bool, bool, bool]
    joint: bool
    select: Rule

    def __call__(self, variables: Coefficients, params: PyTree, inputs: PenaltyInputs) -> Array:
        """Sum the penalties times their strengths."""
        distance, entropy, _ = self.active
        total = jnp.float32(0.0)
        logs = log_shares(variables, joint=self.joint) if distance or entropy else {}
        if distance:
            total += inputs.strengths[0] * distance_penalty(logs, inputs.center)
        if entropy:
            total += inputs.strengths[1] * entropy_penalty(logs)
        if inputs.target is not None:
            total += inputs.strengths[2] * scope_penalty(params, inputs.target, select=self.select)
        return total


def penalise(
    strengths: Strengths, models: Sequence[PyTree], center: Coefficients, *, joint: bool
) -> tuple[Penalty | None, PenaltyInputs]:
    """Return the penalty of a merge, None if no strength is active, and what it measures from.

    Raises:
      ValueError: a strength is negative or not finite.
    """
    active, target = active_penalties(strengths), None
    if active[2]:
        target = fuse_scopes([weight_scope(model, select=strengths.select) for model in models])
    penalty = Penalty(active, joint, strengths.select) if any(active) else None
    return penalty, PenaltyInputs(center, target, strengths[:3])


def active_penalties(strengths: Strengths) -> tuple[bool, bool, bool]:
    """Return which strengths are not a concrete 0.

    Raises:
      ValueError: a strength is negative or not finite.

    >>> active_penalties(Strengths(entropy=0.1))
    (False, True, False)
    """
    for name, value in zip(strengths._fields[:3], strengths[:3], strict=True):
        check_non_negative(value, f"strengths.{name}", schedule=False)
    distance, entropy, scope = (
        isinstance(value, jax.core.Tracer) or bool(value != 0) for value in strengths[:3]
    )
    return distance, entropy, scope
