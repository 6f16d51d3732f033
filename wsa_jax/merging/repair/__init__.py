"""Repair a merged model's activations."""

from wsa_jax.merging.repair.batch_norm import reset_batch_norm
from wsa_jax.merging.repair.fold_batch_norm import Folded, fold_batch_norm
from wsa_jax.merging.repair.repair_closed_form import repair_closed_form
from wsa_jax.merging.repair.repair_forward import repair_forward
from wsa_jax.merging.repair.statistics import running_statistics

__all__ = [
    "Folded",
    "fold_batch_norm",
    "repair_closed_form",
    "repair_forward",
    "reset_batch_norm",
    "running_statistics",
]
