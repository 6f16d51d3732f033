"""Tasks, and the training of one model or of many at once."""

from wsa_jax.training.evaluation import evaluate as evaluate
from wsa_jax.training.fit import FitResult as FitResult
from wsa_jax.training.fit import FitSettings as FitSettings
from wsa_jax.training.fit import fit as fit
from wsa_jax.training.task import Batch as Batch
from wsa_jax.training.task import Metrics as Metrics
from wsa_jax.training.task import Task as Task
from wsa_jax.training.task import classification as classification
from wsa_jax.training.task import classification_task as classification_task
