"""What a merged file says of where it came from: digests of its inputs, recipe, versions."""

import json
from collections.abc import Sequence

import jax
import numpy as np

import wsa_jax
from wsa_jax.commands.recipe import TRAITS, Recipe
from wsa_jax.files import ModelFile
from wsa_jax.types import Json

KEY = "wsa_jax"
"""The key of the metadata."""

STAND_IN = "0" * 64
"""As long as a digest, which is known only when the last byte was read."""


def provenance(asked: Recipe, digests: Sequence[str]) -> dict[str, str]:
    """Metadata of a merged file; digests are the models', and then the base's, if there is one.

    They hold no paths and no times, so equal inputs give equal bytes.

    >>> told = provenance(Recipe(method="average", weights=(1.0, 1.0)), [STAND_IN] * 2)
    >>> sorted(json.loads(told["wsa_jax"]))
    ['method', 'models', 'versions']
    """
    named = [f"sha256:{digest}" for digest in digests]
    made: Json = {**asked.as_json(), "models": named}
    if TRAITS[asked.method].base:
        made |= {"models": named[:-1], "base": named[-1]}
    versions = {"wsa_jax": wsa_jax.__version__, "jax": jax.__version__, "numpy": np.__version__}
    return {KEY: json.dumps({**made, "versions": versions})}


def shared_metadata(files: Sequence[ModelFile]) -> dict[str, str]:
    """What all inputs say alike, such as the library they are for; no earlier provenance."""
    first, *others = (file.metadata for file in files)
    alike = {k: v for k, v in first.items() if all(other.get(k) == v for other in others)}
    alike.pop(KEY, None)
    return alike
