"""Settings are checked before the first cell runs; a cell that fails leaves the others whole."""

import dataclasses
import json

import pytest

from benchmarks import __main__ as command
from benchmarks.federated import check_cells, run_cells
from benchmarks.federated.cell import Cell
from benchmarks.federated.check_cells import complaint_of
from benchmarks.federated.experiment import Experiment, ordered_cells
from benchmarks.record.ledger import Ledger
from benchmarks.refused import RefusedError
from benchmarks.registry import EXPERIMENTS, script
from wsa_jax.federated import simulate

SMOKE = ["federated", "--preset", "smoke", "--no-progress"]


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("--strength 1e6 1", "unstable in layer Dense_1/kernel: .* use the proximal form"),
        ("--strength -1", "strength -1.0 is not a non-negative number"),
        ("--strength nan", "strength nan is not a non-negative number"),
        ("--clients 0", "clients must be a positive integer, got 0"),
        ("--clients 5000", "clients=5000 must lie in 1 .. 1442"),
        ("--participation 9", "participants 9 of 4 clients"),
        ("--participation 0", "participants 0 of 4 clients"),
        ("--alpha 0.5 0", "alpha=0.0 must be positive and finite"),
        ("--alpha nan", "alpha=nan must be positive and finite"),
        ("--dataset zz", "unknown dataset 'zz': choose from cifar10"),
        ("--rounds 0", "rounds must be a positive integer, got 0"),
        ("--learning-rate -0.1", "learning_rate -0.1 is not a non-negative number"),
        ("--algorithm fed_prox --mu nan", "mu"),
        ("--model vgg8", "model vgg8 takes no images of 8x8: 5 max-pools"),
        ("--model vgg8 --width 0", "width 0.0 is not positive"),
        ("--window 5 2 --strength 1", "window 5 2 holds no round"),
        ("--seed 0 -1", "seed -1 is below 0"),
        ("--partition shards --shards-per-client 0", "shards_per_client=0 must be at least 1"),
        ("--target fixed --target-std 0 --strength 1", "target std 0.0 is not positive"),
    ],
)
def test_no_cell_runs_where_one_cannot(given, complaint, tmp_path, capsys):
    with pytest.raises(RefusedError, match=complaint) as refusal:
        command.main([*SMOKE, "--output", str(tmp_path), *given.split()])
    assert refusal.value.code == 2
    told = capsys.readouterr()
    (line,) = told.err.splitlines()
    assert line == str(refusal.value)
    assert told.out == ""
    assert not (tmp_path / "federated.jsonl").exists()


def test_each_complaint_has_one_line_with_the_number_of_its_cells(tmp_path, capsys):
    given = ["--strength", "0", "1", "-1", "--seed", "0", "1", "--rounds", "2"]
    with pytest.raises(RefusedError):
        command.main([*SMOKE, "--output", str(tmp_path), *given, "--alpha", "0.5", "0"])
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1][:12] for line in lines] == ["strength -1.", "alpha=0.0 mu"]
    # Two strengths and two seeds of one alpha; of the third strength both alphas.
    assert [line.split(" and ")[1].split(" more")[0] for line in lines] == ["3", "3"]


def test_cells_on_record_are_not_checked_again(tmp_path, monkeypatch):
    monkeypatch.setattr(run_cells, "check_cells", lambda cells, data_dir: asked.extend(cells))
    cells = [Cell(dataset="digits", model="mlp", seed=seed).canonical() for seed in (0, 1)]
    ledger = Ledger(tmp_path / "rows.jsonl")
    for cell in cells:
        ledger.write(run_cells.new_row(cell) | {"status": "done"})
    asked = []
    assert len(run_cells.run_cells(cells, run_cells.RunOptions(), ledger)) == 2
    assert asked == []


@pytest.mark.parametrize("preset", ["short", "cpu", "paper"])
@pytest.mark.parametrize(
    "name", [name for name in EXPERIMENTS if isinstance(script(name), Experiment)]
)
def test_the_experiments_own_cells_pass(name, preset, monkeypatch):
    # Without data, and without drawing the initial weights of large networks.
    monkeypatch.setattr(check_cells, "missing_data", lambda *_: "absent")
    monkeypatch.setattr(check_cells, "_check_strength", lambda cell: None)
    found = script(name)
    args = dataclasses.replace(found.arguments(), preset=preset)
    cells = ordered_cells(found.comparisons(args), found.seeds[preset])
    assert [complaint_of(cell, None) for cell in cells] == [None] * len(cells)


def test_a_cell_that_fails_leaves_the_others_whole(tmp_path, monkeypatch, capsys):
    def failing(key, task, train, partition, *, rounds, wsa, **options):
        if wsa is not None and wsa.strength == 1.0:
            raise ValueError("client 3 is lost\nand more of it")
        return simulate(key, task, train, partition, rounds=rounds, wsa=wsa, **options)

    monkeypatch.setattr(run_cells, "simulate", failing)
    given = [*SMOKE, "--output", str(tmp_path), "--strength", "1", "0"]
    with pytest.raises(SystemExit) as ended:
        command.main(given)
    assert ended.value.code == 1
    told = capsys.readouterr()
    assert told.err == "1 failed; start again to try them once more\n"
    last = json.loads(told.out.splitlines()[-1])
    label = "FedAvg +WSA 1, digits, 4 clients, seed 0"
    assert last["failed"] == {label: "ValueError: client 3 is lost"}
    assert last["accuracy"][label] is None
    assert last["mean_accuracy"] == last["accuracy"]["FedAvg, digits, 4 clients, seed 0"] > 0
    failed, done = Ledger(tmp_path / "federated.jsonl").rows()
    assert (failed["status"], failed["reason"]) == ("failed", "ValueError: client 3 is lost")
    assert (done["status"], failed["rounds_done"]) == ("done", 0)

    # Started again, it is tried again, and what it said before is gone.
    monkeypatch.setattr(run_cells, "simulate", simulate)
    command.main(given)
    again, _ = Ledger(tmp_path / "federated.jsonl").rows()
    assert (again["id"], again["status"], "reason" in again) == (failed["id"], "done", False)
    assert "failed" not in json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_window_bounds_the_steps_that_count():
    cell = Cell(dataset="digits", model="mlp", clients=4, participants=4, strength=400.0)
    assert "unstable" in complaint_of(cell.canonical(), None)
    # By then the rate has decayed to a tenth.
    late = dataclasses.replace(cell, rounds=1500, window=(1200, -1)).canonical()
    assert complaint_of(late, None) is None
