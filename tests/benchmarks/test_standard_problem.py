"""The standard problem's cells: their order, and the strength that validation chooses."""

import dataclasses
import json

from benchmarks.federated import standard_problem, what_makes_the_gain
from benchmarks.federated.check_cells import check_cells
from benchmarks.federated.chosen_strength import STRENGTHS
from benchmarks.federated.experiment import CommonArgs
from benchmarks.record.ledger import Ledger
from tests.benchmarks.planting import planted_row


def test_validation_chooses_the_strength_once_all_trials_are_finished(tmp_path):
    args = CommonArgs(preset="cpu")
    cells = standard_problem.trials(args)
    assert [cell.strength for cell in cells] == [1.0, 5.0, 10.0, 50.0]
    assert {cell.evaluate_on for cell in cells} == {"validation"}
    ledger = Ledger(tmp_path / "rows.jsonl")
    for cell, accuracy in zip(cells[:3], (0.4, 0.6, 0.5), strict=True):
        ledger.write(planted_row(cell, accuracy))
    ledger.write(planted_row(cells[3], 0.9, rounds=1000))
    assert standard_problem.chosen_strength(args, ledger) is None
    ledger.write(planted_row(cells[3], 0.3))
    assert standard_problem.chosen_strength(args, ledger) == 5.0


def test_cells_are_ranked_by_alpha_data_set_and_table():
    cells = standard_problem.ranked_cells(CommonArgs(preset="cpu"), 5.0)
    # Two tables, two data sets, two alphas, four algorithms, two sides, three seeds.
    assert len(cells) == len(set(cells)) == 2 * 2 * 2 * 4 * 2 * 3
    assert {cell.strength for cell in cells} == {0.0, 5.0}
    assert all((cell.rounds, cell.side, cell.evaluate_on) == (1500, 16, "test") for cell in cells)
    blocks = [(cell.alpha, cell.dataset, cell.clients) for cell in cells]
    assert list(dict.fromkeys(blocks)) == [
        (alpha, dataset, clients)
        for alpha in (0.5, 1.0)
        for dataset in ("cifar10", "cifar100")
        for clients in (10, 100)
    ]
    assert blocks == sorted(blocks, key=list(dict.fromkeys(blocks)).index)
    first = [(cell.algorithm, cell.seed, cell.strength) for cell in cells[:7]]
    assert first == [
        *(("fed_avg", seed, strength) for seed in (0, 1, 2) for strength in (0.0, 5.0)),
        ("fed_prox", 0, 0.0),
    ]


def test_all_questions_can_be_asked_at_every_strength_of_the_choice(tmp_path):
    args = dataclasses.replace(CommonArgs(preset="cpu"), seed=(0,))
    for strength in (min(STRENGTHS), max(STRENGTHS)):
        # As far as it goes without data: networks, numbers and the bound of explicit forms.
        check_cells(standard_problem.questions(args, strength), str(tmp_path))


def test_questions_are_asked_of_one_seed_after_another():
    cells = standard_problem.questions(CommonArgs(preset="cpu"), 5.0)
    assert all(cell == cell.canonical() for cell in cells)
    assert len(cells) == len(set(cells)) == 3 * 15
    assert [cell.seed for cell in cells] == [0] * 15 + [1] * 15 + [2] * 15
    first = standard_problem.first_cells(CommonArgs(preset="cpu"))
    plain = [cell for cell in cells[:15] if not cell.strength]
    # Controls that ran first are not run again.
    assert set(first[2:]) < set(plain)
    assert {cell.target for cell in cells} == {"none", "fused", "he", "he_fused"}
    # The table of the questions compares these cells, and each with WSA to the same one without.
    args = dataclasses.replace(standard_problem.with_strength(CommonArgs(preset="cpu"), 5.0))
    lines = what_makes_the_gain.comparisons(args)
    assert {line.treated for line in lines} == set(cells[:15])
    with_wsa = [line for line in lines if line.treated.strength]
    assert not any(line.baseline.strength for line in with_wsa)
    assert {line.baseline for line in with_wsa} <= {args.cell(), *plain}


def test_clients_that_differ_come_before_the_rest_of_the_tables():
    args = CommonArgs(preset="cpu")
    following = standard_problem.following_cells(args, 5.0)
    differing = [cell for cell in following if cell.differ != "nothing"]
    assert len(differing) == 3 * 3 * 4
    assert {cell.alpha for cell in following[following.index(differing[-1]) + 1 :]} == {0.5, 1.0}
    assert all(cell.alpha == 0.5 for cell in following[: following.index(differing[0])])
    assert {cell.form for cell in differing} == {"none", "gradient", "proximal"}


def test_dry_run_lists_the_trials_and_then_the_rest(tmp_path, capsys):
    where = ["--preset", "smoke", "--dry-run", "--output", str(tmp_path)]
    ledger = Ledger(tmp_path / "federated.jsonl")

    def last():
        standard_problem.SCRIPT(where)
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    assert (last()["cells"], last()["strength"]) == (5, None)
    for cell, accuracy in zip(
        standard_problem.trials(CommonArgs(preset="smoke")), (0.4, 0.5), strict=True
    ):
        ledger.write(planted_row(cell, accuracy))
    # FedAvg with and without WSA in two tables, the trials, their control, and strength 10.
    assert (last()["cells"], last()["strength"], last()["done"]) == (8, 5.0, 2)


def test_smoke_runs_all_its_cells(tmp_path, capsys):
    where = ["--preset", "smoke", "--no-progress", "--output", str(tmp_path)]
    standard_problem.SCRIPT(where)
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["cells"], last["finished"]) == (4, 4)
    rows = Ledger(tmp_path / "federated.jsonl").rows()
    assert len(rows) == 8
    assert {row["status"] for row in rows} == {"done"}
