"""The path benchmark runs, and both its sides compute the same losses."""

import json

from benchmarks.speed import path


def test_reports_ratios_and_records_nothing_in_smoke(tmp_path, capsys):
    path.SCRIPT(["--preset", "smoke", "--results", str(tmp_path / "rows.jsonl")])
    figures = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert min(figures["ratios"].values()) > 0
    assert figures["largest_difference"] < 1e-5
    assert not (tmp_path / "rows.jsonl").exists()
