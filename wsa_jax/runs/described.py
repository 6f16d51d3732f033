"""Descriptions that tell modules and tasks apart and are the same in every process."""

import dataclasses
import enum
import functools
import inspect
import sys
import sysconfig
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from wsa_jax.runs.identity import deeper, digest, text_digest
from wsa_jax.types import Json

# Written out; what is deeper, by a digest. Runs of earlier versions say these levels alone.
_DEPTH = 8
# Deeper than closures nest in one another; each object is described once.
_CODE_DEPTH = 40
_LIBRARIES = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]


def described(value: Any) -> str:
    """Describe a module, or a value of its fields, so that only an equal one resumes a run.

    Numbers, strings and containers are written out; arrays are described by a digest of their
    values; modules, dataclasses and other objects by their class and fields. A module-level
    function is described by its name alone, since its text may change with its library; a lambda,
    or a function made inside another, also by its constants, the names it uses and what it closes
    over. Eight levels are written out, and what is below them is part of a digest.

    >>> described(nn.Dense(3, use_bias=False)) == described(nn.Dense(3))
    False
    >>> described(lambda x: nn.leaky_relu(x, 0.1)) == described(lambda x: nn.leaky_relu(x, 0.9))
    False
    >>> described(nn.relu)
    'relu'
    """
    description = _Description()
    text = description.of(value, _DEPTH)
    if not description.cut:
        return text
    return text + deeper(_WholeDescription().of(value, _CODE_DEPTH))


def described_code(value: Any) -> str:
    """Describe a function by what it computes: its code, and all that it calls, reads or holds.

    Functions and classes of installed libraries, and of this one, are described by their names and
    by what they close over; lambdas have none.

    >>> described_code(lambda x: x + 1) == described_code(lambda x: x - 1)
    False
    """
    return _CodeDescription().of(value, _CODE_DEPTH)


def task_settings(task: Any) -> tuple[tuple[str, str], ...]:
    """Return what tells a task from others, as a run's identity holds it.

    These are its settings or, where it names none, digests of the code of its functions; and those
    of its parts that are plain values.

    >>> from wsa_jax.training import classification_task
    >>> first, second = (classification_task(init, lambda *args: None) for init in (min, max))
    >>> task_settings(first) == task_settings(second)
    False
    """
    parts = task._asdict()
    settings = parts.pop("settings")
    plain = [(name, described(part)) for name, part in parts.items() if not callable(part)]
    if not settings:
        settings = [
            (
                name,
                f"{getattr(parts[name], '__qualname__', '')} "
                f"({text_digest(described_code(parts[name]))})",
            )
            for name in ("init", "loss", "metrics")
        ]
    return (*settings, *plain)


class _Description:
    """How values are described; functions by name, since libraries change their text."""

    # Whether something was too deep to be described.
    cut = False

    def of(self, value: Any, depth: int) -> str:
        if depth == 0:
            self.cut = True
            return type(value).__qualname__
        inner = functools.partial(self.of, depth=depth - 1)
        if isinstance(value, enum.Enum):
            return f"{type(value).__qualname__}.{value.name}"
        if isinstance(value, str | bytes | int | float | complex | None):
            return repr(value)
        if isinstance(value, np.generic | np.ndarray | jax.Array):
            return f"array({digest(value)})"
        if isinstance(value, Mapping):
            pairs = sorted((inner(key), inner(part)) for key, part in value.items())
            return f"{{{', '.join(f'{key}: {part}' for key, part in pairs)}}}"
        if isinstance(value, tuple | list):
            return f"({', '.join(map(inner, value))})"
        if isinstance(value, set | frozenset):
            return f"{{{', '.join(sorted(map(inner, value)))}}}"
        if isinstance(value, functools.partial):
            return f"partial({inner((value.func, value.args, value.keywords))})"
        if isinstance(value, types.MethodType):
            return f"{inner(value.__func__)} of {inner(value.__self__)}"
        if isinstance(value, types.CodeType):
            return self.code(value, None, depth)
        if isinstance(value, jax.tree_util.PyTreeDef):
            return inner((value.node_data(), value.children()))
        # A wrapper may name itself after a module, which has no name.
        named = callable(value) and isinstance(getattr(value, "__name__", None), str)
        if named or isinstance(value, type | types.ModuleType):
            return self.function(value, depth)
        return self.object(value, depth)

    def object(self, value: Any, depth: int) -> str:
        """A dataclass or another object: its class and its fields."""
        if dataclasses.is_dataclass(value):
            names = [field.name for field in dataclasses.fields(value)]
            # A Linen module's place among others is not one of its settings.
            hidden = ("parent", "name") if isinstance(value, nn.Module) else ()
            fields = {name: getattr(value, name) for name in names if name not in hidden}
        else:
            fields = dict(sorted(getattr(value, "__dict__", {}).items()))
        inside = ", ".join(f"{name}={self.of(part, depth - 1)}" for name, part in fields.items())
        return f"{type(value).__qualname__}({inside})" if fields else type(value).__qualname__

    def function(self, value: Any, depth: int) -> str:
        """A function, class or module: its name; a local function also its code."""
        name = getattr(value, "__qualname__", value.__name__)
        function = inspect.unwrap(value)
        if "<" not in name or not isinstance(function, types.FunctionType):
            return name
        code = self.code(function.__code__, function.__doc__, depth)
        return f"{name}({code}, {self.of(_held(function), depth - 1)})"

    def code(self, code: types.CodeType, doc: str | None, depth: int) -> str:
        """The names that code uses, and its constants without its docstring."""
        constants = [self.of(part, depth - 1) for part in code.co_consts if part is not doc]
        return f"{' '.join(code.co_names)}: {' '.join(constants)}"


class _WholeDescription(_Description):
    """Values to any depth, each described once; one that holds itself is its class there."""

    def __init__(self) -> None:
        # The objects are held, so that no other takes their identity.
        self._found: dict[int, tuple[Any, str]] = {}

    def of(self, value: Any, depth: int) -> str:
        if id(value) not in self._found:
            self._found[id(value)] = value, type(value).__qualname__
            text = super().of(value, depth)
            self._found[id(value)] = value, text if len(text) < 100 else text_digest(text)
        return self._found[id(value)][1]


class _CodeDescription(_Description):
    """Users' functions by their code and all they refer to; each object once."""

    def __init__(self) -> None:
        # The objects are held, so that no other takes their identity.
        self._seen: dict[int, tuple[int, Any]] = {}

    def of(self, value: Any, depth: int) -> str:
        values = str | bytes | int | float | complex | tuple | np.generic | np.ndarray | jax.Array
        if value is None or isinstance(value, values):
            return super().of(value, depth)
        if id(value) in self._seen:
            return f"#{self._seen[id(value)][0]}"
        self._seen[id(value)] = len(self._seen), value
        return super().of(value, depth)

    def object(self, value: Any, depth: int) -> str:
        return f"{self.of(type(value), depth - 1)} {super().object(value, depth)}"

    def function(self, value: Any, depth: int) -> str:
        name = getattr(value, "__qualname__", value.__name__)
        function = inspect.unwrap(value)
        if isinstance(value, types.ModuleType) or (
            _of_library(function) and "<lambda>" not in name
        ):
            local = "<" in name and isinstance(function, types.FunctionType)
            return f"{name}({self.of(_held(function), depth - 1)})" if local else name
        if isinstance(function, type):
            parts = (function.__bases__, _members(function))
            return f"{name}({self.of(parts, depth - 1)})"
        if not isinstance(function, types.FunctionType):
            return name
        code = self.code(function.__code__, function.__doc__, depth)
        used = {
            name: function.__globals__[name]
            for name in sorted(_names(function.__code__))
            if name in function.__globals__
        }
        return f"{name}({code}, {self.of((_held(function), used), depth - 1)})"

    def code(self, code: types.CodeType, doc: str | None, depth: int) -> str:
        return f"{digest(np.frombuffer(code.co_code, np.uint8))} {super().code(code, doc, depth)}"


def _held(function: types.FunctionType) -> tuple[Any, ...]:
    """What a function closes over, and its defaults."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    closed = {name: cell.cell_contents for name, cell in cells if _is_filled(cell)}
    return closed, function.__defaults__ or (), function.__kwdefaults__ or {}


def _is_filled(cell: types.CellType) -> bool:
    """Whether what a name stands for has been made yet; the name of a function itself may not."""
    return cell != types.CellType()


def _names(code: types.CodeType) -> set[str]:
    """Names that code, and code inside it, may look up."""
    inside = [_names(part) for part in code.co_consts if isinstance(part, types.CodeType)]
    return set(code.co_names).union(*inside)


def _members(value: type) -> Json:
    """What a class's own text says: its methods and constants."""
    found = {}
    for name, member in vars(value).items():
        for holder in ("__func__", "fget", "method"):
            member = getattr(member, holder, member)
        constant = isinstance(member, str | int | float | tuple) and not name.startswith("__")
        if constant or isinstance(inspect.unwrap(member), types.FunctionType):
            found[name] = member
    return found


def _of_library(value: Any) -> bool:
    """Whether a function or class is of this library, the standard one, or an installed one."""
    name = getattr(value, "__module__", None) or "builtins"
    root = sys.modules.get(name.partition(".")[0])
    if root is None or root.__name__ in ("__main__", "wsa_jax"):
        return root is not None and root.__name__ == "wsa_jax"
    file = getattr(root, "__file__", None) or next(iter(getattr(root, "__path__", ())), None)
    # What has no file is built in.
    return file is None or any(Path(file).is_relative_to(path) for path in _LIBRARIES)
