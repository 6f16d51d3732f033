"""The figure of a partition. Matplotlib is loaded by the first call, not by the import."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Integer

from wsa_jax.extras import require
from wsa_jax.federated.partition import Partition

if TYPE_CHECKING:
    import matplotlib.figure

__all__ = ["partition_heatmap"]


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
    require("matplotlib", "a figure")
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
