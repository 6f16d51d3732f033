"""What tells modules apart: every field that changes what they compute."""

import dataclasses
import enum
import functools
import subprocess
import sys
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from wsa_jax.runs.described import described


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


def test_a_value_that_holds_itself_ends():
    round_about = Plain(0.1)
    round_about.rate = round_about
    assert described(Holder(round_about)).startswith("Holder(field=Plain(rate=Plain(")


def test_other_processes_say_the_same():
    program = (
        "import flax.linen as nn; from wsa_jax.runs.described import described;"
        "print(described(nn.Dense(3, kernel_init=nn.initializers.he_normal())))"
    )
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    assert found == described(nn.Dense(3, kernel_init=nn.initializers.he_normal()))
