"""A partition as a plain-text table."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Integer

from wsa_jax.door import door
from wsa_jax.federated.partition import Partition

__all__ = ["partition_table"]


@door
def partition_table(
    partition: Partition,
    labels: Integer[Array | np.ndarray, " n"],
    *,
    class_names: Sequence[str] | None = None,
    max_rows: int = 20,
) -> str:
    """A plain-text table: size, number of classes and class counts of each client.

    With more than 12 classes, the largest class and its share replace the count columns. At most
    the first `max_rows` clients are shown; the last line is for all.

    Raises:
      ValueError: labels are empty, or the number of class names is not that of the classes.

    >>> from wsa_jax.federated import iid
    >>> labels = np.array([0, 0, 0, 1, 1, 2])
    >>> print(partition_table(iid(labels, clients=2, seed=0), labels))
    client  samples  classes  0  1  2
         0        3        3  1  1  1
         1        3        2  2  1  0
       all        6        3  3  2  1
    """
    counts = partition.counts(labels)
    names = _checked_class_names(class_names, counts.shape[1])
    wide = counts.shape[1] > 12

    def line(name: str, row: np.ndarray) -> list[str]:
        cells = [name, str(row.sum()), str((row > 0).sum())]
        if not wide:
            return cells + [str(count) for count in row]
        return [*cells, names[int(row.argmax())], f"{row.max() / max(row.sum(), 1):.0%}"]

    header = ["client", "samples", "classes", *(["largest", "share"] if wide else names)]
    rows = [header, *(line(str(i), row) for i, row in enumerate(counts[:max_rows]))]
    if partition.clients > max_rows:
        rows.append(["..."] + [""] * (len(header) - 1))
    rows.append(line("all", counts.sum(axis=0)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _checked_class_names(class_names: Sequence[str] | None, classes: int) -> list[str]:
    if class_names is None:
        return [str(label) for label in range(classes)]
    if len(class_names) != classes:
        raise ValueError(f"class_names has {len(class_names)} names for {classes} classes")
    return list(class_names)
