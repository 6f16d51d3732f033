"""``wsa-jax scope``: the weight scopes of models in files, and their divergences."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from wsa_jax.commands.same import check_same
from wsa_jax.commands.text import table
from wsa_jax.files import ModelFile, ModelFileError, open_model
from wsa_jax.leaves import is_weight
from wsa_jax.runs.files import one_line
from wsa_jax.scope.layers import all_leaves, kernels, matrices
from wsa_jax.scope.scope import scope_divergence, weight_scope
from wsa_jax.types import Json

DESCRIPTION = """Print weight scopes (mean, std) of layers, their normality, and KL between files.

  wsa-jax scope a.safetensors b.safetensors

gap: the largest difference between the cumulative distribution of a layer's weights (of at most
100,000 of them) and that of the Gaussian of their mean and std (Kolmogorov-Smirnov). It lies
between 0 and 1: 0 is Gaussian, weights that are all equal have 1.
KL: divergence of the file's scope from the first file's, in nats (Eq. 3). The largest come first;
of one file alone, the largest gaps.
"""

_RULES = {"kernels": kernels, "matrices": matrices, "all": all_leaves}

# So many weights tell the gap to a third digit.
_SAMPLE = 100_000


@dataclass(frozen=True, kw_only=True)
class ScopeSettings:
    """Settings of a look at scopes."""

    models: tyro.conf.Positional[tuple[Path, ...]]
    """One file or more: .safetensors, an index or folder of shards, .npz, .msgpack, or a folder of
    orbax."""
    select: Literal["kernels", "matrices", "all"] = "kernels"
    """Which leaves are layers: kernels by name, all with two axes or more, or all."""
    json: bool = False
    """Print JSON in place of the table."""
    plot: Path | None = None
    """A figure of the stds and divergences, such as scopes.png."""


def scope(settings: ScopeSettings) -> None:
    """Read the layers one at a time, print them, and draw them if asked to."""
    if not settings.models:
        raise ModelFileError("scope needs a file; give the path of a model")
    if settings.plot is not None:
        _check_figure(settings.plot)
    files = [open_model(path) for path in settings.models]
    check_same(files)
    rows = scopes(files, select=settings.select)
    if settings.json:
        print(json.dumps({"files": [str(file.path) for file in files], "layers": rows}, indent=2))
    else:
        print(_printed(files, rows))
    if settings.plot is not None:
        _draw(settings.plot, files, rows)
        if not settings.json:
            print(f"figure   {settings.plot}")


def scopes(files: Sequence[ModelFile], *, select: str = "kernels") -> list[Json]:
    """One row a layer: its name, size, and for each file mean, std, gap and KL from the first.

    Rows are ordered by the largest KL, with one file by the gap.
    """
    rule = _RULES[select]
    names = [n for n, shape in files[0].shapes.items() if is_weight(shape) and _size(shape)]
    if not names:
        raise ModelFileError(f"{files[0].path} holds no weights, which have scopes; give a model")
    layers = [name for name in names if rule(name, _Ranked(files[0].shapes[name].shape))]
    if not layers:
        raise ModelFileError(
            f"--select {select} finds no layer among the {len(files[0])} leaves of "
            f"{files[0].path}; give --select matrices or all"
        )
    rows = [_row(name, files) for name in layers]
    one = "kl" if len(files) > 1 else "gap"
    return sorted(rows, key=lambda row: -max(row[one]))


class _Ranked:
    """What a rule asks of a leaf, without its values."""

    def __init__(self, shape: tuple[int, ...]):
        self.shape, self.ndim = shape, len(shape)


def _row(name: str, files: Sequence[ModelFile]) -> Json:
    row: Json = {"layer": name, "size": _size(files[0].shapes[name])}
    row |= {"mean": [], "std": [], "gap": [], "kl": []}
    first = None
    for file in files:
        leaf = file[name]
        if not np.isfinite(leaf).all():
            raise ModelFileError(
                f"leaf {name} of {file.path} holds NaN or infinite values; it has no scope"
            )
        # Under a name that the default rule selects, whatever the leaf is called.
        own = weight_scope({"w": leaf.reshape(1, -1)})
        first = own if first is None else first
        row["mean"].append(float(own.mean[0]))
        row["std"].append(float(own.std[0]))
        row["gap"].append(_gap(leaf))
        row["kl"].append(max(0.0, float(scope_divergence(own, first)[0])))
    return row


def _size(shape) -> int:
    return int(np.prod(shape.shape))


def _gap(leaf: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance from the layer's own Gaussian, of weights evenly spaced."""
    from scipy import stats

    flat = leaf.reshape(-1)
    sample = np.float64(flat[:: max(1, len(flat) // _SAMPLE)])
    std = sample.std()
    return float(stats.kstest((sample - sample.mean()) / std, "norm").statistic) if std else 1.0


def _printed(files: Sequence[ModelFile], rows: Sequence[Json]) -> str:
    several = len(files) > 1
    heads = ["layer", "weights"]
    for index in range(len(files)):
        mark = f" {index + 1}" if several else ""
        heads += [f"mean{mark}", f"std{mark}", f"gap{mark}"] + [f"KL{mark}"] * bool(index)
    lines = []
    for row in rows:
        line = [row["layer"], f"{row['size']:,}"]
        for index in range(len(files)):
            line += [
                f"{row['mean'][index]:+.2e}",
                f"{row['std'][index]:.2e}",
                f"{row['gap'][index]:.3f}",
            ]
            line += [f"{row['kl'][index]:.2e}"] * bool(index)
        lines.append(line)
    told = table(heads, lines)
    for index, file in enumerate(files):
        mean = np.mean([row["kl"][index] for row in rows])
        end = f", mean KL from the first {mean:.2e} nats" if index else ""
        told += f"\n{index + 1}: {file.path}{end}"
    told += "\ngap: how far a layer's distribution is from its Gaussian, 0 to 1; 0 is Gaussian"
    if several:
        told += "\nKL: of a file's Gaussian from file 1's, in nats"
    return f"{told}\nthe largest {'KL' if several else 'gap'} comes first"


def _check_figure(path: Path) -> None:
    """Refuse before the work what could not be drawn after it."""
    from wsa_jax.extras import require

    require("matplotlib", "a figure")
    from matplotlib.figure import Figure

    known = Figure().canvas.get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in known:
        endings = ", ".join(f".{ending}" for ending in known)
        raise ModelFileError(f"the plot {path} is no figure's name; end it in one of {endings}")
    if not path.parent.is_dir():
        raise ModelFileError(f"cannot write {path}: {path.parent} is no folder; make it first")


def _draw(path: Path, files: Sequence[ModelFile], rows: Sequence[Json]) -> None:
    """Standard deviations of all files, and the divergences below, in the order of the file."""
    from matplotlib.figure import Figure

    from wsa_jax.plots import draw_curves

    order = {name: index for index, name in enumerate(files[0])}
    rows = sorted(rows, key=lambda row: order[row["layer"]])
    places = list(range(len(rows)))
    labels = [f"{index + 1}: {file.path.name}" for index, file in enumerate(files)]
    figure = Figure(figsize=(max(6, 0.25 * len(rows)), 6), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    for axes, what, unit in ((upper, "std", "std of the weights"), (lower, "kl", "KL, nats")):
        some = labels if what == "std" or len(files) == 1 else labels[1:]
        first = len(labels) - len(some)
        series = {
            label: [(places, [row[what][index + first] for row in rows])]
            for index, label in enumerate(some)
        }
        draw_curves(axes, series, xlabel="", ylabel=unit)
    lower.set_xticks(places, [row["layer"] for row in rows], rotation=90, fontsize=7)
    with one_line(path, "write"):
        figure.savefig(path, dpi=150)
