"""A network that a file fits, and what its readers share."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jaxtyping import PyTree

from wsa_jax.files import ModelFile, ModelFileError, NameMap, flatten, load_model
from wsa_jax.files.model_file import Shapes, listed
from wsa_jax.leaves import is_inexact
from wsa_jax.merging import AxisSpec, trace_spec


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a reader is told besides the names and shapes of a file.

    Attributes:
      path: the file.
      depth: the number in the architecture's name; 0 for none.
      heads: of attention, where the command says it.
    """

    path: Path
    depth: int = 0
    heads: int | None = None


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network that a file fits.

    Attributes:
      name: what it is, such as ``resnet20``.
      module: the network; what neither names nor shapes tell (strides, pools) is chosen so that the
        same units move together.
      inputs: an example of its inputs.
      names: the map of the file's names, None where they are ours.
      stream: a leaf along whose axis leaves that have no place in the network read, too.
    """

    name: str
    module: nn.Module
    inputs: PyTree
    names: NameMap | None = None
    stream: str | None = None

    @cached_property
    def shapes(self) -> PyTree:
        """Shapes of the network's variables."""
        return jax.eval_shape(self.module.init, jax.random.key(0), self.inputs)

    def spec(self, file: ModelFile) -> AxisSpec:
        """Which axes of the variables move together without changing what the file's model does."""
        spec = trace_spec(self.module.apply, self.shapes, self.inputs)
        if not self.beside(file):
            return spec
        groups = (
            group
            for group in spec.groups
            if all(f"params/{self.stream}" != tie.leaf for tie in group.ties)
        )
        return replace(spec, groups=tuple(groups))

    def beside(self, file: ModelFile) -> list[str]:
        """Weights of a file that have no place in the network, and cannot move with it."""
        left = [] if self.names is None else self.names.left_out(list(file))
        return [name for name in left if is_inexact(file.shapes[name])]

    def check(self, file: ModelFile) -> None:
        """Raise a ModelFileError unless the file has all names and shapes of the network."""
        wanted = self.shapes
        if self.names is None:
            kept = wanted if prefix_of(file.shapes) else wanted["params"]
            given: Any = file.shapes
        else:
            # Stand-ins of a byte a number: axes change without a value being read.
            stand_ins = {
                name: np.broadcast_to(np.int8(0), shape.shape)
                for name, shape in file.shapes.items()
            }
            kept, given = wanted, flatten(self.names.to_ours(stand_ins))
        there = {name: tuple(leaf.shape) for name, leaf in flatten(kept).items()}
        here = {name: tuple(leaf.shape) for name, leaf in given.items()}
        for problem, names in (
            ("it lacks", [name for name in there if name not in here]),
            ("it has", [name for name in here if name not in there]),
            (
                "its shapes differ:",
                [f"{n} {list(here[n])}, not {list(s)}" for n, s in there.items() if here[n] != s]
                if here.keys() == there.keys()
                else [],
            ),
        ):
            if names:
                raise ModelFileError(f"{file.path} is no {self.name}: {problem} {listed(names)}")

    def load(self, file: ModelFile) -> PyTree:
        """A file's variables under our names, checked against the network's."""
        shapes = self.shapes
        if self.names is None and not prefix_of(file.shapes):
            return {"params": load_model(file.path, like=shapes["params"])}
        return load_model(file.path, names=self.names, like=shapes)

    def stored(self, variables: PyTree, file: ModelFile) -> dict[str, np.ndarray]:
        """Variables under the names of a file; what we have no place for is as in the file."""
        if self.names is None:
            prefix = prefix_of(file.shapes)
            named = flatten(variables if prefix else variables["params"])
            return {name: np.asarray(leaf) for name, leaf in named.items()}
        beside = self.names.left_out(list(file))
        return {**self.names.to_theirs(variables), **{name: file[name] for name in beside}}


def images(height: int, width: int, channels: int) -> Array:
    """Two images, as inputs of a network."""
    return jnp.zeros((2, height, width, channels))


def prefix_of(shapes: Shapes) -> str:
    """What stands before our names: variables have collections, parameters alone have none."""
    return "params." if any(name.startswith("params.") for name in shapes) else ""


def norm_of(shapes: Shapes) -> str:
    """The norm of one of our convolutional networks."""
    norms = {"batch": "BatchNorm_0.scale", "layer": "LayerNorm_0.scale"}
    prefix = prefix_of(shapes)
    return next((norm for norm, leaf in norms.items() if f"{prefix}{leaf}" in shapes), "none")


def numbered(
    shapes: Shapes, pattern: str, *, rank: int | None = None
) -> dict[int, tuple[int, ...]]:
    r"""Shapes of the leaves that a pattern numbers, in the order of their numbers.

    >>> shapes = {f"layers.{i}.w": jax.ShapeDtypeStruct((i,), np.float32) for i in (2, 1)}
    >>> numbered(shapes, r"layers\.(\d+)\.w")
    {1: (1,), 2: (2,)}
    """
    found = {
        int(match[1]): tuple(shape.shape)
        for name, shape in shapes.items()
        if (match := re.fullmatch(pattern, name)) and rank in (None, len(shape.shape))
    }
    return dict(sorted(found.items()))


def lacking(what: str, found: Sequence[object] | dict) -> None:
    """Raise the LookupError of a reader that finds nothing of what it needs."""
    if not found:
        raise KeyError(what)
