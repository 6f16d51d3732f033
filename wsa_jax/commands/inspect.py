"""``wsa-jax inspect``: what is in a model's file, and which of its units may be reordered."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from wsa_jax.commands.architectures import (
    KNOWN,
    Architecture,
    HeadsUnknownError,
    architecture,
    found_architecture,
)
from wsa_jax.commands.text import counted, sized, table
from wsa_jax.files import ModelFile, open_model
from wsa_jax.files.model_file import listed, size_in_bytes

DESCRIPTION = f"""Print a file's leaves, shapes and types, metadata, architecture, and spec.

  wsa-jax inspect model.safetensors --spec

The architecture is found by names and shapes, ours or PyTorch's. Its spec says which axes of which
leaves move together when units are reordered, and which maps leave the function as it is. Known are
{KNOWN}.
"""


@dataclass(frozen=True, kw_only=True)
class InspectSettings:
    """Settings of an inspection."""

    model: tyro.conf.Positional[Path]
    """A file: .safetensors, an index or folder of shards, .npz, .msgpack, or a folder of orbax."""
    spec: bool = False
    """Print which units move together."""
    architecture: str | None = None
    """Print the spec of this one; it is an error if the file is of another."""
    heads: int | None = None
    """Of attention, where neither shapes nor a config.json beside the file tell."""


def inspect(settings: InspectSettings) -> None:
    """Print the table of leaves, what is beside them, and the spec if it is asked for."""
    file = open_model(settings.model)
    asked = settings.spec or settings.architecture is not None
    # An architecture that does not fit is told before a long table.
    found = architecture(settings.architecture, file, heads=settings.heads) if asked else None
    print(_leaves(file))
    for key, value in file.metadata.items():
        print(f"metadata {key}: {value}")
    if found is None:
        print(_architecture(file, settings.heads))
        return
    print(f"architecture: {found.name}\n")
    print(_spec(found, file))


def _architecture(file: ModelFile, heads: int | None) -> str:
    try:
        found = found_architecture(file, heads=heads)
    except HeadsUnknownError as error:
        return f"architecture: a transformer; {error}"
    if found is None:
        return "architecture: none that is known"
    return f"architecture: {found.name} (--spec prints which of its units move together)"


def _leaves(file: ModelFile) -> str:
    rows = [
        [name, "x".join(map(str, shape.shape)) or "1", str(np.dtype(shape.dtype))]
        for name, shape in file.shapes.items()
    ]
    numbers = sum(int(np.prod(shape.shape)) for shape in file.shapes.values())
    size = sum(map(size_in_bytes, file.shapes.values()))
    end = f"{counted(len(rows), 'leaf', 'leaves')}, {numbers:,} numbers, {sized(size)}, {file.form}"
    return f"{table(['leaf', 'shape', 'type'], rows)}\n{end}"


def _spec(found: Architecture, file: ModelFile) -> str:
    spec = found.spec(file)
    rows = [
        [group.name, str(group.size), group.admits, str(len(group.ties)), group.ties[0].leaf]
        for group in spec.groups
    ]
    heads = ["group of units", "units", "admits", "places", "first place"]
    told = f"{table(heads, rows)}\n{counted(len(rows), 'group', 'groups')}; "
    told += f"{counted(len(spec.pinned), 'axis is', 'axes are')} pinned"
    if beside := found.beside(file):
        told += f"\nno place in the network: {listed(beside)}; the axes they read stay in order"
    for one in spec.pinned:
        told += f"\n  axis {one.axis} of {one.leaf}: {one.reason}"
    return told
