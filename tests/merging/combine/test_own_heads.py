"""Bodies are merged as alone, heads stay bitwise; a head is found by the tracer."""

import jax
import numpy as np
import pytest

from wsa_jax.merging import average, head_of, merge_bodies, model_stock, ties, trace_spec
from wsa_jax.merging.symmetry.spec import Tie, hand_written
from wsa_jax.models import MLP, ResNet
from wsa_jax.scope import all_leaves, matching

RNG = np.random.default_rng(0)


def model(classes, seed):
    draw = np.random.default_rng(seed)
    shapes = {"in": (3, 4), "in_bias": (4,), "out": (4, classes), "out_bias": (classes,)}
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


MODELS, BASE = [model(2, 0), model(5, 1), model(2, 2)], model(7, 3)
HEADS = matching("out.*")


def apply(params, x):
    hidden = jax.nn.relu(x @ params["in"] + params["in_bias"][None])
    return hidden @ params["out"] + params["out_bias"][None]


@pytest.mark.parametrize("merge", [average, ties, model_stock])
def test_the_body_is_what_the_merge_makes_of_bodies_alone(merge):
    based = merge is not average
    merged = merge_bodies(merge, MODELS, HEADS, base=BASE if based else None)
    bodies = [{name: m[name] for name in ("in", "in_bias")} for m in [*MODELS, BASE]]
    alone = merge(bodies[:3], bodies[3]) if based else merge(bodies[:3])
    for own, found in zip(MODELS, merged, strict=True):
        for name in ("in", "in_bias"):
            np.testing.assert_array_equal(found[name], alone[name])
        for name in ("out", "out_bias"):
            np.testing.assert_array_equal(found[name], own[name])


def test_the_head_is_found_by_the_tracer():
    spec = trace_spec(apply, MODELS[0], np.ones((2, 3), np.float32))
    rule = head_of(spec)
    assert [name for name, leaf in MODELS[1].items() if rule(name, leaf)] == ["out", "out_bias"]
    images = np.ones((2, 8, 8, 3), np.float32)
    for module, expected in [
        (MLP(features=(5, 4, 3)), "Dense_2"),
        (MLP(features=(5, 1)), "Dense_1"),
        (ResNet(blocks=1, stem=4, widths=(4, 8, 16), num_classes=3, norm="batch"), "Dense_0"),
    ]:
        variables = jax.eval_shape(module.init, jax.random.key(0), images)
        rule = head_of(trace_spec(module.apply, variables, images))
        names = [
            jax.tree_util.keystr(path, simple=True, separator="/")
            for path, _ in jax.tree_util.tree_leaves_with_path(variables)
        ]
        assert [name for name in names if rule(name, None)] == [
            f"params/{expected}/bias", f"params/{expected}/kernel"
        ]  # fmt: skip


def head(apply_fn, shapes):
    params = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    with jax.numpy_rank_promotion("allow"):
        rule = head_of(trace_spec(apply_fn, params, np.ones((8, 3), np.float32)))
    return [name for name, leaf in params.items() if rule(name, leaf)]


BODY = {"w": (3, 4), "c": (4,)}


def hidden(p, x):
    return jax.nn.relu(x @ p["w"] + p["c"][None])


@pytest.mark.parametrize("shape", [(), (1,), (4,)])
def test_the_scale_of_a_branch_is_the_bodys(shape):
    def function(p, x):
        h = hidden(p, x)
        return (h + p["alpha"] * (jax.nn.relu(h @ p["a"]) @ p["b"])) @ p["v"]

    shapes = BODY | {"alpha": shape, "a": (4, 5), "b": (5, 4), "v": (4, 2)}
    assert head(function, shapes) == ["v"]


@pytest.mark.parametrize("skip", [False, True])
def test_what_stands_at_the_input_is_the_bodys(skip):
    def function(p, x):
        x = x * p["s"][None] + p["t"][None]
        return skip * x + hidden(p, x) @ p["v"] + p["d"][None]

    shapes = BODY | {"s": (3,), "t": (3,), "v": (4, 3), "d": (3,)}
    assert head(function, shapes) == ["v", "d"]


def test_units_and_outputs_may_be_one():
    def function(p, x):
        return jax.nn.relu(hidden(p, x) @ p["u"] + p["e"]) @ p["v"] + p["d"]

    shapes = BODY | {"u": (4, 1), "e": (1,), "v": (1, 2), "d": (2,)}
    assert head(function, shapes) == ["v", "d"]

    def both(p, x):
        h = hidden(p, x)
        return h @ p["a"], h @ p["b"] + p["d"], h @ p["v"]

    shapes = BODY | {"a": (4, 2), "b": (4, 1), "d": (1,), "v": (4,)}
    assert head(both, shapes) == ["a", "b", "d", "v"]


def test_a_head_in_a_loop_is_found():
    function = lambda p, x: jax.lax.map(lambda row: hidden(p, row[None]) @ p["v"] + p["d"], x)  # noqa: E731
    assert head(function, BODY | {"v": (4, 2), "d": (2,)}) == ["v", "d"]


def test_a_spec_written_by_hand_has_the_bias_beside_the_kernel():
    shapes = {"in/w": (3, 4), "in/s": (3,), "alpha": (), "out/w": (4, 2), "out/b": (2,)}
    params = {name: np.ones(shape) for name, shape in shapes.items()}
    ties_of = [Tie(leaf="in/w", axis=1), Tie(leaf="out/w", axis=0, role="consumed")]
    rule = head_of(hand_written({"hidden": ties_of}, params))
    assert [name for name in params if rule(name, None)] == ["out/w", "out/b"]


def test_errors():
    with pytest.raises(ValueError, match="heads selects no leaf of model 1; give a rule for the"):
        merge_bodies(average, MODELS, matching("head"))
    with pytest.raises(ValueError, match="heads selects every leaf of model 1; give a rule for"):
        merge_bodies(average, MODELS, all_leaves)
    with pytest.raises(ValueError, match="no models to merge; give at least one"):
        merge_bodies(average, [], HEADS)
    with pytest.raises(ValueError, match=r"leaf in_bias has shape \(4,\) in the first model and"):
        merge_bodies(average, [MODELS[0], MODELS[1] | {"in_bias": np.ones(2)}], HEADS)
    with pytest.raises(ValueError, match="merge returned .*, which is no body; give a function"):
        merge_bodies(lambda bodies: None, MODELS, HEADS)
    with pytest.raises(ValueError, match="heads does not take a leaf's name and the leaf"):
        merge_bodies(average, MODELS, lambda name: True)
