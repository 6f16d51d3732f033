"""Repair a merged model's activations."""

from wsa_jax.merging.repair.batch_norm import reset_batch_norm as reset_batch_norm
from wsa_jax.merging.repair.batch_norm import running_statistics as running_statistics
