"""Trackers: what `simulate` may call with the row of each round. Each keeps what it was given.

For a service of your own, three lines are enough::

    def track(row):
        service.log(scalars(row), step=row["round"])
"""

import csv
import io
import json
import time
from collections.abc import Callable
from pathlib import Path

from wsa_jax.door import door
from wsa_jax.extras import require
from wsa_jax.runs.files import directory_path, make_folder, one_line, write_atomically
from wsa_jax.types import Json

Tracker = Callable[[Json], None]
"""``row -> None``, as ``simulate(on_round=...)`` takes it."""

__all__ = ["Tracker", "csv_tracker", "jsonl_tracker", "scalars", "tensorboard_tracker"]


@door
def scalars(row: Json) -> dict[str, float]:
    """The numbers of a row, those of layers by the names of the layers.

    >>> scalars({"round": 1, "layers": ["conv", "out"], "average_std": [0.1, 0.2], "note": "a"})
    {'round': 1.0, 'average_std/conv': 0.1, 'average_std/out': 0.2}
    """
    layers, found = row.get("layers", []), dict[str, float]()
    for name, value in row.items():
        if isinstance(value, int | float):
            found[name] = float(value)
        elif isinstance(value, list) and name != "layers" and len(value) == len(layers):
            numbers = zip(layers, value, strict=True)
            found |= {f"{name}/{layer}": one for layer, one in numbers if one is not None}
    return found


@door
def jsonl_tracker(path: str | Path) -> Tracker:
    r"""Append each row to a file, as one line of JSON.

    A simulation in a ``directory`` writes such a file by itself, ``metrics.jsonl``.

    Raises:
      CheckpointError: the file cannot be written.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "rows.jsonl"
    >>> track = jsonl_tracker(path)
    >>> track({"round": 1, "train_loss": 0.5})
    >>> path.read_text()
    '{"round": 1, "train_loss": 0.5}\n'
    """
    file = _parent_made(path)

    def track(row: Json) -> None:
        with one_line(file, "write"), file.open("a", encoding="utf-8") as opened:
            opened.write(json.dumps(row) + "\n")

    return track


@door
def csv_tracker(path: str | Path) -> Tracker:
    """Keep the numbers of all rows (`scalars`) in a CSV file, one line a row.

    A number that a later row has for the first time is a new column, empty in the lines before it.
    A file that is there is replaced by the first row.

    Raises:
      CheckpointError: the file cannot be written.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "rows.csv"
    >>> track = csv_tracker(path)
    >>> track({"round": 1})
    >>> track({"round": 2, "test_accuracy": 0.5})
    >>> path.read_text().split()
    ['round,test_accuracy', '1.0,', '2.0,0.5']
    """
    file, rows = _parent_made(path), list[dict[str, float]]()

    def columns() -> list[str]:
        return list(dict.fromkeys(name for one in rows for name in one))

    def track(row: Json) -> None:
        before = columns()
        rows.append(scalars(row))
        known = columns() == before
        lines = _csv_lines(columns(), rows[-1:] if known else rows)
        with one_line(file, "write"):
            if known:
                with file.open("a", encoding="utf-8") as opened:
                    opened.write(lines)
            else:
                write_atomically(file, _csv_lines(columns(), []) + lines)

    return track


def _csv_lines(columns: list[str], rows: list[dict[str, float]]) -> str:
    """The lines of rows, or of the names of the columns where there is no row."""
    text = io.StringIO()
    lines = [[row.get(name, "") for name in columns] for row in rows]
    csv.writer(text, lineterminator="\n").writerows(lines or [columns])
    return text.getvalue()


@door
def tensorboard_tracker(folder: str | Path) -> Tracker:
    """Write the numbers of each row (`scalars`) as events of TensorBoard, by round.

    Raises:
      MissingExtraError: tensorboardX is not installed.
      CheckpointError: the folder cannot be made.
    """
    require("tensorboardX", "an event file of TensorBoard")
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.summary import scalar

    path = directory_path(folder)
    make_folder(path)
    # Not the library's queue and thread, which lose the last events of a process that ends.
    writer = EventsWriter(str(path / "events"))

    def track(row: Json) -> None:
        for name, value in scalars(row).items():
            if name != "round":
                event = Event(step=row["round"], summary=scalar(name, value), wall_time=time.time())
                writer.write_event(event)
        writer.flush()

    return track


def _parent_made(path: str | Path) -> Path:
    file = directory_path(path)
    make_folder(file.parent)
    return file
