"""Figures. Matplotlib is loaded by the first call, not by importing this module."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wsa_jax.door import door
from wsa_jax.extras import require
from wsa_jax.types import Json

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

History = Sequence[Json]
"""Rows of rounds, as `SimulationResult.history` holds them."""

__all__ = ["PALETTE", "draw_curves", "plot_history", "plot_merge_table"]


PALETTE = ("#1b4965", "#d1495b", "#66a182", "#edae49", "#8e6c8a", "#5c7285", "#b0603a", "#2e8b9a")
"""Line colours, distinguishable in grey too, by lightness or by the dashes of `draw_curves`."""

_DASHES = ("-", "--", ":", "-.")


def draw_curves(
    axes: "matplotlib.axes.Axes",
    series: Mapping[str, Sequence[tuple[Sequence[float | int], Sequence[float | int]]]],
    *,
    xlabel: str,
    ylabel: str,
    colors: Mapping[str, str] | None = None,
) -> None:
    """Draw one line per label: the mean of its runs, in a band from the least to the greatest.

    Args:
      axes: where to draw.
      series: for each label, its runs (seeds), each ``(x, y)``; all runs of a label share x.
      xlabel: label of the x axis, with its unit.
      ylabel: label of the y axis, with its unit.
      colors: the colour of each label, so that a method looks the same in every figure; lines of
        one colour differ in their dashes. By default the palette's, in turn.

    Raises:
      ValueError: there is nothing to draw, a label's runs differ in x, or one has no colour.

    >>> from matplotlib.figure import Figure
    >>> axes = Figure().subplots()
    >>> runs = [([0, 1], [1.0, 3.0]), ([0, 1], [3.0, 5.0])]
    >>> draw_curves(axes, {"a": runs}, xlabel="x", ylabel="y")
    >>> axes.lines[0].get_ydata().tolist()
    [2.0, 4.0]
    """
    if not series:
        raise ValueError("series is empty: there is nothing to draw")
    if colors is not None and (missing := [label for label in series if label not in colors]):
        raise ValueError(f"colors lack {missing[0]!r}; give each label one, or none at all")
    for index, (label, runs) in enumerate(series.items()):
        x = np.asarray(runs[0][0], float)
        if any(not np.array_equal(x, np.asarray(other, float)) for other, _ in runs):
            raise ValueError(
                f"the runs of {label!r} differ in x; draw them under labels of their own"
            )
        values = np.asarray([y for _, y in runs], float)
        if colors is None:
            color = PALETTE[index % len(PALETTE)]
            # Shifted at each turn of the palette, so that no two of 32 lines look the same.
            dash = _DASHES[(index // 2 + index // len(PALETTE)) % len(_DASHES)]
        else:
            color = colors[label]
            before = [colors[other] for other in list(series)[:index]].count(color)
            dash = _DASHES[before % len(_DASHES)]
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


@door
def plot_history(
    histories: History | Mapping[str, History | Sequence[History]],
    value: str = "test_accuracy",
) -> "matplotlib.figure.Figure":
    """Draw a number of each round, one line per label.

    Args:
      histories: ``result.history``, or for each label one history or several (seeds), which become
        the mean in a band from the least to the greatest.
      value: a key of the rows. Rounds without it are left out; of a number for each layer, the
        sum is drawn, or one line per layer for a single history.

    Returns:
      A figure that belongs to no window: ``figure.savefig(path)``.

    Raises:
      ValueError: no row has the value; the message lists what the rows have.
      MissingExtraError: matplotlib is not installed.

    >>> rows = [{"round": 1, "test_accuracy": 0.5}, {"round": 2}, {"round": 3, "test_accuracy": 1}]
    >>> plot_history(rows).axes[0].lines[0].get_xydata().tolist()
    [[1.0, 0.5], [3.0, 1.0]]
    """
    require("matplotlib", "a figure")
    from matplotlib.figure import Figure

    if isinstance(histories, Mapping):
        series = {
            label: [(x, y.tolist()) for x, y in (_curve(rows, value) for rows in _several(given))]
            for label, given in histories.items()
        }
    else:
        x, y = _curve(histories, value, summed=False)
        if y.ndim == 1:
            series = {value: [(x, y.tolist())]}
        else:
            layers = next(row["layers"] for row in histories)
            series = {
                layer: [(x, column)] for layer, column in zip(layers, y.T.tolist(), strict=True)
            }
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    draw_curves(figure.subplots(), series, xlabel="round", ylabel=value.replace("_", " "))
    return figure


@door
def plot_merge_table(rows: Sequence[Json], value: str = "accuracy") -> "matplotlib.figure.Figure":
    """Draw the rows of `wsa_jax.merging.merge_table` as bars, in the order of the table.

    The models themselves and their ensemble, which are no merges, are grey. With
    ``heads="own"``, a bar is a method under one model's head.

    Args:
      rows: the table; a method without the value is left out.
      value: a key of the rows, ``"accuracy"``, ``"loss"`` or a metric of the task's own.

    Returns:
      A figure that belongs to no window: ``figure.savefig(path)``.

    Raises:
      ValueError: no row has the value; the message lists what the rows have.
      MissingExtraError: matplotlib is not installed.

    >>> rows = [{"method": "model 1", "accuracy": 0.9}, {"method": "average", "accuracy": 0.5}]
    >>> [text.get_text() for text in plot_merge_table(rows).axes[0].get_yticklabels()]
    ['model 1', 'average']
    """
    require("matplotlib", "a figure")
    from matplotlib.figure import Figure

    kept = [row for row in rows if row.get(value) is not None]
    _check_found(kept, rows, value)
    methods = [str(row["method"]) for row in kept]
    references = [name == "ensemble" or name.startswith("model ") for name in methods]
    # Bodies merged under several heads are rows of one method.
    names = [
        f"{name}, head {row['model']}" if "model" in row and not reference else name
        for name, row, reference in zip(methods, kept, references, strict=True)
    ]
    figure = Figure(figsize=(6.0, 0.6 + 0.32 * len(kept)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(
        names,
        [row[value] for row in kept],
        color=["#b9c4ce" if reference else PALETTE[0] for reference in references],
        height=0.7,
    )
    axes.bar_label(bars, fmt="%.3f", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(value.replace("_", " "))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _several(given: Any) -> list[History]:
    """The histories under one label, which may be one alone."""
    return [given] if not given or isinstance(given[0], Mapping) else list(given)


def _curve(rows: History, value: str, *, summed: bool = True) -> tuple[list[int], np.ndarray]:
    """The rounds that have a value, and the values, ``[rounds]`` or ``[rounds, layers]``."""
    kept = [row for row in rows if row.get(value) is not None]
    _check_found(kept, rows, value)
    values = np.asarray([row[value] for row in kept], float)
    if summed and values.ndim > 1:
        values = values.sum(axis=1)
    return [row["round"] for row in kept], values


def _check_found(kept: Sequence[Json], rows: Sequence[Json], value: str) -> None:
    if not kept:
        known = dict.fromkeys(name for row in rows for name in row)
        raise ValueError(f"no row has {value!r}; they have {', '.join(known) or 'nothing'}")
