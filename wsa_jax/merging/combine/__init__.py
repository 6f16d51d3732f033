"""Make one model from several whose units correspond."""

from wsa_jax.merging.combine.average import average as average
from wsa_jax.merging.combine.average import slerp as slerp
from wsa_jax.merging.combine.examples import labelled_examples as labelled_examples
from wsa_jax.merging.combine.fine_tuning import fine_tune as fine_tune
from wsa_jax.merging.combine.fisher import diagonal_fisher as diagonal_fisher
from wsa_jax.merging.combine.fisher import fisher_merge as fisher_merge
from wsa_jax.merging.combine.fisher import task_log_likelihood as task_log_likelihood
from wsa_jax.merging.combine.learning import LearningSettings as LearningSettings
from wsa_jax.merging.combine.learning import LearningState as LearningState
from wsa_jax.merging.combine.np_merge import Strengths as Strengths
from wsa_jax.merging.combine.np_merge import np_merge as np_merge
from wsa_jax.merging.combine.np_merge_many import np_merge_joint as np_merge_joint
from wsa_jax.merging.combine.np_merge_many import np_merge_many as np_merge_many
