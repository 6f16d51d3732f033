"""Reports of ledgers that hold a part of their cells, or models that diverged."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from benchmarks.federated import (
    fig11_scope_trajectories,
    first_record,
    mechanism,
    np_merge_federated,
)
from benchmarks.federated.cell import Cell
from benchmarks.federated.experiment import Args, recorded
from benchmarks.federated.figures import context, curve_panels, paired_figure
from benchmarks.federated.strength_sweep import comparisons as sweep
from benchmarks.federated.table2_cross_silo import comparisons as table2
from benchmarks.merging import bench as benches
from benchmarks.merging import fig4_scaling, fig6_rebasin, fig7_landscape, np_merge_table
from benchmarks.merging import model_cell as model_cells
from benchmarks.merging.bench import Bench, MergingArgs
from benchmarks.merging.merge_rows import (
    accuracy_of,
    choose_rates,
    endpoints,
    growth_curves,
    score_of,
)
from benchmarks.merging.model_cell import ModelCell, Trained, check_cells
from benchmarks.merging.pairs import PathCell, barriers, pair_cells
from benchmarks.record.figures import METHODS
from benchmarks.record.ledger import Ledger, cell_id
from tests.benchmarks.planting import planted_row
from wsa_jax.plots import draw_curves
from wsa_jax.scope.scope import weight_scope

DIVERGED = {"id": "x", "status": "diverged", "config": {"seed": 0}}


def path_row(loss, barrier=0.5):
    line = {"t": [0.0, 0.5, 1.0], "accuracy": [0.4, 0.2, 0.5], "loss": [1.0, loss, 1.0]}
    return {"status": "done", "validation": line, "test": line | {"barrier": barrier}}


def table_row(seed=0, **accuracies):
    lines = [{"method": name, "accuracy": a, "loss": 1.0} for name, a in accuracies.items()]
    return {"status": "done", "config": {"seed": seed}, "lines": lines}


def by_name(*rows):
    names = [fig6_rebasin.name_of(extra) for extra in fig6_rebasin.WSA]
    return {name: {"none": [row], "weight": [row]} for name, row in zip(names, rows, strict=True)}


def test_no_competitor_wins_while_one_was_not_run_and_one_that_diverged_is_the_worst():
    rows = by_name(path_row(2.0), path_row(1.0), None)
    assert fig6_rebasin.choose(rows, fig6_rebasin.WSA) is None
    rows = by_name(path_row(2.0), path_row(None, None), DIVERGED)
    assert fig6_rebasin.choose(rows, fig6_rebasin.WSA) == fig6_rebasin.WSA[0]
    table = fig6_rebasin.competition_table(rows, ()).splitlines()
    assert [line.split(" | ")[2] for line in table[2:]] == ["2.000", "diverged", "diverged"]


def test_an_open_competition_is_reported_and_draws_nothing(tmp_path, capsys):
    base = fig6_rebasin.BASES["smoke"]
    first, second = map(cell_id, pair_cells(base, 0))
    row = path_row(1.0)
    for align in ("none", "weight"):
        config = PathCell(model=base.label, first=first, second=second, align=align)
        Ledger(tmp_path / "merging.jsonl").write({"id": cell_id(config)} | row)
    fig6_rebasin.SCRIPT(["--preset", "smoke", "--output", str(tmp_path), "--report-only"])
    output = capsys.readouterr().out
    assert "The competition is open: 1 of its 4 trials were run" in output
    assert json.loads(output.splitlines()[-1])["wsa"] is None
    assert not list(tmp_path.glob("*.png"))


def test_rates_are_not_chosen_while_a_trial_is_missing():
    grid = ((0.1, 1e-3), (0.3, 1e-4))
    scores = {0.1: -np.inf, 0.3: 0.0, 1e-3: 0.5, 1e-4: -np.inf}
    rate = {"NP Merge": 0, "fine-tuning": 1}
    assert choose_rates(lambda method, rates: scores[rates[rate[method]]], grid) == (0.3, 1e-3)
    del scores[1e-4]
    assert choose_rates(lambda method, rates: scores.get(rates[rate[method]]), grid) is None


def test_lines_of_models_that_diverged_are_empty_and_the_worst():
    row = table_row(average=0.3)
    row["lines"] += [{"method": name, "accuracy": 0.1, "loss": None} for name in ("a", "model 1")]
    assert [accuracy_of(row, name) for name in ("average", "a", "b")] == [30.0, None, None]
    assert [score_of(each, "a") for each in (row, DIVERGED, None)] == [-np.inf, -np.inf, None]
    assert endpoints([row, DIVERGED]) == []


def test_growth_is_drawn_by_seed_where_all_seeds_have_a_row():
    found = {
        2: {0: table_row(a=0.1), 1: table_row(a=0.3)},
        4: {1: table_row(a=0.4)},
        8: {0: table_row(a=0.2), 1: table_row(a=0.5)},
    }
    assert growth_curves(found, "a") == [([2, 8], [10.0, 20.0]), ([2, 8], [30.0, 50.0])]
    # A seed with less than half of the counts is left out.
    del found[8][0]
    assert growth_curves(found, "a") == [([2, 4, 8], [30.0, 40.0, 50.0])]
    assert growth_curves(found, "b") == []


def test_gains_count_the_settings_that_all_seeds_have():
    def rows(*lines):
        return [table_row(seed, **{"NP Merge": a, "Fisher": b}) for seed, (a, b) in lines]

    found = {
        ("net", "all", "plain"): rows((0, (0.5, 0.4)), (1, (0.6, 0.3))),
        ("net", "classes", "plain"): rows((0, (0.2, 0.4)), (1, (0.3, 0.3))),
        ("net", "all", "WSA"): rows((0, (0.9, 0.1))),
    }
    gains = np_merge_table.gains(found, "Fisher")
    assert gains.keys() == {0, 1}
    np.testing.assert_allclose([gains[0], gains[1]], [[10, -20], [30, 0]], atol=1e-9)
    text = np_merge_table.over_seeds(gains)
    assert text == "seed 0 -5.00, seed 1 +15.00; means over 2 settings, above 0 in 2 of 4"


def test_figures_are_drawn_from_what_there_is(tmp_path):
    empty = {align: {scale: [] for scale in fig4_scaling.SCALES} for align in fig4_scaling.CURES}
    empty["weight"] |= {0.5: [path_row(1.0)], 2.0: [DIVERGED]}
    picture = fig4_scaling.draw(empty)
    # What was not run has no panel.
    assert [axes.get_title() for axes in picture.axes] == ["matched"]
    assert [text.get_text() for text in picture.legends[0].get_texts()] == ["scale 0.5"]
    assert "|  |  | 0.50 |  |" in fig4_scaling.table(empty)

    row = {"accuracy": [0.1, 0.2], "megabytes_per_round": 2.0}
    picture = np_merge_federated.draw({"10 clients": {"FedAvg": [], "NP Merge, joint": [row]}})
    (line,) = picture.axes[0].lines
    assert line.get_ydata().tolist() == [10.0, 20.0]
    assert line.get_color() == METHODS["NP Merge"]


def test_baselines_alone_keep_their_rounds(tmp_path):
    lines = sweep(Args(preset="short"))
    rows = Ledger(tmp_path / "rows.jsonl")
    rows.write(planted_row(lines[0].baseline, 0.5))
    picture = curve_panels(lines, recorded(rows, (0,)))
    picture.draw_without_rendering()
    (only,) = picture.axes
    assert [line.get_label() for line in only.lines] == ["FedAvg"]
    assert only.lines[0].get_color() == METHODS["FedAvg"]
    assert len(only.get_xticks()) > 2
    assert only.get_xticklabels()[1].get_text()


def test_short_runs_are_dots_beside_their_accuracies_and_without_the_papers(tmp_path):
    lines = table2(Args(preset="short", rounds=25))
    rows = Ledger(tmp_path / "rows.jsonl")
    for seed, gain in ((0, 0.01), (1, 0.03)):
        rows.write(planted_row(lines[0].baseline, 0.5, seed=seed))
        rows.write(planted_row(lines[0].treated, 0.5 + gain, seed=seed))
    (axes,) = paired_figure(lines, recorded(rows, (0, 1))).axes
    # The setting that was run, alone, in its method's colour: interval, seeds, mean, and zero.
    assert [label.get_text() for label in axes.get_yticklabels()] == ["FedAvg +WSA"]
    interval, seeds, mean, zero = axes.lines
    np.testing.assert_allclose(seeds.get_xdata(), [1.0, 3.0])
    np.testing.assert_allclose(mean.get_xdata(), 2.0)
    np.testing.assert_allclose(interval.get_xdata(), 2 + np.array([-1, 1]) * 12.706, rtol=1e-3)
    assert mean.get_color() == METHODS["FedAvg +WSA"]
    assert zero.get_xdata() == [0, 0]
    assert "50.00 \u2192 52.00 %" in [text.get_text() for text in axes.texts]


def test_a_figure_names_the_seeds_of_its_pairs_alone(tmp_path):
    lines = table2(Args(preset="short", rounds=25))[:2]
    rows = Ledger(tmp_path / "rows.jsonl")
    for seed in (0, 1, 2):
        rows.write(planted_row(lines[0].baseline, 0.5, seed=seed))
    rows.write(planted_row(lines[0].treated, 0.6, seed=1))
    rows_of = recorded(rows, (0, 1, 2))
    assert context(lines[:1], rows_of).endswith("25 rounds, seed 1")
    for line in lines:
        for seed in (0, 1, 2):
            rows.write(planted_row(line.baseline, 0.5, seed=seed))
    for seed in (0, 1):
        rows.write(planted_row(lines[1].treated, 0.6, seed=seed))
    rows_of = recorded(rows, (0, 1, 2))
    assert context(lines, rows_of).endswith("25 rounds, 1 to 2 seeds a line")


def test_a_report_without_the_first_records_controls_draws_no_mechanism(tmp_path):
    rows = Ledger(tmp_path / "rows.jsonl")
    for strength in (0.0, 10.0):
        cell = Cell(learning_rate=0.1, init="he", strength=strength, rounds=50).canonical()
        rows.write(planted_row(cell, 0.5))
    where = ["--results", str(rows.path), "--output", str(tmp_path), "--rounds", "50"]
    first_record.SCRIPT(where)
    with pytest.raises(SystemExit, match=r"no FedAvg and no \+WSA 10 at learning rate 0.01"):
        mechanism.SCRIPT(where)
    assert [path.name for path in tmp_path.glob("*.png")] == ["first_record_50.png"]


def test_runs_evaluated_at_other_rounds_stand_apart(tmp_path):
    cells = [
        Cell(strength=strength, evaluate_every=every, seed=seed).canonical()
        for strength in (0.0, 10.0)
        for every, seed in ((10, 0), (25, 1))
    ]
    groups = first_record.by_label([planted_row(cell, 0.5) for cell in cells])
    names = [
        f"{name}, evaluated every {n}" for name in ("FedAvg", "FedAvg +WSA 10") for n in (10, 25)
    ]
    assert list(groups) == names
    for name, n in zip(names[2:], (10, 25), strict=True):
        (partner,) = first_record.baseline_of(groups[name][0], groups)
        assert partner["config"]["evaluate_every"] == n
    first_record.figure(groups, 100).savefig(tmp_path / "figure.png")


def test_trajectories_are_of_one_seed(tmp_path):
    lines = fig11_scope_trajectories.comparisons(Args(preset="smoke"))
    cells = (lines[0].baseline, lines[0].treated, lines[1].treated)
    rows = Ledger(tmp_path / "rows.jsonl")
    for cell, seeds in zip(cells, ((0, 1), (1,), (0, 1)), strict=True):
        for seed in seeds:
            rows.write(planted_row(cell, 0.5, seed=seed))
    rows_of = recorded(rows, (0, 1))
    shown = fig11_scope_trajectories.columns(lines, rows_of)
    assert {row["config"]["seed"] for row in shown.values()} == {1}
    title = fig11_scope_trajectories.figure(lines, rows_of).get_suptitle()
    assert title == "Dense_1/kernel on each client, seed 1"
    with pytest.raises(SystemExit, match="different seeds"):
        fig11_scope_trajectories.columns(
            lines,
            lambda cell: [planted_row(cell, 0.5, seed=cells.index(cell))],
        )
    with pytest.raises(SystemExit, match="--seed 0 1 are 2 seeds"):
        fig7_landscape.SCRIPT(["--preset", "smoke", "--output", str(tmp_path), "--seed", "0", "1"])


def test_a_model_trained_again_to_other_parameters_is_named(tmp_path, monkeypatch, capsys):
    from wsa_jax import training

    made = iter((1.0, 1.0, 2.0))
    cell = ModelCell(dataset="digits", model="mlp", width=0.0625, epochs=1, augmentation="none")

    def fit(key, task, *data, settings, **options):
        params, state = task.init(key)
        value = next(made)
        params = jax.tree.map(lambda leaf: jnp.full_like(leaf, value), params)
        return training.FitResult(params, state, jnp.zeros(settings.steps))

    monkeypatch.setattr(training, "fit", fit)
    ledger = Ledger(tmp_path / "models.jsonl")
    first, again, other = (model_cells.train_model(cell, ledger, tmp_path) for _ in range(3))
    (row,) = ledger.rows()
    assert row["digest"] == first.digest == again.digest != other.digest
    assert row["data"].keys() == {"train", "test"}
    (warning,) = capsys.readouterr().err.splitlines()
    assert all(part in warning for part in (row["id"], first.digest, other.digest))


def test_rows_name_their_models_and_nothing_is_measured_on_one_that_diverged(tmp_path, monkeypatch):
    def train(cell, ledger, runs, data_dir):
        value = np.nan if cell.seed == 3 else float(cell.seed)
        row = {"id": cell_id(cell), "status": "done"}
        return Trained({"w": np.full(2, value)}, {}, row, f"digest {cell.seed}")

    monkeypatch.setattr(benches, "train_model", train)
    bench = Bench.open(MergingArgs(preset="smoke", output=tmp_path))
    base = ModelCell(dataset="digits", model="mlp")
    rows = []
    for seed in (0, 1):
        cells = pair_cells(base, seed)
        config = PathCell(model="m", first=cell_id(cells[0]), second=cell_id(cells[1]))
        rows.append(bench.row(config, lambda *models: {"test": {"barrier": np.nan}}, cells))
        digests = {cell_id(cell): f"digest {cell.seed}" for cell in cells}
        assert rows[-1]["model_digests"] == digests
    # The first row's line is not finite, the second one's model.
    assert [row["status"] for row in rows] == ["diverged", "diverged"]
    assert (rows[0]["test"], "test" in rows[1]) == ({"barrier": None}, False)
    assert barriers([*rows, None, path_row(1.0)]) == [0.5]
    assert bench.rows.rows() == rows


def test_every_setting_of_the_small_resnet_is_stable_near_its_target(monkeypatch):
    def scope_of(network):
        shapes, _ = jax.eval_shape(model_cells.cell_task(network).init, jax.random.key(0))
        scope = weight_scope(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes))
        return dataclasses.replace(scope, std=jnp.full_like(scope.std, 0.05))

    monkeypatch.setattr(model_cells, "_initial_scope", scope_of)
    base, settings = fig6_rebasin.BASES["cpu"], fig6_rebasin.SMALL_RESNET_WSA[2:]
    cells = fig6_rebasin.wsa_cells("cpu", base, settings)
    assert {cell.width for cell in cells} == {0.25, 0.5, 1.0}
    check_cells([dataclasses.replace(base, width=0.25, **settings[0])])
    with pytest.raises(SystemExit, match=r"x0.25.*uses 1.25 of the stable range"):
        check_cells([dataclasses.replace(base, width=0.25, **settings[0] | {"strength": 1.0})])


def test_a_label_without_a_colour_is_refused():
    with pytest.raises(ValueError, match="colors lack 'b'; give each label one"):
        draw_curves(
            Figure().subplots(),
            {"a": [([0], [1.0])], "b": [([0], [1.0])]},
            xlabel="x",
            ylabel="y",
            colors={"a": "black"},
        )
