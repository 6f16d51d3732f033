"""The import hook's checks: what it refuses, whichever way a function is checked."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import beartype
import jaxtyping
import numpy as np
import pytest
from jaxtyping import Float, PyTree

from tests.type_checks import by_the_hook, jaxtyped
from wsa_jax import tree
from wsa_jax.door import fits

hooked = jaxtyped(typechecker=beartype.beartype)


@hooked
def repeated(word: str, times: int = 2) -> str:
    return word * times if times else None


@hooked
def added(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return (a + b)[: 9 if a[0] else 1]


@hooked
def counted(times: int) -> Iterator[int]:
    yield from range(times)


@hooked
def tiled(times: int, a: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n*{times}"]:
    return np.concatenate([a] * abs(times))


@hooked
@dataclasses.dataclass
class Pair:
    first: Float[np.ndarray, " n"]
    second: Float[np.ndarray, " n"]


def test_types_and_sizes_are_refused_on_the_way_in_and_out():
    assert (repeated("ha"), list(counted(2))) == ("haha", [0, 1])
    ones, zeros = np.ones(3), np.zeros(3)
    np.testing.assert_array_equal(added(ones[:9], zeros), ones)
    np.testing.assert_array_equal(tiled(2, Pair(ones, zeros).first), np.ones(6))
    for call in (
        lambda: repeated(3),
        lambda: repeated("ha", times=0),
        lambda: counted("2"),
        lambda: added(ones, np.ones(2)),
        lambda: added(zeros, ones),
        lambda: added(3, ones),
        lambda: tiled(-2, ones),
        lambda: Pair(ones, np.ones(2)),
    ):
        with pytest.raises(jaxtyping.TypeCheckError):
            call()


def test_nothing_is_refused_as_a_user_calls_it(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    assert repeated(3) == 6


@hooked
def called_twice(*arrays: np.ndarray) -> list[bool]:
    return [fits(array, Float[np.ndarray, " n"]) for array in arrays]


def test_sizes_seen_inside_do_not_bind_the_caller():
    assert called_twice(np.ones(2), np.ones(3), np.ones((2, 3))) == [True, True, False]


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (Float[np.ndarray, "{times}"] | None, True),
        (Callable[[Float[np.ndarray, " n*{times}"]], Any], True),
        (PyTree[Float[np.ndarray, "{times}"]], True),
        ("a name that is not yet known", True),
        (dict[str, Float[np.ndarray, " *batch 3"]], False),
        (PyTree[int], False),
        (tuple[PyTree, ...] | None, False),
    ],
)
def test_what_is_left_to_the_hook(annotation, expected):
    assert by_the_hook(annotation) == expected


def test_the_hook_wraps_the_library():
    assert "type_checks" in tree.as_list.__code__.co_filename
