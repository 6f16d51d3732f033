"""What figures share: runs cut to one length, panels, and legends that hide nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wsa_jax.plots import draw_curves

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
    """A figure of at most three panels a row."""
    columns = min(count, 3)
    lines = -(-count // columns)
    figure = Figure(figsize=(max(width * columns, 6.4), height * lines), layout="constrained")
    axes = list(np.ravel(figure.subplots(lines, columns, squeeze=False)))
    for unused in axes[count:]:
        unused.set_visible(False)
    return figure, axes


def draw_recorded(
    axes: Axes,
    series: Mapping[str, Sequence[Curve]],
    *,
    xlabel: str = "",
    ylabel: str,
    legend: bool = True,
) -> None:
    """`draw_curves` of the settings that have a run, each in the colour of its place in `series`.

    A remark stands in their place if none has.
    """
    if not any(series.values()):
        remark_absent(axes)
        return
    nothing: Curve = ([], [])
    draw_curves(
        axes,
        {label: runs or [nothing] for label, runs in series.items()},
        xlabel=xlabel,
        ylabel=ylabel,
    )
    if legend:
        legend_below(axes, **drawn(axes))
    elif (own := axes.get_legend()) is not None:
        own.remove()


def drawn(axes: Axes) -> dict[str, Any]:
    """The lines that have a point, as a legend takes them."""
    lines = [line for line in axes.get_lines() if np.size(line.get_xdata())]
    return {"handles": lines, "labels": [str(line.get_label()) for line in lines]}


def remark_absent(axes: Axes) -> None:
    """Say in an empty panel that nothing was recorded."""
    axes.text(0.5, 0.5, "not run yet", ha="center", va="center", transform=axes.transAxes)
    # The ticks of an axis that panels share are those of the others, too.
    if len(axes.get_shared_x_axes().get_siblings(axes)) == 1:
        axes.set_xticks([])
    if len(axes.get_shared_y_axes().get_siblings(axes)) == 1:
        axes.set_yticks([])


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


def figure_legend(figure: Figure, *, columns: int = 3) -> None:
    """One legend under all panels, of the settings that any of them shows."""
    shown: dict[str, Any] = {}
    for axes in figure.axes:
        for handle in drawn(axes)["handles"]:
            # A name that begins with an underscore is matplotlib's own, of a line that has none.
            if not (label := str(handle.get_label())).startswith("_"):
                shown.setdefault(label, handle)
    figure.legend(
        list(shown.values()),
        list(shown),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=8,
    )
