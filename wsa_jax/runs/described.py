"""Descriptions that tell modules apart and are the same in every process."""

import dataclasses
import enum
import functools
import inspect
import types
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from wsa_jax.runs.identity import digest

# Deeper than fields of modules nest; closures may be circular.
_DEPTH = 8


def described(value: Any, depth: int = _DEPTH) -> str:
    """Describe a module, or a value of its fields, so that only an equal one resumes a run.

    Numbers, strings and containers are written out; arrays are described by a digest of their
    values; modules, dataclasses and other objects by their class and fields. A module-level
    function is described by its name alone, since its text may change with its library; a lambda,
    or a function made inside another, also by its constants, the names it uses and what it closes
    over.

    >>> described(nn.Dense(3, use_bias=False)) == described(nn.Dense(3))
    False
    >>> described(lambda x: nn.leaky_relu(x, 0.1)) == described(lambda x: nn.leaky_relu(x, 0.9))
    False
    >>> described(nn.relu)
    'relu'
    """
    if depth == 0:
        return type(value).__qualname__
    inner = functools.partial(described, depth=depth - 1)
    if isinstance(value, enum.Enum):
        return f"{type(value).__qualname__}.{value.name}"
    if isinstance(value, str | bytes | int | float | complex | None):
        return repr(value)
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return f"array({digest(value)})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{k!r}: {inner(v)}' for k, v in sorted(value.items()))}}}"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(inner, value))})"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(inner, value)))}}}"
    if isinstance(value, functools.partial):
        return f"partial({inner((value.func, value.args, value.keywords))})"
    if isinstance(value, types.MethodType):
        return f"{inner(value.__func__)} of {inner(value.__self__)}"
    named = callable(value) and hasattr(value, "__name__")
    if named or isinstance(value, type | types.ModuleType):
        return _function(value, inner)
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        # A Linen module's place among others is not one of its settings.
        hidden = ("parent", "name") if isinstance(value, nn.Module) else ()
        fields = {name: getattr(value, name) for name in names if name not in hidden}
    else:
        fields = dict(sorted(getattr(value, "__dict__", {}).items()))
    inside = ", ".join(f"{name}={inner(field)}" for name, field in fields.items())
    return f"{type(value).__qualname__}({inside})" if fields else type(value).__qualname__


def task_settings(task: Any) -> tuple[tuple[str, str], ...]:
    """Return what tells a task from others."""
    return task.settings


def _function(value: Any, inner: Any) -> str:
    name = getattr(value, "__qualname__", value.__name__)
    function = inspect.unwrap(value)
    if "<" not in name or not isinstance(function, types.FunctionType):
        return name
    closed = inspect.getclosurevars(function).nonlocals
    defaults = (function.__defaults__ or (), function.__kwdefaults__ or {})
    return (
        f"{name}({_code(function.__code__, function.__doc__)}, {inner(closed)}, {inner(defaults)})"
    )


def _code(code: types.CodeType, doc: str | None = None) -> str:
    constants = [
        _code(constant) if isinstance(constant, types.CodeType) else described(constant)
        for constant in code.co_consts
        if constant is not doc
    ]
    return f"{' '.join(code.co_names)}: {' '.join(constants)}"
