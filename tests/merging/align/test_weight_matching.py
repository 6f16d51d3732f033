"""Weight matching: planted answers, the published algorithm in NumPy, and what is refused."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from tests.merging.align.architectures import ARCHITECTURES, draw, plant, residual
from wsa_jax.merging.align import Matching, align, assign, weight_matching
from wsa_jax.merging.align.cached_scores import CachedScores
from wsa_jax.merging.align.similarity import prepare
from wsa_jax.merging.align.views import products, update_products
from wsa_jax.merging.align.weight_matching import descend, generator
from wsa_jax.merging.symmetry.spec import Tie, hand_written
from wsa_jax.merging.symmetry.units import identity_permutations, permute_units

KEY = jax.random.key(3)


def _products(first, second):
    return sum(
        np.vdot(np.asarray(first[n], np.float64), np.asarray(second[n], np.float64)) for n in first
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_planted_permutation_is_undone(name):
    shapes, spec = ARCHITECTURES[name]()
    first = draw(1, shapes)
    matching = weight_matching(KEY, spec, first, plant(1, spec, first), restarts=2)
    merged = align(spec, plant(1, spec, first), matching)
    for leaf, values in first.items():
        np.testing.assert_array_equal(merged[leaf], values)
    assert matching.info["distance"] == 0.0


def _published(spec, first, second, orders):
    """Git Re-Basin's algorithm in float64 NumPy, for plain groups of whole axes."""
    perms = identity_permutations(spec)
    first, second = ({n: np.asarray(v, np.float64) for n, v in m.items()} for m in (first, second))
    owners = {n: [None] * v.ndim for n, v in first.items()}
    for group in spec.groups:
        for tie in group.ties:
            owners[tie.leaf][tie.axis] = group.name
    for sweep, order in enumerate(orders):
        progress = False
        for group in (spec.groups[i] for i in order):
            scores = np.zeros((group.size, group.size))
            for tie in group.ties:
                moved = second[tie.leaf]
                for axis, owner in enumerate(owners[tie.leaf]):
                    if owner is not None and axis != tie.axis:
                        moved = np.take(moved, perms[owner], axis)
                rows = (
                    np.moveaxis(x, tie.axis, 0).reshape(group.size, -1)
                    for x in (first[tie.leaf], moved)
                )
                scores += next(rows) @ next(rows).T
            _, found = linear_sum_assignment(scores, maximize=True)
            units = np.arange(group.size)
            gain = scores[units, found].sum() - scores[units, perms[group.name]].sum()
            if gain > 1e-12:
                progress, perms[group.name] = True, found
        if not progress:
            return perms, sweep + 1
    raise AssertionError("no end")


@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_it_is_the_published_algorithm_on_the_same_visiting_order(name):
    shapes, spec = ARCHITECTURES[name]()
    several = set()
    for seed in range(4):
        first, second = draw(seed, shapes), draw(100 + seed, shapes)
        key = jax.random.key(seed)
        rng = np.random.default_rng((*jax.random.key_data(key).tolist(), 0))
        orders = (rng.permutation(len(spec.groups)) for _ in itertools.count())
        expected, sweeps = _published(spec, first, second, orders)
        found = weight_matching(key, spec, first, second, restarts=1)
        for group in spec.names:
            np.testing.assert_array_equal(found.permutations[group], expected[group])
        assert found.info["sweeps"] == (sweeps,)
        moved = permute_units(spec, second, expected)
        np.testing.assert_allclose(found.info["objective"], _products(first, moved), rtol=1e-12)
        several.add(sweeps)
    assert max(several) > 2  # Else nothing was descended.


def test_issue_8_is_found_from_the_sorted_start():
    shapes, spec = residual(30, 50, norms=False)
    found = np.zeros(2, int)
    for seed in range(20):
        first = draw(seed, shapes)
        second = plant(seed, spec, first)
        key = jax.random.key(seed)
        for restarts in (1, 2):
            info = weight_matching(key, spec, first, second, restarts=restarts).info
            found[restarts - 1] += info["distance"] == 0.0
            assert info["objective"] == max(info["objectives"])
    assert found[0] < 10  # Published: 10 of 100.
    assert found[1] >= 18


def test_two_starts_are_the_default_and_the_better_is_kept():
    shapes, spec = residual(30, 50, norms=False)
    first = draw(0, shapes)
    second = plant(0, spec, first)
    info = weight_matching(KEY, spec, first, second).info
    published = weight_matching(KEY, spec, first, second, restarts=1).info
    assert info["objectives"][0] == published["objective"] < info["objectives"][1]
    assert info["objective"] == info["objectives"][1] and info["distance"] == 0.0


def test_updated_products_are_those_made_anew():
    shapes, spec = residual(30, 50, norms=False)
    problem = prepare(spec, draw(0, shapes), draw(1, shapes))
    view, pair = problem.blocks[0].views[0], problem.pairs[0][0]
    assert (view.leaf, view.others, view.layout) == ("up0", (("0", "inner0"),), "pair")
    old = np.random.default_rng(0).permutation(50)
    for count in (0, 2, 16, 45):  # Chunks of 16, and a part of one.
        new = old.copy()
        new[:count] = np.roll(old[:count], 1)
        moved = np.resize(np.flatnonzero(new != old), 50) if count else np.zeros(50, int)
        (start,) = products(view.local, view.layout, *pair, {"0": old})
        (expected,) = products(view.local, view.layout, *pair, {"0": new})
        updated = update_products(start, *pair, moved, count, new, old)
        np.testing.assert_allclose(updated, expected, rtol=1e-4, atol=1e-4)
        by_hand = np.asarray(draw(0, shapes)["up0"]) @ np.asarray(draw(1, shapes)["up0"])[:, new].T
        np.testing.assert_allclose(expected, by_hand, rtol=1e-4, atol=1e-4)
    assert np.abs(expected - start).max() > 1


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_cached_scores_are_the_plain_ones(name):
    shapes, spec = ARCHITECTURES[name]()
    similarity = prepare(spec, draw(0, shapes), draw(1, shapes))
    cached, rng = CachedScores(similarity), np.random.default_rng(0)
    permutations, updated = identity_permutations(spec), 0
    for step in range(40):
        # Two units of one group change places: few enough for an update in place of a product.
        group = spec.groups[step % len(spec.groups)]
        order = permutations[group.name]
        order = rng.permuted(order, axis=-1) if step % 7 == 0 else _swapped(rng, order)
        permutations[group.name] = order
        for block in range(len(similarity.blocks)):
            found = cached.scores(block, permutations)
            plain = similarity.scores(block, permutations)
            assert found.keys() == plain.keys()
            for signature, values in plain.items():
                np.testing.assert_allclose(found[signature], values, rtol=1e-4, atol=1e-4)
                updated += not np.array_equal(found[signature], values)
    if name in ("mlp", "conv", "residual"):
        assert updated  # Else nothing was brought up to date.


def _swapped(rng, order):
    a, b = rng.choice(order.shape[-1], 2, replace=False)
    order = order.copy()
    order[..., [a, b]] = order[..., [b, a]]
    return order


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_both_scores_descend_to_the_same_orders(name):
    shapes, spec = ARCHITECTURES[name]()
    similarity = prepare(spec, draw(3, shapes), draw(4, shapes))
    start = identity_permutations(spec)
    ends = [
        descend(generator(KEY), scores, start, max_sweeps=50)
        for scores in (similarity, CachedScores(similarity))
    ]
    assert ends[0].sweeps == ends[1].sweeps and ends[0].converged and ends[1].converged
    for group in spec.names:
        np.testing.assert_array_equal(ends[0].permutations[group], ends[1].permutations[group])


def test_nested_groups_are_matched_as_well_as_by_brute_force():
    shapes, spec = ARCHITECTURES["attention"]()
    first, second = draw(5, shapes), draw(6, shapes)
    found = weight_matching(KEY, spec, first, second)
    names, best = ("dots", "values"), -np.inf
    for heads in itertools.permutations(range(3)):
        moved = permute_units(spec, second, {"heads": np.array(heads)})
        total = np.vdot(first["gate"], moved["gate"])
        leaves = {"dots": ("q", "k", "q/bias"), "values": ("v", "o")}
        for name, u in itertools.product(names, range(3)):
            a, b = (
                np.concatenate([_of_head(m[n], n, u) for n in leaves[name]]) for m in (first, moved)
            )
            total += assign(a.T.astype(float) @ b)[1]
        best = max(best, total)
    np.testing.assert_allclose(found.info["objective"], best, rtol=1e-5)


def _of_head(leaf, name, head):
    leaf = np.asarray(leaf)
    if name == "o":
        return leaf.reshape(3, 4, 5)[head].T
    return leaf[:, head] if leaf.ndim == 3 else leaf[head][None]


@pytest.mark.parametrize("name", ["attention", "recurrent"])
def test_the_objective_is_that_of_the_permuted_model_and_no_worse_than_at_the_start(name):
    shapes, spec = ARCHITECTURES[name]()
    first, second = draw(7, shapes), draw(8, shapes)
    for init in ("identity", "random"):
        found = weight_matching(KEY, spec, first, second, init=init)
        moved = permute_units(spec, second, found.permutations)
        np.testing.assert_allclose(found.info["objective"], _products(first, moved), rtol=1e-12)
        gaps = [np.square(np.asarray(first[n], float) - moved[n]).sum() for n in first]
        np.testing.assert_allclose(found.info["distance"], np.sqrt(sum(gaps)), rtol=1e-6)
        if init == "identity":
            assert found.info["objective"] >= _products(first, second)


def test_equal_keys_give_equal_results_and_arguments_stay():
    shapes, spec = residual()
    first, second = draw(0, shapes), draw(1, shapes)
    init = identity_permutations(spec)
    before = {n: np.array(v) for n, v in (first | {f"2{n}": v for n, v in second.items()}).items()}
    once, again = (weight_matching(KEY, spec, first, second, init=init, restarts=4) for _ in "ab")
    for name in spec.names:
        np.testing.assert_array_equal(once.permutations[name], again.permutations[name])
        np.testing.assert_array_equal(init[name], np.arange(spec[name].size))
    assert once.info["objectives"] == again.info["objectives"]
    assert len(set(once.info["objectives"])) > 1
    for name, value in before.items():
        np.testing.assert_array_equal(second[name[1:]] if name[0] == "2" else first[name], value)
    resumed = weight_matching(KEY, spec, first, second, init=once.permutations)
    assert resumed.info["objective"] >= once.info["objective"]


def test_complex_weights_are_matched_as_complex():
    shapes, spec = ARCHITECTURES["mlp"]()
    # Real parts alone are equal for all units, and imaginary parts alone tell two models apart.
    first = {n: 1.0 + 1j * v for n, v in draw(0, shapes).items()}
    second = plant(0, spec, first)
    found = weight_matching(KEY, spec, first, second)
    merged = align(spec, second, found)
    for leaf, values in first.items():
        assert jnp.iscomplexobj(merged[leaf])
        np.testing.assert_array_equal(merged[leaf], values)
    total = sum(np.vdot(values, values).real for values in first.values())
    np.testing.assert_allclose(found.info["objective"], total, rtol=1e-6)
    assert found.info["distance"] == 0.0


@pytest.mark.parametrize("name", ["residual", "recurrent", "attention"])
@pytest.mark.parametrize("power", [-110, -80, 80, 110])
def test_matching_does_not_depend_on_the_weights_magnitude(name, power):
    shapes, spec = ARCHITECTURES[name]()
    first, second = draw(2, shapes), draw(3, shapes)
    expected = weight_matching(KEY, spec, first, second)
    scaled = [{n: v * np.float32(2.0**power) for n, v in m.items()} for m in (first, second)]
    found = weight_matching(KEY, spec, *scaled)
    for group in spec.names:
        np.testing.assert_array_equal(found.permutations[group], expected.permutations[group])
    ratio = found.info["objective"] / expected.info["objective"]
    np.testing.assert_allclose(ratio, 4.0**power, rtol=1e-6)


def test_align_answers_a_swapped_order_in_one_line():
    shapes, spec = ARCHITECTURES["mlp"]()
    first = draw(0, shapes)
    found = weight_matching(KEY, spec, first, first)
    with pytest.raises(ValueError, match=r"found of align is a dict; .* align\(spec, model, match"):
        align(spec, found, first)


def test_statistics_move_and_do_not_count():
    shapes = {"a": (3, 5), "mean": (5,), "b": (5, 2)}
    ties = [Tie(leaf="a", axis=1), Tie(leaf="mean", axis=0, role="statistic"),
            Tie(leaf="b", axis=0, role="consumed")]  # fmt: skip
    first = draw(0, shapes)
    spec = hand_written({"hidden": ties}, first)
    second = plant(0, spec, first)
    # Statistics that would pull every unit elsewhere, were they counted.
    second["mean"] = 1e6 * jnp.arange(5.0)
    found = weight_matching(KEY, spec, first, second)
    assert found.info["distance"] == 0.0
    order = found.permutations["hidden"]
    moved = align(spec, second, found)
    np.testing.assert_array_equal(moved["mean"], second["mean"][order])
    np.testing.assert_array_equal(moved["a"], first["a"])


def test_assignments_are_the_best_of_all():
    scores = np.random.default_rng(0).normal(size=(2, 3, 4, 4))
    found, totals = assign(scores)
    for index in np.ndindex(2, 3):
        every = [
            (scores[index][np.arange(4), list(p)].sum(), p)
            for p in itertools.permutations(range(4))
        ]
        best, order = max(every)
        np.testing.assert_allclose(totals[index], best)
        np.testing.assert_array_equal(found[index], order)
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        assign(np.full((2, 2), np.nan))


def test_errors_name_leaf_and_setting():
    shapes, spec = ARCHITECTURES["mlp"]()
    first = draw(0, shapes)

    def match(second, spec=spec, **settings):
        weight_matching(KEY, spec, first, second, **settings)

    with pytest.raises(ValueError, match="leaf a of the second model holds 28 NaN"):
        match(first | {"a": first["a"] * jnp.nan})
    with pytest.raises(ValueError, match=r"leaf c has shape \(6, 3\) in the first model and"):
        match(first | {"c": jnp.ones((6, 4))})
    with pytest.raises(ValueError, match="leaf c0 of group c0 is not in the model"):
        match(first, ARCHITECTURES["conv"]()[1])
    with pytest.raises(ValueError, match="init 'best' is unknown"):
        match(first, init="best")
    with pytest.raises(ValueError, match="init of group first is not a permutation"):
        match(first, init={"first": np.zeros(7, int)})
    with pytest.raises(ValueError, match="restarts 0 is below 1"):
        match(first, restarts=0)
    with pytest.raises(ValueError, match="max_sweeps 0 is below 1"):
        match(first, max_sweeps=0)
    cut = weight_matching(KEY, spec, first, draw(1, shapes), restarts=1, max_sweeps=1)
    assert not cut.info["converged"]
    with pytest.raises(ValueError, match=r"map of group first has shape \(2,\)"):
        align(spec, first, Matching({"first": np.arange(2)}, {}))
