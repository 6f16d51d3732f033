"""Timings in one process run: a path, whose sides compute the same losses, and many runs."""

import json

from benchmarks.speed import many_runs, path
from wsa_jax.models import MLP


def test_reports_ratios_and_records_nothing_in_smoke(tmp_path, capsys):
    path.SCRIPT(["--preset", "smoke", "--results", str(tmp_path / "rows.jsonl")])
    figures = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert min(figures["ratios"].values()) > 0
    assert figures["largest_difference"] < 1e-5
    assert not (tmp_path / "rows.jsonl").exists()


def test_many_runs_reports_rounds_per_second(tmp_path, capsys, monkeypatch):
    # A dense network: the convolutions of three programs take long to compile.
    monkeypatch.setattr(many_runs, "CNN", lambda *_: MLP(features=(8, 10)))
    many_runs.SCRIPT(["--preset", "smoke", "--results", str(tmp_path / "rows.jsonl")])
    figures = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert figures["ratios"].keys() == {"map_2", "vmap_2"}
    rates = figures["rounds_per_second"]
    assert rates.keys() == {"separate, 2", "map, 2", "vmap, 2"}
    seconds = figures["seconds"]
    assert all(abs(rates[side] * seconds[side] / 2 - 1) < 0.01 for side in rates)
    assert not (tmp_path / "rows.jsonl").exists()
