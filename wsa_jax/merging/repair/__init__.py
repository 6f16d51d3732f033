"""Repair a merged model's activations."""

from wsa_jax.merging.repair.batch_norm import reset_batch_norm
from wsa_jax.merging.repair.statistics import running_statistics

__all__ = ["reset_batch_norm", "running_statistics"]
