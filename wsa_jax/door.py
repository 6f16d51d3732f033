"""The door of a public function: types are checked before any work, by what the signature says.

Each refusal is one line that names the argument, what was given and what to give. Values (ranges,
shapes that must agree, finite weights) are checked by `wsa_jax.checks` inside the functions.
"""

import collections.abc
import contextlib
import functools
import inspect
import numbers
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import flax.errors
import jax
import numpy as np
from jaxtyping import AbstractArray, PyTree

from wsa_jax.leaves import is_key, key_path
from wsa_jax.types import Json

Annotation = Any
"""What a signature says of an argument."""

Function = TypeVar("Function", bound=Callable[..., Any])

# What to give where an object is meant: a class's name alone does not say how to make one.
WAYS_OUT = {
    "Task": "a Task, for example classification(module, info)",
    "FederatedAlgorithm": "an algorithm, for example fed_avg() or scaffold()",
    "WeightScopeAlignment": "WeightScopeAlignment(strength=...)",
    "WeightScope": "a WeightScope, from weight_scope(params) or constant_target(...)",
    "Aggregation": "an Aggregation, for example Aggregation(rule='median')",
    "Execution": "an Execution, for example Execution(clients='vmap')",
    "LocalSettings": "LocalSettings(steps=..., batch_size=...)",
    "FitSettings": "FitSettings(steps=..., batch_size=...)",
    "LearningSettings": "LearningSettings(steps=..., batch_size=...)",
    "Partition": "a Partition, for example dirichlet_equal(labels, clients=10, alpha=0.5, seed=0)",
    "AxisSpec": "an AxisSpec, from trace_spec(apply_fn, params, inputs)",
    "Path": "a Path, from interpolate_path(...)",
    "Evidence": "Evidence(task, inputs, labels)",
    "Matching": "a Matching, from weight_matching(...); the order is align(spec, model, matching)",
    "DatasetInfo": "a DatasetInfo, for example load_dataset('digits').info",
}


# What JAX, Flax and Python raise where a function is given arrays of another shape or structure.
_OF_ANOTHER_SHAPE = (
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
    flax.errors.FlaxError,
)


class ArgumentError(ValueError, TypeError):
    """An argument that a public function cannot take; the message is one line."""


def door(function: Function) -> Function:
    """Check a function's arguments against its annotations at every call, before its body runs.

    Raises:
      ArgumentError: an argument is missing, unknown, or of a type that the signature does not take.

    >>> @door
    ... def repeat(word: str, *, times: int = 2) -> str:
    ...     return word * times
    >>> repeat("ha"), repeat("ha", times=np.int64(1))
    ('haha', 'ha')
    >>> repeat("ha", times="3")
    Traceback (most recent call last):
    wsa_jax.door.ArgumentError: times of repeat is '3'; give an integer
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            names = ", ".join(signature.parameters)
            raise ArgumentError(f"{function.__name__}: {error}; it takes ({names})") from None
        for name, value in bound.arguments.items():
            _check_parameter(function.__name__, signature.parameters[name], name, value)
        return function(*args, **kwargs)

    return typing.cast(Function, checked)


def check_fields(settings: object) -> None:
    """Check the fields of a dataclass against their annotations; call it in ``__post_init__``.

    >>> import dataclasses
    >>> Settings = dataclasses.make_dataclass(
    ...     "Settings", [("momentum", float)], namespace={"__post_init__": check_fields}
    ... )
    >>> Settings(momentum="0.9")
    Traceback (most recent call last):
    wsa_jax.door.ArgumentError: momentum of Settings is '0.9'; give a number
    """
    kind = type(settings)
    annotations: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        annotations |= inspect.get_annotations(base, eval_str=False)
    for name, annotation in annotations.items():
        value = getattr(settings, name)
        if not fits(value, annotation):
            raise _refusal(f"{name} of {kind.__name__}", value, annotation)


@contextlib.contextmanager
def taken_by(function: str, what: str) -> Iterator[None]:
    """Tell in one line that a user's function does not take what it was called with.

    >>> with taken_by("apply_fn", "these parameters and inputs"):
    ...     jax.numpy.ones(2) @ jax.numpy.ones(3)
    Traceback (most recent call last):
    wsa_jax.door.ArgumentError: apply_fn does not take these parameters and inputs (TypeError: ...
    """
    try:
        yield
    except ArgumentError:
        raise  # it is one line already
    except _OF_ANOTHER_SHAPE as error:
        reason = " ".join(str(error).split())[:200]
        raise ArgumentError(
            f"{function} does not take {what} ({type(error).__name__}: {reason})"
        ) from error


def _check_parameter(function: str, parameter: inspect.Parameter, name: str, value: Any) -> None:
    """Check one argument; a default is right whatever its annotation."""
    annotation = parameter.annotation
    if annotation is inspect.Parameter.empty or value is parameter.default:
        return
    if parameter.kind is inspect.Parameter.VAR_KEYWORD:
        _check_options(function, annotation, value)
        return
    for each in value if parameter.kind is inspect.Parameter.VAR_POSITIONAL else [value]:
        if not fits(each, annotation):
            raise _refusal(f"{name} of {function}", each, annotation)


def _check_options(function: str, annotation: Annotation, given: Json) -> None:
    """Check keywords that a typed dictionary names."""
    if typing.get_origin(annotation) is not typing.Unpack:
        return
    known = typing.get_type_hints(typing.get_args(annotation)[0])
    for name, value in given.items():
        if name not in known:
            raise ArgumentError(
                f"{function} has no option {name!r}; give one of {', '.join(known)}"
            )
        if not fits(value, known[name]):
            raise _refusal(f"{name} of {function}", value, known[name])


def fits(value: Any, annotation: Annotation) -> bool:
    """Whether a value is of an annotation's type, as far as that can be told at once.

    >>> fits(3, int | None), fits(True, int), fits("a", typing.Literal["a", "b"])
    (True, False, True)
    """
    if annotation in (Any, inspect.Parameter.empty, object) or isinstance(annotation, str):
        return True
    if annotation is PyTree or _is_pytree(annotation):
        return value is not None and _unfit_leaf(value) is None
    if annotation is None or annotation is type(None):
        return value is None
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in inside)
    if origin is typing.Literal:
        return any(value is one or (type(value) is type(one) and value == one) for one in inside)
    if origin is typing.Annotated:
        return fits(value, inside[0])
    if origin is collections.abc.Callable or annotation is Callable:
        return callable(value)
    if origin is tuple and isinstance(value, np.ndarray | jax.Array):
        return False
    if origin in (collections.abc.Sequence, list, tuple):
        return _is_sequence(value) and _items_fit(value, inside)
    kind = origin or annotation
    if isinstance(kind, type):
        return _is_instance(value, kind)
    return True


def _is_sequence(value: Any) -> bool:
    if isinstance(value, np.ndarray | jax.Array):
        return value.ndim > 0
    return isinstance(value, collections.abc.Sequence) and not isinstance(value, str | bytes)


def _items_fit(values: Iterable[Any], inside: tuple[Any, ...]) -> bool:
    """Whether the items of a sequence fit; the types of a tuple's places are not compared."""
    one_type = len(inside) == 1 or (len(inside) == 2 and inside[1] is Ellipsis)
    if not one_type or isinstance(values, np.ndarray | jax.Array):
        return True
    return all(fits(value, inside[0]) for value in values)


def _is_instance(value: Any, kind: type) -> bool:
    """`isinstance` with Python's numeric tower, in which a flag is no number."""
    if kind is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool)
    if kind is bool:
        return isinstance(value, bool | np.bool_)
    try:
        return isinstance(value, kind)
    except TypeError:
        # Protocols that cannot be asked at run time say nothing here.
        return True


def _is_pytree(annotation: Annotation) -> bool:
    return isinstance(annotation, type) and annotation.__name__.startswith("PyTree")


def _unfit_leaf(tree: Any) -> tuple[str, Any] | None:
    """The first leaf that no model or data holds: text, a generator, another library's tensor."""
    if isinstance(tree, types.GeneratorType):  # which JAX will not take for a leaf for long
        return "", tree
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        foreign = type(leaf).__module__.split(".")[0] in ("torch", "tensorflow")
        # A module's own attribute may be text, such as the axis name of Equinox's BatchNorm.
        if isinstance(leaf, str) and path and isinstance(path[-1], jax.tree_util.GetAttrKey):
            continue
        text = isinstance(leaf, np.ndarray) and leaf.dtype.kind in "USO"
        if foreign or text or isinstance(leaf, str | bytes | types.GeneratorType):
            return key_path(path), leaf
    return None


def _refusal(name: str, value: Any, annotation: Annotation) -> ArgumentError:
    """The one line that says what an argument is and what it should be."""
    if _allows_trees(annotation) and (found := _unfit_leaf(value)) is not None:
        path, leaf = found
        where = f"leaf {path} of {name}" if path else name
        if type(leaf).__module__.startswith("torch"):
            return ArgumentError(
                f"{where} is a torch tensor; give JAX or NumPy arrays, "
                "for example jax.tree.map(lambda leaf: leaf.numpy(), model)"
            )
        return ArgumentError(f"{where} is {shown(leaf)}; give a pytree of arrays")
    if isinstance(value, str) and typing.get_origin(annotation) is typing.Literal:
        setting, words = name.split(" of ")[0], ", ".join(map(str, typing.get_args(annotation)))
        return ArgumentError(f"{setting} {shown(value)} is unknown; give one of {words}")
    return ArgumentError(f"{name} is {shown(value)}; give {described(annotation)}")


def _allows_trees(annotation: Annotation) -> bool:
    if typing.get_origin(annotation) is collections.abc.Callable:
        return False
    parts = typing.get_args(annotation) or (annotation,)
    return any(part is PyTree or _is_pytree(part) for part in parts)


def shown(value: Any) -> str:
    """A value in a few words, on one line.

    >>> shown("a"), shown(np.zeros((2, 3))), shown([0.1])
    ("'a'", 'an array of float64 of shape (2, 3)', '[0.1]')
    """
    if is_key(value):
        return f"an array of keys of shape {value.shape}"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"an array of {value.dtype} of shape {tuple(value.shape)}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    text = " ".join(repr(value).split())
    # An address in memory tells nobody anything.
    return text if len(text) <= 60 and " at 0x" not in text else f"a {type(value).__name__}"


def described(annotation: Annotation) -> str:
    """What an annotation asks for, in words.

    >>> described(int | None), described(typing.Literal["map", "vmap"])
    ('an integer or None', "'map' or 'vmap'")
    """
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        words = list(dict.fromkeys(described(one) for one in inside))
        if "a number" in words and "an integer" in words:
            words.remove("an integer")
        return " or ".join(words)
    if origin is typing.Literal:
        return " or ".join(map(repr, inside))
    if origin is typing.Annotated:
        return described(inside[0])
    if annotation is None or annotation is type(None):
        return "None"
    if annotation is PyTree or _is_pytree(annotation):
        return "a pytree of arrays"
    if annotation == Callable[[str, Any], bool]:
        return "a rule, for example kernels, matrices or matching(pattern)"
    if origin is collections.abc.Callable or annotation is Callable:
        return "a function"
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        return _described_array(annotation)
    kind = origin or annotation
    named = {int: "an integer", float: "a number", bool: "True or False", str: "a string"}
    named |= {collections.abc.Sequence: "a list", collections.abc.Mapping: "a dictionary"}
    name = getattr(kind, "__name__", str(kind))
    return named.get(kind) or WAYS_OUT.get(name) or f"a {name}"


def _described_array(annotation: Annotation) -> str:
    # An annotation of any dtype has a stand-in for the list of dtypes.
    dtypes = annotation.dtypes if isinstance(annotation.dtypes, Iterable) else ()
    if any("prng" in str(dtype) or "key" in str(dtype) for dtype in dtypes):
        return "a JAX key, jax.random.key(seed)"
    if annotation.array_type in (bool, int, float, complex) or not annotation.dim_str:
        return "a number"
    return f"an array [{', '.join(annotation.dim_str.split())}]"
