"""``wsa-jax inspect``: what is in a model's file, and which of its units may be reordered."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from wsa_jax.commands.architectures import KNOWN, architecture
from wsa_jax.commands.text import sized, table
from wsa_jax.files import ModelFile, open_model
from wsa_jax.files.model_file import size_in_bytes

DESCRIPTION = f"""Print a file's leaves, shapes and types, its metadata, and its spec.

  wsa-jax inspect model.safetensors --architecture resnet20

The spec, of a known architecture, says which axes of which leaves move together when units are
reordered. Known are {KNOWN}.
"""


@dataclass(frozen=True, kw_only=True)
class InspectSettings:
    """Settings of an inspection."""

    model: tyro.conf.Positional[Path]
    """A file: .safetensors, an index or folder of shards, .npz, .msgpack, or a folder of orbax."""
    architecture: str | None = None
    """Of which the spec is printed."""


def inspect(settings: InspectSettings) -> None:
    """Print the table of leaves, what is beside them, and the spec if it is asked for."""
    file = open_model(settings.model)
    print(_leaves(file))
    for key, value in file.metadata.items():
        print(f"{key}: {value}")
    if settings.architecture is not None:
        found = architecture(settings.architecture, file)
        print()
        print(_spec(found.spec()))


def _leaves(file: ModelFile) -> str:
    rows = [
        [name, "x".join(map(str, shape.shape)) or "1", str(np.dtype(shape.dtype))]
        for name, shape in file.shapes.items()
    ]
    numbers = sum(int(np.prod(shape.shape)) for shape in file.shapes.values())
    size = sum(map(size_in_bytes, file.shapes.values()))
    end = f"{len(rows)} leaves, {numbers:,} numbers, {sized(size)}, {file.form}"
    return f"{table(['leaf', 'shape', 'type'], rows)}\n{end}"


def _spec(spec) -> str:
    rows = [
        [group.name, str(group.size), group.admits, str(len(group.ties)), group.ties[0].leaf]
        for group in spec.groups
    ]
    heads = ["units that move together", "number", "admits", "places", "first"]
    pinned = f"{len(spec.pinned)} axes are pinned"
    return f"{table(heads, rows)}\n{len(rows)} groups; {pinned}"
