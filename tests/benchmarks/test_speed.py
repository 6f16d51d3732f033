"""The speed benchmarks run, and end in one JSON object; how fast they are is no test."""

import importlib.util
import json

import pytest

from benchmarks.speed import client_step, import_time


def last_line(capsys) -> dict:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_client_step_reports_ratios_and_records_nothing_in_smoke(tmp_path, capsys):
    client_step.main(["--preset", "smoke", "--results", str(tmp_path / "rows.jsonl")])
    figures = last_line(capsys)
    assert figures["ratios"]["wsa_over_plain"] > 0
    assert figures["torch"] == (importlib.util.find_spec("torch") is not None)
    assert ("torch_default" in figures["ratios"]) == figures["torch"]
    assert figures["peak_mib"]["ours"] > 0
    assert not (tmp_path / "rows.jsonl").exists()


def test_torch_loop_is_the_same_network():
    torch = pytest.importorskip("torch", reason="PyTorch is a peer: pip install -e '.[peers]'")
    from benchmarks.speed.torch_client_step import make_model, train

    assert sum(p.numel() for p in make_model().parameters()) == 744_330
    assert train("channels_last", 1) > 0
    assert torch.get_num_threads() > 0


def test_import_time_ends_in_a_ratio(capsys):
    import_time.main(["--runs", "1"])
    assert last_line(capsys)["ratios"]["jax_flax_optax"] > 0
