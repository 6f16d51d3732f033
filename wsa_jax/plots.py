"""Figures. Matplotlib is loaded by the first call, not by importing this module."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Integer

from wsa_jax.federated.partition import Partition

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

__all__ = ["PALETTE", "draw_curves", "partition_heatmap"]


def partition_heatmap(
    partition: Partition,
    labels: Integer[np.ndarray, " n"],
    *,
    class_names: Sequence[str] | None = None,
) -> "matplotlib.figure.Figure":
    """Samples of each class (rows) on each client (columns), with the client sizes above.

    Counts are written into the cells where they fit: up to 12 clients and 12 classes. The figure
    belongs to no window and no global style is changed: save it with `figure.savefig(path)`.

    Args:
      partition: the partition to draw.
      labels: integer `[n]`.
      class_names: a name for each class; by default the class numbers.

    Raises:
      ValueError: labels are empty, or the number of names is not that of the classes.

    >>> from wsa_jax.federated.partition import dirichlet_equal
    >>> labels = np.repeat(np.arange(10), 100)
    >>> figure = partition_heatmap(dirichlet_equal(labels, clients=10, alpha=0.5, seed=0), labels)
    >>> figure.axes[1].get_xlabel()
    'client'
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    counts = partition.counts(labels).T
    classes, clients = counts.shape
    if class_names is not None and len(class_names) != classes:
        raise ValueError(f"class_names has {len(class_names)} names for {classes} classes")

    width = float(np.clip(1.6 + 0.5 * clients, 4.5, 11.0))
    height = float(np.clip(1.8 + 0.36 * classes, 3.2, 9.0))
    figure = Figure(figsize=(width, height), layout="constrained")
    bars, cells = figure.subplots(2, 1, sharex=True, height_ratios=[1, max(4, height - 1)])

    ink = "#3a4a5a"
    # Touching bars where a gap would be thinner than a pixel.
    bars.bar(
        np.arange(clients), partition.sizes, width=0.8 if clients <= 120 else 1.0, color="#8fa3b5"
    )
    bars.set_ylabel("samples")
    bars.set_yticks([0, int(partition.sizes.max())])
    bars.spines[["top", "right"]].set_visible(False)
    bars.tick_params(axis="x", length=0)

    image = cells.imshow(counts, aspect="auto", cmap="YlGnBu", vmin=0, interpolation="nearest")
    cells.set_xlabel("client")
    cells.set_ylabel("class")
    if clients <= 25:
        cells.set_xticks(np.arange(clients))
    else:
        cells.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    if class_names is not None:
        cells.set_yticks(np.arange(classes), list(class_names))
    elif classes <= 25:
        cells.set_yticks(np.arange(classes))
    else:
        cells.yaxis.set_major_locator(MaxNLocator(10, integer=True))
    cells.spines[:].set_visible(False)
    cells.tick_params(length=2)

    if clients <= 12 and classes <= 12:
        for (row, column), count in np.ndenumerate(counts):
            color = "white" if count > 0.55 * counts.max() else ink
            cells.text(column, row, str(count), ha="center", va="center", fontsize=7.5, color=color)
    figure.align_ylabels((bars, cells))
    figure.colorbar(image, ax=cells, label="samples of the class", pad=0.01, fraction=0.05)
    return figure


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
