"""``wsa-jax match``: one file's units brought into the order of another's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro

from wsa_jax.commands.architectures import KNOWN, architecture
from wsa_jax.commands.same import check_same
from wsa_jax.commands.text import output_path
from wsa_jax.files import open_model
from wsa_jax.files.formats import write
from wsa_jax.files.model_file import listed
from wsa_jax.files.writing import content
from wsa_jax.merging import align, weight_matching

DESCRIPTION = f"""Reorder the units of a second model to bring its weights closest to the first's.

  wsa-jax match a.safetensors b.safetensors -o b_like_a.safetensors

Its function is unchanged, and its names are those of its file; merge it with the first one then.
The architecture is found by names and shapes, ours or (of mlp, vgg, resnet, vit and text-encoder)
PyTorch's. Known are
{KNOWN}.
"""


@dataclass(frozen=True, kw_only=True)
class MatchSettings:
    """Settings of a matching."""

    first: tyro.conf.Positional[Path]
    """The model that stays as it is."""
    second: tyro.conf.Positional[Path]
    """The model whose units are reordered."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """The reordered model; its ending names its format, none a folder of orbax."""
    architecture: str | None = None
    """The network of both, found by names and shapes by default."""
    heads: int | None = None
    """Of attention, where neither shapes nor a config.json beside the file tell."""
    seed: int = 0
    """Draws the order in which groups of units are visited."""
    restarts: int = 2
    """Starts of the search, of which the best end is kept."""
    force: bool = False
    """Replace an output that is there."""


def match(settings: MatchSettings) -> None:
    """Match by weights (Git Re-Basin), write the second model, and tell what moved."""
    output = output_path(settings.output, force=settings.force)
    files = [open_model(path) for path in (settings.first, settings.second)]
    check_same(files)
    found = architecture(settings.architecture, files[0], heads=settings.heads)
    first, second = (found.load(file) for file in files)
    spec = found.spec(files[0])
    key = jax.random.key(settings.seed)
    matching = weight_matching(key, spec, first, second, restarts=settings.restarts)
    moved = jax.tree.map(np.asarray, align(spec, second, matching))
    write(output, content(found.stored(moved, files[1]), dict(files[1].metadata)))
    orders = matching.permutations.values()
    units = sum(order.size for order in orders)
    elsewhere = sum(int((order != np.arange(order.shape[-1])).sum()) for order in orders)
    print(f"{found.name}: {elsewhere} of {units} units in {len(spec.groups)} groups moved")
    if beside := found.beside(files[0]):
        print(f"no place in the network: {listed(beside)}; the axes they read stay in order")
    before, after = _distance(first, second), _distance(first, moved)
    print(f"distance of the weights from the first model's: {before:.4g} before, {after:.4g} after")
    print(f"wrote {output}")


def _distance(first, second) -> float:
    """Euclidean distance of all weights, in float64."""
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    squares = (np.sum(np.square(np.float64(a) - np.float64(b))) for a, b in pairs)
    return float(np.sqrt(sum(squares)))
