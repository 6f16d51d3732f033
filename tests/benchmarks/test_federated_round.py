"""The whole-round benchmark runs, and ends in one JSON object; how fast it is is no test."""

import importlib.util
import json
import sys

import numpy as np
import pytest

from benchmarks.speed import federated_round
from benchmarks.speed.peers.side import Kind, descendants, environment, peak_mib
from benchmarks.speed.peers.turns import Data, Scenario, load, save


def test_smoke_measures_ours_in_turns_and_records_nothing(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    federated_round.main(["--preset", "smoke", "--results", str(rows)])
    figures = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert figures["ratios"]["wsa_over_plain"] > 0
    for field in ("seconds", "startup_seconds", "compile_seconds", "peak_mib", "loss"):
        assert set(figures[field]) == {"ours", "ours_wsa"}
    # Two rounds of one step from weights that know nothing of ten classes.
    assert figures["loss"]["ours"] == pytest.approx(np.log(10), abs=0.3)
    assert not rows.exists()


def test_scenarios_deal_every_client_enough_examples_to_train_on():
    for shape in federated_round.SHAPES.values():
        examples = 1442 if shape["clients"] == 2 else 50_000
        assert examples // shape["clients"] >= shape["steps"] * shape["batch"]
        assert shape["participants"] <= shape["clients"]


def test_data_and_scenario_survive_the_way_to_a_side(tmp_path, monkeypatch):
    data = Data(np.zeros((4, 2, 2, 3), np.uint8), np.arange(4), np.arange(4).reshape(2, 2))
    save(data, str(tmp_path))
    for sent, received in zip(data, load(str(tmp_path)), strict=True):
        np.testing.assert_array_equal(sent, received)
    scenario = Scenario(
        **federated_round.SHAPES["silo"], rounds=1, threads=2, data=str(tmp_path), variant="wsa"
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
