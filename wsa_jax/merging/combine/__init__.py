"""Make one model from several whose units correspond."""

from wsa_jax.merging.combine.ada_merge import ada_merge
from wsa_jax.merging.combine.average import average, slerp
from wsa_jax.merging.combine.dare import dare, drop_and_rescale
from wsa_jax.merging.combine.examples import labelled_examples
from wsa_jax.merging.combine.fine_tuning import fine_tune
from wsa_jax.merging.combine.fisher import diagonal_fisher, fisher_merge, task_log_likelihood
from wsa_jax.merging.combine.greedy_soup import greedy_soup
from wsa_jax.merging.combine.learning import LearningSettings, LearningState
from wsa_jax.merging.combine.model_stock import model_stock
from wsa_jax.merging.combine.np_merge import np_merge
from wsa_jax.merging.combine.np_merge_many import np_merge_joint, np_merge_many
from wsa_jax.merging.combine.own_heads import head_of, merge_bodies
from wsa_jax.merging.combine.penalties import Strengths
from wsa_jax.merging.combine.reg_mean import Gram, gram_matrices, reg_mean
from wsa_jax.merging.combine.task_vectors import task_arithmetic
from wsa_jax.merging.combine.ties import ties

__all__ = [
    "Gram",
    "LearningSettings",
    "LearningState",
    "Strengths",
    "ada_merge",
    "average",
    "dare",
    "diagonal_fisher",
    "drop_and_rescale",
    "fine_tune",
    "fisher_merge",
    "gram_matrices",
    "greedy_soup",
    "head_of",
    "labelled_examples",
    "merge_bodies",
    "model_stock",
    "np_merge",
    "np_merge_joint",
    "np_merge_many",
    "reg_mean",
    "slerp",
    "task_arithmetic",
    "task_log_likelihood",
    "ties",
]
