"""What the scripts of fine-tuned models share: competitions, barriers half-way, models kept."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from benchmarks.merging import competition, fig8_vit, minilm, vit_bases
from benchmarks.merging.bench import Bench, MergingArgs
from benchmarks.merging.fig8_vit import SIZES
from benchmarks.merging.fine_tuned import Examples, Training, half_way, tuned
from benchmarks.merging.minilm import MiniLMCell
from benchmarks.record.texts import Texts
from benchmarks.refused import RefusedError
from wsa_jax import weight_scope
from wsa_jax.files import save_model, vit_names
from wsa_jax.merging import Model
from wsa_jax.models import MLP, ViT
from wsa_jax.training import linen_task

SIDES = [{}, {"rate": 0.1}], [{"strength": 1.0}, {"strength": 10.0}]
TRIAL = {
    "name_of": lambda settings: str(settings),
    "chosen_by": "none",
    "called": "the trial",
}
BASELINE, RATE, WSA_1, WSA_10 = (str(extra) for side in SIDES for extra in side)


def line(loss, barrier, accuracy):
    return {"t": [0.0, 0.5, 1.0], "loss": [1.0, loss, 1.0], "barrier": barrier} | {
        "accuracy": [0.5, accuracy, 0.5]
    }


def planted(settings, seed):
    """Rate 0.1 and WSA 10 are best by the average; WSA's barrier is 0.2 lower, 5 points better."""
    loss = 2.0 - settings.get("rate", 0) - settings.get("strength", 0) / 10
    barrier = 1.0 + 0.1 * seed - 0.2 * ("strength" in settings)
    accuracy = 0.4 + 0.05 * ("strength" in settings)
    return {
        align: {
            part: line(loss + less, barrier - less, accuracy) for part in ("validation", "test")
        }
        for align, less in (("none", 0.0), ("weight", 0.5))
    }


@pytest.fixture
def bench(tmp_path):
    return Bench.open(MergingArgs(preset="smoke", output=tmp_path))


def test_winners_are_chosen_on_the_first_seed_and_judged_on_the_others(bench):
    found = competition.compete(bench, SIDES, planted, (0, 1, 2), **TRIAL)
    assert (found.baseline, found.wsa) == (RATE, WSA_10)
    counts = {name: len(rows) for name, rows in found.rows.items()}
    assert counts == {BASELINE: 1, RATE: 3, WSA_1: 1, WSA_10: 3}
    np.testing.assert_allclose(competition.lower(found, "none"), [0.2, 0.2])
    np.testing.assert_allclose(competition.helped(found), [0.5, 0.5])
    np.testing.assert_allclose(competition.better(found, "none"), [5.0, 5.0])
    assert not bench.tally.undecided


def test_scope_alignment_may_compete_on_top_of_the_winner(bench):
    found = competition.compete(bench, SIDES, planted, (0, 1), on_winner=True, **TRIAL)
    assert (found.baseline, found.wsa) == (RATE, str({"rate": 0.1, "strength": 10.0}))

    def without_rate(settings, seed):
        return None if settings.get("rate") else planted(settings, seed)

    # Nothing is tried on top of what is not known yet.
    found = competition.compete(bench, SIDES, without_rate, (0, 1), on_winner=True, **TRIAL)
    assert found.rows.keys() == {BASELINE, RATE}
    assert bench.tally.undecided == {"the trial"}


def test_a_competition_with_a_missing_trial_is_open(bench):
    def row_of(settings, seed):
        return None if settings.get("strength") == 1.0 else planted(settings, seed)

    found = competition.compete(bench, SIDES, row_of, (0, 1), **TRIAL)
    assert (found.baseline, found.wsa) == (RATE, None)
    assert competition.lower(found, "none") == []
    assert bench.tally.undecided == {"the trial"}


def test_winners_that_saw_different_data_are_not_compared(bench):
    def row_of(settings, seed):
        row = planted(settings, seed) | {"id": str(settings)}
        return row | {"data": {"test": "one" if "strength" in settings else "another"}}

    found = competition.compete(bench, SIDES, row_of, (0, 1), **TRIAL)
    with pytest.raises(SystemExit, match="saw different data"):
        competition.lower(found, "none")


def test_figure_8_shows_the_line_of_both_winners(tmp_path, monkeypatch, capsys):
    def pair_row(bench, cell, weights):
        settings = {"strength": cell.strength} if cell.strength else {}
        return planted(settings, cell.seed) | {"divergence": [[0.1, 0.3], [0.2, 0.2]]}

    monkeypatch.setattr(fig8_vit, "pair_row", pair_row)
    fig8_vit.SCRIPT(["--preset", "smoke", "--output", str(tmp_path)])
    told = capsys.readouterr().out.splitlines()
    last = json.loads(told[-1])
    assert (last["baseline"], last["wsa"]) == ("baseline", "WSA 0.03")
    np.testing.assert_allclose(last["wsa lowers by, as they are"], [0.2])
    assert any("nats: baseline 0.2, WSA 0.03 0.2." in line for line in told)
    assert (tmp_path / "fig8_vit.png").stat().st_size > 10_000


def test_pairs_of_encoders_share_the_models_of_a_task(tmp_path, monkeypatch, capsys):
    def merged(cell, task, base, parts, test, *, samples, **_):
        losses = {"model 1": 1.0, "model 2": 1.0, "average": 0.9, "ensemble": 0.8}
        lines = [{"method": m, "loss": loss, "accuracy": 1 - loss} for m, loss in losses.items()]
        seen[cell.pair] = parts, test, samples
        return {"lines": lines, "divergence": [[0.0], [0.0]]}

    seen: dict = {}
    monkeypatch.setattr(minilm, "merged", merged)
    monkeypatch.setattr(minilm, "base_of", lambda *_: (None, None))
    pairs = ("trec", "both", "sst2")
    minilm.SCRIPT(["--preset", "smoke", "--output", str(tmp_path), "--pair", *pairs])
    assert set(json.loads(capsys.readouterr().out.splitlines()[-1])) > set(pairs)
    assert (tmp_path / "minilm.png").stat().st_size > 10_000
    # The first model of a pair of tasks is TREC's first, the second SST-2's second.
    jax.tree.map(np.testing.assert_array_equal, seen["both"][0][0], seen["trec"][0][0])
    jax.tree.map(np.testing.assert_array_equal, seen["both"][0][1], seen["sst2"][0][1])
    (trec, sst2), test, samples = seen["both"]
    assert set(trec.labels) == {0, 1, 2, 3, 4, 5}
    assert set(sst2.labels) == {6, 7}
    assert len(test.labels) == 64
    assert set(samples.labels) == set(range(8))


def test_texts_of_several_tasks_are_padded_to_one_length():
    short, long = (Texts(np.full((2, n), n), np.full(2, n)) for n in (2, 3))
    tokens, labels = minilm.joined([short, long])
    np.testing.assert_array_equal(tokens, [[2, 2, 0], [2, 2, 0], [3, 3, 3], [3, 3, 3]])
    np.testing.assert_array_equal(labels, [2, 2, 3, 3])


def test_the_barrier_half_way_is_of_the_average_and_both_ends():
    losses = {"model 1": 1.0, "model 2": 2.0, "average": 1.75}
    row = {"lines": [{"method": name, "loss": loss} for name, loss in losses.items()]}
    diverged = {"lines": [{"method": "average", "loss": None}]}
    assert half_way([row, diverged]) == [0.25]


def test_classes_to_pretrain_on_are_not_those_to_fine_tune_on():
    first, second = vit_bases.halves(100)
    np.testing.assert_array_equal(np.sort(np.r_[first, second]), np.arange(100))
    assert len(first) == len(second) == 50


def test_published_weights_are_read_by_name_under_a_new_head(tmp_path, monkeypatch):
    network = ViT(patch=112, width=4, depth=1, heads=2, hidden=6, num_classes=100)
    monkeypatch.setattr(vit_bases, "vit", lambda *_, **__: network)
    cell = dataclasses.replace(SIZES["paper"], patch=112)
    _, task = vit_bases.vit_task(vit_bases.base_of(cell), str(tmp_path))
    held = jax.tree.map(np.asarray, task.init(jax.random.key(5))[0])
    body = {name: leaf for name, leaf in held.items() if name != "Dense_0"}
    path = tmp_path / "model.safetensors"
    save_model(path, {"params": body}, names=vit_names(network, prefix="", head=None))
    base = vit_bases.vit_base(cell, tmp_path, str(tmp_path), path)
    assert base.params.keys() == held.keys()
    jax.tree.map(np.testing.assert_array_equal, {n: base.params[n] for n in body}, body)
    assert not np.array_equal(base.params["Dense_0"]["kernel"], held["Dense_0"]["kernel"])
    with pytest.raises(RefusedError):
        vit_bases.vit_base(cell, tmp_path, str(tmp_path), tmp_path / "absent.safetensors")


def test_scope_alignment_holds_models_that_adam_fine_tunes(tmp_path):
    task = linen_task(MLP(features=(8, 2)), jax.ShapeDtypeStruct((1, 4), np.float32))
    start = Model(*task.init(jax.random.key(0)))
    rng = np.random.default_rng(0)
    data = Examples(rng.normal(size=(64, 4)).astype(np.float32), rng.integers(0, 2, 64))
    training, target = Training(optimizer="adam"), weight_scope(start.params)
    moved = {}
    for strength in (0.0, 100.0):
        cell = MiniLMCell(
            base="drawn", pair="trec", epochs=5, batch_size=16, learning_rate=0.1, strength=strength
        )
        model = tuned(cell, task, start, data, 0, target=target, training=training, runs=tmp_path)
        moved[strength] = np.abs(weight_scope(model.params).std / target.std - 1).max()
    assert moved[100.0] < 0.5 * moved[0.0]
    # Asked again, the kept one is read.
    again = tuned(cell, task, start, data, 0, target=target, training=training, runs=tmp_path)
    assert len(list((tmp_path / "tuned").iterdir())) == 2
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
