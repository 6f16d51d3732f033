"""Tasks, and the training of one model or of many at once."""

from wsa_jax.training.evaluation import evaluate
from wsa_jax.training.fit import FitResult, FitSettings, fit
from wsa_jax.training.task import Batch, Metrics, Task, classification, classification_task

__all__ = [
    "Batch",
    "FitResult",
    "FitSettings",
    "Metrics",
    "Task",
    "classification",
    "classification_task",
    "evaluate",
    "fit",
]
