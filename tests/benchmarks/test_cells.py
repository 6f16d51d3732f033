"""Cells of the federated ledger: ids, migration of rows, and what they share when they run."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from benchmarks.federated import run_cells as run_cells_module
from benchmarks.federated import table2_cross_silo
from benchmarks.federated.cell import PRESETS, Cell
from benchmarks.federated.cell_parts import cell_partition, cell_task, cell_wsa, federation_data
from benchmarks.federated.cell_row import add_round, new_row
from benchmarks.federated.experiment import Args as TableArgs
from benchmarks.federated.first_record import largest_stability
from benchmarks.federated.grid import Args, cells_of
from benchmarks.federated.run_cells import RunOptions, run_cell, run_cells
from benchmarks.record.data import data_digests
from benchmarks.record.ledger import RESULTS, Ledger, cell_id
from benchmarks.refused import RefusedError
from benchmarks.registry import TOOLS, script
from tests.benchmarks.planting import planted_row
from wsa_jax.federated import simulate


def test_recorded_rows_follow_from_their_configuration():
    rows = Ledger(RESULTS / "federated.jsonl").rows()
    assert rows
    for row in rows:
        cell = Cell.from_config(row["config"])
        assert json.loads(json.dumps(dataclasses.asdict(cell))) == row["config"]
        assert (row["id"], row["label"]) == (cell_id(cell), cell.label)


def test_a_new_field_leaves_ids_alone():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Later(Cell):
        newcomer: int = 3

    settings = {"strength": 10.0, "seed": 1}
    assert cell_id(Later(**settings)) == cell_id(Cell(**settings))
    assert cell_id(Later(**settings, newcomer=4)) != cell_id(Cell(**settings))


def test_the_ids_of_the_first_record_do_not_change():
    # A changed default would rename every recorded row.
    assert cell_id(Cell().canonical()) == "9c375bfebd91"
    assert cell_id(Cell(strength=10.0).canonical()) == "bba5dccf782e"


def test_the_rows_of_100_rounds_at_full_size_are_those_of_preset_short():
    recorded = {row["id"] for row in Ledger(RESULTS / "federated.jsonl").rows()}
    first = {cell_id(cell) for cell in cells_of(Args(preset="short", study=True))}
    assert len(first & recorded) >= 10
    (line, *_) = table2_cross_silo.comparisons(TableArgs(preset="short", rounds=25))
    assert {cell_id(line.baseline), cell_id(line.treated)} <= recorded


def test_the_standard_problem_has_small_images_and_half_the_network():
    cell = Cell(**PRESETS["cpu"]).canonical()
    task = cell_task(cell)
    params, _ = jax.eval_shape(task.init, jax.random.key(0))
    shapes = {name: layer["kernel"].shape for name, layer in params.items()}
    assert shapes == {
        "Conv_0": (3, 3, 3, 16),
        "Conv_1": (3, 3, 16, 32),
        "Dense_0": (128, 192),
        "Dense_1": (192, 96),
        "Dense_2": (96, 10),
    }
    # An eighth of the side, as 4 pixels of 32 are.
    assert dict(task.settings)["augmentation"] == "batch, padding 2"
    assert dict(cell_task(Cell()).settings)["augmentation"] == "batch"


def test_a_side_reaches_the_data_and_their_digests():
    cell = Cell(dataset="digits", model="mlp", side=4)
    (images, labels), (test, _) = federation_data(cell, None)
    assert images.shape[1:] == test.shape[1:] == (4, 4, 1)
    np.testing.assert_array_equal(labels, federation_data(Cell(dataset="digits"), None)[0][1])
    assert data_digests("digits", None, 4) != data_digests("digits", None)


def test_he_scope_is_that_of_the_model_drawn_with_hes_initialisation():
    cell = Cell(dataset="digits", model="mlp", strength=1.0, target="he", seed=3).canonical()
    he, _ = cell_task(dataclasses.replace(cell, init="he")).init(
        jax.random.fold_in(jax.random.key(3), 0)
    )
    stds = {"Dense_0/kernel": he["Dense_0"]["kernel"], "Dense_1/kernel": he["Dense_1"]["kernel"]}
    for wsa in (cell_wsa(cell), cell_wsa(dataclasses.replace(cell, target="he_fused"))):
        scope = wsa.start if wsa.target == "fused" else wsa.target
        assert scope.names == tuple(stds)
        np.testing.assert_allclose(scope.std, [np.std(w) for w in stds.values()], rtol=1e-5)
    assert cell_wsa(cell).start is None
    assert cell_wsa(dataclasses.replace(cell, target="fused", fusion="sum")).fusion == "sum"
    other = dataclasses.replace(cell, direction="target||weights")
    assert cell_wsa(other).direction == "target||weights"


def test_layers_and_local_steps_reach_the_library(monkeypatch, tmp_path):
    cell = Cell(
        dataset="digits",
        model="mlp",
        strength=1.0,
        layers="all",
        form="proximal",
        rounds=1,
        augmentation="none",
        momentum=0.9,
        weight_decay=1e-5,
        clip_norm=100.0,
        clients=2,
        participants=2,
    ).canonical()
    given = {}

    def listening(*args, **settings):
        given.update(settings)
        return simulate(*args, **settings)

    monkeypatch.setattr(run_cells_module, "simulate", listening)
    row = run_cell(cell, RunOptions(runs=tmp_path, progress=False), Ledger(tmp_path / "rows.jsonl"))
    local = given["local"]
    assert (local.momentum, local.weight_decay, local.clip_norm) == (0.9, 1e-5, 100.0)
    assert row["diagnostics"][0]["layers"] == [
        "Dense_0/bias",
        "Dense_0/kernel",
        "Dense_1/bias",
        "Dense_1/kernel",
    ]


def test_canonical_cells_ignore_what_cannot_matter():
    same = [
        Cell(mu=3.0),
        Cell(shards_per_client=7),
        Cell(alpha=0.5, window=(3, 5), target_mean=1.0),
    ]
    assert {cell_id(cell.canonical()) for cell in same} == {cell_id(Cell().canonical())}
    networks = (Cell(model="mlp"), Cell(model="mlp", width=0.5, kernel_size=3))
    assert len({cell_id(cell.canonical()) for cell in networks}) == 1
    assert Cell(model="vgg8", kernel_size=3).canonical() == Cell(model="vgg8").canonical()
    for useless in ({"strength": 0.0}, {"strength": 1.0, "target": "he"}):
        assert Cell(fusion="sum", **useless).canonical() == Cell(**useless).canonical()
    assert Cell(direction="target||weights").canonical() == Cell().canonical()
    assert cell_id(Cell(alpha=1).canonical()) == cell_id(Cell(alpha=1.0).canonical())
    assert Cell(algorithm="fed_prox", dataset="cinic10").canonical().mu == 1.0
    prox = Cell(algorithm="fed_prox").canonical()
    assert prox.canonical() == prox == Cell(algorithm="fed_prox", mu=0.1).canonical()


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        ({}, "FedAvg"),
        ({"algorithm": "scaffold", "strength": 1.0, "alpha": 1.0}, "SCAFFOLD +WSA 1, alpha 1"),
        (
            {"partition": "shards", "shards_per_client": 2, "init": "he"},
            "FedAvg, He init, 2 shards a client",
        ),
        (
            {"dataset": "cifar100", "clients": 100, "evaluate_on": "validation"},
            "FedAvg, CIFAR-100, 100 clients, 10 a round, on validation",
        ),
        ({"model": "vgg8", "width": 0.5}, "FedAvg, VGG8 of width 0.5"),
        (
            {"init": "torchvision", "momentum": 0.9, "augmentation": "example", "clip_norm": 100.0},
            "FedAvg, torchvision's init, momentum 0.9, clip 100, crops an image",
        ),
        (
            {"strength": 1.0, "fusion": "sum"},
            "FedAvg +WSA 1, target times √clients",
        ),
        (
            {"strength": 1.0, "direction": "target||weights"},
            "FedAvg +WSA 1, KL(target‖weights)",
        ),
        (
            {"strength": 1.0, "target": "he_fused", "layers": "all", "weight_decay": 1e-5},
            "FedAvg +WSA 1, He's scope first, biases too, decay 1e-05",
        ),
        (PRESETS["cpu"], "FedAvg, 16x16, CNN of width 0.5 and 3x3 kernels"),
        (
            {"strength": 1.0, "target": "fixed", "target_mean": 0.1, "window": (5, -1)},
            "FedAvg +WSA 1, target N(0.1, 0.1²), rounds [5, T)",
        ),
    ],
)
def test_labels_name_what_differs(settings, label):
    assert Cell(**settings).canonical().label == label


def test_imported_rows_get_todays_id_and_the_further_one_stays(tmp_path, capsys):
    cell = Cell(rounds=1500, evaluate_every=25).canonical()
    new_fields = ("width", "shards_per_client", "mu", "target_mean", "client_scopes")
    old = planted_row(cell, 0.5, rounds=600) | {"id": "of-old"}
    old["config"] = {k: v for k, v in old["config"].items() if k not in new_fields}
    source, results = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    source.write_text(json.dumps(old) + "\n")

    def run():
        script("import-rows", TOOLS)([str(source), "--results", str(results)])
        written = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["written"]
        return written, Ledger(results).rows()

    written, rows = run()
    assert (written, [row["id"] for row in rows]) == (1, [cell_id(cell)])
    assert rows[0]["config"] == json.loads(json.dumps(dataclasses.asdict(cell)))
    assert run()[0] == 0
    Ledger(results).write(planted_row(cell, 0.6))
    written, rows = run()
    assert (written, rows[0]["status"], rows[0]["accuracy"]) == (0, "done", 0.6)
    with pytest.raises(SystemExit, match="is no file"):
        script("import-rows", TOOLS)([str(tmp_path / "absent.jsonl")])


def test_rows_of_another_ledger_are_refused_by_name(tmp_path):
    source, results = tmp_path / "merging.jsonl", tmp_path / "federated.jsonl"
    source.write_text(json.dumps({"id": "a", "config": {"align": "none", "seed": 0}}) + "\n")
    with pytest.raises(RefusedError, match="row 1: align is no setting of a federated cell"):
        script("import-rows", TOOLS)([str(source), "--results", str(results)])
    assert not results.exists()


def test_client_scopes_of_one_layer_are_kept_and_thinned():
    cell = Cell(client_scopes="b", rounds=900).canonical()
    row = new_row(cell)
    for index in range(900):
        scopes = {"mean": [[0.0, 0.1], [0.0, 0.2]], "std": [[1.0, 2.0], [1.0, 3.0]]}
        update = {"round": index + 1, "seconds": 0.0, "layers": ["a", "b"], "client_scopes": scopes}
        add_round(row, cell, update | {"stability": None if index else 0.3})
    assert (row["stability"], largest_stability(row)) == (0.3, 0.3)
    kept = row["client_scopes"]
    assert len(kept["round"]) == 300
    assert (kept["mean"][0], kept["std"][-1]) == ([0.1, 0.2], [2.0, 3.0])


def test_settings_that_are_plain_numbers_share_one_compilation(tmp_path):
    (first,) = cells_of(Args(preset="smoke", strength=(1.0,)))
    changes = ({"strength": 7.0}, {"learning_rate": 0.02}, {"window": (1, 2)}, {"seed": 1})
    options = RunOptions(runs=tmp_path / "runs", progress=False)
    ledger = Ledger(tmp_path / "rows.jsonl")
    compiled = []

    def listen(event, duration, fun_name="", **attributes):
        if listening and event == "/jax/core/compile/backend_compile_duration":
            compiled.append((duration, fun_name))

    # Listeners cannot be taken back by public means: this one falls silent.
    listening = True
    jax.monitoring.register_event_duration_secs_listener(listen)
    # A setting of its own, so that no other test has compiled it.
    own = dataclasses.replace(first, steps=3)
    run_cell(own, options, ledger)
    _, round_name = max(compiled)
    assert round_name
    compiled.clear()
    rows = run_cells([dataclasses.replace(own, **change) for change in changes], options, ledger)
    listening = False
    assert [row["status"] for row in rows] == ["done"] * len(changes)
    assert round_name not in {name for _, name in compiled}


def test_partitions_of_cells():
    labels = np.arange(100) % 10
    for settings, sizes in (
        ({"partition": "shards", "shards_per_client": 2}, [20] * 5),
        ({"partition": "equal"}, [20] * 5),
        ({"partition": "iid"}, [20] * 5),
    ):
        cell = Cell(clients=5, **settings).canonical()
        assert cell_partition(cell, labels).sizes.tolist() == sizes
    two_classes = cell_partition(Cell(partition="shards", shards_per_client=2, clients=5), labels)
    assert ((two_classes.counts(labels) > 0).sum(axis=1) <= 2).all()


def test_cli_grid_reaches_the_new_fields():
    cells = cells_of(
        Args(algorithm=("fed_avg", "fed_prox"), mu=0.5, model="vgg8", width=0.25, alpha=(0.1,))
    )
    assert [cell.mu for cell in cells] == [-1.0, 0.5]
    assert {(cell.model, cell.width, cell.alpha) for cell in cells} == {("vgg8", 0.25, 0.1)}
    (cell,) = cells_of(Args(partition="shards", shards_per_client=3))
    assert (cell.partition, cell.shards_per_client, cell.alpha) == ("shards", 3, 0.0)
