"""What tells modules apart: every field that changes what they compute."""

import dataclasses
import enum
import functools
import importlib
import os
import subprocess
import sys
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from tests.trees import assert_bitwise
from wsa_jax.runs.described import described, described_code, task_settings
from wsa_jax.training import FitSettings, classification_task, fit


class Act(enum.Enum):
    RELU = "relu"
    GELU = "gelu"


@dataclasses.dataclass
class Config:
    width: int
    slope: float


class Plain:
    def __init__(self, rate):
        self.rate = rate


class Holder(nn.Module):
    field: Any


def leaky(slope):
    return lambda x: nn.leaky_relu(x, slope)


def shifted(x, by=1):
    return x + by


PAIRS = {
    "dataclass": (Config(8, 0.1), Config(8, 0.9)),
    "enum": (Act.RELU, Act.GELU),
    "numpy number": (np.float32(0.1), np.float32(0.9)),
    "array": (np.arange(3), np.arange(3) + 1),
    "jax array": (jax.numpy.zeros(2), jax.numpy.ones(2)),
    "object": (Plain(0.1), Plain(0.9)),
    "closure": (leaky(0.1), leaky(0.9)),
    "lambda": (lambda x: nn.leaky_relu(x, 0.1), lambda x: nn.leaky_relu(x, 0.9)),
    "names": (lambda x: nn.relu(x), lambda x: nn.gelu(x)),
    "initializer": (nn.initializers.he_normal(), nn.initializers.lecun_normal()),
    "partial": (functools.partial(shifted, by=1), functools.partial(shifted, by=2)),
    "submodule": (nn.Dense(3), nn.Dense(3, use_bias=False)),
    "list of modules": ([nn.Dense(3)], [nn.Dense(4)]),
    "set": (frozenset({1}), frozenset({2})),
    "method": (Plain(0.1).__init__, Plain(0.9).__init__),
    "type": (np.float32, np.float64),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_values_that_differ_are_told_apart(pair):
    first, second = (described(Holder(field)) for field in pair)
    assert first != second


@pytest.mark.parametrize(
    ("one", "same"),
    [
        (Config(8, 0.1), Config(8, 0.1)),
        (leaky(0.1), leaky(0.1)),
        (nn.initializers.he_normal(), nn.initializers.he_normal()),
        (Plain(0.1), Plain(0.1)),
        ({"b": 1, "a": np.ones(2)}, {"a": np.ones(2), "b": 1}),
    ],
)
def test_equal_values_read_alike(one, same):
    assert described(Holder(one)) == described(Holder(same))
    assert " at 0x" not in described(Holder(one))


def nested(activation, levels):
    module = nn.Sequential([nn.Dense(3), activation])
    for _ in range(levels - 1):
        module = nn.Sequential([module])
    return module


@pytest.mark.parametrize("levels", [3, 5, 7])
def test_what_nested_modules_hold_is_told_apart(levels):
    first, same, second = (
        described(nested(activation, levels)) for activation in (nn.relu, nn.relu, nn.tanh)
    )
    assert first == same != second


def test_values_that_hold_each_other_read_as_in_earlier_versions():
    # Eight levels of them; what is below is a digest.
    parent, child = Plain(None), Plain(None)
    parent.rate, child.rate = child, parent
    text = "Plain"
    for _ in range(8):
        text = f"Plain(rate={text})"
    assert described(parent).startswith(f"{text} [deeper ")


def test_many_values_that_hold_each_other_end():
    parts = [Plain(None) for _ in range(4)]
    for part in parts:
        part.rate = tuple(parts)
    assert len(described(parts[0])) < 10**4


def test_a_value_that_holds_itself_ends():
    round_about = Plain(0.1)
    round_about.rate = round_about
    assert described(Holder(round_about)).startswith("Holder(field=Plain(rate=Plain(")


class Net:
    """Of this file, so of a user."""

    def __init__(self, width):
        self.width = width

    def __call__(self, x):
        return x + self.width


class Other(Net):
    def __call__(self, x):
        return x - self.width


SCALE = 1.0


def scaled(x):
    return SCALE * x


def relu(x):
    return nn.relu(x)


def through(function):
    return lambda x: function(x)


CODE_PAIRS = {
    "operators": (lambda x: x + 1, lambda x: x - 1),
    "module-level functions": (scaled, relu),
    "called by a closure": (through(scaled), through(relu)),
    "library's functions": (through(jax.nn.relu), through(jax.nn.tanh)),
    "jitted": (jax.jit(scaled), jax.jit(relu)),
    "methods of a class": (through(Net(3)), through(Other(3))),
    "fields of an object": (through(Net(3)), through(Net(4))),
    "arrays held": (through(functools.partial(scaled, np.ones(2))), through(scaled)),
    "bound methods": (Net(3).__call__, Other(3).__call__),
    "defaults": (lambda x, by=1: x, lambda x, by=2: x),
}


@pytest.mark.parametrize("pair", CODE_PAIRS.values(), ids=CODE_PAIRS)
def test_code_that_differs_is_told_apart(pair):
    first, second = map(described_code, pair)
    assert first != second
    assert " at 0x" not in first + second
    assert first == described_code(pair[0])


def test_a_global_that_a_function_reads_is_part_of_it(monkeypatch):
    before = described_code(through(scaled))
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    assert described_code(through(scaled)) != before


def test_functions_that_call_each_other_end():
    def even(n):
        return n == 0 or odd(n - 1)

    def odd(n):
        return n != 0 and even(n - 1)

    assert described_code(even) == described_code(even) != described_code(odd)


def test_another_process_says_the_same_of_modules_and_code(tmp_path, monkeypatch):
    """One whose hashes are others, so that sets have another order."""
    (tmp_path / "user.py").write_text(
        "import jax\n"
        "def inner(x):\n    return {frozenset({'a', 'b', 'c'}): x}\n"
        "def apply(x):\n    return jax.nn.relu(inner(x))\n"
    )
    program = (
        "from user import apply; from wsa_jax.runs.described import described, described_code;"
        "import flax.linen as nn;"
        "print(described(nn.Dense(3, kernel_init=nn.initializers.he_normal())));"
        "print(described_code(apply))"
    )
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    found = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "PYTHONHASHSEED": seed},
    ).stdout  # fmt: skip
    monkeypatch.syspath_prepend(tmp_path)
    user = importlib.import_module("user")
    del sys.modules["user"]
    module = described(nn.Dense(3, kernel_init=nn.initializers.he_normal()))
    code = described_code(user.apply)
    assert "inner" in code
    assert found == f"{module}\n{code}\n"


def linear(key):
    return {"w": jax.random.normal(key, (4, 3))}, {}


def task_of(activation, **options):
    def apply(params, model_state, inputs, train, key):
        return activation(inputs @ params["w"]), model_state

    return classification_task(linear, apply, **options)


def test_a_task_without_settings_resumes_only_with_the_same_functions(tmp_path):
    inputs = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    labels = np.arange(30) % 3

    def start(activation, **options):
        return fit(
            jax.random.key(0), task_of(activation, **options), inputs, labels,
            settings=FitSettings(steps=2, batch_size=5), directory=tmp_path,
        )  # fmt: skip

    first = start(jax.nn.relu)
    assert_bitwise(start(jax.nn.relu), first)
    with pytest.raises(ValueError, match="holds a run with task = ") as error:
        start(jax.nn.tanh)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="holds a run with task = "):
        start(jax.nn.relu, padding_label=-1)


def test_settings_that_a_task_names_stand_for_its_functions():
    named = {"settings": (("model", "linear"),)}
    first, second = (task_settings(task_of(f, **named)) for f in (jax.nn.relu, jax.nn.tanh))
    assert first == second
    assert first[0] == ("model", "linear")
