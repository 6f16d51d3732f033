"""How methods combine models: each ``(key, models, evidence, budget) -> MergeResult``.

Models correspond and were checked when they came in, so none checks them again.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from wsa_jax import checks
from wsa_jax.merging.combine.ada_merge import entropy_loss, merge_adaptively
from wsa_jax.merging.combine.dare import dare
from wsa_jax.merging.combine.examples import labelled_examples
from wsa_jax.merging.combine.fine_tuning import train_weights
from wsa_jax.merging.combine.fisher import diagonal_fisher, merge_by_fisher, task_log_likelihood
from wsa_jax.merging.combine.greedy_soup import greedy_soup
from wsa_jax.merging.combine.learning import Learning, LearningSettings, Repair
from wsa_jax.merging.combine.model_stock import model_stock
from wsa_jax.merging.combine.np_merge import merge_pair
from wsa_jax.merging.combine.np_merge_many import merge_jointly, merge_order, merge_pairs
from wsa_jax.merging.combine.penalties import NO_PENALTY
from wsa_jax.merging.combine.reg_mean import gram_matrices, reg_mean
from wsa_jax.merging.combine.task_vectors import task_arithmetic
from wsa_jax.merging.combine.ties import ties
from wsa_jax.merging.evidence import Budget, Evidence, Model, apply_of, labels_of, rows_of
from wsa_jax.merging.repair.batch_norm import reset_batch_norm
from wsa_jax.merging.result import MergeResult
from wsa_jax.training.evaluation import evaluate
from wsa_jax.training.task import Batch
from wsa_jax.tree import stack, weighted_mean

_ADA_START = 0.3  # as Yang et al. start

Combine = Callable[[Array, Sequence[Model], Evidence, Budget], MergeResult]


def repaired(evidence: Evidence) -> Repair:
    """``(params, model_state) -> model_state`` with BatchNorm statistics from the evidence."""

    def repair(params: PyTree, model_state: PyTree) -> PyTree:
        return reset_batch_norm(
            evidence.task, params, model_state, evidence.inputs, labels=evidence.labels
        )

    return repair


@dataclass(frozen=True)
class OfWeights:
    """A combination that looks at nothing but weights, so that it can merge parts of models, too.

    Attributes:
      merge: ``(key, models, base) -> params``, of parameters; the base is None where there is none.
    """

    merge: Callable[[Array, list[PyTree], PyTree], PyTree]

    def __call__(
        self, key: Array, models: Sequence[Model], evidence: Evidence, budget: Budget
    ) -> MergeResult:
        """Merge parameters, and re-estimate statistics."""
        del budget
        base = None if evidence.base is None else evidence.base.params
        params = self.merge(key, [model.params for model in models], base)
        return MergeResult(params, repaired(evidence)(params, models[0].model_state), {})


uniform = OfWeights(lambda key, models, base: weighted_mean(stack(models), np.ones(len(models))))
"""The average."""
changes = OfWeights(lambda key, models, base: task_arithmetic(models, base))
trimmed_changes = OfWeights(lambda key, models, base: ties(models, base))
sparse_changes = OfWeights(lambda key, models, base: dare(key, models, base))
stock = OfWeights(lambda key, models, base: model_stock(models, base))


def fisher(key: Array, models: Sequence[Model], evidence: Evidence, budget: Budget) -> MergeResult:
    """Average parameters weighted by each model's diagonal Fisher information."""
    del key, budget
    examples = labelled_examples(evidence.inputs, labels_of(evidence))
    likelihood = task_log_likelihood(evidence.task)
    fishers = [
        diagonal_fisher(likelihood, model.params, examples, model_state=model.model_state)
        for model in models
    ]
    for index, information in enumerate(fishers):
        checks.weights(information, f"the Fisher information of model {index + 1}")
    params = merge_by_fisher(
        [model.params for model in models], fishers, np.ones(len(models))
    ).params
    return MergeResult(params, repaired(evidence)(params, models[0].model_state), {})


def least_squares(
    key: Array, models: Sequence[Model], evidence: Evidence, budget: Budget
) -> MergeResult:
    """Merge linear layers by the least squares of their outputs on the evidence: RegMean."""
    del key, budget
    apply_fn = apply_of(evidence.task)
    grams = [gram_matrices(apply_fn, model.variables, evidence.inputs) for model in models]
    found = reg_mean([model.variables for model in models], grams)
    params = Model.of(found.params).params
    state = repaired(evidence)(params, models[0].model_state)
    return MergeResult(params, state, found.info)


def soup(key: Array, models: Sequence[Model], evidence: Evidence, budget: Budget) -> MergeResult:
    """Average those models that do not make the soup worse on the held-out examples."""
    learning = _learning(key, evidence, budget, 0.0, {})
    held_out = learning.examples if learning.held_out is None else learning.held_out
    found = greedy_soup(
        evidence.task,
        [model.params for model in models],
        held_out.inputs,
        held_out.labels,
        model_states=[model.model_state for model in models],
        repair=learning.repair,
    )
    if len(found.info["chosen"]) > 1:
        return found
    # A model alone, with statistics from the evidence, as every other method's.
    return found._replace(model_state=repaired(evidence)(found.params, found.model_state))


def fine_tuning(
    key: Array, models: Sequence[Model], evidence: Evidence, budget: Budget
) -> MergeResult:
    """Train the average further on the evidence, with NP Merge's steps and batches."""
    start = uniform(key, models, evidence, budget)
    learning = _learning(key, evidence, budget, budget.fine_tuning_rate, start.model_state)
    return train_weights(key, learning, start.params)


def learned(
    key: Array,
    models: Sequence[Model],
    evidence: Evidence,
    budget: Budget,
    *,
    order: str = "given",
) -> MergeResult:
    """NP Merge of two models, or of more by pairs in a given order.

    The order ``"accuracy"`` is by the models' accuracies on the evidence.
    """
    params = [model.params for model in models]
    state = uniform(key, models, evidence, budget).model_state
    learning = _learning(key, evidence, budget, budget.np_learning_rate, state)
    if len(models) == 2:
        return merge_pair(key, learning, params[0], params[1], 0.5, NO_PENALTY)
    scores = _accuracies(models, evidence) if order == "accuracy" else None
    positions = merge_order(order, scores, len(models))
    each = dataclasses.replace(learning, repair=None)
    return merge_pairs(key, each, params, positions, order == "tree", NO_PENALTY, learning.repair)


def learned_jointly(
    key: Array, models: Sequence[Model], evidence: Evidence, budget: Budget
) -> MergeResult:
    """NP Merge of all models at once, by a softmax over models at each parameter."""
    state = uniform(key, models, evidence, budget).model_state
    learning = _learning(key, evidence, budget, budget.np_learning_rate, state)
    params = [model.params for model in models]
    return merge_jointly(key, learning, params, np.ones(len(models)), NO_PENALTY)


def adapted(key: Array, models: Sequence[Model], evidence: Evidence, budget: Budget) -> MergeResult:
    """Learn a scale for each layer of each task vector from inputs alone: AdaMerging."""
    if evidence.task.logits is None:
        raise ValueError("the task has no logits, whose entropy is learnt from; set them")
    if evidence.base is None:
        raise ValueError(
            "the evidence has no base, which is needed here; give Evidence(..., base=)"
        )
    params, base = [model.params for model in models], evidence.base.params
    # Statistics of where it starts, since logits of a merge without them are those of no model.
    start = task_arithmetic(params, base, scale=_ADA_START)
    learn_rows, held_out_rows = _rows(key, rows_of(evidence), budget)
    learning = Learning(
        loss_fn=entropy_loss(evidence.task.logits),
        examples=take_rows(evidence.inputs, learn_rows),
        settings=LearningSettings(
            steps=budget.steps,
            batch_size=min(budget.batch_size, len(learn_rows)),
            granularity="layer",
        ),
        learning_rate=budget.ada_learning_rate,
        model_state=repaired(evidence)(start, models[0].model_state),
        held_out=take_rows(evidence.inputs, held_out_rows) if len(held_out_rows) else None,
        repair=repaired(evidence),
    )
    scales = jnp.full(len(models), _ADA_START, jnp.float32)
    return merge_adaptively(key, learning, params, base, scales)


def take_rows(tree: PyTree, rows: np.ndarray) -> PyTree:
    """Rows of each array of a tree, on the host."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[rows], tree)


def _rows(key: Array, count: int, budget: Budget) -> tuple[np.ndarray, np.ndarray]:
    """The rows to learn from and those held out, drawn once per key."""
    order = np.asarray(jax.random.permutation(jax.random.fold_in(key, 1), count))
    chosen = min(round(budget.held_out * count), count - 1)  # one is left to learn from
    return order[chosen:], order[:chosen]


def _learning(
    key: Array, evidence: Evidence, budget: Budget, rate: float | int, model_state: PyTree
) -> Learning:
    """Examples to learn from and to select on, drawn once per key, and the repair at the end."""
    given = evidence.inputs, labels_of(evidence)
    learn_rows, held_out_rows = _rows(key, len(given[1]), budget)

    def examples(rows: np.ndarray) -> Batch:
        return labelled_examples(*take_rows(given, rows))

    return Learning(
        loss_fn=evidence.task.loss,
        examples=examples(learn_rows),
        settings=LearningSettings(
            steps=budget.steps, batch_size=min(budget.batch_size, len(learn_rows))
        ),
        learning_rate=rate,
        model_state=model_state,
        held_out=examples(held_out_rows) if len(held_out_rows) else None,
        repair=repaired(evidence),
    )


def _accuracies(models: Sequence[Model], evidence: Evidence) -> list[float]:
    inputs, labels = jax.tree.map(np.asarray, (evidence.inputs, labels_of(evidence)))
    means = [evaluate(evidence.task, *model, inputs, labels).means() for model in models]
    if "accuracy" not in means[0]:
        raise ValueError(
            "order 'accuracy' needs a task that counts correct answers; give 'given' or 'tree'"
        )
    return [float(found["accuracy"]) for found in means]
