"""The speed benchmarks run, and end in one JSON object; how fast they are is no test."""

import importlib.util
import json

import pytest

from benchmarks.ledger import Ledger
from benchmarks.speed import client_step, import_time, scale_model


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


class TestScaleModel:
    @pytest.fixture
    def curve(self):
        """Rounds of 0.05 s and 3 ms a step, processes of 500 MiB and 2 MiB a client."""
        shapes = [(10, 10), (100, 10), (1000, 10), (30, 30), (100, 100)]
        return [
            {
                "clients": clients,
                "participants": participants,
                "seconds": 0.05 + participants * 5 * 0.003,
                "peak_mib": 500 + 2 * clients,
            }
            for clients, participants in shapes
        ]

    def test_finds_planted_costs(self, curve, tmp_path, capsys):
        path = tmp_path / "rows.jsonl"
        row = {"id": "a", "benchmark": "federated_scaling", "algorithm": "fed_avg", "steps": 5}
        Ledger(path).write(row | {"points": curve})
        scale_model.main(["--results", str(path)])
        fitted = last_line(capsys)["fitted"]["fed_avg"]
        assert fitted["fixed_seconds"] == pytest.approx(0.05, abs=1e-3)
        assert fitted["step_seconds"] == pytest.approx(0.003, abs=1e-5)
        assert fitted["base_mib"] == pytest.approx(500, abs=1)
        assert fitted["mib_a_client"] == pytest.approx(2, abs=0.01)
        assert fitted["largest_error"] < 0.01

    def test_predictions_add_up(self):
        machine = scale_model.Machine(
            step_seconds=1e-3, fixed_seconds=0.0, memory=1e12, link=1e9, latency=0.0, host=1e9
        )
        shape = {"clients": 1000, "steps": 20, "examples": 50}
        one = scale_model.predict(machine, 100, 1, **shape)
        assert one.seconds == pytest.approx(
            {"local compute": 2.0, "all-reduce": 0, "client states": 0, "host input": 0}
        )
        four = scale_model.predict(machine, 100, 4, state_bytes=4000, **shape)
        assert four.seconds["local compute"] == pytest.approx(0.5)
        assert four.seconds["client states"] == pytest.approx(1.5 * 100 * 4000 / 1e9)
        assert four.memory["client states"] == 1000 * 4000 / 4 + 2 * 100 * 4000

    def test_without_a_curve(self, tmp_path):
        with pytest.raises(SystemExit, match="holds no curve; make one with"):
            scale_model.main(["--results", str(tmp_path / "none.jsonl")])
