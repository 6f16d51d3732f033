"""``wsa-jax merge``: models in files into one file, a leaf of each at a time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from wsa_jax.commands.merge_leaves import Merging
from wsa_jax.commands.provenance import STAND_IN, provenance, shared_metadata
from wsa_jax.commands.recipe import Recipe, read_config, recipe
from wsa_jax.commands.same import check_same
from wsa_jax.commands.sources import sources
from wsa_jax.commands.text import counted, output_path, sized
from wsa_jax.files import ModelFile, ModelFileError, open_model
from wsa_jax.files.formats import write
from wsa_jax.files.model_file import listed, size_in_bytes
from wsa_jax.files.writing import Content
from wsa_jax.leaves import is_inexact
from wsa_jax.types import Json

DESCRIPTION = """Merge models in files into one, a leaf of each at a time.

  wsa-jax merge a.safetensors b.safetensors -o merged.safetensors

average: the mean. weighted: by --weights. slerp: of two models, along the circle of each leaf.
With --base, the model that all were fine-tuned from: task-arithmetic (--weights scale what each
model changed), ties (--keep, --scale; the largest changes of each model), dare (--drop, --seed,
--weights), model-stock.

A config, YAML or JSON, has the same settings, and weights for some layers by patterns:

  method: weighted
  weights: [1, 1]
  layers:
    "layer3\\\\..*": [1, 3]
"""


@dataclass(frozen=True, kw_only=True)
class MergeSettings:
    """Settings of a merge."""

    models: tyro.conf.Positional[tuple[Path, ...]]
    """Two files or more: .safetensors, an index or folder of shards, .npz, .msgpack, or a folder
    of orbax."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """The merged file; its ending names its format, none a folder of orbax."""
    method: str | None = None
    """average (the default), weighted, slerp, task-arithmetic, ties, dare or model-stock."""
    weights: tuple[float, ...] = ()
    """One number for each model."""
    base: Path | None = None
    """The model that all were fine-tuned from."""
    config: Path | None = None
    """A file of settings, with weights for some layers."""
    keep: float | None = None
    """Of ties: the share of each model's changes that is kept, 0.2 by default."""
    scale: float | None = None
    """Of ties: what the merged change is multiplied by, 1 by default."""
    drop: float | None = None
    """Of dare: the share that is dropped, 0.9 by default."""
    seed: int | None = None
    """Of dare: what is dropped, 0 by default."""
    dry_run: bool = False
    """Check everything and say what would be done, but write nothing."""
    force: bool = False
    """Replace an output that is there."""


def merge(settings: MergeSettings) -> None:
    """Check, merge with a bar of progress, and say what was done."""
    asked, base_path = _asked(settings)
    output = output_path(settings.output, force=settings.force)
    files = [open_model(path) for path in settings.models]
    base = None if base_path is None else open_model(base_path)
    check_same([*files, *([] if base is None else [base])])
    asked.check_patterns(list(files[0]))
    print(_plan(files, base, asked, output))
    if settings.dry_run:
        print("dry run: nothing was written")
        return
    with _progress(files, base) as advance:
        merge_files(files, base, asked, output, advance)
    print(f"wrote {output}")


def merge_files(
    files: Sequence[ModelFile],
    base: ModelFile | None,
    asked: Recipe,
    output: Path,
    advance: Callable[[int], object] = lambda count: None,
) -> None:
    """Merge open files of one architecture, and write provenance into the output's metadata.

    Args:
      files: the models.
      base: what they were fine-tuned from, for methods that ask for it.
      asked: the recipe.
      output: where to.
      advance: called with the number of bytes read, after each leaf.

    Guarantees: for averages, task arithmetic and TIES of safetensors, megabytes of each file are in
    memory at a time; in other formats a leaf of each; for methods that look at a leaf as a whole, a
    few copies of it. Safetensors are read once, by TIES three times, and their digests taken by
    other threads meanwhile. Equal inputs give equal bytes, except for orbax.
    """
    inputs = [*files, *([] if base is None else [base])]
    with sources(inputs) as given:
        merging = Merging(asked, given, advance)
        shared = shared_metadata(files)
        write(
            output,
            Content(
                shapes=files[0].shapes,
                pieces=merging.leaf,
                metadata={**shared, **provenance(asked, [STAND_IN] * len(inputs))},
                late=lambda: provenance(asked, [one.digest() for one in given]),
            ),
        )


def _asked(settings: MergeSettings) -> tuple[Recipe, Path | None]:
    """What the flags and the config say together; a setting in both is refused."""
    config: Json = {} if settings.config is None else read_config(settings.config)
    given = {
        name: value
        for name in ("method", "weights", "base", "keep", "scale", "drop", "seed")
        if (value := getattr(settings, name)) not in (None, ())
    }
    if both := sorted(given.keys() & config.keys()):
        raise ModelFileError(
            f"{listed(both)} is both in {settings.config} and on the command line; leave one out"
        )
    together = {"method": "average", **config, **given}
    base = together.pop("base", None)
    asked = recipe(together, models=len(settings.models), base=base is not None)
    return asked, None if base is None else Path(base)


def _plan(files: Sequence[ModelFile], base: ModelFile | None, asked: Recipe, output: Path) -> str:
    shapes = files[0].shapes
    merged = [name for name, shape in shapes.items() if is_inexact(shape)]
    kept = [name for name in shapes if name not in set(merged)]
    size = sum(map(size_in_bytes, shapes.values()))
    inputs = [
        *(str(file.path) for file in files),
        *([] if base is None else [f"{base.path}, base"]),
    ]
    told = ", ".join(f"{key} {value}" for key, value in asked.as_json().items() if key != "method")
    lines = [f"{asked.method}{' with ' if told else ''}{told}"]
    lines += [f"  {one}" for one in inputs]
    lines.append(f"{counted(len(shapes), 'leaf', 'leaves')}, {sized(size)} a model, into {output}")
    if kept:
        lines.append(f"{len(kept)} of them, integers, are the first file's: {listed(kept)}")
    if running := [name for name in merged if name.endswith(_RUNNING)]:
        lines.append(
            f"note: {len(running)} running statistics are merged like weights; estimate them anew "
            "by wsa_jax.merging.reset_batch_norm"
        )
    return "\n".join(lines)


# Running statistics of BatchNorm, as PyTorch and Flax call them.
_RUNNING = (".running_mean", ".running_var", ".mean", ".var")


@contextmanager
def _progress(
    files: Sequence[ModelFile], base: ModelFile | None
) -> Iterator[Callable[[int], object]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    inputs = len(files) + (base is not None)
    total = inputs * sum(map(size_in_bytes, files[0].shapes.values()))
    columns = ("merging", BarColumn(), DownloadColumn(), TransferSpeedColumn())
    # On the other stream: what is printed stays the same, wherever it goes.
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        work = bar.add_task("merging", total=total)
        yield lambda count: bar.advance(work, count)
