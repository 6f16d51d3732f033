"""The federated benchmark: its cells, its ledger, its smoke preset and its report."""

import json

import pytest

from benchmarks.federated.cell import Cell
from benchmarks.federated.first_record import by_label, markdown, paired_gain
from benchmarks.federated.grid import STUDY, Args, cells_of
from benchmarks.record.ledger import Ledger, cell_id
from benchmarks.registry import TOOLS, script
from tests.benchmarks.planting import planted_row


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The smoke preset with and without WSA, run once, and what it left behind."""
    folder = tmp_path_factory.mktemp("smoke")
    arguments = [
        "--preset",
        "smoke",
        "--strength",
        "0",
        "1",
        "--no-progress",
        "--results",
        str(folder / "rows.jsonl"),
        "--runs",
        str(folder / "runs"),
    ]
    script("federated")(arguments)
    return folder, arguments


def test_smoke_preset_writes_one_finished_row_a_cell(smoke):
    rows = Ledger(smoke[0] / "rows.jsonl").rows()
    assert [row["label"] for row in rows] == [
        "FedAvg, digits, 4 clients",
        "FedAvg +WSA 1, digits, 4 clients",
    ]
    for row in rows:
        assert row["status"] == "done"
        assert row["rounds_done"] == row["config"]["rounds"] == len(row["curve"]) == 3
        assert row["accuracy"] == row["curve"][-1][1]
        assert {"jax", "python"} <= row["versions"].keys()
        assert row["machine"]["cores"] >= 1


def test_finished_cells_are_skipped_and_the_last_line_is_json(smoke, capsys):
    before = (smoke[0] / "rows.jsonl").read_text()
    script("federated")(smoke[1])
    output = capsys.readouterr().out
    assert output.count("skipped") == 2
    assert json.loads(output.strip().splitlines()[-1])["accuracy"].keys() == {
        "FedAvg, digits, 4 clients, seed 0",
        "FedAvg +WSA 1, digits, 4 clients, seed 0",
    }
    assert (smoke[0] / "rows.jsonl").read_text() == before


def test_an_interrupted_cell_resumes_to_the_same_curve(smoke, tmp_path):
    class InterruptedRunError(Exception):
        pass

    class Interrupting(Ledger):
        def write(self, row):
            super().write(row)
            if row["rounds_done"] == 2:
                raise InterruptedRunError

    from benchmarks.federated.run_cells import run_cell

    args = Args(preset="smoke", progress=False, runs=tmp_path / "runs")
    (cell,) = cells_of(args)
    path = tmp_path / "rows.jsonl"
    with pytest.raises(InterruptedRunError):
        run_cell(cell, args, Interrupting(path))
    assert Ledger(path).rows()[0]["status"] == "started"
    row = run_cell(cell, args, Ledger(path))
    assert row["curve"] == Ledger(smoke[0] / "rows.jsonl").rows()[0]["curve"]


def test_grid_is_the_product_of_lists_and_each_cell_once():
    cells = cells_of(Args(strength=(0.0, 10.0), form=("gradient", "proximal"), seed=(0, 1)))
    # Two seeds of the plain algorithm, whatever the form, and two of each form.
    assert len(cells) == 2 + 4
    assert len({cell_id(cell) for cell in cells}) == 6


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"study": True, "seed": (5,)}, "--study has cells of its own, --seed 5 would"),
        ({"window": (0, 5)}, "--window 0 5 changes no cell here; give a --strength above 0"),
        ({"target_std": 0.05, "strength": (0.0,)}, "--target-std 0.05 changes no cell"),
        ({"target_std": 0.05, "strength": (1.0,)}, "give --target fixed"),
        ({"mu": 0.5}, "--mu 0.5 changes no cell here; give --algorithm fed_prox"),
        ({"width": 0.5, "dataset": "digits"}, "give --model cnn or vgg8"),
        ({"kernel_size": 3, "model": "vgg8"}, "give --model cnn"),
        ({"shards_per_client": 2}, "give --partition shards"),
        ({"partition": "iid", "alpha": (0.1,)}, "--alpha 0.1 changes no cell"),
        ({"form": ("proximal",)}, "--form proximal changes no cell"),
    ],
)
def test_a_setting_that_no_cell_keeps_is_refused(given, complaint):
    with pytest.raises(SystemExit, match=complaint):
        cells_of(Args(**given))


def test_settings_that_some_cell_keeps_are_taken():
    grid = {"algorithm": ("fed_avg", "fed_prox"), "mu": 0.5, "form": ("proximal",)}
    cells = cells_of(Args(**grid, strength=(0.0, 1.0), target=("fixed",), target_std=0.05))
    assert len(cells) == 4
    assert len(cells_of(Args(study=True, clients=5, dataset="digits"))) == len(STUDY)


def test_smoke_runs_stay_where_they_are_told(tmp_path, capsys):
    where = ["--preset", "smoke", "--output", str(tmp_path)]
    script("federated")([*where, "--dry-run"])
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["cells"], last["done"]) == (1, 0)
    with pytest.raises(SystemExit, match=f"{tmp_path}/federated.jsonl holds none of these cells"):
        script("federated")([*where, "--report-only"])
    (cell,) = cells_of(Args(preset="smoke", evaluate_on="validation"))
    Ledger(tmp_path / "federated.jsonl").write(planted_row(cell, 0.5))
    script("federated")([*where, "--report-only", "--evaluate-on", "validation"])
    output = capsys.readouterr().out
    assert "Validation accuracy, %" in output
    assert json.loads(output.splitlines()[-1])["mean_accuracy"] == 0.5


def test_id_ignores_what_cannot_matter_and_nothing_else():
    plain = Cell(strength=0.0, form="proximal", target_std=3.0).canonical()
    assert cell_id(plain) == cell_id(Cell().canonical())
    assert cell_id(Cell(strength=1.0).canonical()) != cell_id(
        Cell(strength=1.0, seed=1).canonical()
    )


def test_study_holds_what_the_first_record_needs():
    cells = cells_of(Args(study=True))
    assert len(cells) == len(STUDY)
    baseline = [cell for cell in cells if cell.strength == 0 and cell.init == "reference"]
    assert {cell.seed for cell in baseline} == {0, 1}
    assert {"gradient", "proximal"} <= {cell.form for cell in cells}


def test_report_pairs_seeds_and_rounds(smoke, tmp_path, capsys):
    def row(seed, *accuracies):
        curve = [[10 * (i + 1), value, 1.0] for i, value in enumerate(accuracies)]
        return {"config": {"seed": seed}, "curve": curve}

    # Seed 1 has no partner; the unfinished run of seed 0 is compared at the round both reached.
    assert paired_gain([row(0, 0.5)], [row(0, 0.4, 0.9), row(1, 0.1)]) == pytest.approx(10.0)
    groups = by_label(Ledger(smoke[0] / "rows.jsonl").rows())
    assert markdown(groups, 3).count("\n") == 3
    folder = tmp_path / "not made yet"
    script("first_record", TOOLS)(
        ["--results", str(smoke[0] / "rows.jsonl"), "--output", str(folder), "--rounds", "3"]
    )
    assert "gain" in json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert (folder / "first_record_3.png").stat().st_size > 10_000
