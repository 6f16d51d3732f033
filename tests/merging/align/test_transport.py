"""OT Fusion: plans against linear programmes and POT, planted answers, other widths, refusals."""

import numpy as np
import ot
import pytest
from scipy.optimize import linprog

from tests.merging.align.architectures import attention, draw, plant
from tests.merging.align.networks import NETWORKS
from tests.merging.align.widths import (
    INPUTS,
    SHAPES,
    SPEC,
    duplicated,
    mlp_activations,
    mlp_function,
)
from wsa_jax.extras import MissingExtraError
from wsa_jax.merging.align import activation_transport, align, weight_transport
from wsa_jax.merging.align.transport_plan import _by_linear_programme, transport_plan
from wsa_jax.merging.symmetry.spec import hand_written
from wsa_jax.merging.symmetry.tracing import trace_spec


def uniform(size):
    return np.full(size, 1 / size)


def least_cost(cost, first, second):
    """SciPy's, with dense constraints written out one by one."""
    rows, columns = cost.shape
    sums = np.zeros((rows + columns, rows, columns))
    sums[np.arange(rows), np.arange(rows)] = 1
    sums[rows + np.arange(columns), :, np.arange(columns)] = 1
    masses = np.concatenate([first, second])
    found = linprog(cost.ravel(), A_eq=sums.reshape(rows + columns, -1), b_eq=masses)
    assert found.success
    return found.fun


@pytest.mark.parametrize(("rows", "columns"), [(6, 6), (3, 6), (6, 3), (5, 7)])
@pytest.mark.parametrize("even", [True, False])
def test_exact_plans_cost_what_linear_programmes_do(rows, columns, even):
    rng = np.random.default_rng([rows, columns])
    cost = rng.random((rows, columns))
    masses = [uniform(n) if even else rng.dirichlet(np.ones(n)) for n in (rows, columns)]
    for plan in (transport_plan(cost, *masses), _by_linear_programme(cost, *masses)):
        np.testing.assert_allclose(plan.sum(1), masses[0], atol=1e-9)
        np.testing.assert_allclose(plan.sum(0), masses[1], atol=1e-9)
        assert plan.min() >= 0
        np.testing.assert_allclose(np.sum(plan * cost), least_cost(cost, *masses), rtol=1e-7)


def test_exact_plans_are_pots():
    rng = np.random.default_rng(0)
    for rows, columns in ((8, 8), (4, 12), (5, 7)):
        cost = rng.random((rows, columns))
        given = uniform(rows), uniform(columns)
        # Costs drawn at random have one best plan.
        np.testing.assert_allclose(transport_plan(cost, *given), ot.emd(*given, cost), atol=1e-9)


def test_sinkhorn_plans_are_pots_in_the_log_domain_and_end_at_the_exact_one():
    cost = np.random.default_rng(0).random((5, 8))
    given = uniform(5), uniform(8)
    plan = transport_plan(cost, *given, solver="sinkhorn", epsilon=0.1)
    reference = ot.sinkhorn(*given, cost, 0.1 * cost.mean(), method="sinkhorn_log", stopThr=1e-12)
    np.testing.assert_allclose(plan, reference, atol=1e-5)
    sharp = transport_plan(cost, *given, solver="sinkhorn", epsilon=0.001)
    np.testing.assert_allclose(sharp, transport_plan(cost, *given), atol=1e-4)


def test_sinkhorn_without_pot_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="Sinkhorn's solver needs POT, which is not inst"):
        transport_plan(np.ones((2, 2)), uniform(2), uniform(2), solver="sinkhorn")
    # The exact solver goes on without it.
    assert transport_plan(np.ones((2, 3)), uniform(2), uniform(3)).shape == (2, 3)


class TestPlanted:
    def test_by_activations(self):
        first = draw(2, SHAPES)
        first["a/bias"] += 3.0  # Else a unit may be dead, and then any order of it is as good.
        first["b/bias"] += 6.0
        second, third = (plant(seed, SPEC, first) for seed in (0, 1))
        maps = activation_transport(
            SPEC, [first, second, third], mlp_activations, INPUTS, batch_size=7
        )
        for model, found in zip((first, second, third), maps, strict=True):
            for name, value in align(SPEC, model, found).items():
                np.testing.assert_array_equal(value, first[name])

    @pytest.mark.parametrize("name", ["mlp", "conv", "residual", "depthwise", "recurrent"])
    def test_by_weights(self, name):
        function, shapes, example = NETWORKS[name]
        first = draw(3, shapes)
        spec = trace_spec(function, first, np.zeros((2, *example), np.float32))
        second = plant(3, spec, first)
        _, maps = weight_transport(spec, [first, second])
        assert maps.forward.keys() == set(spec.names)
        for name, value in align(spec, second, maps).items():
            np.testing.assert_array_equal(value, first[name])

    def test_by_sinkhorn(self):
        first = draw(2, SHAPES)
        second = plant(0, SPEC, first)
        _, maps = weight_transport(SPEC, [first, second], solver="sinkhorn", epsilon=0.01)
        for name, value in align(SPEC, second, maps).items():
            np.testing.assert_allclose(value, first[name], atol=1e-3)


class TestOtherWidths:
    @pytest.mark.parametrize("by", ["activations", "weights"])
    def test_a_copy_with_every_unit_doubled_is_the_model(self, by):
        first, second = duplicated(np.full(7, 2), np.full(6, 2))
        np.testing.assert_allclose(
            mlp_function(first, INPUTS), mlp_function(second, INPUTS), rtol=1e-4
        )
        if by == "weights":
            _, maps = weight_transport(SPEC, [first, second])
        else:
            _, maps = activation_transport(SPEC, [first, second], mlp_activations, INPUTS)
        moved = align(SPEC, second, maps)
        if by == "weights":
            for name, value in moved.items():
                np.testing.assert_allclose(value, first[name], rtol=1e-5)
        # Activations do not tell apart units that are dead on these inputs.
        np.testing.assert_allclose(
            mlp_function(moved, INPUTS), mlp_function(first, INPUTS), rtol=1e-3
        )

    @pytest.mark.parametrize("by", ["activations", "weights"])
    def test_copies_in_unequal_numbers_are_the_model_where_masses_count_them(self, by):
        times = np.array([3, 1, 1, 2, 1, 1, 1]), np.array([1, 4, 1, 1, 1, 1])
        first, second = duplicated(*times)
        # How often each unit of the copy is there: its bias tells which it is.
        masses = {
            name: 1 / times[i][np.argmin(np.abs(second[n][:, None] - first[n][None]), axis=1)]
            for i, (name, n) in enumerate(zip(SPEC.names, ("a/bias", "b/bias"), strict=True))
        }
        if by == "weights":
            _, maps = weight_transport(SPEC, [first, second], masses=[{}, masses])
        else:
            _, maps = activation_transport(
                SPEC, [first, second], mlp_activations, INPUTS, masses=[{}, masses]
            )
        average = {n: (v + first[n]) / 2 for n, v in align(SPEC, second, maps).items()}
        np.testing.assert_allclose(
            mlp_function(average, INPUTS), mlp_function(first, INPUTS), rtol=1e-3
        )

    def test_the_first_model_may_be_the_wider_one(self):
        narrow, wide = duplicated(np.full(7, 2), np.full(6, 2))
        spec = hand_written({g.name: g.ties for g in SPEC.groups}, wide)
        _, maps = weight_transport(spec, [wide, narrow])
        moved = align(spec, narrow, maps)
        assert {n: v.shape for n, v in moved.items()} == {n: v.shape for n, v in wide.items()}
        np.testing.assert_allclose(
            mlp_function(moved, INPUTS), mlp_function(wide, INPUTS), rtol=1e-4
        )


def test_what_cannot_be_mapped_is_one_line():
    first, second = duplicated(np.full(7, 2), np.full(6, 2))
    heads = second | {"c": np.concatenate([second["c"]] * 2, axis=1)}
    with pytest.raises(ValueError, match="axis 1 of leaf c has size 3 in the first model and 6 in"):
        weight_transport(SPEC, [first, heads])
    odd = second | {"a/bias": second["a/bias"][1:]}
    with pytest.raises(ValueError, match="axis 0 of leaf a/bias has size 13 in model 2, which"):
        weight_transport(SPEC, [first, odd])
    with pytest.raises(ValueError, match="leaf c is only in the first model"):
        weight_transport(SPEC, [first, {n: v for n, v in second.items() if n != "c"}])
    with pytest.raises(ValueError, match="axis 0 of leaf a has size 4 in the first model and 3 in"):
        weight_transport(SPEC, [first, second | {"a": second["a"][:3]}])
    with pytest.raises(ValueError, match=r"masses are 1 .* one for each of 2 models; give an"):
        weight_transport(SPEC, [first, second], masses=[{}])
    with pytest.raises(ValueError, match="1 model was given; give at least two"):
        weight_transport(SPEC, [first])
    with pytest.raises(ValueError, match="no calibration data"):
        activation_transport(SPEC, [first, second], mlp_activations, INPUTS[:0])
    with pytest.raises(ValueError, match="1 functions of activations were given for 2 models"):
        activation_transport(SPEC, [first, second], [mlp_activations], INPUTS)


def test_nested_groups_stay_and_are_named_and_have_one_width():
    shapes, spec = attention()
    first, second = draw(0, shapes), draw(1, shapes)
    _, maps = weight_transport(spec, [first, second])
    assert maps.forward == {} and set(maps.info["unmoved"]) == {"heads", "dots", "values"}
    assert maps.info["unmoved"]["dots"] == "its units are nested in those of heads"
    wider = {n: np.repeat(np.asarray(v), 2, axis=1) if n in "qkv" else v for n, v in first.items()}
    for name, axis in {"q/bias": 0, "gate": 0, "o": 0}.items():
        wider[name] = np.repeat(np.asarray(first[name]), 2, axis=axis)
    message = "group heads has 3 units in the first model and 6 in model 2, and cannot be mapped"
    with pytest.raises(ValueError, match=message):
        weight_transport(spec, [first, wider])
