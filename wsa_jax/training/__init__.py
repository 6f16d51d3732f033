"""Tasks, and the training of one model or of many at once."""

from wsa_jax.training.equinox_task import equinox_task
from wsa_jax.training.evaluation import evaluate
from wsa_jax.training.fit import FitResult, FitSettings, fit
from wsa_jax.training.linen_task import linen_task, node_task
from wsa_jax.training.nnx_task import nnx_task
from wsa_jax.training.regression import regression_task
from wsa_jax.training.task import Batch, Metrics, Task, classification, classification_task

__all__ = [
    "Batch",
    "FitResult",
    "FitSettings",
    "Metrics",
    "Task",
    "classification",
    "classification_task",
    "equinox_task",
    "evaluate",
    "fit",
    "linen_task",
    "nnx_task",
    "node_task",
    "regression_task",
]
