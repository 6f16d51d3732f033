"""Make one model from several whose units correspond."""

from wsa_jax.merging.combine.average import average, slerp
from wsa_jax.merging.combine.examples import labelled_examples
from wsa_jax.merging.combine.fine_tuning import fine_tune
from wsa_jax.merging.combine.fisher import diagonal_fisher, fisher_merge, task_log_likelihood
from wsa_jax.merging.combine.learning import LearningSettings, LearningState
from wsa_jax.merging.combine.np_merge import np_merge
from wsa_jax.merging.combine.np_merge_many import np_merge_joint, np_merge_many
from wsa_jax.merging.combine.penalties import Strengths

__all__ = [
    "LearningSettings",
    "LearningState",
    "Strengths",
    "average",
    "diagonal_fisher",
    "fine_tune",
    "fisher_merge",
    "labelled_examples",
    "np_merge",
    "np_merge_joint",
    "np_merge_many",
    "slerp",
    "task_log_likelihood",
]
