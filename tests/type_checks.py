"""The type checks of the import hook in fewer steps.

The hook (``--jaxtyping-packages`` in pyproject.toml) wraps every function of wsa_jax so that the
sizes that shapes name agree within a call: it binds the arguments to their names, and has beartype
check them once alone and once more with the result. That took a third of the tests' time. Here
beartype checks the function itself by the same annotations, in a context of sizes of its own. What
that does not do (a size that is computed from an argument, annotations not yet known, generators
before their first step) is left to the hook's own way.
"""

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

import beartype
import jaxtyping

hooked = jaxtyping.jaxtyped
checked_types = beartype.beartype(
    conf=beartype.BeartypeConf(violation_type=jaxtyping.TypeCheckError)
)


def by_the_hook(annotation: Any) -> bool:
    """Whether an annotation holds a size computed from an argument, or what cannot be read."""
    if isinstance(annotation, str | typing.ForwardRef):
        return True
    if isinstance(annotation, typing.TypeVar):
        return by_the_hook(annotation.__bound__)
    if isinstance(annotation, list):  # the arguments of a function
        return any(map(by_the_hook, annotation))
    if not inspect.isclass(annotation) or isinstance(annotation, types.GenericAlias):
        return any(map(by_the_hook, typing.get_args(annotation)))
    if issubclass(annotation, jaxtyping.AbstractArray):
        return "{" in annotation.dim_str
    return by_the_hook(getattr(annotation, "leaftype", None))


def jaxtyped(function: Any = None, *, typechecker: Callable[..., Any]) -> Any:
    """In place of jaxtyping's decorator."""
    if function is None:
        return functools.partial(jaxtyped, typechecker=typechecker)
    if dataclasses.is_dataclass(function) and inspect.isfunction(function.__init__):
        if not hasattr(function.__init__, "checks_types"):  # a base's, which is wrapped already
            function.__init__ = jaxtyped(function.__init__, typechecker=typechecker)
        return function
    if not inspect.isfunction(function):
        return hooked(function, typechecker=typechecker)
    by_hook = any(map(by_the_hook, function.__annotations__.values()))
    if by_hook or inspect.isgeneratorfunction(function):
        return hooked(function, typechecker=typechecker)
    if not function.__annotations__:
        return function
    checked = checked_types(function)

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        with hooked("context"):
            return checked(*args, **kwargs)

    called.checks_types = True
    return called


# The hook finds its decorator by this name, so this module comes before the first of wsa_jax.
jaxtyping.jaxtyped = jaxtyped
