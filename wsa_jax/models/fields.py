"""The check of a module's fields, when it is made rather than when it is compiled."""

from typing import Any

from wsa_jax import checks
from wsa_jax.door import shown


def sequence_of(name: str, value: Any) -> tuple[Any, ...]:
    """Return a list or tuple as a tuple, which can be hashed, or refuse it by name.

    >>> sequence_of("features", 10)
    Traceback (most recent call last):
    ValueError: features 10 is no sequence of sizes; give for example features=(10,)
    """
    if not isinstance(value, tuple | list):
        example = value if isinstance(value, int) and value > 0 else 10
        raise ValueError(
            f"{name} {shown(value)} is no sequence of sizes; give for example {name}=({example},)"
        )
    return tuple(value)


def counts_of(name: str, value: Any) -> tuple[int, ...]:
    """Return a sequence of positive integers as a tuple, or refuse it by name.

    >>> counts_of("features", [8, 10])
    (8, 10)
    """
    for index, one in enumerate(sequence_of(name, value)):
        checks.count(f"{name}[{index}]", one)
    return tuple(value)
