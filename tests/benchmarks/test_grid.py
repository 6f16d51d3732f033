"""The merging grid and what stands beside it: methods, tables, gains, refusals; nothing trains."""

import numpy as np
import pytest

from benchmarks.merging import fig5_otfusion, merging_grid, repair_anchors, sanity_matching
from benchmarks.merging.bench import MergingArgs
from benchmarks.merging.grid_methods import (
    AVERAGE,
    NP,
    RESET,
    averaged,
    combines_of,
    method_name,
    methods_of,
    spherical,
)
from benchmarks.merging.model_cell import ModelCell, model_data
from benchmarks.refused import RefusedError
from wsa_jax.merging import Evidence, Model
from wsa_jax.merging.evidence import Budget
from wsa_jax.training.task import Task

MLP, RESNET = merging_grid.NETWORKS["cpu"]["mlp"], merging_grid.RESNET


def model(scale):
    def leaf(*values):
        return np.array(values, np.float32) * np.float32(scale)

    return Model({"w": leaf(3.0, 0.0)}, {"batch_stats": {"mean": leaf(1.0, 2.0)}})


def test_a_network_is_repaired_by_what_it_admits():
    plain, normed = set(combines_of(MLP)), set(combines_of(RESNET))
    assert (AVERAGE, "REPAIR, closed form") in plain
    assert (NP, "REPAIR, closed form") not in plain
    assert {repair for _, repair in normed} == {"none", RESET}
    assert {name for name, _ in plain} == {name for name, _ in normed} == {AVERAGE, "slerp", NP}
    methods = methods_of(MLP, "zip")
    assert set(methods) == {method_name(*column) for column in plain}
    assert {method.align for method in methods.values()} == {"zip"}
    assert methods["NP Merge, REPAIR"].needs == ("labels",)
    assert methods["average, REPAIR"].repair == "forward"


def test_an_average_as_it_is_averages_statistics_and_slerp_keeps_norms():
    models = [model(1.0), Model({"w": np.array([0, 3], np.float32)}, model(3.0).model_state)]
    given = models, Evidence(Task(len, len, len), np.zeros((1, 1))), Budget()
    found = averaged(None, *given)
    np.testing.assert_allclose(found.params["w"], [1.5, 1.5])
    np.testing.assert_allclose(found.model_state["batch_stats"]["mean"], [2.0, 4.0])
    found = spherical(False)(None, *given)
    # Half-way on the circle of radius 3.
    np.testing.assert_allclose(found.params["w"], [3 / np.sqrt(2)] * 2, rtol=1e-6)
    np.testing.assert_allclose(found.model_state["batch_stats"]["mean"], [2.0, 4.0])


def rows_of(cell, **methods):
    """Rows of a grid whose accuracies, in percent, are planted by align and method; ends 50."""
    found = {}
    for align, lines in methods.items():
        named = [("model 1", [50.0] * 2), ("model 2", [50.0] * 2)]
        named += [
            (f"{merging_grid.ALIGNS[align]}: {method_name(*column)}", values)
            for column, values in lines.items()
        ]
        found[align] = [
            {
                "lines": [
                    {"method": name, "accuracy": None if x is None else x / 100, "loss": x}
                    for name, values in named
                    for x in [values[seed]]
                ]
            }
            for seed in range(2)
        ]
    return found


def test_gains_are_paired_and_means_over_aligns():
    average, mended, learnt = (AVERAGE, "none"), (AVERAGE, "REPAIR"), (NP, "none")
    rows = rows_of(
        MLP,
        none={average: [10.0, 12.0], mended: [20.0, 20.0], learnt: [30.0, 32.0]},
        weight={average: [40.0, 40.0], mended: [41.0, 43.0], learnt: [43.0, 45.0]},
    )
    assert merging_grid.repair_gains(MLP, rows) == pytest.approx([1.0, 3.0])
    # (10 + 2) / 2 and (12 + 2) / 2.
    assert merging_grid.learning_gains(MLP, rows) == pytest.approx([6.0, 7.0])
    assert merging_grid.align_gains(MLP, rows, "weight", "none") == pytest.approx([21.0, 23.0])
    better = rows_of(MLP, none={average: [15.0, 15.0]}, weight={average: [41.0, 42.0]})
    trainings = {"without WSA": rows, "with WSA": better}
    # Of the two methods that both have: (5 + 1) / 2 and (3 + 2) / 2.
    assert merging_grid.scope_gains(MLP, trainings) == pytest.approx([3.0, 2.5])
    better["weight"][0]["lines"].pop()
    assert merging_grid.scope_gains(MLP, trainings) == pytest.approx([5.0, 3.0])
    better["none"][1] = {"status": "diverged"}
    assert merging_grid.scope_gains(MLP, trainings) == []


def test_what_is_not_admitted_is_named_in_the_table():
    rows = rows_of(
        RESNET,
        none={column: [30.0, 31.0] for column in combines_of(RESNET)},
        **{"rescaling, weight": {column: [None, None] for column in combines_of(RESNET)}},
    )
    first, second = merging_grid.grid_table(RESNET, rows).splitlines()[2:]
    assert "30.50 ± 0.71" in first
    assert second.count("not admitted") == len(combines_of(RESNET))


def test_published_gains_are_those_of_the_anchors():
    gain = repair_anchors.published_gain(repair_anchors.VGG11)
    assert gain == pytest.approx(84.9 - 67.3)
    for anchor in repair_anchors.NETWORKS["paper"]:
        assert anchor.published.keys() == {"ends", "none", *anchor.published}
        assert len(anchor.published["ends"]) == 2
        assert repair_anchors.published_gain(anchor) > 0


def test_the_whole_of_the_training_data_holds_the_validation_part():
    cell = ModelCell(dataset="digits", model="mlp", whole=True)
    data = model_data(cell, None)
    part = model_data(ModelCell(dataset="digits", model="mlp"), None)
    assert len(data.train[1]) == 1442 == len(part.train[1]) + len(part.validation[1])
    np.testing.assert_array_equal(data.validation[0], part.validation[0])


def test_the_given_folder_comes_first_and_missing_images_are_refused(tmp_path, monkeypatch):
    for name in ("mine", "environment", "system"):
        (tmp_path / name / "fashion-mnist").mkdir(parents=True)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "environment"))
    system = str(tmp_path / "system")
    given = MergingArgs(data_dir=str(tmp_path / "mine"))
    assert sanity_matching.folder_of(given, "fashion-mnist", system) == given.data_dir
    found = sanity_matching.folder_of(MergingArgs(), "fashion-mnist", system)
    assert found == str(tmp_path / "environment")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert sanity_matching.folder_of(MergingArgs(), "fashion-mnist", system) == system
    monkeypatch.setattr(sanity_matching, "DEBIAN", str(tmp_path))
    for script, complaint in (
        (sanity_matching.SCRIPT, "no fashion-mnist/ in --data-dir, TFDS_DATA_DIR or"),
        (fig5_otfusion.SCRIPT, "no prepared 'svhn_cropped' "),
    ):
        settings = ["--dataset", "svhn"] if script is fig5_otfusion.SCRIPT else []
        with pytest.raises(RefusedError) as refusal:
            script(["--data-dir", str(tmp_path), "--results", str(tmp_path), *settings])
        assert refusal.value.code == 2
        (line,) = refusal.value.args[0].splitlines()
        assert line.startswith(complaint)
    assert not list(tmp_path.glob("*.jsonl"))
