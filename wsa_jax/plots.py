"""Figures. Matplotlib is loaded by the first call, not by importing this module."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import matplotlib.axes

__all__ = ["PALETTE", "draw_curves"]


PALETTE = ("#1b4965", "#d1495b", "#66a182", "#edae49", "#8e6c8a", "#5c7285", "#b0603a", "#2e8b9a")
"""Line colours, distinguishable in grey too, by lightness or by the dashes of `draw_curves`."""

_DASHES = ("-", "--", ":", "-.")


def draw_curves(
    axes: "matplotlib.axes.Axes",
    series: Mapping[str, Sequence[tuple[Sequence[float | int], Sequence[float | int]]]],
    *,
    xlabel: str,
    ylabel: str,
) -> None:
    """Draw one line per label: the mean of its runs, in a band from the least to the greatest.

    Args:
      axes: where to draw.
      series: for each label, its runs (seeds), each ``(x, y)``; all runs of a label share x.
      xlabel: label of the x axis, with its unit.
      ylabel: label of the y axis, with its unit.

    Raises:
      ValueError: there is nothing to draw, or a label's runs differ in x.

    >>> from matplotlib.figure import Figure
    >>> axes = Figure().subplots()
    >>> runs = [([0, 1], [1.0, 3.0]), ([0, 1], [3.0, 5.0])]
    >>> draw_curves(axes, {"a": runs}, xlabel="x", ylabel="y")
    >>> axes.lines[0].get_ydata().tolist()
    [2.0, 4.0]
    """
    if not series:
        raise ValueError("series is empty: there is nothing to draw")
    for index, (label, runs) in enumerate(series.items()):
        x = np.asarray(runs[0][0], float)
        if any(not np.array_equal(x, np.asarray(other, float)) for other, _ in runs):
            raise ValueError(
                f"the runs of {label!r} differ in x; draw them under labels of their own"
            )
        values = np.asarray([y for _, y in runs], float)
        color = PALETTE[index % len(PALETTE)]
        # Shifted at each turn of the palette, so that no two of 32 lines look the same.
        dash = _DASHES[(index // 2 + index // len(PALETTE)) % len(_DASHES)]
        axes.plot(x, values.mean(axis=0), dash, color=color, label=label, linewidth=1.8)
        if len(runs) > 1:
            axes.fill_between(
                x, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, linewidth=0
            )
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e3e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8)
