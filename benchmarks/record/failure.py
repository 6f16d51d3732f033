"""Cells that fail while they run: what may befall one of them and leave the others whole."""

FAILURES = (ValueError, ArithmeticError, RuntimeError, OSError, MemoryError)
"""Settings that the library refuses on the way, and memory or a disk that is full.

XLA's own errors are of `RuntimeError`. Anything else is a fault of the code, and ends the run.
"""


def reason(error: BaseException) -> str:
    """What a row keeps of an error: one line.

    >>> reason(ValueError("strength 9 is too large\\nmore of it"))
    'ValueError: strength 9 is too large'
    """
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
