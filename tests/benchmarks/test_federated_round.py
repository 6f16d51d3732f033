"""The whole-round benchmark runs, and ends in one JSON object; how fast it is is no test."""

import dataclasses
import importlib.util
import json
import sys
from typing import get_args

import numpy as np
import pytest

from benchmarks.record.ledger import Ledger
from benchmarks.refused import RefusedError
from benchmarks.speed import federated_round, scenarios
from benchmarks.speed.alternating import PeerError
from benchmarks.speed.peers.side import Kind, Side, descendants, environment, peak_mib, reason
from benchmarks.speed.peers.turns import Data, Scenario, load, save
from wsa_jax.data import load_dataset


def last_line(capsys) -> dict:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_smoke_measures_ours_in_turns_and_records_nothing(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    federated_round.SCRIPT(["--preset", "smoke", "--results", str(rows)])
    figures = last_line(capsys)
    assert figures["ratios"]["wsa_over_plain"] > 0
    for field in ("seconds", "startup_seconds", "compile_seconds", "peak_mib", "loss"):
        assert set(figures[field]) == {"ours", "ours_wsa"}
    # Two rounds of one step from weights that know nothing of ten classes.
    assert figures["loss"]["ours"] == pytest.approx(np.log(10), abs=0.3)
    assert not rows.exists()


@pytest.fixture
def failing(monkeypatch):
    """Sides without processes, on digits; those put into the set fail: (module, clients, when)."""
    failing = set()

    class FakeSide:
        startup = 1.0

        def __init__(self, python, kind, scenario):
            self._key = (kind.module, scenario.clients)
            self._may_fail("start")

        def _may_fail(self, when):
            if (*self._key, when) in failing:
                raise PeerError("it died")

        def round(self):
            self._may_fail("round")
            return 2.0 if self._key[0] == "ours" else 4.0

        def finish(self):
            self._may_fail("finish")
            return {"loss": 2.3, "packages": {}, "compile_seconds": 0.5}

        def peak_mib(self):
            return 100.0

        def close(self):
            pass

    digits = load_dataset("digits")
    monkeypatch.setattr(federated_round, "load_dataset", lambda name, split: digits)
    monkeypatch.setattr(scenarios, "environment", lambda kind, peers: sys.executable)
    monkeypatch.setattr(scenarios, "Side", FakeSide)
    return failing


class TestFailures:
    @pytest.mark.parametrize("when", ["start", "round", "finish"])
    def test_peer_is_left_out_and_the_others_stay(self, when, failing, tmp_path, capsys):
        failing.add(("flower_peer", 1000, when))
        federated_round.SCRIPT(["--results", str(tmp_path / "rows.jsonl")])
        figures = last_line(capsys)
        assert figures["ratios"]["flower"] == 0.5
        small = figures["small_clients"]
        assert small["left_out"] == {"flower": "it died"}
        assert small["ratios"]["fedjax"] == 0.5
        for field in ("ratios", "seconds", "peak_mib", "loss"):
            assert "flower" not in small[field]
        (row,) = Ledger(tmp_path / "rows.jsonl").rows()
        assert row["small_clients"] == small
        assert "unfinished" not in row

    def test_ours_raises_and_a_finished_scenario_stays(self, failing, tmp_path):
        failing.add(("ours", 1000, "round"))
        with pytest.raises(RuntimeError, match="ours failed: it died"):
            federated_round.SCRIPT(["--results", str(tmp_path / "rows.jsonl")])
        (row,) = Ledger(tmp_path / "rows.jsonl").rows()
        assert row["ratios"]["pfl"] == 0.5
        assert row["unfinished"]

    def test_points_of_a_curve_stay(self, failing, tmp_path):
        failing.add(("ours", 100, "start"))
        with pytest.raises(RuntimeError, match="ours failed: it died"):
            federated_round.SCRIPT(["--scaling", "--results", str(tmp_path / "rows.jsonl")])
        (row,) = Ledger(tmp_path / "rows.jsonl").rows()
        assert [point["clients"] for point in row["points"]] == [10, 30]
        assert row["unfinished"]

    def test_process_that_does_not_start_says_why_in_one_line(self):
        scenario = Scenario(**dataclasses.asdict(scenarios.SHAPES["smoke"]), rounds=1, threads=1)
        with pytest.raises(PeerError) as failure:
            Side(sys.executable, Kind("nowhere", "numpy"), scenario)
        (line,) = str(failure.value).splitlines()
        assert line.endswith(": No module named benchmarks.speed.peers.nowhere")

    def test_reason_is_the_last_error_before_what_ends_with_it(self):
        assert reason("a\nValueError: b\n  (worker) shutting down\n\n") == "ValueError: b"
        assert reason("told to end\n\n") == "told to end"
        assert reason("") == ""


class TestSettings:
    def test_curve_has_ratios_too(self, failing, tmp_path, capsys):
        results = str(tmp_path / "rows.jsonl")
        federated_round.SCRIPT(["--scaling", "--algorithm", "scaffold", "--results", results])
        figures = last_line(capsys)
        assert figures["ratios"] == {}
        assert len(figures["points"]) == len(federated_round.SCALING)

    def test_small_clients_alone_have_their_ratios_at_the_top(self, failing, tmp_path, capsys):
        results = str(tmp_path / "rows.jsonl")
        federated_round.SCRIPT(["--scenarios", "small_clients", "--results", results])
        figures = last_line(capsys)
        assert figures["ratios"] == figures["small_clients"]["ratios"]
        assert figures["ratios"]["vmap_over_map"] == 1

    def test_says_that_vmap_is_not_measured_in_the_silo(self, failing, tmp_path, capsys):
        arguments = ["--scenarios", "silo", "--sides", "ours_vmap"]
        federated_round.SCRIPT([*arguments, "--results", str(tmp_path / "rows.jsonl")])
        assert "small_clients alone" in last_line(capsys)["left_out"]["ours_vmap"]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ("--algorithm scaffold", "--algorithm scaffold has no effect without --scaling: add"),
            ("--scaling --sides pfl", "--sides pfl has no effect under --scaling"),
            ("--scaling --preset smoke", "--scaling has no smoke preset"),
            ("--rounds 0", "--rounds 0: give at least 1"),
        ],
    )
    def test_refuses_what_would_go_unused(self, arguments, message):
        with pytest.raises(SystemExit, match=message) as refusal:
            federated_round.SCRIPT(arguments.split())
        assert "\n" not in str(refusal.value)

    @pytest.mark.parametrize("setting", ["--sides", "--scenarios", "--algorithm"])
    def test_refuses_unknown_names(self, setting):
        with pytest.raises(RefusedError, match="unknown"):
            federated_round.SCRIPT([setting, "unknown"])

    def test_every_name_of_a_side_or_a_scenario_is_one(self):
        assert set(get_args(scenarios.SideName)) == set(scenarios.SIDES)
        assert set(get_args(scenarios.ScenarioName)) < set(scenarios.SHAPES)


def test_scenarios_deal_every_client_enough_examples_to_train_on():
    for shape in scenarios.SHAPES.values():
        examples = 1442 if shape.clients == 2 else 50_000
        assert examples // shape.clients >= shape.steps * shape.batch
        assert shape.participants <= shape.clients


def test_data_and_scenario_survive_the_way_to_a_side(tmp_path, monkeypatch):
    data = Data(np.zeros((4, 2, 2, 3), np.uint8), np.arange(4), np.arange(4).reshape(2, 2))
    save(data, str(tmp_path))
    for sent, received in zip(data, load(str(tmp_path)), strict=True):
        np.testing.assert_array_equal(sent, received)
    scenario = Scenario(
        **dataclasses.asdict(scenarios.SHAPES["silo"]),
        rounds=1,
        threads=2,
        data=str(tmp_path),
        variant="wsa",
    )
    monkeypatch.setattr(sys, "argv", ["ours", scenario.to_json()])
    received = Scenario.from_argv()
    assert received.to_json() == scenario.to_json()


def test_peer_that_is_not_installed_has_no_environment(tmp_path):
    assert environment(Kind("ours", "no_such_package"), tmp_path) is None
    assert environment(Kind("ours", "numpy"), tmp_path) == sys.executable


def test_memory_of_a_process_counts_its_own():
    import os

    assert os.getpid() in descendants(os.getpid())
    assert peak_mib(os.getpid()) > 10


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="PyTorch is a peer: pip install -e '.[peers]'",
)
def test_torch_sides_train_the_same_network():
    import torch

    from benchmarks.speed.peers.torch_network import draw_rows, make_model, train, trained_loss

    rng = np.random.default_rng(0)
    shape = {"clients": 1, "participants": 1, "steps": 4, "batch": 8, "learning_rate": 0.05}
    scenario = Scenario(**shape, rounds=1, threads=1, mean=(0.5,) * 3, std=(0.25,) * 3)
    images = rng.integers(0, 256, (32, 32, 32, 3), np.uint8)
    data = Data(images, np.arange(32) % 2, np.arange(32).reshape(1, 32))
    model = make_model(scenario, torch.channels_last)
    assert sum(weights.numel() for weights in model.parameters()) == 744_330
    rows = draw_rows(data.indices[0], scenario, rng)
    assert sorted(rows.reshape(-1)) == list(range(32))
    before = trained_loss(model, data)
    train(model, scenario, torch.from_numpy(images), torch.from_numpy(data.labels), rows)
    assert trained_loss(model, data) < before
