"""How files are merged: a method, its numbers, and weights that may differ between layers."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from wsa_jax import checks
from wsa_jax.extras import require
from wsa_jax.files.model_file import ModelFileError, listed, told
from wsa_jax.types import Json


class Traits(NamedTuple):
    """What a method takes."""

    base: bool
    weights: Literal["none", "shares", "scales"]
    numbers: tuple[str, ...] = ()
    models: int | None = None
    """How many models it takes; None for any number."""


TRAITS: dict[str, Traits] = {
    "average": Traits(False, "none"),
    "weighted": Traits(False, "shares"),
    "slerp": Traits(False, "shares", models=2),
    "task-arithmetic": Traits(True, "scales"),
    "ties": Traits(True, "none", ("keep", "scale")),
    "dare": Traits(True, "scales", ("drop", "seed")),
    "model-stock": Traits(True, "none"),
}
"""The methods, by the names of the command line."""

_DEFAULTS = {"keep": 0.2, "scale": 1.0, "drop": 0.9, "seed": 0}

# Of task arithmetic, where there is nothing to choose it on (Yadav et al., 2023).
_SCALE = 0.4


@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """Weights of the leaves whose whole name matches a regular expression."""

    pattern: str
    weights: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A method with all its numbers, complete and checked.

    Attributes:
      method: its name.
      weights: one number a model: shares, or scales of what models changed in their base.
      layers: other weights for some leaves; the first pattern that fits a name counts.
      numbers: the method's own.
    """

    method: str
    weights: tuple[float, ...]
    layers: tuple[LayerWeights, ...] = ()
    numbers: tuple[tuple[str, float | int], ...] = ()

    def weights_of(self, name: str) -> tuple[float, ...]:
        """The weights of a leaf.

        >>> layers = (LayerWeights(pattern="head.*", weights=(1.0, 0.0)),)
        >>> recipe = Recipe(method="weighted", weights=(0.5, 0.5), layers=layers)
        >>> recipe.weights_of("head.bias"), recipe.weights_of("conv.weight")
        ((1.0, 0.0), (0.5, 0.5))
        """
        fitting = (one.weights for one in self.layers if re.fullmatch(one.pattern, name))
        return next(fitting, self.weights)

    def check_patterns(self, names: Sequence[str]) -> None:
        """Raise a ModelFileError for patterns that fit no leaf: a misspelt one changes nothing."""
        idle = [
            one.pattern
            for one in self.layers
            if not any(re.fullmatch(one.pattern, name) for name in names)
        ]
        if idle:
            raise ModelFileError(
                f"the layers {listed(idle)} of the config fit no leaf; the leaves are "
                f"{listed(names)}"
            )

    def as_json(self) -> Json:
        """What the metadata of the output say."""
        told: Json = {"method": self.method, **dict(self.numbers)}
        if TRAITS[self.method].weights != "none":
            told["weights"] = list(self.weights)
        if self.layers:
            told["layers"] = {one.pattern: list(one.weights) for one in self.layers}
        return told


def recipe(asked: Json, *, models: int, base: bool) -> Recipe:
    """Complete and check what was asked for: a method, weights, layers, and the method's numbers.

    >>> recipe({"method": "average"}, models=2, base=False).weights
    (1.0, 1.0)
    >>> recipe({"method": "ties"}, models=2, base=False)
    Traceback (most recent call last):
    wsa_jax.files.model_file.ModelFileError: ties merges what models changed in a base; give ...
    """
    method = asked["method"]
    checks.one_of("method", method, TRAITS)
    traits = TRAITS[method]
    if traits.base and not base:
        raise ModelFileError(
            f"{method} merges what models changed in a base; give --base, the model that all were "
            "fine-tuned from"
        )
    if base and not traits.base:
        raise ModelFileError(f"{method} has no use for a base; leave --base out")
    if models < 2 or (traits.models or models) != models:
        wanted = f"{traits.models} models" if traits.models else "two models or more"
        raise ModelFileError(f"{method} merges {wanted}, got {models}")
    numbers: Json = {name: _DEFAULTS[name] for name in traits.numbers}
    for name in asked.keys() - {"method", "weights", "layers"}:
        if name not in numbers:
            raise ModelFileError(f"{method} has no use for {name}; leave it out")
        numbers[name] = asked[name]
    complete = Recipe(
        method=method,
        weights=_weights(traits, method, asked.get("weights", ()), models),
        layers=tuple(
            replace(one, weights=_weights(traits, method, one.weights, models))
            for one in asked.get("layers", ())
        ),
        numbers=tuple(numbers.items()),
    )
    _check_numbers(numbers)
    return complete


def _weights(
    traits: Traits, method: str, weights: Sequence[float], models: int
) -> tuple[float, ...]:
    if traits.weights == "none" and weights:
        other = "; give --method weighted" if method == "average" else ""
        raise ModelFileError(f"{method} takes no weights{other}")
    if method == "weighted" and not weights:
        raise ModelFileError("weighted needs --weights, one number for each model")
    if not weights:
        return (_SCALE if traits.weights == "scales" else 1.0,) * models
    if len(weights) != models:
        raise ModelFileError(f"{len(weights)} weights for {models} models; give one for each")
    if traits.weights == "shares":
        checks.shares(weights, "weights")
    if not np.isfinite(weights).all():
        raise ModelFileError(f"weights {list(weights)} are not finite; give ordinary numbers")
    return tuple(float(weight) for weight in weights)


def _check_numbers(numbers: Json) -> None:
    if not 0 < numbers.get("keep", 1) <= 1:
        raise ModelFileError(f"keep {numbers['keep']} is not a share in (0, 1]; 0.2 is the default")
    if not 0 <= numbers.get("drop", 0) < 1:
        raise ModelFileError(f"drop {numbers['drop']} is not a share in [0, 1); 0.9 is the default")
    if not abs(numbers.get("scale", 1)) <= float(np.finfo(np.float32).max):
        raise ModelFileError(
            f"scale {numbers['scale']} is not finite in float32; give a number of ordinary size"
        )


_KEYS = {"method": str, "base": str, "weights": list, "layers": dict}
_KEYS |= {"keep": (int, float), "scale": (int, float), "drop": (int, float), "seed": int}


def read_config(path: Path) -> Json:
    """Read a recipe from YAML, by its safe loader, or JSON; keys and types are checked.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "recipe.json"
    >>> _ = path.write_text('{"method": "weighted", "weights": [1, 3], "layers": {"fc.*": [1, 0]}}')
    >>> read_config(path)["layers"]
    (LayerWeights(pattern='fc.*', weights=(1.0, 0.0)),)
    """
    found = _parsed(path)
    if not isinstance(found, dict):
        raise ModelFileError(f"{path} holds no keys and values; give method:, weights: and so on")
    if unknown := [key for key in found if key not in _KEYS]:
        raise ModelFileError(f"{path} has {listed(unknown)}; known are {', '.join(_KEYS)}")
    for key, value in found.items():
        if not isinstance(value, _KEYS[key]) or isinstance(value, bool):
            raise ModelFileError(f"{key} of {path} is {value!r}; {_WANTED.get(key, 'a number')}")
    if "weights" in found:
        found["weights"] = _numbers(found["weights"], "weights", path)
    if "layers" in found:
        found["layers"] = tuple(
            LayerWeights(pattern=_pattern(key, path), weights=_numbers(value, str(key), path))
            for key, value in found["layers"].items()
        )
    return found


_WANTED = {
    "method": "give its name",
    "base": "give a path",
    "weights": "give a list of numbers",
    "layers": "give patterns, each with a list of numbers",
    "seed": "give an integer",
}


def _parsed(path: Path) -> Any:
    if path.suffix.lower() == ".json":
        with told(path, "read", ValueError, RecursionError):
            return json.loads(path.read_text(encoding="utf-8"))
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise ModelFileError(f"{path} ends in neither .yaml, .yml nor .json; rename it")
    require("yaml", f"reading {path}")
    import yaml

    with told(path, "read", ValueError, yaml.YAMLError, RecursionError):
        return yaml.safe_load(path.read_text(encoding="utf-8"))


def _numbers(value: Any, what: str, path: Path) -> tuple[float, ...]:
    numbers = value if isinstance(value, list) else [None]
    if not numbers or not all(type(one) in (int, float) for one in numbers):
        raise ModelFileError(f"{what} of {path} is {value!r}; give a list of numbers")
    return tuple(float(one) for one in numbers)


def _pattern(key: Any, path: Path) -> str:
    try:
        re.compile(str(key))
    except re.error as error:
        raise ModelFileError(f"{key!r} of {path} is no regular expression: {error}") from error
    return str(key)
