"""Compiler flags a program may set before its first computation; importing never sets one."""

import importlib.metadata
import os

__all__ = ["OPT_OUT", "set_cpu_flags"]

OPT_OUT = "WSA_JAX_NO_XLA_FLAGS"
"""Environment variable: set it to 1 and `set_cpu_flags` does nothing."""

_FLAG = "--xla_cpu_experimental_onednn_custom_call"
# XLA aborts the process on a flag it does not know. These releases were seen to know it.
_KNOWN = ((0, 10), (0, 12))


def set_cpu_flags() -> bool:
    """Let XLA hand convolutions on the CPU to oneDNN, where this JAX knows how.

    XLA reads its flags when JAX starts its backend, at the first computation: call this before.

    Guarantees: does nothing where the user has set the flag, where `OPT_OUT` is 1, and outside the
    releases of JAX in which the flag was tried. Results change by rounding only.

    Returns:
      Whether the flag was set.

    >>> from unittest import mock
    >>> with mock.patch.dict(os.environ, {OPT_OUT: "1"}):
    ...     set_cpu_flags()
    False
    """
    if os.environ.get(OPT_OUT) == "1":
        return False
    flags = os.environ.get("XLA_FLAGS", "")
    release = tuple(int(part) for part in importlib.metadata.version("jaxlib").split(".")[:2])
    if _FLAG in flags or not _KNOWN[0] <= release <= _KNOWN[1]:
        return False
    os.environ["XLA_FLAGS"] = f"{flags} {_FLAG}=true".strip()
    return True
