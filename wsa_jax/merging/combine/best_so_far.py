"""The best variables of a run of gradient steps, and the step at which the run broke down."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer, PyTree


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class BestSoFar:
    """The variables of the lowest score until now: early stopping as a choice among steps.

    A `lax.scan` cannot stop early, so it offers every step to `seen`. After the first step that is
    not finite (a divergence) nothing is accepted any more.

    Attributes:
      variables: what was learnt at the best step.
      model_state: the non-parameter collections that belong to it.
      score: the lowest score, infinite before the first.
      step: the best step.
      diverged_step: the first step that was not finite, or -1 if there is none.

    >>> best = BestSoFar.start({"w": jnp.array(3.0)}, {})
    >>> for step, score in enumerate([2.0, 1.0, jnp.nan, 0.0]):
    ...     found = {"w": jnp.float32(step)}
    ...     best = best.seen(step, score, found, {}, finite=jnp.isfinite(score))
    >>> best.variables["w"].item(), best.score.item(), best.step.item(), best.diverged_step.item()
    (1.0, 1.0, 1, 2)
    """

    variables: PyTree
    model_state: PyTree
    score: Float[Array, "*merges"]
    step: Integer[Array, "*merges"]
    diverged_step: Integer[Array, "*merges"]

    @classmethod
    def start(cls, variables: PyTree, model_state: PyTree) -> "BestSoFar":
        """Nothing is seen yet; any finite score is better."""
        return cls(
            variables=variables,
            model_state=model_state,
            score=jnp.full((), jnp.inf, jnp.float32),
            step=jnp.full((), 0, jnp.int32),
            diverged_step=jnp.full((), -1, jnp.int32),
        )

    @property
    def diverged(self) -> Bool[Array, "*merges"]:
        """Whether a step was not finite."""
        return self.diverged_step >= 0

    def seen(
        self,
        step: Integer[Array, ""] | int,
        score: Float[Array, ""] | float,
        variables: PyTree,
        model_state: PyTree,
        *,
        finite: Bool[Array, ""] | bool,
    ) -> "BestSoFar":
        """Take a step's variables if their score is lower.

        Args:
          step: number of the step.
          score: the lower, the better; NaN where the step was not looked at.
          variables: what is learnt, before the step moves it.
          model_state: the collections that belong to it.
          finite: whether all the step's results are; if not, the run has diverged.
        """
        failed = ~self.diverged & ~jnp.asarray(finite)
        diverged_step = jnp.where(failed, step, self.diverged_step)
        better = (diverged_step < 0) & (score < self.score)
        return BestSoFar(
            variables=_choose(better, variables, self.variables),
            model_state=_choose(better, model_state, self.model_state),
            score=jnp.where(better, score, self.score),
            step=jnp.where(better, step, self.step),
            diverged_step=diverged_step,
        )


def _choose(condition: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
