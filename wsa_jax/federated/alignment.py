"""Weight scope alignment on top of any federated algorithm: its settings, and its first target.

They are told once, in `WeightScopeAlignment`, and go three ways. How it acts is static, a
`ScopeForm`, and part of the compiled round. How strongly is a number of each round,
`RoundSettings.strength`. Towards what is the server state's target, which a round may replace.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from jaxtyping import ArrayLike, Real

from wsa_jax import checks
from wsa_jax.door import check_fields, shown
from wsa_jax.federated.fusion import Fusion
from wsa_jax.schedules import check_non_negative
from wsa_jax.scope.layers import Rule, kernels
from wsa_jax.scope.scope import (
    Direction,
    WeightScope,
    check_one_model,
    check_same_layers,
    constant_target,
    is_paper_direction,
)
from wsa_jax.scope.transformation import Scale
from wsa_jax.types import Schedule

Form = Literal["gradient", "penalty", "proximal"]


@dataclass(frozen=True, kw_only=True)
class ScopeForm:
    """How weight scope alignment acts on a local step, and on which layers: what is static of it.

    Attributes:
      form: ``"gradient"`` (analytic), ``"penalty"`` (loss term, autodiff) or ``"proximal"``.
      scale: ``"sum"`` over layers (the paper's) or ``"size"`` (each times its layer's size).
      select: which leaves are layers.
      fusion: how scopes become the next target's std: ``"mean_square"``, the root of the variances'
        mean (Eq. 4); ``"pooled"``, with the spread between the clients' means; or ``"sum"``, the
        root of the variances' sum, the square root of the number of participants times as wide.
      direction: ``"weights||target"``, the paper's divergence, or ``"target||weights"``, which has
        no proximal form: see `wsa_jax.scope_divergence`. Diagnostics stay in the paper's direction.
    """

    form: Form = "gradient"
    scale: Scale = "sum"
    select: Rule = kernels
    fusion: Fusion = "mean_square"
    direction: Direction = "weights||target"

    def __post_init__(self):
        checks.one_of("form", self.form, get_args(Form))
        if self.scale not in ("sum", "size"):
            raise ValueError(
                f"scale {shown(self.scale)} is unknown; give 'sum' (the paper's) or 'size'"
            )
        checks.one_of("fusion", self.fusion, get_args(Fusion))
        if not is_paper_direction(self.direction) and self.form == "proximal":
            raise ValueError(
                f"direction {self.direction!r} has no proximal form, since its step may have "
                "several minima; give form='gradient' or 'penalty'"
            )
        if not callable(self.select):
            raise ValueError(
                f"select {shown(self.select)} is no rule; "
                "give kernels, matrices or matching(pattern)"
            )


@dataclass(frozen=True, kw_only=True)
class WeightScopeAlignment(ScopeForm):
    """Weight scope alignment on top of any federated algorithm ("+WSA"): a form, how much, to what.

    Attributes:
      form: see `ScopeForm`, as for ``scale``, ``select``, ``fusion`` and ``direction``.
      strength: the paper's lambda, a number or a schedule of the round (`wsa_jax.scope_window`).
      target: ``"fused"`` after each round (Eq. 4), starting from the initial model's own scope;
        ``(mean, std)`` for one fixed Gaussian in all layers; or a fixed `WeightScope`.
      start: a fused target's first one, instead of the initial model's own scope.

    Errors: `ValueError` for an unknown setting, or a start beside a fixed target.
    """

    strength: Real[ArrayLike, ""] | Schedule = 1.0
    target: Literal["fused"] | tuple[float | int, float | int] | WeightScope = "fused"
    start: WeightScope | None = None

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.target, str) and self.target != "fused":
            raise ValueError(
                f"target {shown(self.target)} is unknown; give 'fused', (mean, std) or a scope"
            )
        if not isinstance(self.target, str | WeightScope) and (
            not isinstance(self.target, tuple) or len(self.target) != 2
        ):
            raise ValueError(
                f"target {shown(self.target)} is not a tuple (mean, std); give one of two numbers"
            )
        if self.start is not None and not isinstance(self.target, str):
            raise ValueError("a start is the first of fused targets; a fixed one takes none")
        check_fields(self)
        check_non_negative(self.strength)

    def static(self, select: Rule) -> ScopeForm:
        """The form alone, on the layers that have a scope."""
        return ScopeForm(
            form=self.form,
            scale=self.scale,
            select=select,
            fusion=self.fusion,
            direction=self.direction,
        )


def initial_target(scope: WeightScope, wsa: WeightScopeAlignment | None) -> WeightScope:
    """Return the target of round 0: the initial model's own scope, the start or the fixed one.

    Raises:
      ValueError: a start or a fixed target has other layers, or is of several models.
    """
    if wsa is None:
        return scope
    if isinstance(wsa.target, str):
        if wsa.start is None:
            return scope
        check_one_model(wsa.start)
        check_same_layers(scope, wsa.start)
        return wsa.start
    if isinstance(wsa.target, tuple):
        mean, std = wsa.target
        return constant_target(scope, mean=mean, std=std)
    check_one_model(wsa.target)
    check_same_layers(scope, wsa.target)
    return wsa.target
