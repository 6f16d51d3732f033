"""The scripts of the paper's federated tables and figures: runs, tables, ids, verdicts."""

import doctest
import importlib
import json

import numpy as np
import pytest

from benchmarks.federated import best_against_best, paper_numbers
from benchmarks.federated.cell import Cell
from benchmarks.federated.comparison import (
    Comparison,
    comparison_table,
    paired_curves,
    paired_gains,
)
from benchmarks.federated.experiment import Args, ordered_cells, recorded
from benchmarks.federated.figures import on_shared_seeds
from benchmarks.federated.rounds_to_accuracy import reached
from benchmarks.record.figures import shared_length
from benchmarks.record.ledger import RESULTS, Ledger, cell_id
from benchmarks.refused import RefusedError
from benchmarks.registry import script
from tests.benchmarks.planting import plant, planted_row
from wsa_jax.runs.identity import digest

SCRIPTS = (
    "table2_cross_silo",
    "table3_cross_device",
    "fig9_vgg8",
    "fig10_windows",
    "fig11_scope_trajectories",
    "fig12_predefined_targets",
    "what_makes_the_gain",
    "strength_sweep",
    "heterogeneous_clients",
    "extreme_noniid",
    "rounds_to_accuracy",
    "best_against_best",
)


def module(name):
    return importlib.import_module(f"benchmarks.federated.{name}")


def last_line(capsys):
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def smoke_folder(tmp_path_factory):
    """One ledger for all scripts' smoke presets: what one has run, the next one skips."""
    return tmp_path_factory.mktemp("smoke")


@pytest.mark.parametrize("name", SCRIPTS)
def test_smoke_preset_runs_and_reports_where_it_is_told(name, smoke_folder, capsys):
    before = {path.name: digest(np.fromfile(path, np.uint8)) for path in RESULTS.iterdir()}
    script(name)(["--preset", "smoke", "--no-progress", "--output", str(smoke_folder)])
    last = last_line(capsys)
    assert (last["benchmark"], last["preset"]) == (name, "smoke")
    assert (smoke_folder / f"{name}.png").stat().st_size > 10_000
    assert all(row["status"] == "done" for row in Ledger(smoke_folder / "federated.jsonl").rows())
    after = {path.name: digest(np.fromfile(path, np.uint8)) for path in RESULTS.iterdir()}
    assert after == before


@pytest.mark.parametrize("preset", ["smoke", "short", "cpu", "paper"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_cells_of_every_preset_are_canonical_and_distinct(name, preset):
    args = Args(preset=preset)
    if name == "best_against_best":
        cells = [cell for side in best_against_best.trials(args) for cell in side]
    else:
        cells = ordered_cells(module(name).comparisons(args), (0, 1))
    assert all(cell == cell.canonical() for cell in cells)
    assert len({cell_id(cell) for cell in cells}) == len(cells) >= 2


def test_dry_run_lists_cells_and_runs_nothing(tmp_path, capsys):
    args = Args(preset="smoke")
    first, second, third = ordered_cells(module("strength_sweep").comparisons(args), (0,))
    ledger = Ledger(tmp_path / "federated.jsonl")
    ledger.write(planted_row(first, 0.5))
    ledger.write(planted_row(second, 0.4, rounds=2))
    text = ledger.path.read_text()
    options = ["--preset", "smoke", "--dry-run", "--output", str(tmp_path)]
    script("strength_sweep")(options)
    lines = capsys.readouterr().out.splitlines()
    expected = ((first, " done "), (second, " 2 of 3 rounds "), (third, " to run "))
    for line, (cell, state) in zip(lines, expected, strict=False):
        assert line.startswith(cell_id(cell))
        assert state in line
    assert json.loads(lines[-1])["done"] == 1
    assert ledger.path.read_text() == text


@pytest.mark.parametrize("name", ["strength_sweep", "best_against_best"])
def test_scripts_with_strengths_of_their_own_take_none(name):
    with pytest.raises(RefusedError, match="--strength"):
        script(name)(["--preset", "smoke", "--dry-run", "--strength", "2"])


def test_cells_without_data_are_listed_and_left_out(tmp_path, capsys):
    options = ["--preset", "cpu", "--data-dir", str(tmp_path), "--output", str(tmp_path)]
    options += ["--results", str(tmp_path / "rows.jsonl"), "--runs", str(tmp_path / "runs")]
    with pytest.raises(SystemExit, match="nothing to report"):
        script("fig11_scope_trajectories")(options)
    assert capsys.readouterr().out.count("no data here") == 3
    script("fig11_scope_trajectories")([*options, "--dry-run"])
    assert capsys.readouterr().out.count("no data here") == 3


def test_table_puts_our_numbers_beside_the_papers(tmp_path, capsys):
    lines = module("table2_cross_silo").comparisons(Args(preset="paper"))
    line = lines[0]
    ledger = Ledger(tmp_path / "rows.jsonl")
    for seed, accuracy in ((0, 0.60), (1, 0.62)):
        ledger.write(planted_row(line.baseline, accuracy, seed=seed))
    ledger.write(planted_row(line.treated, 0.63, seed=0))
    ledger.write(planted_row(line.treated, 0.66, seed=1))
    table = comparison_table(lines[:2], recorded(ledger, (0, 1))).splitlines()
    assert table[0].startswith(
        "| data | setting | seeds | rounds | baseline, % ± std | setting, % ± std "
        "| gain, paired ± 95 % interval |"
    )
    assert "paper, 1,500 rounds: baseline" in table[0]
    assert table[2] == (
        "| CIFAR-10, alpha 0.5 | FedAvg +WSA | 0, 1 | 1500 | 61.00 ± 1.41 | 64.50 ± 2.12 "
        "| +3.50 ± 6.35 (2 seeds) | 68.42 | 72.39 | +3.97 |"
    )
    # Not run: the paper's numbers stand alone.
    assert table[3] == (
        "| CIFAR-10, alpha 0.5 | FedProx +WSA |  | 0 of 1500 |  |  |  | 68.40 | 72.49 | +4.09 |"
    )
    options = ["--preset", "paper", "--report-only", "--seed", "0", "1"]
    script("table2_cross_silo")(
        [*options, "--results", str(ledger.path), "--output", str(tmp_path)]
    )
    line = last_line(capsys)["lines"][0]
    assert line["gain"] == pytest.approx(3.5)
    assert (line["seeds"], line["rounds"], line["paper_rounds"]) == ([0, 1], [1500, 1500], 1500)


def test_baseline_counts_only_the_settings_seeds(tmp_path):
    line = module("strength_sweep").comparisons(Args(preset="short"))[0]
    ledger = Ledger(tmp_path / "rows.jsonl")
    for seed, accuracy in ((0, 0.40), (1, 0.50)):
        ledger.write(planted_row(line.baseline, accuracy, seed=seed))
    table = comparison_table([line], recorded(ledger, (0, 1)))
    assert table.endswith("+WSA 10 |  | 0 of 100 | 45.00 ± 7.07 |  |  |")
    ledger.write(planted_row(line.baseline, 0.30, seed=1, rounds=20))
    table = comparison_table([line], recorded(ledger, (1,)))
    assert table.endswith("+WSA 10 |  | 0 of 100 | 30.00 (round 20 of 100) |  |  |")
    ledger.write(planted_row(line.baseline, 0.50, seed=1))
    ledger.write(planted_row(line.treated, 0.41, seed=0, rounds=50))
    table = comparison_table([line], recorded(ledger, (0, 1)))
    assert "+WSA 10 | 0 | 50 of 100 | 32.00 | 41.00 | +9.00 (1 seed) |" in table
    # Of one seed there is nothing to spread.
    assert "±" not in table


def test_dropped_updates_are_reported(tmp_path, capsys):
    cell, *_ = ordered_cells(module("strength_sweep").comparisons(Args(preset="smoke")), (0,))
    ledger = Ledger(tmp_path / "federated.jsonl")
    for seed, dropped in ((0, 7), (1, 0), (2, 3)):
        ledger.write(planted_row(cell, 0.5, seed=seed) | {"dropped": dropped})
    options = ["--preset", "smoke", "--report-only", "--output", str(tmp_path)]
    script("strength_sweep")([*options, "--seed", "0", "1", "2"])
    expected = "FedAvg, digits, 4 clients: 10 updates were not finite and were dropped."
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize(
    "name",
    [
        "federated.comparison",
        "record.claims",
        "record.figures",
        "record.statistics",
        "federated.paired_claims",
        "report.pages",
        "script",
        "speed.claims",
        "record.ledger",
        "federated.fig10_windows",
        "federated.rounds_to_accuracy",
        "merging.np_merge_table",
    ],
)
def test_examples_in_docstrings(name):
    result = doctest.testmod(importlib.import_module(f"benchmarks.{name}"))
    assert result.attempted
    assert not result.failed


def test_papers_tables_are_whole():
    for table in (paper_numbers.TABLE2, paper_numbers.TABLE3):
        assert len(table) == 6
        assert all(len(algorithms) == 4 for algorithms in table.values())
        # The paper's bold figures: +WSA is the better one everywhere.
        assert all(a < b for algorithms in table.values() for a, b in algorithms.values())


def test_seeds_are_paired_at_rounds_that_both_evaluated():
    cell = Cell(strength=1.0).canonical()
    ours = [planted_row(cell, 0.5, seed=seed) for seed in (1, 0)]
    theirs = [planted_row(Cell().canonical(), 0.4, seed=0, rounds=50)]
    curves = paired_curves(ours, theirs)
    assert list(curves) == [0]
    assert curves[0][0] == [10, 20, 30, 40, 50]
    assert paired_gains(ours, theirs) == [curves[0][1][-1]]
    assert paired_gains(ours, []) == []


def test_a_seed_just_begun_does_not_cut_the_others():
    runs = [(list(range(n)), [0.0] * n) for n in (10, 6, 1, 0)]
    assert [len(x) for x, _ in shared_length(runs)] == [6, 6]
    assert shared_length([]) == []


def test_panels_show_the_seeds_that_all_their_settings_have(tmp_path):
    group = module("strength_sweep").comparisons(Args(preset="short"))[:3]
    ledger = Ledger(tmp_path / "rows.jsonl")
    for cell, seeds in ((group[0].baseline, (0, 1)), (group[0].treated, (0, 1))):
        for seed in seeds:
            ledger.write(planted_row(cell, 0.5, seed=seed))
    ledger.write(planted_row(group[1].treated, 0.5, seed=1))
    rows_of = on_shared_seeds(group, recorded(ledger, (0, 1)))
    cells = (group[0].baseline, group[0].treated, group[1].treated, group[2].treated)
    assert [[row["config"]["seed"] for row in rows_of(cell)] for cell in cells] == [
        [1],
        [1],
        [1],
        [],
    ]


def test_rounds_to_accuracy_says_how_many_seeds_got_there():
    rows = [
        {"curve": [[10, 0.3, 1.0], [20, 0.5, 1.0]]},
        {"curve": [[10, 0.5, 1.0], [20, 0.45, 1.0]]},
        {"curve": [[10, 0.1, 1.0]]},
    ]
    assert reached(rows[:2], 45) == "15"
    assert reached(rows, 45) == "15 (2 of 3 seeds)"
    assert reached(rows, 90) == ""


@pytest.mark.parametrize(
    ("gains", "expected"),
    [((0.05, 0.051), "gain"), ((-0.05, -0.051), "loss"), ((0.02, -0.03), "undecided")],
)
def test_best_against_best_decides_on_planted_rows(gains, expected, tmp_path, capsys):
    args = Args(preset="smoke")
    ledger = Ledger(tmp_path / "federated.jsonl")
    baseline, wsa = best_against_best.trials(args)
    # The second of each side wins on validation.
    for side in (baseline, wsa):
        plant(ledger, side, lambda cell, best=side[1]: 0.6 if cell == best else 0.5)
    comparison = best_against_best.final(args, ledger)
    assert isinstance(comparison, Comparison)
    assert comparison.baseline.learning_rate == baseline[1].learning_rate
    assert comparison.treated.strength == wsa[1].strength
    assert {comparison.baseline.evaluate_on, comparison.treated.evaluate_on} == {"test"}
    options = ["--preset", "smoke", "--report-only", "--output", str(tmp_path)]
    best_against_best.SCRIPT(options)
    assert last_line(capsys)["verdict"] == "open"
    for seed, gain in zip((1, 2), gains, strict=True):
        ledger.write(planted_row(comparison.baseline, 0.5, seed=seed))
        ledger.write(planted_row(comparison.treated, 0.5 + gain, seed=seed))
    # Gains stand beside their seeds, in whatever order those were given.
    best_against_best.SCRIPT([*options, "--seed", "2", "1"])
    last = last_line(capsys)
    assert last["verdict"] == expected
    assert last["difference"] == pytest.approx(50 * sum(gains))
    assert last["seeds"] == [1, 2]
    assert last["gains"] == pytest.approx([100 * gain for gain in gains])


def test_best_against_best_gives_both_sides_as_many_trials_and_fresh_seeds(tmp_path):
    for grid in best_against_best.GRIDS.values():
        assert len(grid.baseline) == len(grid.wsa)
        assert 0 not in grid.seeds
    with pytest.raises(SystemExit, match="seed 0 chose"):
        best_against_best.SCRIPT(["--preset", "smoke", "--seed", "0", "--output", str(tmp_path)])


def test_unfinished_trials_leave_the_winner_open(tmp_path):
    args = Args(preset="smoke")
    ledger = Ledger(tmp_path / "rows.jsonl")
    baseline, wsa = best_against_best.trials(args)
    plant(ledger, [*baseline, wsa[0]], lambda cell: 0.5)
    ledger.write(planted_row(wsa[1], 0.9, rounds=1))
    assert best_against_best.final(args, ledger) is None
    # One that diverged is finished, and the worst.
    ledger.write(planted_row(wsa[1], 0.9) | {"status": "diverged"})
    comparison = best_against_best.final(args, ledger)
    assert comparison.treated.strength == wsa[0].strength


def test_processes_share_the_folder_that_they_are_told(tmp_path):
    several = ["--preset", "smoke", "--processes", "2", "--dry-run"]
    with pytest.raises(SystemExit, match="--processes 2 and no --output"):
        script("strength_sweep")(several)
    script("strength_sweep")([*several, "--output", str(tmp_path)])
