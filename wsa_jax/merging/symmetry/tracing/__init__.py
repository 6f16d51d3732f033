"""Infer a model's spec from the jaxpr of any function."""

from wsa_jax.merging.symmetry.tracing.trace_spec import trace_spec

__all__ = ["trace_spec"]
