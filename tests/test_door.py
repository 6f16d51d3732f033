"""Each refusal at the door is one line that names the argument, the value and the way out."""

import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, ArrayLike, Integer, Key, PyTree, Real

from wsa_jax import door
from wsa_jax.training import Task


class Options(typing.TypedDict, total=False):
    every: int


@door.door
def run(
    key: Key[Array, ""],
    params: PyTree,
    labels: Integer[Array | np.ndarray, " examples"] | None = None,
    *more: int,
    rate: Real[ArrayLike, ""] | Callable[[int], float] = 0.1,
    steps: int | None = None,
    form: typing.Literal["gradient", "penalty"] = "gradient",
    weights: Sequence[float] = (),
    task: Task | None = None,
    **options: typing.Unpack[Options],
) -> str:
    return "ran"


KEY = jax.random.key(0)
PARAMS = {"w": jnp.ones(2)}


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"rate": jnp.float32(0.1)},
        {"rate": lambda step: 0.1},
        {"rate": np.int64(1), "steps": np.int32(3)},
        {"labels": jnp.arange(3)},
        {"weights": np.ones(2)},
        {"weights": [1, 0.5]},
        {"every": 3},
        {"params": {"w": jnp.ones(2), "activation": jax.nn.relu}},
    ],
)
def test_what_the_signature_takes_is_taken(arguments):
    assert run(**{"key": KEY, "params": PARAMS} | arguments) == "ran"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"key": 0}, "key of run is 0; give a JAX key, jax.random.key(seed)"),
        (
            {"key": jax.random.PRNGKey(0)},
            "key of run is an array of uint32 of shape (2,); give a JAX key, jax.random.key(seed)",
        ),
        ({"params": None}, "params of run is None; give a pytree of arrays"),
        ({"params": {"w": "text"}}, "leaf w of params of run is 'text'; give a pytree of arrays"),
        ({"labels": [0, 1]}, "labels of run is [0, 1]; give an array [examples] or None"),
        ({"rate": "0.1"}, "rate of run is '0.1'; give a number or a function"),
        ({"rate": [0.1]}, "rate of run is [0.1]; give a number or a function"),
        ({"rate": jnp.ones(1)}, "rate of run is an array of float32 of shape (1,); give a number "),
        ({"steps": 1.5}, "steps of run is 1.5; give an integer or None"),
        ({"steps": True}, "steps of run is True; give an integer or None"),
        ({"form": "proximal"}, "form 'proximal' is unknown; give one of gradient, penalty"),
        ({"weights": ["a"]}, "weights of run is ['a']; give a list"),
        ({"task": jax.nn.relu}, "task of run is the function relu; give a Task, for example"),
        ({"evry": 3}, "run has no option 'evry'; give one of every"),
        ({"every": "3"}, "every of run is '3'; give an integer"),
    ],
)
def test_what_it_does_not_take_is_one_line(arguments, message):
    with pytest.raises(door.ArgumentError) as error:
        run(**{"key": KEY, "params": PARAMS} | arguments)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_missing_and_surplus_arguments_are_one_line():
    with pytest.raises(door.ArgumentError, match=r"^run: missing a required argument: 'params'; "):
        run(KEY)


def test_tensors_of_torch_are_named():
    torch = pytest.importorskip("torch")
    with pytest.raises(door.ArgumentError, match="leaf w of params of run is a torch tensor; give"):
        run(KEY, {"w": torch.ones(2)})


def test_a_door_stays_open_under_transformations():
    @door.door
    def double(x: Real[Array, " n"], times: int = 2) -> Array:
        return x * times

    x = jnp.arange(3.0)
    for transformed in (jax.jit(double), jax.vmap(lambda row: double(row[None])[0])):
        np.testing.assert_array_equal(transformed(x), 2 * x)


def test_fields_of_settings():
    @dataclass(frozen=True)
    class Settings:
        steps: int
        rate: float | int = 0.1

        def __post_init__(self):
            door.check_fields(self)

    assert Settings(3, rate=1).rate == 1
    with pytest.raises(door.ArgumentError, match=r"^steps of Settings is 1.5; give an integer$"):
        Settings(1.5)
