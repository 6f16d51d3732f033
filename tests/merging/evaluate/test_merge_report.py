"""The report's numbers against NumPy and the library's barriers; what it says of planted pairs."""

import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsa_jax.data.augmentation import normalize
from wsa_jax.merging import (
    Model,
    interpolate_path,
    loss_barrier,
    merge_report,
    permute_units,
    trace_spec,
)
from wsa_jax.merging.evaluate.barrier_interval import PathLosses, barrier_interval
from wsa_jax.merging.evaluate.report_findings import findings_of
from wsa_jax.merging.evaluate.unit_similarity import unit_moments
from wsa_jax.merging.evidence import apply_of
from wsa_jax.scope import scope_divergence, weight_scope
from wsa_jax.training import classification_task, evaluate
from wsa_jax.tree import lerp

RNG = np.random.default_rng(0)


def solved(task, info, data, seed):
    """A model that knows its answers; one unit is dead."""
    params, state = task.init(jax.random.key(seed))
    dense = dict(params["Dense_0"])
    dense["kernel"] = 10 * dense["kernel"].at[:, 3].set(0)
    dense["bias"] = dense["bias"].at[3].set(-1.0)
    hidden = hidden_units(info, dense, data[0])
    found = np.linalg.lstsq(hidden, 6.0 * np.eye(3)[data[1]], rcond=None)[0]
    head = {"kernel": jnp.asarray(found, jnp.float32), "bias": jnp.zeros(3)}
    return Model({"Dense_0": dense, "Dense_1": head}, state)


@pytest.fixture(scope="module")
def pair(tiny_task, tiny_info, tiny_data):
    """A model that knows its answers and its copy in another order."""
    first = solved(tiny_task, tiny_info, tiny_data, 0)
    images = jnp.zeros((2, 3, 3, 1), jnp.uint8)
    spec = trace_spec(apply_of(tiny_task), first.variables, images)
    (group,) = spec.groups
    moved = permute_units(spec, first.variables, {group.name: RNG.permutation(group.size)})
    return [first, Model.of(moved)]


@pytest.fixture(scope="module")
def report(tiny_task, pair, tiny_data):
    return merge_report(tiny_task, pair, tiny_data, num_points=5, resamples=50, batch_size=25)


def test_barriers_are_those_of_the_path(tiny_task, pair, tiny_data, report):
    path = interpolate_path(tiny_task, pair[0].params, pair[1].params, *tiny_data, num_points=5)
    rows = {row["align"]: row for row in report.barriers}
    assert list(rows) == ["none", "weight", "activation"]
    np.testing.assert_allclose(rows["none"]["barrier"], loss_barrier(path), rtol=1e-4)
    assert rows["none"]["low"] < rows["none"]["barrier"] < rows["none"]["high"]
    np.testing.assert_allclose(rows["weight"]["barrier"], 0, atol=1e-5)
    assert "align first" in report.findings[0] and '"weight"' in report.findings[0]


def test_correlation_cka_and_dead_units_are_numpys(tiny_info, pair, tiny_data, report):
    hidden = [hidden_units(tiny_info, m.params["Dense_0"], tiny_data[0]) for m in pair]
    alive = (hidden[0].std(0) > 0) & (hidden[1].std(0) > 0)
    units = zip(hidden[0].T[alive], hidden[1].T[alive], strict=True)
    correlation = np.mean([np.corrcoef(a, b)[0, 1] for a, b in units])
    centred = [value - value.mean(0) for value in hidden]
    kernels = [value @ value.T for value in centred]
    cka = np.sum(kernels[0] * kernels[1]) / np.prod([np.linalg.norm(k) for k in kernels])
    (row,) = report.groups
    np.testing.assert_allclose(row["correlation"]["none"], correlation, atol=1e-4)
    np.testing.assert_allclose(row["correlation"]["weight"], 1, atol=1e-5)
    np.testing.assert_allclose(row["cka"], cka, rtol=1e-4)
    np.testing.assert_allclose(row["cka"], 1, rtol=1e-4)  # order does not count
    dead = np.mean([value.std(0) == 0 for value in hidden])
    assert row["dead"] == pytest.approx(dead) and dead > 0
    assert row["units"] == hidden[0].shape[1]


def test_a_pytree_of_inputs(pair, tiny_data):
    def apply(params, model_state, x, train, key):
        hidden = jax.nn.relu(x["a"] @ params["w"] + params["b"][None])
        return hidden @ params["v"], model_state

    task = classification_task(lambda key: ({}, {}), apply)
    x = {"a": np.eye(4, dtype=np.float32)}
    one = {"w": 5 * x["a"], "b": np.zeros(4, np.float32), "v": x["a"]}
    two = one | {"w": one["w"][:, ::-1], "v": one["v"][::-1]}
    models = [Model(one, {}), Model(two, {})]
    report = merge_report(task, models, (x, np.arange(4)), num_points=3, resamples=10)
    barriers = {row["align"]: row["barrier"] for row in report.barriers}
    assert barriers["none"] > 0.5
    np.testing.assert_allclose(barriers["activation"], 0, atol=1e-5)


class TestThreeModels:
    """The pair, and one that has learnt the same in other units."""

    @pytest.fixture(scope="class")
    @classmethod
    def models(cls, tiny_task, tiny_info, tiny_data, pair):
        return [*pair, solved(tiny_task, tiny_info, tiny_data, 5)]

    @pytest.fixture(scope="class")
    @classmethod
    def found(cls, tiny_task, models, tiny_data):
        options = {"num_points": 5, "resamples": 50, "batch_size": 25, "aligns": ["weight"]}
        return merge_report(tiny_task, models, tiny_data, **options)

    def test_barriers_are_those_of_each_pairs_path(self, tiny_task, models, tiny_data, found):
        plain, matched = found.barriers
        assert [row["models"] for row in plain["pairs"]] == [[1, 2], [1, 3], [2, 3]]
        for row in plain["pairs"]:
            first, second = (models[number - 1].params for number in row["models"])
            path = interpolate_path(tiny_task, first, second, *tiny_data, num_points=5)
            np.testing.assert_allclose(row["barrier"], loss_barrier(path), rtol=1e-4)
        worst = max(plain["pairs"], key=lambda row: row["barrier"])
        assert (plain["barrier"], plain["models"]) == (worst["barrier"], worst["models"])
        assert plain["low"] <= plain["barrier"] <= plain["high"]
        np.testing.assert_allclose(matched["pairs"][0]["barrier"], 0, atol=1e-5)
        assert matched["models"] != [1, 2]

    def test_the_average_is_that_of_all(self, tiny_task, models, tiny_data, found):
        mean = jax.tree.map(lambda *leaves: sum(leaves) / 3, *(m.params for m in models))
        losses = [evaluate(tiny_task, params, {}, *tiny_data).means()["loss"]
                  for params in (mean, *(model.params for model in models))]  # fmt: skip
        rise = found.barriers[0]["average"]
        np.testing.assert_allclose(rise["rise"], losses[0] - np.mean(losses[1:]), rtol=1e-4)
        assert rise["low"] < rise["rise"] < rise["high"]

    def test_units_and_scopes_are_of_all(self, tiny_info, models, tiny_data, found):
        mean = jax.tree.map(lambda *leaves: sum(leaves) / 3, *(m.params for m in models))
        units = [hidden_units(tiny_info, params["Dense_0"], tiny_data[0])
                 for params in (mean, *(model.params for model in models))]  # fmt: skip
        spread = [own.std(0).sum() for own in units]
        (row,) = found.groups
        np.testing.assert_allclose(
            row["spread"]["none"], spread[0] / np.mean(spread[1:]), rtol=1e-4
        )
        assert row["dead"] == pytest.approx(np.mean([own.std(0) == 0 for own in units[1:]]))
        scopes = [weight_scope(model.params) for model in models]
        for index, layer in enumerate(found.layers):
            stds = [float(scope.std[index]) for scope in scopes]
            np.testing.assert_allclose(layer["std"], stds, rtol=1e-5)
            np.testing.assert_allclose(layer["divergence"], np.mean(layer["divergences"]))

    def test_the_odd_one_out_is_named(self, found):
        text = " / ".join(found.findings)
        assert "model 3 is the odd one out: barriers to it are" in text
        assert "learned coefficients (NP Merge) may lower what is left" in text
        alone = " / ".join(findings_of(found.layers, found.groups, found.barriers[:1]))
        assert "the greatest barrier is" in alone and "ask for aligns" in alone
        share = f"{found.groups[0]['spread']['none']:.0%}"
        assert f"of Dense_0 vary {share} as much in the average as in the models" in alone
        assert "| align | greatest loss barrier | 95 % | between models |" in found.table()
        assert json.loads(json.dumps(found.json(), allow_nan=False))["barriers"] == found.barriers
        assert len(found.figure().axes[0].lines) >= 2


def hidden_units(info, dense, images):
    """Hidden activations, ``[examples, units]``, in float64."""
    x = np.asarray(normalize(jnp.asarray(images), info), np.float64).reshape(len(images), -1)
    return np.maximum(x @ np.asarray(dense["kernel"], np.float64) + np.asarray(dense["bias"]), 0)


def test_scopes_are_the_librarys(pair, report):
    names = [row["layer"] for row in report.layers]
    scope = weight_scope(pair[0].params)
    assert names == list(scope.names)
    # Both models have the same weights in another order, so each scope is the fused one.
    np.testing.assert_allclose([row["divergence"] for row in report.layers], 0, atol=1e-6)
    np.testing.assert_allclose(
        [row["std"][0] for row in report.layers], np.asarray(scope.std), rtol=1e-5
    )
    assert float(scope_divergence(scope, scope).max()) == pytest.approx(0, abs=1e-6)


def test_the_interval_is_numpys_bootstrap():
    sums = RNG.gamma(2.0, size=(4, 30))
    losses = PathLosses(np.linspace(0, 1, 4), sums, RNG.integers(1, 4, 30).astype(float))

    def barrier(rows):
        means = sums[:, rows].sum(1) / losses.counts[rows].sum()
        return np.max(means - ((1 - losses.t) * means[0] + losses.t * means[-1]))

    found = barrier_interval(losses, resamples=4000, seed=1)
    assert found.value == pytest.approx(barrier(np.arange(30)))
    draws = [barrier(RNG.integers(0, 30, 30)) for _ in range(4000)]
    expected = np.percentile(draws, [2.5, 97.5])
    np.testing.assert_allclose([found.low, found.high], expected, atol=0.05)


def test_pooled_moments_do_not_depend_on_batches():
    data = 100 + RNG.normal(size=(31, 3)).astype(np.float32)

    def read(variables, inputs):
        return {"units": inputs * variables}

    ones, scales = jnp.ones((1, 3)), jnp.array([[1.0, -2.0, 0.0]])
    for batch_size in (31, 7):
        found = unit_moments(read, ones, scales, data, batch_size)["units"]
        assert found.count == 31
        np.testing.assert_allclose(
            found.products[0] / 31, np.cov(data.astype(np.float64).T, ddof=0), rtol=1e-3, atol=1e-3
        )
        assert found.dead()[1].tolist() == [False, False, True]
        np.testing.assert_allclose(found.correlation(), 0, atol=1e-5)  # one of 1, one of -1


def test_what_it_says_of_other_pairs(tiny_task, pair, tiny_data):
    def said(second, **options):
        options = {"num_points": 3, "resamples": 20, "aligns": ["none"]} | options
        found = merge_report(tiny_task, [pair[0], second], tiny_data, **options)
        return " / ".join(found.findings)

    assert said(pair[0]).startswith("no barrier to be told from 0 (0.000): average as they are")
    louder = lerp(jax.tree.map(jnp.zeros_like, pair[0].params), pair[0].params, 4.0)
    assert "scopes differ most in Dense_" in said(Model(louder, {}))
    off = {**pair[0].params, "Dense_0": {**pair[0].params["Dense_0"]}}
    off["Dense_0"]["bias"] = off["Dense_0"]["bias"] - 1e3
    assert "of the units of Dense_0 are dead" in said(Model(off, {}))


def test_table_json_and_figure(report):
    text = report.table()
    assert "| align | loss barrier |" in text and "| Dense_0 |" in text and "- units do not" in text
    assert json.loads(json.dumps(report.json(), allow_nan=False))["findings"] == report.findings
    left, middle, right = report.figure().axes
    assert [len(axes.patches) for axes in (left, right)] == [3, 2]
    assert len(middle.lines) == 4


def test_undefined_numbers_are_none_in_json(tiny_task, pair, tiny_data):
    dead = jax.tree.map(jnp.zeros_like, pair[0].params)
    found = merge_report(
        tiny_task, [Model(dead, {}), pair[0]], tiny_data, num_points=3, resamples=5, aligns=[]
    )
    (row,) = found.json()["groups"]
    assert row["cka"] is None and row["correlation"]["none"] is None


def test_errors(tiny_task, pair, tiny_data):
    with pytest.raises(ValueError, match="merge_report compares models, got 1; give at least two"):
        merge_report(tiny_task, pair[:1], tiny_data)
    for points in (2, 10**12):
        with pytest.raises(ValueError, match=rf"num_points {points} is not in 3 .. 10000; give"):
            merge_report(tiny_task, pair, tiny_data, num_points=points)
    with pytest.raises(ValueError, match=r"model 1 of merge_report is a dict; give Model\(params"):
        inspect.unwrap(merge_report)(tiny_task, [pair[0].params] * 2, tiny_data)
    with pytest.raises(ValueError, match=r"the report's data is \(\); give a pair \(inputs"):
        inspect.unwrap(merge_report)(tiny_task, pair, ())
    with pytest.raises(ValueError, match="the report's data has no labels, which losses need"):
        inspect.unwrap(merge_report)(tiny_task, pair, (tiny_data[0], None))
    with pytest.raises(ValueError, match=r"examples of shape \(2, 2\), which calibration has"):
        merge_report(tiny_task, pair, tiny_data, calibration=np.ones((3, 2, 2), np.float32))
    with pytest.raises(ValueError, match="no calibration images to estimate BatchNorm statistics"):
        inspect.unwrap(merge_report)(tiny_task, pair, tiny_data, calibration=np.float32(1))
    with pytest.raises(ValueError, match="align 'wieght' is unknown; give one of 'none'"):
        merge_report(tiny_task, pair, tiny_data, aligns=["wieght"], num_points=3, resamples=5)
    with pytest.raises(ValueError, match="the task has no logits, which activations are read with"):
        merge_report(tiny_task._replace(logits=None), pair, tiny_data)
    with pytest.raises(ValueError, match="no examples to evaluate the report on"):
        merge_report(tiny_task, pair, (tiny_data[0][:0], tiny_data[1][:0]))
