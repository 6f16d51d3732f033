"""Greedy soup: average the best model with each next one that does not make it worse."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, PyTree, Shaped

from wsa_jax import checks
from wsa_jax.door import door
from wsa_jax.leaves import is_weight
from wsa_jax.merging.combine.learning import Repair
from wsa_jax.merging.result import MergeResult
from wsa_jax.training.checks import check_evaluable
from wsa_jax.training.evaluation import evaluate
from wsa_jax.training.task import Task
from wsa_jax.tree import as_list, stack, unstack, weighted_mean
from wsa_jax.types import Inputs


class _Soup(NamedTuple):
    """An average of some of the models."""

    params: PyTree
    model_state: PyTree
    score: float
    chosen: list[int]


@door
def greedy_soup(
    task: Task,
    models: PyTree,
    inputs: Inputs,
    labels: Shaped[Array | np.ndarray, "examples ..."],
    *,
    model_states: PyTree = None,
    repair: Repair | None = None,
    batch_size: int = 500,
) -> MergeResult:
    r"""Average models one after the other, best first; leave out each that lowers the score.

    .. math:: W_S = \frac{1}{|S|} \sum_{m \in S} W_m, \qquad S \leftarrow S \cup \{k\}
              \;\text{ if }\; \operatorname{score}(W_{S \cup \{k\}}) \ge
              \operatorname{score}(W_S)

    The score is the accuracy on the examples given, or minus the mean loss for a task that counts
    no correct answers. Which models the soup has is chosen on these examples, so they must be
    neither those of training nor those of the test.

    Args:
      task: what the models were trained for.
      models: fine-tuned from one base or otherwise in correspondence, a list or a stack.
      inputs: held-out examples.
      labels: their labels.
      model_states: non-parameter collections, listed or stacked like the models; none by default.
        Those of a soup are averages, or what ``repair`` makes of the first one's.
      repair: ``(params, model_state) -> model_state``, applied to each average before it is scored,
        such as `reset_batch_norm`.
      batch_size: examples at once.

    Returns:
      The soup; ``info`` holds ``chosen``, the positions of its models in the order in which they
      came in, its ``score``, and the ``scores`` of the models alone.

    Guarantees: the score is at least that of the best model; models of equal score are taken in the
    order given. A soup of one model is that model, bitwise: look at ``chosen``.

    Raises:
      ValueError: no models, models that differ in a leaf or hold NaN, a number of states that is
        not theirs, or no examples.

    >>> import jax.numpy as jnp
    >>> from wsa_jax.training import Metrics
    >>> def metrics(params, model_state, batch):
    ...     errors = (params["w"] * batch.inputs - batch.labels) ** 2
    ...     return Metrics(jnp.sum(errors * batch.mask), None, jnp.sum(batch.mask))
    >>> task = Task(lambda key: ({}, {}), lambda *_: (0.0, {}), metrics)
    >>> models = [{"w": jnp.float32(w)} for w in (7.0, 1.5, 0.25)]
    >>> soup = greedy_soup(task, models, jnp.ones(4), jnp.ones(4))
    >>> soup.params["w"].item(), soup.info["chosen"]
    (0.875, [1, 2])

    Source: Wortsman et al., "Model soups", ICML 2022, Recipe 1.
    """
    models = as_list(models)
    if not models:
        raise ValueError("no models to average; give at least one")
    checks.models(models)
    states = _states(model_states, len(models))
    check_evaluable(labels, None, "the soup")

    def score(params: PyTree, model_state: PyTree) -> float:
        sums = evaluate(task, params, model_state, inputs, labels, batch_size=batch_size)
        means = sums.means()
        return float(means["accuracy"] if "accuracy" in means else -means["loss"])

    scores = [score(*model) for model in zip(models, states, strict=True)]
    order = np.argsort(-np.asarray(scores), kind="stable").tolist()
    best = order[0]
    soup = _Soup(models[best], states[best], scores[best], [best])
    for position in order[1:]:
        candidate = _with(soup, position, models, states, repair, score)
        if candidate.score >= soup.score:
            soup = candidate
    info = {"chosen": soup.chosen, "score": soup.score, "scores": scores}
    return MergeResult(soup.params, soup.model_state, info)


def _with(
    soup: _Soup,
    position: int,
    models: list[PyTree],
    states: list[PyTree],
    repair: Repair | None,
    score: Callable[[PyTree, PyTree], float],
) -> _Soup:
    """The soup with one more model: a mean of all of them anew, so that no rounding piles up."""
    chosen = [*soup.chosen, position]
    shares = np.ones(len(chosen))
    params = weighted_mean(stack([models[p] for p in chosen]), shares)
    if repair is not None:
        model_state = repair(params, states[chosen[0]])
    elif any(map(is_weight, jax.tree.leaves(states[position]))):
        model_state = weighted_mean(stack([states[p] for p in chosen]), shares)
    else:
        model_state = states[chosen[0]]
    return _Soup(params, model_state, score(params, model_state), chosen)


def _states(model_states: PyTree, count: int) -> list[PyTree]:
    if model_states is None:
        return [{}] * count
    listed = type(model_states) in (list, tuple)
    states = list(model_states) if listed else unstack(model_states, count)
    if len(states) != count:
        raise ValueError(f"{len(states)} model states for {count} models; give one per model")
    return states
