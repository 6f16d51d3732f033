"""The scripts of the merging experiments: smoke runs, ledgers, splits, choices.

Four smoke runs are long: they take half of the time, and train, match, merge and record as the
others do. Their reports and figures are tested on planted rows in test_partial, and the methods
that they compare with the library.
"""

import functools
import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from benchmarks.federated.np_merge_federated import FederatedMerge
from benchmarks.merging import fig6_rebasin
from benchmarks.merging.bench import MergingExperiment
from benchmarks.merging.merge_rows import choose_rates
from benchmarks.merging.model_cell import ModelCell, part_indices
from benchmarks.merging.pairs import pair_cells
from benchmarks.record.ledger import RESULTS, Ledger, cell_id
from benchmarks.registry import script
from benchmarks.script import Findings

# In an order in which later scripts find the models of earlier ones.
SCRIPTS = {
    "fig6_rebasin": [],
    "sanity_matching": [],
    "fig5_otfusion": [],
    "fig3_gaussianity": [],
    "table1_conditions": [],
    "fig1_optimizers": [],
    "fig4_scaling": [],
    "fig7_landscape": [],
    "graphs": [],
    "pretrained": [],
    "np_merge_table": ["--split", "all"],
    "merging_grid": [],
    "repair_anchors": [],
    "np_merge_data": [],
    "align_settings": [],
    "np_merge_many": [],
    "coefficients": [],
    "np_merge_federated": [],
}
LONG = ("fig6_rebasin", "fig4_scaling", "np_merge_table", "np_merge_many")


@pytest.fixture(scope="module")
def smoke_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("merging")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name in LONG)) for name in SCRIPTS]
)
def test_smoke_preset_runs_and_reports_where_it_is_told(name, smoke_folder, capsys, monkeypatch):
    before = sorted(path.name for path in RESULTS.iterdir())
    main = script(name)
    where = ["--preset", "smoke", "--output", str(smoke_folder)]
    main([*where, *SCRIPTS[name]])
    first = capsys.readouterr().out.splitlines()
    last = json.loads(first[-1])
    assert (last["benchmark"], last["preset"]) == (name, "smoke")
    assert (smoke_folder / f"{name}.png").stat().st_size > 10_000
    assert sorted(path.name for path in RESULTS.iterdir()) == before
    # What is recorded is reported again, word for word, and nothing is trained; the figures are
    # made again, and not written: that is half of their time.
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)
    main([*where, *SCRIPTS[name], "--report-only"])
    assert capsys.readouterr().out.splitlines() == first


def test_a_report_of_nothing_says_so(tmp_path):
    with pytest.raises(SystemExit, match="holds none of these rows: nothing to report"):
        fig6_rebasin.SCRIPT(["--preset", "smoke", "--output", str(tmp_path), "--report-only"])


@pytest.mark.parametrize("split", ["80-20", "dirichlet", "classes"])
def test_parts_are_disjoint_and_together_everything(split):
    labels = np.random.default_rng(0).integers(0, 10, 1_000)
    cell = ModelCell(split=split, parts=3, seed=5)
    parts = [part_indices(part, labels, 10) for part in pair_cells(cell, 1)]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(1_000))
    classes = [set(labels[part]) for part in parts]
    assert bool(classes[0] & classes[1]) == (split != "classes")


def test_80_20_gives_a_model_four_fifths_of_its_classes():
    labels = np.repeat(np.arange(10), 100)
    part = part_indices(pair_cells(ModelCell(split="80-20"), 0)[0], labels, 10)
    counts = np.bincount(labels[part], minlength=10)
    assert sorted(counts) == [20] * 5 + [80] * 5


def test_a_pair_has_weights_and_data_order_of_its_own():
    first, second = pair_cells(ModelCell(), 3)
    assert (first.seed, second.seed, first.part, second.part) == (6, 7, 0, 1)
    assert cell_id(first) != cell_id(second)


def test_the_competitor_of_least_validation_loss_is_chosen():
    def row(loss):
        return {"weight": [{"validation": {"loss": [0.0, loss, 0.0], "barrier": -loss}}]}

    names = [fig6_rebasin.name_of(extra) for extra in fig6_rebasin.WSA]
    rows = dict(zip(names, map(row, (2.0, 1.0, 3.0)), strict=True))
    assert fig6_rebasin.choose(rows, fig6_rebasin.WSA) == fig6_rebasin.WSA[1]


def test_each_method_gets_its_own_best_rate():
    scores = {("NP Merge", 0.1): 0.5, ("NP Merge", 0.3): 0.6}
    scores |= {("fine-tuning", 1e-3): 0.9, ("fine-tuning", 1e-4): 0.8}

    def score(method, rates):
        return scores[method, rates[0] if method == "NP Merge" else rates[1]]

    assert choose_rates(score, [(0.1, 1e-3), (0.3, 1e-4)]) == (0.3, 1e-3)


def test_rows_of_other_settings_have_other_ids(tmp_path):
    from benchmarks.merging.pairs import PathCell

    ledger = Ledger(tmp_path / "rows.jsonl")
    cells = [
        PathCell(model="m", first="a", second="b", align=align) for align in ("none", "weight")
    ]
    for cell in cells:
        ledger.write({"id": cell_id(cell), "status": "done"})
    assert len(ledger.rows()) == 2


def test_a_row_that_fails_is_tried_again_and_leaves_the_others_whole(tmp_path, capsys):
    cells = {name: FederatedMerge(dataset="digits", seed=seed) for seed, name in enumerate("ab")}
    losses = {"a": [ValueError("no data of class 3\nand more"), 0.5], "b": [1.0]}

    def collect(bench, args):
        def make(name):
            found = losses[name].pop(0)
            if isinstance(found, Exception):
                raise found
            return {"loss": found}

        rows = [bench.row(cell, functools.partial(make, name)) for name, cell in cells.items()]
        return [row for row in rows if row is not None]

    tried = MergingExperiment(
        name="tried",
        description="A trial.",
        collect=collect,
        report=lambda bench, args, rows: Findings(
            title="A trial", text="", summary={"losses": [row["loss"] for row in rows]}
        ),
    )
    where = ["--preset", "smoke", "--output", str(tmp_path)]
    with pytest.raises(SystemExit) as ended:
        tried(where)
    assert ended.value.code == 1
    told = capsys.readouterr()
    name = cell_id(cells["a"])
    last = json.loads(told.out.splitlines()[-1])
    assert last["losses"] == [1.0]
    assert last["failed"] == {name: "ValueError: no data of class 3"}
    assert (
        told.err.splitlines()[0] == f"FederatedMerge {name} failed: ValueError: no data of class 3"
    )
    failed, done = Ledger(tmp_path / "merging.jsonl").rows()
    assert (failed["status"], done["status"]) == ("failed", "done")
    tried(where)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["losses"] == [0.5, 1.0]
