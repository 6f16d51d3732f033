"""The speed benchmark of NP Merge runs and ends in one JSON object; how fast it is is no test."""

import json

from benchmarks.speed import np_merge


def test_reports_ratios_and_records_nothing_in_smoke(tmp_path, capsys):
    np_merge.SCRIPT(["--preset", "smoke", "--results", str(tmp_path / "rows.jsonl")])
    figures = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert set(figures["ratios"]) == {"fine_tuning", "plain_loop"}
    assert figures["ratios"]["fine_tuning"] > 0
    assert not (tmp_path / "rows.jsonl").exists()
