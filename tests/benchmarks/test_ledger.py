"""The ledger: what rows may hold, whose data and machine they are of, and where its lock is."""

import dataclasses
import json
import math
import subprocess

import pytest

from benchmarks.__main__ import main
from benchmarks.federated.cell import Cell
from benchmarks.federated.comparison import paired_gains
from benchmarks.record import ledger
from benchmarks.record.data import data_digests
from benchmarks.record.ledger import Ledger, LedgerError, is_finished
from tests.benchmarks.planting import planted_row


def test_a_number_that_is_not_finite_is_recorded_as_none_and_the_row_as_diverged(tmp_path):
    rows = Ledger(tmp_path / "rows.jsonl")
    cells = {
        "lost": {"status": "done", "test": {"loss": [0.5, math.nan, -math.inf]}},
        "kept": {"status": "done", "test": {"loss": [0.5]}},
        "begun": {"status": "started", "loss": math.inf},
    }
    returned = [rows.write({"id": name} | row) for name, row in cells.items()]
    assert returned == rows.rows()
    assert [row["status"] for row in returned] == ["diverged", "done", "started"]
    assert rows.find("lost")["test"]["loss"] == [0.5, None, None]
    assert [is_finished(row) for row in returned] == [True, True, False]


def test_a_lock_stays_beside_its_ledger_out_of_sight(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(ledger, "RESULTS", tmp_path / "results")
    for folder in ("elsewhere", "results"):
        Ledger(tmp_path / folder / "rows.jsonl").write({"id": "a"})
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    locks = {"elsewhere/.rows.jsonl.lock", "runs/.rows.jsonl.lock"}
    assert files == {"elsewhere/rows.jsonl", "results/rows.jsonl"} | locks


GOOD = '{"id": "a", "status": "done"}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"rows.jsonl is empty; restore it, or delete it"),
        (GOOD + '{"id": "b", "sta', r"rows.jsonl, line 2, is torn or foreign \(no JSON object\)"),
        (GOOD + "\n" + GOOD, r"line 2, is torn or foreign"),
        (GOOD + "<<<<<<< HEAD\n", r"line 2, is torn or foreign"),
        (GOOD + "[1]\n", r"line 2, is torn or foreign \(no object with an id\)"),
        (GOOD + '{"cell": 1}\n', r"line 2, is torn or foreign \(no object with an id\)"),
        (GOOD + '{"id": 1}\n', r"line 2, is torn or foreign \(no object with an id\)"),
        (GOOD + GOOD, r"line 2, has the id a of line 1; mend or delete that line"),
    ],
)
def test_a_line_that_is_no_row_is_named_and_nothing_is_written_over(tmp_path, text, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    for use in (Ledger(path).rows, lambda: Ledger(path).write({"id": "c", "status": "done"})):
        with pytest.raises(LedgerError, match=message) as error:
            use()
        assert "\n" not in str(error.value)
        assert str(path) in str(error.value)
    assert path.read_text() == text


def test_bytes_a_folder_and_a_missing_field_are_named(tmp_path):
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(LedgerError, match=r"bytes.jsonl, line 1, is torn or foreign"):
        Ledger(tmp_path / "bytes.jsonl").rows()
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(LedgerError, match=r"cannot read .*folder.jsonl \(Is a directory\)"):
        Ledger(tmp_path / "folder.jsonl").rows()
    (tmp_path / "rows.jsonl").write_text('{"id": "a"}\n')
    row = Ledger(tmp_path / "rows.jsonl").find("a")
    assert row == {"id": "a"}
    with pytest.raises(LedgerError, match=r"rows.jsonl, line 1, has no 'status': it is no row of"):
        is_finished(row)
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match=r"cannot write .*below.jsonl \((Not a dir|File exists)"):
        Ledger(tmp_path / "file" / "below.jsonl").write({"id": "a"})


def test_a_damaged_ledger_is_one_line_of_the_command(tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text("{")
    with pytest.raises(SystemExit) as error:
        main(["on_the_way", "--results", str(tmp_path / "rows.jsonl")])
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "rows.jsonl, line 1, is torn or foreign" in said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "cpu family : 25\nmodel : 1\nmodel name : AMD EPYC\nflags : fpu avx2\n\n"
            "cpu family : 26\nmodel : 2\nmodel name : other\nflags : avx512f\n",
            {"cpu": "AMD EPYC", "cpu_family": "25", "cpu_model": "1", "avx512f": False},
        ),
        ("model name : Xeon\nflags : fpu avx512f avx2\n", {"cpu": "Xeon", "avx512f": True}),
    ],
)
def test_machines_of_one_name_are_told_apart(text, expected, tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text(text)
    assert ledger._cpu(info) == expected
    assert ledger._cpu(tmp_path / "absent").keys() == {"cpu"}


def test_written_rows_do_not_mark_the_code_as_changed(tmp_path):
    def git(*words):
        subprocess.run(["git", "-C", tmp_path, *words], check=True, capture_output=True)

    rows, code = tmp_path / "benchmarks" / "results" / "rows.jsonl", tmp_path / "code.py"
    rows.parent.mkdir(parents=True)
    for path in (rows, code):
        path.write_text("")
    git("init")
    git("add", ".")
    git("-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-m", "begin")
    clean = ledger._commit(tmp_path)
    rows.write_text("{}")
    assert ledger._commit(tmp_path) == clean and not clean.endswith("-dirty")
    code.write_text("pass")
    assert ledger._commit(tmp_path) == f"{clean}-dirty"


def test_rows_of_different_data_are_not_paired():
    cell = Cell().canonical()
    ours, theirs = planted_row(cell, 0.5), planted_row(cell, 0.4)
    mine, other = {"data": {"train": "1f", "test": "2e"}}, {"data": {"train": "3d", "test": "2e"}}
    for kinds in ((mine, mine), (mine, {}), ({}, other), ({}, {})):
        pair = [row | kind for row, kind in zip((ours, theirs), kinds, strict=True)]
        assert paired_gains([pair[0]], [pair[1]]) == pytest.approx([10.0])
    with pytest.raises(SystemExit, match=r"different data .*1f.*3d.*--data-dir"):
        paired_gains([ours | mine], [theirs | other])


def test_digests_are_of_both_splits():
    digests = data_digests("digits", None)
    assert digests.keys() == {"train", "test"}
    assert len(set(digests.values())) == 2
    assert json.loads(json.dumps(digests)) == digests


def test_fields_that_a_configuration_lost_do_not_change_ids():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Earlier(Cell):
        dropped: int = -1

    assert ledger.cell_id(Earlier(seed=3)) == ledger.cell_id(Cell(seed=3))
