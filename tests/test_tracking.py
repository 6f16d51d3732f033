"""Trackers keep the numbers of the rows that they are given."""

import csv
import json

import pytest

from wsa_jax.runs.files import CheckpointError
from wsa_jax.tracking import csv_tracker, jsonl_tracker, scalars, tensorboard_tracker

ROWS = [
    {"round": 1, "train_loss": 0.5, "layers": ["a", "b/c"], "average_std": [0.1, None]},
    {"round": 2, "train_loss": 0.25, "layers": ["a", "b/c"], "average_std": [0.2, 0.3]},
    {"round": 3, "train_loss": None, "layers": [], "test_accuracy": 0.75, "note": "odd"},
]


def test_numbers_of_layers_go_by_their_names():
    assert scalars(ROWS[0]) == {"round": 1, "train_loss": 0.5, "average_std/a": 0.1}
    assert scalars(ROWS[2]) == {"round": 3, "test_accuracy": 0.75}


def test_lines_of_json_are_the_rows(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    for row in ROWS:
        jsonl_tracker(path)(row)  # a new tracker goes on where the file ends
    assert [json.loads(line) for line in path.read_text().splitlines()] == ROWS


def test_a_table_grows_by_columns_and_lines(tmp_path):
    path = tmp_path / "rows.csv"
    track = csv_tracker(path)
    for row in ROWS:
        track(row)
    with path.open() as file:
        lines = list(csv.DictReader(file))
    read = [{name: float(value) for name, value in line.items() if value} for line in lines]
    assert read == [scalars(row) for row in ROWS]


def test_events_of_tensorboard_are_the_numbers(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    track = tensorboard_tracker(tmp_path)
    for row in ROWS:
        track(row)
    (path,) = tmp_path.iterdir()
    data, found = path.read_bytes(), {}
    while data:  # a record is a length of 8 bytes, its check of 4, the event, its check of 4
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        for value in event.summary.value:
            found[value.tag, event.step] = value.simple_value
        data = data[16 + length :]
    expected = {
        (name, row["round"]): value
        for row in ROWS
        for name, value in scalars(row).items()
        if name != "round"
    }
    assert found == pytest.approx(expected)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "rows").mkdir()
    for tracker in (jsonl_tracker, csv_tracker):
        with pytest.raises(CheckpointError, match="is a file, not a folder"):
            tracker(tmp_path / "file" / "rows")
        track = tracker(tmp_path / "rows")
        with pytest.raises(CheckpointError, match=r"cannot write .*rows.*directory"):
            track(ROWS[0])
