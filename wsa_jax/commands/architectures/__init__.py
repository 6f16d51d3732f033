"""Known architectures, read off the names and shapes of a file, whoever wrote it."""

from wsa_jax.commands.architectures.find import KNOWN, architecture, found_architecture
from wsa_jax.commands.architectures.known import Architecture
from wsa_jax.commands.architectures.transformers import HeadsUnknownError

__all__ = ["KNOWN", "Architecture", "HeadsUnknownError", "architecture", "found_architecture"]
