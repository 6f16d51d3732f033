"""One table of methods: what each method promises, and what the table does with them."""

import dataclasses
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsa_jax import checks
from wsa_jax.merging import (
    METHODS,
    Budget,
    Evidence,
    LearningSettings,
    MergeResult,
    Model,
    NotAdmittedError,
    align_models,
    average,
    merge_bodies,
    merge_table,
    permute_units,
    scale_units,
    ties,
    trace_spec,
)
from wsa_jax.merging.aligns import activations_of
from wsa_jax.merging.mergers import joint_evidence
from wsa_jax.merging.table import chosen_methods
from wsa_jax.models import MLP
from wsa_jax.scope import matching
from wsa_jax.training import Batch, Metrics, Task, classification, classification_task, evaluate

BUDGET = Budget(steps=4, batch_size=10)


@pytest.fixture(scope="module")
def tiny_task(tiny_info):
    """Narrow enough that 30 examples determine its covariances."""
    return classification(MLP(features=(24, 3)), tiny_info)


@pytest.fixture(scope="module")
def evidence(tiny_task, tiny_data):
    images, labels = tiny_data
    base = Model(*tiny_task.init(jax.random.key(2)))
    return Evidence(tiny_task, images[:30], labels[:30], base)


@pytest.fixture(scope="module")
def models(tiny_task):
    return [Model(*tiny_task.init(jax.random.key(seed))) for seed in (0, 1)]


@pytest.fixture(scope="module")
def spec(models, evidence):
    def apply(variables, images):
        return evidence.task.logits(*Model.of(variables), images)

    return trace_spec(apply, models[0].variables, evidence.images[:2])


@pytest.fixture(scope="module")
def table(models, spec, evidence, tiny_data):
    return merge_table(jax.random.key(0), models, spec, evidence, test=tiny_data, budget=BUDGET)


def test_rows_are_models_methods_and_the_ensemble(table):
    names = [row["method"] for row in table]
    assert names == ["model 1", "model 2", *METHODS, "ensemble"]
    assert all(0 <= row["accuracy"] <= 1 and np.isfinite(row["loss"]) for row in table)
    assert all(row["seconds"] > 0 for row in table if row["method"] in METHODS)


def test_a_progress_bar_names_the_methods(table, models, spec, evidence, tiny_data, capsys):
    shown = merge_table(
        jax.random.key(0), models, spec, evidence, test=tiny_data, methods="average", progress=True
    )
    printed = capsys.readouterr().out
    assert "average" in printed
    assert "1/1" in printed
    assert shown[2]["accuracy"] == table[2]["accuracy"]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_keeps_structure_and_dtype_and_is_repeatable(
    name, table, models, spec, evidence, tiny_data
):
    before = jax.tree.map(np.array, models)
    result = METHODS[name](jax.random.key(3), spec, models, evidence, budget=BUDGET)
    again = METHODS[name](jax.random.key(3), spec, models, evidence, budget=BUDGET)
    assert isinstance(result, MergeResult)
    checks.same_structure(models[0].params, result.params)
    for ours, same, other in zip(
        *map(jax.tree.leaves, (models[0].params, result.params, again.params)), strict=True
    ):
        assert ours.dtype == same.dtype
        np.testing.assert_array_equal(same, other)
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, models))


@pytest.mark.parametrize(
    "name",
    [
        "activation matching", "weight matching", "rescaling", "rescaling, weight matching",
        "OT Fusion", "OT Fusion, weights", "ZipIt!",
        "Fisher", "NP Merge", "NP Merge, joint", "weight matching, REPAIR",
        "weight matching, REPAIR in closed form",
    ],
)  # fmt: skip
def test_a_model_merged_with_its_own_moved_copy_is_the_model(name, models, spec, evidence):
    (group,) = spec.groups
    rng = np.random.default_rng(0)
    moved = models[0].variables
    if name != "rescaling":
        moved = permute_units(spec, moved, {group.name: rng.permutation(group.size)})
    if "rescaling" in name:
        moved = scale_units(spec, moved, {group.name: np.full(group.size, 3.0, np.float32)})
    merged = METHODS[name](
        jax.random.key(0), spec, [models[0], Model.of(moved)], evidence, budget=BUDGET
    )
    for ours, back in zip(*map(jax.tree.leaves, (models[0].params, merged.params)), strict=True):
        np.testing.assert_allclose(ours, back, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_a_row_is_its_methods_own(name, table, models, spec, evidence, tiny_data):
    merged = METHODS[name](jax.random.key(0), spec, models, evidence, budget=BUDGET)
    row = next(row for row in table if row["method"] == name)
    sums = evaluate(evidence.task, merged.params, merged.model_state, *tiny_data)
    np.testing.assert_allclose(row["loss"], sums.loss / sums.count, rtol=1e-5)


def test_the_average_is_numpys_and_moves_no_units(models, spec, evidence):
    merged = METHODS["average"](jax.random.key(0), spec, models, evidence, budget=BUDGET)
    for found, *both in zip(
        *map(jax.tree.leaves, (merged.params, *(m.params for m in models))), strict=True
    ):
        np.testing.assert_allclose(found, np.mean(both, axis=0), rtol=1e-6)


def test_another_method_is_another_name(models, spec, evidence, tiny_data):
    def second(key, spec, models, evidence, *, budget):
        return MergeResult(models[1].params, models[1].model_state, {"budget": budget.steps})

    rows = merge_table(
        jax.random.key(0), models, spec, evidence, test=tiny_data, methods={"second": second},
        budget=BUDGET,
    )  # fmt: skip
    rows = {row["method"]: row for row in rows}
    assert rows["second"]["accuracy"] == rows["model 2"]["accuracy"]
    assert rows["second"]["info"] == {"budget": BUDGET.steps}


def test_what_a_model_does_not_admit_has_an_empty_line(models, spec, evidence, tiny_data):
    normed = dataclasses.replace(
        spec, groups=tuple(dataclasses.replace(g, admits="permutation") for g in spec.groups)
    )
    rows = merge_table(
        jax.random.key(0), models, normed, evidence, test=tiny_data, methods=("rescaling",)
    )
    (row,) = [row for row in rows if row["method"] == "rescaling"]
    assert row["accuracy"] is None


def test_errors_say_what_is_wrong(models, spec, evidence, tiny_data, tiny_task):
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"model 1 of merge_table is a dict; give Model\(params"):
        inspect.unwrap(merge_table)(key, [m.params for m in models], spec, evidence, test=tiny_data)
    with pytest.raises(ValueError, match="1 model to merge; give at least two"):
        merge_table(key, models[:1], spec, evidence, test=tiny_data)
    with pytest.raises(ValueError, match="method 'nothing' is unknown; give one of average"):
        merge_table(key, models, spec, evidence, test=tiny_data, methods=("nothing",))
    empty = (tiny_data[0][:0], tiny_data[1][:0])
    with pytest.raises(ValueError, match="test has no examples; give at least one"):
        merge_table(key, models, spec, evidence, test=empty)
    short = evidence._replace(labels=evidence.labels[1:])
    with pytest.raises(ValueError, match=r"evidence has \d+ images and \d+ labels; give one label"):
        merge_table(key, models, spec, short, test=tiny_data)
    with pytest.raises(ValueError, match="align 'wieght' is unknown; give one of 'none', 'weight'"):
        align_models(key, spec, models, evidence, "wieght")
    with pytest.raises(ValueError, match=r"held_out 1.0 is not a share in \[0, 1\)"):
        Budget(held_out=1.0)
    with pytest.raises(ValueError, match="np_learning_rate -0.1 is not a non-negative number"):
        Budget(np_learning_rate=-0.1)
    odd = evidence._replace(labels=np.where(np.arange(len(evidence.labels)) == 2, 3, 0))
    with pytest.raises(ValueError, match="label 3 of evidence is out of range; classes are 0 .. 2"):
        merge_table(key, models, spec, odd, test=tiny_data)
    nan = Model(jax.tree.map(lambda leaf: leaf * jnp.nan, models[1].params), {})
    with pytest.raises(ValueError, match="of model 2 holds .* NaN"):
        merge_table(key, [models[0], nan], spec, evidence, test=tiny_data)
    mute = evidence._replace(task=tiny_task._replace(logits=None))
    with pytest.raises(ValueError, match="the task has no logits"):
        merge_table(key, models, spec, mute, test=tiny_data, methods=("activation matching",))


def test_heads_of_different_classes_are_told(models, spec, evidence, tiny_data):
    head = {name: leaf[..., :2] for name, leaf in models[1].params["Dense_1"].items()}
    fewer = Model({**models[1].params, "Dense_1": head}, {})
    message = (
        r"heads of different classes: leaf params/Dense_1/.* in model 2; merge the bodies alone"
    )
    with pytest.raises(ValueError, match=message):
        merge_table(jax.random.key(0), [models[0], fewer], spec, evidence, test=tiny_data)


def test_models_of_other_widths_are_told(models, spec, evidence, tiny_data):
    wide = Model({"Dense_0": {"kernel": np.ones((9, 8)), "bias": np.ones(8)},
                  "Dense_1": {"kernel": np.ones((8, 3)), "bias": np.ones(3)}}, {})  # fmt: skip
    message = r"leaf params/Dense_0/bias has shape \(24,\) in the first model and \(8,\) in the"
    with pytest.raises(ValueError, match=message):
        merge_table(jax.random.key(0), [models[0], wide], spec, evidence, test=tiny_data)


def test_what_the_evidence_is_without_is_named(models, spec, evidence, tiny_data):
    key, few = jax.random.key(0), evidence._replace(labels=None, base=None)
    rows = merge_table(key, models, spec, few, test=tiny_data, budget=BUDGET)
    left_out = {row["method"]: row["info"]["left out"] for row in rows if "left out" in row["info"]}
    assert all(row["accuracy"] is None for row in rows if row["method"] in left_out)
    assert {name for name in METHODS if {*METHODS[name].needs} - {"logits"}} == {*left_out}
    assert left_out["TIES"].startswith("TIES needs the model that all were fine-tuned from; give")
    for name, message in [
        ("Fisher", r"Fisher needs labels and the evidence has none; give Evidence\(task, inputs"),
        ("DARE", "DARE needs the model that all were fine-tuned from; give Evidence"),
    ]:
        with pytest.raises(ValueError, match=message):
            merge_table(key, models, spec, few, test=tiny_data, methods=name)
    narrow = evidence.base._replace(params=jax.tree.map(lambda a: a[..., :1], models[0].params))
    with pytest.raises(ValueError, match=r"has shape .* in the base and .* in model 1; give the"):
        merge_table(
            key, models, spec, evidence._replace(base=narrow), test=tiny_data, methods="TIES"
        )
    empty = few._replace(inputs=few.inputs[:0])
    with pytest.raises(ValueError, match="evidence has no examples; give at least one"):
        merge_table(key, models, spec, empty, test=tiny_data, methods="average")


def test_one_example_is_left_to_learn_from(models, spec, evidence):
    few = evidence._replace(inputs=evidence.inputs[:2], labels=evidence.labels[:2])
    budget = Budget(steps=1, held_out=0.9)
    (alone,) = METHODS["NP Merge"](jax.random.key(0), spec, models, few, budget=budget).info["loss"]
    assert np.isfinite(alone)


def test_a_covariance_of_too_few_samples_is_left_out_and_told(models, spec, evidence, tiny_data):
    few = evidence._replace(inputs=evidence.inputs[:24], labels=evidence.labels[:24])
    message = "has 24 units and 24 calibration samples, too few for the covariance that canonical"
    with pytest.raises(NotAdmittedError, match=message):
        merge_table(jax.random.key(0), models, spec, few, test=tiny_data, methods="CCA Merge")


def test_activation_matching_compiles_once_a_task(models, spec, evidence):
    assert activations_of(spec, evidence.task) is activations_of(spec, evidence.task)


def dense(params, x):
    return jax.nn.relu(x @ params["w"]) @ params["v"]


def scanned(params, x):
    def block(hidden, own):
        return hidden + jax.nn.relu(hidden @ own["a"]) @ own["b"], None

    return jax.lax.scan(block, x, params)[0]


def normed_blocks(params, x):
    def norm(x):
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)

    def block(hidden, own):
        return hidden + jax.nn.relu(norm(hidden) @ own["a"]) @ own["b"], None

    hidden, _ = jax.lax.scan(block, x @ params["in"], params["blocks"])
    return norm(hidden) @ params["out"]


NO_BIAS, NO_LAYER, NO_SCALE = (
    "no hidden layer adds a bias of its own to what a kernel",
    "the model has no dense layer and no convolution",
    "admits scaling",
)
REPAIRS = {name: NO_BIAS for name in METHODS if "REPAIR" in name}
RESCALINGS = {name: NO_SCALE for name in METHODS if "rescaling" in name}
LACKING = {
    "no biases": (dense, {"w": (3, 4), "v": (4, 2)}, REPAIRS),
    "no layer that a loop does not hold": (
        scanned, {"a": (2, 3, 5), "b": (2, 5, 3)}, REPAIRS | RESCALINGS | {"RegMean": NO_LAYER},
    ),
    "a kernel used in two ways alone": (
        lambda p, x: jnp.tanh(x @ p["w"] + p["b"][None]) @ p["w"].T,
        {"w": (3, 4), "b": (4,)},
        RESCALINGS | {"RegMean": NO_LAYER},
    ),
    "inputs that are a dictionary": (
        lambda p, x: jax.nn.relu(x["x"] @ p["w"] + p["b"][None]) @ p["v"],
        {"w": (3, 4), "b": (4,), "v": (4, 2)},
        {},
    ),
    "no layer to scale": (
        normed_blocks,
        {"in": (3, 4), "blocks": {"a": (2, 4, 5), "b": (2, 5, 4)}, "out": (4, 2)},
        REPAIRS | RESCALINGS,
    ),
}  # fmt: skip


class TestModelsThatLackWhatAMethodNeeds:
    METHODS = (*REPAIRS, *RESCALINGS, "RegMean", "activation matching", "average")

    def table(self, name, monkeypatch, methods=None):
        function, shapes, _ = LACKING[name]
        task = classification_task(
            lambda key: ({}, {}), lambda p, state, x, train, key: (function(p, x), state)
        )
        rng = np.random.default_rng(0)

        def drawn(shape):
            return rng.normal(size=shape).astype(np.float32)

        models = [
            Model(jax.tree.map(drawn, shapes, is_leaf=lambda part: isinstance(part, tuple)), {})
            for _ in range(2)
        ]
        x, y = drawn((8, 3)), np.arange(8) % 2
        x = {"x": x} if "dictionary" in name else x
        spec = trace_spec(lambda v, x: function(v["params"], x), models[0].variables, x)
        few = {name: METHODS[name] for name in self.METHODS}
        monkeypatch.setattr("wsa_jax.merging.table.METHODS", few)
        evidence = Evidence(task, x, y)
        return merge_table(
            jax.random.key(0), models, spec, evidence, test=(x, y), methods=methods, budget=BUDGET
        )

    # Layers in a loop have no taps, which is told as well.
    @pytest.mark.filterwarnings("ignore:groups .* have no activations outside of loops")
    @pytest.mark.parametrize("name", LACKING)
    def test_what_they_lack_is_named_and_all_others_have_a_row(self, name, monkeypatch):
        rows = {row["method"]: row for row in self.table(name, monkeypatch)}
        assert [*rows] == ["model 1", "model 2", *self.METHODS, "ensemble"]
        expected = LACKING[name][-1]
        left_out = {n: row["info"]["left out"] for n, row in rows.items() if row["loss"] is None}
        assert left_out.keys() == expected.keys()
        for method, message in expected.items():
            assert message in left_out[method] and "\n" not in left_out[method]

    def test_what_was_asked_for_is_refused(self, monkeypatch):
        with pytest.raises(NotAdmittedError, match=NO_BIAS):
            self.table("no biases", monkeypatch, methods="weight matching, REPAIR")

    def test_other_errors_are_not_taken_for_it(self, monkeypatch):
        def broken(*args, **kwargs):
            raise ValueError("a fault of the method")

        monkeypatch.setattr("wsa_jax.merging.combines.gram_matrices", broken)
        with pytest.raises(ValueError, match="a fault of the method"):
            self.table("no biases", monkeypatch)


class TestOwnHeads:
    """Two tasks of 3 and 5 classes on one body, whose units the second has in another order."""

    @pytest.fixture(scope="class")
    @classmethod
    def given(cls, tiny_task, models, spec, tiny_info, tiny_data):
        info = dataclasses.replace(tiny_info, num_classes=5)
        tasks = [tiny_task, classification(MLP(features=(24, 5)), info)]
        body = models[0].params["Dense_0"]
        wider = Model(dict(tasks[1].init(jax.random.key(4))[0]) | {"Dense_0": body}, {})
        order = np.random.default_rng(0).permutation(24)
        (group,) = spec.groups
        moved = Model.of(permute_units(spec, wider.variables, {group.name: order}))
        images, labels = tiny_data
        base = Model(*tasks[0].init(jax.random.key(2)))
        evidence = [Evidence(task, images[:30], labels[:30], base) for task in tasks]
        return [models[0], moved], evidence, [tiny_data, (images[:20], labels[:20] + 2)]

    def table(self, given, spec, **more):
        models, evidence, tests = given
        return merge_table(
            jax.random.key(0), models, spec, evidence, test=tests, heads="own", **more
        )

    def test_rows_are_bodies_merged_and_heads_kept(self, given, spec):
        models, evidence, tests = given
        methods = ("average", "TIES", "weight matching", "ZipIt!")
        rows = self.table(given, spec, methods=methods)
        named = [(row["method"], row["model"]) for row in rows]
        ends, merged = [("model 1", 1), ("model 2", 2)], [(m, i) for m in methods for i in (1, 2)]
        assert named == ends + merged
        losses = {(row["method"], row["model"]): row["loss"] for row in rows}
        params, rule = [model.params for model in models], matching("Dense_1/.*")
        for name, found in [
            ("average", merge_bodies(average, params, rule)),
            ("TIES", merge_bodies(ties, params, rule, base=evidence[0].base.params)),
        ]:
            for index, own in enumerate(found):
                sums = evaluate(evidence[index].task, own, {}, *tests[index])
                loss = sums.loss / sums.count
                np.testing.assert_allclose(losses[name, index + 1], loss, rtol=1e-5)
        # The same units in another order: each head reads what it was trained on.
        for name in ("weight matching", "ZipIt!"):
            for index in (1, 2):
                end = losses[f"model {index}", index]
                np.testing.assert_allclose(losses[name, index], end, rtol=1e-4)

    def test_units_are_found_behind_a_scale_of_the_inputs(self, tiny_data):
        def logits(params, state, inputs, train, key):
            scaled = inputs.reshape(len(inputs), -1) * params["scale"][None]
            return jax.nn.relu(scaled @ params["in"]) @ params["out"], state

        images, labels = tiny_data
        draw = np.random.default_rng(3)
        width = images[0].size
        shapes = {"in": (width, 8), "out": (8, 3)}
        first = {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        first["scale"] = np.full(width, 0.5, np.float32)
        task = classification_task(lambda key: (first, {}), logits)
        apply = lambda variables, x: task.logits(variables["params"], {}, x)  # noqa: E731
        spec = trace_spec(apply, {"params": first}, images[:2])
        (group,) = spec.groups
        models = [Model(first, {})]
        models += [
            Model.of(permute_units(spec, models[0].variables, {group.name: np.arange(8)[::-1]}))
        ]
        rows = merge_table(
            jax.random.key(0), models, spec, Evidence(task, images, labels), test=tiny_data,
            heads="own", methods=["activation matching", "weight matching"],
        )  # fmt: skip
        losses = [row["loss"] for row in rows]
        np.testing.assert_allclose(losses, losses[0], rtol=1e-5)

    def test_methods_of_whole_models_are_left_out_by_name(self, given, spec):
        rows = self.table(given, spec, budget=BUDGET)
        left_out = {row["method"] for row in rows if "left out" in row["info"]}
        learned = {"Fisher", "fine-tuning", "RegMean", "greedy soup", "AdaMerging"}
        assert left_out == learned | {n for n in METHODS if "NP Merge" in n or "REPAIR" in n}
        done = [row["method"] for row in rows if row["accuracy"] is not None]
        assert done == [
            "model 1",
            "model 2",
            *(m for m in METHODS if m not in left_out for _ in "12"),
        ]
        with pytest.raises(ValueError, match="NP Merge looks at what whole models compute, so it"):
            self.table(given, spec, methods="NP Merge")
        with pytest.raises(ValueError, match="weight matching, REPAIR repairs heads, too, which"):
            self.table(given, spec, methods="weight matching, REPAIR")

    def test_errors(self, given, spec, tiny_task):
        models, evidence, tests = given
        message = r"models have no common body: leaf params/Dense_0/bias has shape \(24,\) in the"
        other = {**models[1].params, "Dense_0": {"kernel": np.ones((9, 8)), "bias": np.ones(8)}}
        with pytest.raises(ValueError, match=message):
            self.table(([models[0], Model(other, {})], evidence, tests), spec)
        kernel = {"kernel": models[1].params["Dense_1"]["kernel"]}
        less = {**models[1].params, "Dense_1": kernel}
        with pytest.raises(ValueError, match=".*Dense_1/bias of a head is in only one of"):
            self.table(([models[0], Model(less, {})], evidence, tests), spec)
        more = {**models[1].params, "Dense_1": models[1].params["Dense_1"] | {"scale": np.ones(5)}}
        with pytest.raises(ValueError, match=".*Dense_1/scale is only in the second model"):
            self.table(([models[0], Model(more, {})], evidence, tests), spec)
        with pytest.raises(ValueError, match="the head of model 2 has another shape than that of"):
            self.table((models, evidence[0], tests[0]), spec)
        with pytest.raises(ValueError, match="evidence is a list of 1 for 2 models; give one for"):
            self.table((models, evidence[:1], tests), spec)
        with pytest.raises(ValueError, match="evidence of model 2 is None; give Evidence"):
            inspect.unwrap(merge_table)(
                jax.random.key(0), models, spec, [evidence[0], None], test=tests, heads="own"
            )
        with pytest.raises(ValueError, match="label 6 of test of model 2 is out of range; classes"):
            self.table((models, evidence, [tests[0], (tests[1][0], tests[1][1] + 2)]), spec)
        with pytest.raises(ValueError, match="evidence is a list, one for each model's head; give"):
            merge_table(jax.random.key(0), models, spec, evidence, test=tests[0])
        floats = evidence[1]._replace(inputs=evidence[1].inputs.astype(np.float32))
        message = "an example is float32 of shape .* in the evidence of model 2 and uint8 of"
        with pytest.raises(ValueError, match=message):
            joint_evidence([evidence[0], floats])


class TestNamesOfMethods:
    def names(self, models, spec, evidence, test, methods):
        rows = merge_table(jax.random.key(0), models, spec, evidence, test=test, methods=methods)
        return [row["method"] for row in rows[2:-1]]

    def test_one_name_one_function_and_both(self, models, spec, evidence, tiny_data):
        def first(key, spec, models, evidence, *, budget):
            return MergeResult(*models[0], {})

        given = {"average": ["average"], first: ["first"]}
        for methods, expected in given.items():
            assert self.names(models, spec, evidence, tiny_data, methods) == expected
        both = self.names(models, spec, evidence, tiny_data, ["average", first])
        assert both == ["average", "first"]

    def test_what_names_no_method_is_refused(self):
        for methods, message in [
            ("avrage", "method 'avrage' is unknown; give one of average, activation matching"),
            (np.array(1), "methods is an array of int64 of shape (); give names or functions"),
            ([3], "method 3 is neither a name nor a function; give one of average"),
            (["average", "average"], "method 'average' has no name of its own; give a dictionary"),
            ({"mine": "avrage"}, "method 'avrage' is unknown; give one of average, activation"),
            ({"mine": 3}, "method 3 is neither a name nor a function; give one of average"),
            ([METHODS["average"]], "has no name of its own; give a dictionary {name: method}"),
        ]:
            with pytest.raises(ValueError, match=re.escape(message)):
                chosen_methods(methods)

    def test_a_dictionary_takes_names_and_functions(self):
        assert chosen_methods({"mine": "average", "own": len}) == {
            "mine": METHODS["average"],
            "own": len,
        }

    def test_a_spec_of_the_parameters_alone_is_told(self, models, evidence, tiny_data):
        def apply(params, images):
            return evidence.task.logits(params, {}, images)

        alone = trace_spec(apply, models[0].params, evidence.images[:2])
        with pytest.raises(ValueError, match=r"that of the parameters alone; give .*\.variables"):
            self.names(models, alone, evidence, tiny_data, "average")


def squared_errors(params, batch):
    found = jnp.tanh(batch.inputs["x"] @ params["hidden"]) @ params["out"] + batch.inputs["y"]
    return jnp.sum((found - batch.labels) ** 2, axis=-1)


def regression_task():
    """Vectors from two arrays; no logits and no accuracy, and a metric of its own."""

    def init(key):
        first, second = jax.random.split(key)
        return {"hidden": jax.random.normal(first, (3, 4)),
                "out": jax.random.normal(second, (4, 2))}, {}  # fmt: skip

    def loss(key, params, model_state, batch):
        total = jnp.sum(squared_errors(params, batch) * batch.mask)
        return total / jnp.maximum(jnp.sum(batch.mask), 1.0), model_state

    def metrics(params, model_state, batch):
        errors = squared_errors(params, batch) * batch.mask
        own = {"root": jnp.sum(jnp.sqrt(errors))}
        return Metrics(jnp.sum(errors), None, jnp.sum(batch.mask), own)

    return Task(init, loss, metrics, settings=(("loss", "squared"),))


def test_a_regression_of_vectors_from_a_pytree_of_inputs():
    task, rng = regression_task(), np.random.default_rng(0)
    inputs = {k: rng.normal(size=(20, n)).astype(np.float32) for k, n in (("x", 3), ("y", 2))}
    labels = rng.normal(size=(20, 2)).astype(np.float32)
    models = [Model(*task.init(jax.random.key(seed))) for seed in (0, 1)]

    def apply(variables, x):
        params = variables["params"]
        return jnp.tanh(x @ params["hidden"]) @ params["out"]

    spec = trace_spec(apply, models[0].variables, inputs["x"][:2])
    evidence = Evidence(task, inputs, labels)
    rows = merge_table(
        jax.random.key(0), models, spec, evidence, test=(inputs, labels), budget=BUDGET
    )
    assert [row["method"] for row in rows] == ["model 1", "model 2", *METHODS]
    by_name = {row["method"]: row for row in rows}
    assert all(row["accuracy"] is None for row in rows)
    assert by_name["activation matching"]["loss"] is None
    mean = jax.tree.map(lambda a, b: (a + b) / 2, models[0].params, models[1].params)
    errors = squared_errors(mean, Batch(inputs, labels, np.ones(20)))
    np.testing.assert_allclose(by_name["average"]["loss"], errors.mean(), rtol=1e-5)
    np.testing.assert_allclose(by_name["average"]["root"], np.sqrt(errors).mean(), rtol=1e-5)
    learned = [by_name[name]["loss"] for name in ("Fisher", "NP Merge", "fine-tuning")]
    assert np.isfinite(learned).all()


def test_labels_of_tokens():
    def init(key):
        first, second = jax.random.split(key)
        return {"embedding": 0.3 * jax.random.normal(first, (5, 4)),
                "out": 0.3 * jax.random.normal(second, (4, 5))}, {}  # fmt: skip

    def apply(params, model_state, tokens, train, key):
        return jnp.tanh(params["embedding"][tokens]) @ params["out"], model_state

    task = classification_task(init, apply, settings=(("model", "tokens"),))
    rng = np.random.default_rng(0)
    tokens, labels = rng.integers(0, 5, (2, 16, 6)).astype(np.int32)
    models = [Model(*task.init(jax.random.key(seed))) for seed in (0, 1)]
    spec = trace_spec(
        lambda variables, x: task.logits(*Model.of(variables), x), models[0].variables, tokens[:2]
    )
    rows = merge_table(
        jax.random.key(0), models, spec, Evidence(task, tokens, labels), test=(tokens, labels),
        methods=("average", "Fisher", "NP Merge"), budget=BUDGET,
    )  # fmt: skip
    assert [row["method"] for row in rows[2:]] == ["average", "Fisher", "NP Merge"]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, models[0].params, models[1].params)
    logits, _ = apply(mean, {}, tokens, False, None)
    assert rows[2]["accuracy"] == pytest.approx((np.argmax(logits, -1) == labels).mean())


def test_budgets_that_are_none():
    for options, message in [
        ({"steps": -1}, "steps must be a positive integer, got -1"),
        ({"batch_size": 0}, "batch_size must be a positive integer, got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            Budget(**options)
    # The tests' own checks of types refuse these first.
    for settings, field, value, message in [
        (Budget(), "steps", 1.5, "steps of Budget is 1.5; give an integer"),
        (Budget(), "held_out", "0.2", "held_out of Budget is '0.2'; give a number"),
        (LearningSettings(steps=1), "steps", 1.5, "steps of LearningSettings is 1.5; give an int"),
        (LearningSettings(steps=1), "batch_size", "5", "batch_size of LearningSettings is '5'"),
    ]:
        object.__setattr__(settings, field, value)
        with pytest.raises(ValueError, match=message):
            inspect.unwrap(type(settings).__post_init__)(settings)
