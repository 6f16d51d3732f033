"""Rescaling: planted scales, optimality by perturbation, and what stays where it is."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import scipy.optimize

from wsa_jax.merging.align.apply import align
from wsa_jax.merging.align.rescale_and_match import rescale_and_match
from wsa_jax.merging.align.rescaling import Rescaling, normalize_scales, rescale
from wsa_jax.merging.result import NotAdmittedError
from wsa_jax.merging.symmetry.scaling import scale_layer
from wsa_jax.merging.symmetry.spec import AxisSpec, Group, Pinned, Tie, hand_written
from wsa_jax.merging.symmetry.units import (
    identity_permutations,
    permute_units,
    scale_units,
    unit_rows,
)
from wsa_jax.scope.layers import kernels, stacked
from wsa_jax.scope.scope import scope_divergence, weight_scope
from wsa_jax.tree import lerp

OBJECTIVES = ("divergence", "log_std", "distance")
SCALE = jax.jit(scale_units, static_argnums=0)


def _hidden(layer, *following, size=1, extra=()):
    produced = [Tie(leaf=f"{layer}/kernel", axis=size), Tie(leaf=f"{layer}/bias", axis=0)]
    return [*produced, *extra, *following]


def _consumed(leaf, axis=0, **block):
    return Tie(leaf=f"{leaf}/kernel", axis=axis, role="consumed", **block)


def _layers(seed, **shapes):
    """Weights with a mean and a std of their own in each layer, and biases."""
    rng = np.random.default_rng(seed)

    def layer(shape):
        kernel = rng.normal(rng.normal() * 0.05, np.exp(rng.normal()), shape)
        bias = rng.normal(size=shape[-1])
        return {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}

    return {name: layer(shape) for name, shape in shapes.items()}


def _dense(params, name, x):
    return x @ params[name]["kernel"] + params[name]["bias"][None]


def _mlp(params, x):
    x = jax.nn.relu(_dense(params, "a", x))
    return _dense(params, "c", jax.nn.relu(_dense(params, "b", x)))


def _conv(params, x):
    x = x.reshape(-1, 3, 3, 1)
    for name in "ab":
        x = jax.lax.conv_general_dilated(
            x, params[name]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + params[name]["bias"][None, None, None])
    return _dense(params, "c", x.reshape(x.shape[0], -1))


def _residual(params, x):
    """A stream that one square kernel reads and writes, and a concatenation with the input."""
    stream = jax.nn.relu(_dense(params, "a", x))
    stream = jax.nn.relu(stream + _dense(params, "b", stream))
    return _dense(params, "c", jnp.concatenate([x, stream], axis=1))


NETS = {
    "mlp": (
        _mlp,
        {"a": (9, 6), "b": (6, 5), "c": (5, 2)},
        {"first": _hidden("a", _consumed("b")), "second": _hidden("b", _consumed("c"))},
        (),
    ),
    "conv": (
        _conv,
        {"a": (3, 3, 1, 4), "b": (3, 3, 4, 5), "c": (45, 2)},
        {
            "first": _hidden("a", _consumed("b", 2), size=3),
            "second": _hidden("b", _consumed("c", outer=9), size=3),
        },
        (),
    ),
    "residual": (
        _residual,
        {"a": (9, 6), "b": (6, 6), "c": (15, 2)},
        {
            "stream": _hidden(
                "a",
                _consumed("b"),
                _consumed("c", offset=9),
                extra=(Tie(leaf="b/kernel", axis=1), Tie(leaf="b/bias", axis=0)),
            )
        },
        (Pinned(leaf="c/kernel", axis=0, reason="the input"),),
    ),
}


@pytest.fixture(scope="module", params=NETS)
def net(request):
    apply, shapes, groups, pinned = NETS[request.param]
    first, other = _layers(0, **shapes), _layers(1, **shapes)
    spec = hand_written(groups, first, pinned=pinned, admits="scaling")
    return apply, spec, first, other


@pytest.fixture(scope="module")
def mlp():
    _, shapes, groups, _ = NETS["mlp"]
    first, other = _layers(0, **shapes), _layers(1, **shapes)
    return hand_written(groups, first, admits="scaling"), first, other


def _planted(spec, granularity, seed=2):
    rng = np.random.default_rng(seed)
    return {
        g.name: np.exp(rng.uniform(-1.5, 1.5, g.size if granularity == "unit" else 1)).astype(
            np.float32
        )
        * np.ones(g.size, np.float32)
        for g in spec.groups
    }


def _assert_close(ours, theirs, rtol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), ours, theirs)


@pytest.mark.parametrize("granularity", ["group", "unit"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_planted_scales_are_undone(net, granularity, objective):
    apply, spec, first, _ = net
    second = SCALE(spec, first, _planted(spec, granularity))
    found = rescale(spec, first, second, granularity=granularity, objective=objective)
    restored = SCALE(spec, second, found.scales)
    _assert_close(restored, first, 1e-6 if granularity == "group" else 1e-4)
    assert found.info["converged"]
    assert found.info["divergence_after"].sum() < 1e-6 < found.info["divergence_before"].sum()
    x = np.random.default_rng(3).normal(size=(4, 9)).astype(np.float32)
    np.testing.assert_allclose(apply(restored, x), apply(second, x), rtol=1e-4, atol=1e-4)


def _value(objective, granularity, spec, first, second):
    """The documented objectives, from whole leaves."""
    if objective == "distance":
        pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
        return sum(np.sum((np.asarray(a, np.float64) - np.asarray(b)) ** 2) for a, b in pairs)
    if granularity == "group":
        total = 0.0
        for name in first:
            a, b = (np.asarray(m[name]["kernel"], np.float64) for m in (first, second))
            log_ratio, shift = np.log(b.std() / a.std()), (b.mean() - a.mean()) / a.std()
            divergence = 0.5 * (np.exp(2 * log_ratio) + shift**2 - 1) - log_ratio
            total += divergence if objective == "divergence" else log_ratio**2
        return total
    total = 0.0
    for name, layer in first.items():
        sides = {t.axis for g in spec.groups for t in g.ties if t.leaf == f"{name}/kernel"}
        for axis in sides:
            rows = [
                np.moveaxis(np.asarray(k, np.float64), axis, 0).reshape(k.shape[axis], -1)
                for k in (layer["kernel"], second[name]["kernel"])
            ]
            # Positions of one unit, and those that nothing moves, are one row.
            labels = _labels(spec, f"{name}/kernel", axis, len(rows[0]))
            for label in np.unique(labels):
                a, b = (r[labels == label] for r in rows)
                ratio = np.mean(b**2) / np.mean(a**2)
                loss = 0.5 * (ratio - 1 - np.log(ratio))
                if objective == "log_std":
                    loss = (0.5 * np.log(ratio)) ** 2
                total += loss * a.size / rows[0].size
    return total


def _labels(spec, leaf, axis, size):
    labels = np.full(size, -1)
    for group in spec.groups:
        for tie in group.ties:
            if (tie.leaf, tie.axis) == (leaf, axis):
                block = np.tile(np.repeat(np.arange(group.size), tie.inner), tie.outer)
                labels[tie.offset : tie.offset + block.size] = block
    return labels


@pytest.mark.parametrize("granularity", ["group", "unit"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_scale_near_the_found_ones_is_better(net, granularity, objective):
    """Stationary under every single scale, by the objectives' definitions on whole weights."""
    _, spec, first, other = net
    found = rescale(spec, first, other, granularity=granularity, objective=objective)
    assert (np.diff(found.info["objective"]) <= 1e-15).all()
    assert found.info["converged"]

    def value(scales):
        return float(_value(objective, granularity, spec, first, SCALE(spec, other, scales)))

    best = value(found.scales)
    assert best < value({g.name: np.ones(g.size, np.float32) for g in spec.groups})
    rng = np.random.default_rng(5)
    for group in spec.groups:
        units = [slice(None)] if granularity == "group" else rng.permutation(group.size)[:3]
        for unit in units:
            for factor in (0.95, 1.05):
                moved = found.scales[group.name].copy()
                moved[unit] *= factor
                assert value(found.scales | {group.name: moved}) > best


def test_log_std_per_group_is_the_least_squares_solution(mlp):
    """Two unknowns in three layers: log c1, log c2 - log c1, -log c2."""
    spec, first, other = mlp
    for weight_by in ("layer", "size"):
        found = rescale(spec, first, other, objective="log_std", weight_by=weight_by)
        stds = [
            np.log([np.std(np.asarray(m[name]["kernel"], np.float64)) for name in "abc"])
            for m in (first, other)
        ]
        root = np.sqrt([54, 30, 10]) if weight_by == "size" else np.ones(3)
        matrix = np.array([[1.0, 0.0], [-1.0, 1.0], [0.0, -1.0]])
        x, *_ = np.linalg.lstsq(matrix * root[:, None], (stds[0] - stds[1]) * root, rcond=None)
        for name, log_scale in zip(("first", "second"), x, strict=True):
            np.testing.assert_allclose(found.scales[name], np.exp(log_scale), rtol=1e-6)


def test_the_divergence_reported_is_that_of_the_models(net):
    _, spec, first, other = net
    found = rescale(spec, first, other)
    target = weight_scope(first)
    after = scope_divergence(weight_scope(SCALE(spec, other, found.scales)), target)
    np.testing.assert_allclose(found.info["divergence_after"], after, rtol=1e-6)
    assert found.info["layers"] == target.names
    assert found.info["divergence_after"].sum() < 0.9 * found.info["divergence_before"].sum()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_equal_models_stay_bit_for_bit(net, objective):
    _, spec, first, _ = net
    for granularity in ("group", "unit"):
        found = rescale(spec, first, first, granularity=granularity, objective=objective)
        for group in spec.groups:
            np.testing.assert_array_equal(found.scales[group.name], np.ones(group.size))


@pytest.mark.parametrize("factor", [0.5, 2.0, 4.0])
def test_a_model_and_its_scaled_self_are_joined_by_the_model(mlp, factor):
    """The cure for Fig. 4: every point of the line is the model itself."""
    spec, first, _ = mlp
    second = scale_layer(spec, first, "first", factor)
    restored = SCALE(spec, second, rescale(spec, first, second).scales)
    middle = lerp(first, restored, 0.5)
    jax.tree.map(np.testing.assert_array_equal, middle, first)
    broken = lerp(first, second, 0.5)
    assert not np.allclose(broken["a"]["kernel"], first["a"]["kernel"])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_dead_units_keep_scale_one_and_disturb_no_other(mlp, objective):
    spec, first, _ = mlp
    scales = _planted(spec, "unit")
    silent = {
        "kernel": first["a"]["kernel"].at[:, 2].set(0),
        "bias": first["a"]["bias"].at[2].set(0),
    }
    first = first | {"a": silent}
    fit = functools.partial(rescale, granularity="unit", objective=objective)
    found = fit(spec, first, SCALE(spec, first, scales))
    assert found.scales["first"][2] == 1
    assert found.info["frozen"] == {"first": 1, "second": 0}

    unread = first["b"] | {"kernel": first["b"]["kernel"].at[2].set(0)}
    first = first | {"b": unread}
    second = SCALE(spec, first, scales)
    found = fit(spec, first, second)
    _assert_close(SCALE(spec, second, found.scales), first, 1e-4)
    # In one model alone, too.
    alive = second | {"a": {"kernel": second["a"]["kernel"] + 1, "bias": second["a"]["bias"]}}
    assert fit(spec, first, alive).scales["first"][2] == 1


def test_a_constant_layer_is_left_out_of_the_fit(mlp):
    spec, first, other = mlp
    flat = other | {"c": other["c"] | {"kernel": jnp.zeros((5, 2))}}
    found = rescale(spec, first, flat, objective="log_std")
    # Layer c gone, group second has an empty side and stays: a and b are left, and one unknown.
    np.testing.assert_array_equal(found.scales["second"], np.ones(5))
    stds = [
        np.log([np.std(np.asarray(m[name]["kernel"], np.float64)) for name in "ab"])
        for m in (first, other)
    ]
    expected = np.exp((stds[0] - stds[1]) @ np.array([0.5, -0.5]))
    np.testing.assert_allclose(found.scales["first"], expected, rtol=1e-6)


def test_layers_stacked_in_one_leaf_are_fitted_each():
    rng = np.random.default_rng(6)
    first = {"kernel": jnp.asarray(rng.normal(size=(2, 5, 4)), jnp.float32)}
    spec = hand_written({"g": [Tie(leaf="kernel", axis=2)]}, first, admits="scaling")
    second = {"kernel": first["kernel"] * jnp.array([2.0, 8.0])[:, None, None]}
    rule = stacked(kernels, "kernel")
    found = rescale(spec, first, second, objective="log_std", select=rule)
    # In the mean of the logs; as one layer the larger slice would decide.
    np.testing.assert_allclose(found.scales["g"], 0.25, rtol=1e-6)


def test_groups_that_pass_a_norm_stay(mlp):
    _, first, other = mlp
    groups = NETS["mlp"][2]
    mixed = hand_written(groups, first, admits={"first": "scaling"})
    assert set(rescale(mixed, first, other).scales) == {"first"}
    normed = hand_written(groups, first)
    with pytest.raises(NotAdmittedError, match="none of the 2 groups to rescale admits"):
        rescale(normed, first, other)
    with pytest.raises(ValueError, match="group second admits no scaling: a norm"):
        rescale(mixed, first, other, groups=["second"])


def test_only_named_groups_are_scaled(mlp):
    spec, first, _ = mlp
    second = scale_layer(spec, first, "second", 2.0)
    found = rescale(spec, first, second, groups=["second"])
    assert {name: scale.tolist() for name, scale in found.scales.items()} == {"second": [0.5] * 5}


@pytest.mark.parametrize("granularity", ["group", "unit"])
def test_the_balanced_gauge_does_not_know_the_scales(net, granularity):
    _, spec, first, _ = net
    ours = normalize_scales(spec, first, granularity=granularity)
    assert (np.diff(ours.info["objective"]) <= 1e-15).all()
    balanced = SCALE(spec, first, ours.scales)
    second = SCALE(spec, first, _planted(spec, granularity))
    theirs = normalize_scales(spec, second, granularity=granularity)
    _assert_close(SCALE(spec, second, theirs.scales), balanced, 1e-4)
    for group in spec.groups:
        norms = {"produced": 0.0, "consumed": 0.0}
        for tie in group.ties:
            name, kind = tie.leaf.split("/")
            rows = unit_rows(spec, balanced[name][kind], group, tie)
            norms[tie.role] += np.sum(np.square(rows), axis=1)
        if granularity == "group":
            norms = {role: norm.sum() for role, norm in norms.items()}
        np.testing.assert_allclose(norms["produced"], norms["consumed"], rtol=1e-3)


def _assign(key, spec, first, second):
    """Coordinate descent on assignments from the identity, until no group moves."""
    del key
    permutations = identity_permutations(spec)
    for _ in range(20):
        before = {name: order.copy() for name, order in permutations.items()}
        for group in spec.groups:
            moved = permute_units(spec, second, permutations | {group.name: np.arange(group.size)})
            gain = np.zeros((group.size, group.size))
            for tie in group.ties:
                name, kind = tie.leaf.split("/")
                a, b = (unit_rows(spec, m[name][kind], group, tie) for m in (first, moved))
                gain += np.asarray(a) @ np.asarray(b).T
            permutations[group.name] = scipy.optimize.linear_sum_assignment(gain, maximize=True)[1]
        if all(np.array_equal(before[name], permutations[name]) for name in before):
            break
    return SimpleNamespace(permutations=permutations)


@pytest.mark.parametrize("net", ["mlp", "conv"], indirect=True)  # a group on one axis of a leaf
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_planted_scales_and_permutations_are_undone_together(net, objective):
    _, spec, first, _ = net
    rng = np.random.default_rng(4)
    planted = {g.name: rng.permutation(g.size) for g in spec.groups}
    second = permute_units(spec, SCALE(spec, first, _planted(spec, "unit")), planted)
    fit = functools.partial(rescale, granularity="unit", objective=objective)
    found = rescale_and_match(
        jax.random.key(0), spec, first, second, match_fn=_assign, rescale_fn=fit
    )
    for name, order in planted.items():
        np.testing.assert_array_equal(order[found.permutations[name]], np.arange(order.size))
    moved = permute_units(spec, SCALE(spec, second, found.scales), found.permutations)
    _assert_close(moved, first, 1e-4)
    _assert_close(align(spec, second, found), moved, 1e-6)
    only_scaled = align(spec, second, Rescaling(found.scales, {}))
    _assert_close(only_scaled, SCALE(spec, second, found.scales), 1e-6)


def test_align_keeps_leaves_that_are_not_moved():
    params = {"a": np.ones((1, 2)), "b": np.ones((2, 1)), "act": jax.nn.relu, "c": np.float64(0.1)}
    ties = [Tie(leaf="a", axis=1), Tie(leaf="b", axis=0, role="consumed")]
    spec = hand_written({"hidden": ties}, params, admits="scaling")
    moved = align(spec, params, Rescaling({"hidden": np.float32([2.0, 4.0])}, {}))
    assert moved["a"].tolist() == [[2.0, 4.0]] and moved["b"].tolist() == [[0.5], [0.25]]
    assert moved["act"] is params["act"] and moved["c"] is params["c"]


def test_alternation_keeps_the_closest_round_and_stops(mlp):
    spec, first, other = mlp
    fit = functools.partial(rescale, granularity="unit", objective="distance")
    found = rescale_and_match(
        jax.random.key(0), spec, first, other, match_fn=_assign, rescale_fn=fit, rounds=10
    )
    trace = found.info["objective"]
    assert found.info["rounds"] == len(trace) < 10
    assert trace[-1] >= trace[:-1].min() * (1 - 1e-6)
    moved = permute_units(spec, SCALE(spec, other, found.scales), found.permutations)
    np.testing.assert_allclose(
        _value("distance", "unit", spec, first, moved), trace.min(), rtol=1e-5
    )


def test_orders_found_in_turn_are_composed_inside_units_too():
    """What two rounds move one after the other, their composition moves at once."""
    rng = np.random.default_rng(7)
    first = {n: jnp.asarray(rng.normal(size=(3, 4, 5)), jnp.float32) for n in ("q/kernel", "k")}
    first["a"] = {"kernel": jnp.asarray(rng.normal(size=(5, 6)), jnp.float32)}
    heads = Group(name="heads", size=3, ties=(Tie(leaf="q/kernel", axis=0), Tie(leaf="k", axis=0)))
    dots = Group(
        name="dots",
        size=4,
        parent="heads",
        ties=(Tie(leaf="q/kernel", axis=1), Tie(leaf="k", axis=1)),
    )
    dense = Group(name="dense", size=6, ties=(Tie(leaf="a/kernel", axis=1),), admits="scaling")
    spec = AxisSpec(groups=(heads, dots, dense))
    rounds = [
        {
            "heads": rng.permutation(3),
            "dots": np.stack([rng.permutation(4) for _ in range(3)]),
            "dense": rng.permutation(6),
        }
        for _ in range(2)
    ]
    seen, later = [], iter(rounds)

    def match_fn(key, spec, first, second):
        seen.append(second)
        return SimpleNamespace(permutations=next(later))

    # The target is two moves away, so that both rounds bring the model closer in the end.
    twice = permute_units(spec, permute_units(spec, first, rounds[0]), rounds[1])
    found = rescale_and_match(jax.random.key(0), spec, twice, first, match_fn=match_fn, rounds=2)
    assert found.info["rounds"] == 2 and found.info["objective"][1] < 1e-9
    moved = permute_units(spec, first, found.permutations)
    jax.tree.map(np.testing.assert_array_equal, moved, twice)
    # The second round was shown what the first had moved.
    jax.tree.map(
        np.testing.assert_array_equal, seen[1]["k"], permute_units(spec, first, rounds[0])["k"]
    )


def test_what_is_refused(mlp):
    spec, first, other = mlp
    with pytest.raises(ValueError, match="rounds 0 is below 1"):
        rescale_and_match(jax.random.key(0), spec, first, other, match_fn=_assign, rounds=0)
    with pytest.raises(ValueError, match="leaf a/bias has shape"):
        rescale(spec, first, other | {"a": {"kernel": jnp.ones((9, 7)), "bias": jnp.ones(7)}})
    bad = other | {"c": other["c"] | {"bias": other["c"]["bias"].at[0].set(jnp.nan)}}
    with pytest.raises(ValueError, match="leaf c/bias of second holds 1 NaN"):
        rescale(spec, first, bad)
    alien = {"z": first["a"]}
    with pytest.raises(ValueError, match="is not in the model; .* is the spec another model's"):
        rescale(spec, alien, alien)
    with pytest.raises(NotAdmittedError, match="no selected layer has a scope and a group"):
        rescale(spec, jax.tree.map(jnp.ones_like, first), other)


@pytest.mark.parametrize(
    ("setting", "value"), [("granularity", "layer"), ("objective", "std"), ("weight_by", "n")]
)
def test_unknown_settings(mlp, setting, value):
    spec, first, other = mlp
    jaxtyping.config.update("jaxtyping_disable", True)  # it would refuse the value before we do
    try:
        with pytest.raises(ValueError, match=f"{setting} '{value}' is unknown; give one of"):
            rescale(spec, first, other, **{setting: value})
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_complex_weights_are_refused(mlp):
    spec, first, other = mlp
    phases = jax.tree.map(lambda leaf: leaf + 0j, other)
    with pytest.raises(ValueError, match="is of type complex64, and a rescaling is of real numb"):
        rescale(spec, jax.tree.map(lambda leaf: leaf + 0j, first), phases)
    with pytest.raises(ValueError, match="is of type complex64, and a rescaling is of real numb"):
        normalize_scales(spec, phases)
