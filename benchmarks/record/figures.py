"""What figures share: one style, runs cut to one length, panels, legends that hide nothing."""

import itertools
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from benchmarks.record.claims import interval
from wsa_jax.plots import PALETTE, draw_curves

Curve = tuple[list, list]
"""Values along x and along y."""


def shared_length(runs: Sequence[Curve]) -> list[Curve]:
    """Runs cut to the points that all of them have: an unfinished seed ends a line early.

    A run of less than half of the longest one's points is left out, so that a seed just begun
    does not take away what the others show.
    """
    longest = max((len(x) for x, _ in runs), default=0)
    kept = [(x, y) for x, y in runs if x and 2 * len(x) >= longest]
    length = min((len(x) for x, _ in kept), default=0)
    return [(x[:length], y[:length]) for x, y in kept]


def panels(count: int, *, width: float = 5.0, height: float = 4.6) -> tuple[Figure, list[Axes]]:
    """A figure of at most three panels a row, without empty ones."""
    columns = min(count, 3)
    lines = -(-count // columns)
    figure = Figure(figsize=(max(width * columns, 6.4), height * lines), layout="constrained")
    axes = list(np.ravel(figure.subplots(lines, columns, squeeze=False)))
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


# One colour for one method, in every figure of the record.
METHODS = {
    "FedAvg": PALETTE[0],
    "FedAvg +WSA": PALETTE[1],
    "FedProx": PALETTE[2],
    "SCAFFOLD": PALETTE[3],
    "FedExP": PALETTE[4],
    "without WSA": PALETTE[0],
    "with WSA": PALETTE[1],
    "average": PALETTE[5],
    "weight matching": PALETTE[6],
    "fine-tuning": PALETTE[2],
    "FedAvg, server fine-tuning": PALETTE[2],
    "NP Merge": PALETTE[3],
    "ensemble": PALETTE[7],
}
INK = "#3a4a5a"
GRID = "#e3e7eb"


def colors_of(labels: Iterable[str]) -> dict[str, str]:
    """The colour of each label: its method's, or another one that is no plain or WSA run's.

    >>> list(colors_of(["FedAvg +WSA 10, He init"]).values()) == [METHODS["FedAvg +WSA"]]
    True
    >>> list(colors_of(["FedProx +WSA"]).values()) == [METHODS["FedProx"]]
    True
    >>> list(colors_of(["rounds [0, 2)", "rounds [0, 4)"]).values()) == list(PALETTE[2:4])
    True
    """
    found, others = dict[str, str](), itertools.cycle(PALETTE[2:])
    for label in labels:
        method = re.sub(r" [\d.]+$", "", label.split(",")[0])
        known = [label, method, method.removesuffix(" +WSA")]
        color = next((METHODS[name] for name in known if name in METHODS), None)
        found[label] = next(others) if color is None else color
    return found


def draw_recorded(
    axes: Axes,
    series: Mapping[str, Sequence[Curve]],
    *,
    xlabel: str = "",
    ylabel: str,
    legend: bool = True,
) -> None:
    """`draw_curves` of the labels that have a run, in the colours of their methods."""
    colors = colors_of(series)
    there = {label: runs for label, runs in series.items() if runs}
    draw_curves(axes, there, xlabel=xlabel, ylabel=ylabel, colors=colors)
    if legend:
        legend_below(axes, **drawn(axes))
    elif (own := axes.get_legend()) is not None:
        own.remove()


def plain_axes(axes: Axes, *, grid: Literal["x", "y"] = "y") -> None:
    """Axes without a frame, on a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def dots(axes: Axes, place: float, values: Sequence[float], color: str) -> None:
    """Seeds as pale dots, their mean as a full one, in a bar of the 95 % t interval."""
    if (reach := interval(values)) is not None:
        axes.plot(reach, (place, place), color=color, linewidth=1.6, solid_capstyle="butt")
        axes.plot(values, [place] * len(values), "o", markersize=4, color=color, alpha=0.35)
    axes.plot(float(np.mean(values)), place, "o", markersize=7, color=color)


def caption(figure: Figure, *lines: str, join: str = "\n") -> Figure:
    """Say above all panels what is drawn: data, model and setting. Keeps a title that is there."""
    own = figure.get_suptitle()
    title = join.join(["\n".join(lines), *([own] if own else [])])
    # Ten points are about 0.08 inches wide.
    wide = int(figure.get_figwidth() / 0.085)
    title = "\n".join(part for line in title.splitlines() for part in textwrap.wrap(line, wide))
    figure.suptitle(title, fontsize=10, color=INK)
    return figure


def drawn(axes: Axes) -> dict[str, Any]:
    """The lines that have a name, as a legend takes them."""
    lines = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    return {"handles": lines, "labels": [str(line.get_label()) for line in lines]}


def legend_below(axes: Axes, *, columns: int = 2, **shown: Any) -> None:
    """Names under the axes, where they hide no line."""
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.16),
        ncols=columns,
        frameon=False,
        fontsize=8,
        **shown,
    )


def figure_legend(figure: Figure | SubFigure, *, columns: int = 3) -> None:
    """One legend under all panels, of the settings that any of them shows."""
    shown: dict[str, Any] = {}
    for axes in figure.axes:
        for handle in drawn(axes)["handles"]:
            shown.setdefault(str(handle.get_label()), handle)
    figure.legend(
        list(shown.values()),
        list(shown),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=8,
    )
