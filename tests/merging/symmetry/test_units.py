"""Moving units: blocks, nesting, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsa_jax.merging.symmetry.spec import AxisSpec, Group, Pinned, Tie, check_spec, hand_written
from wsa_jax.merging.symmetry.units import (
    identity_permutations,
    permute_units,
    scale_units,
    unit_rows,
)

RNG = np.random.default_rng(0)


def _normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


@pytest.fixture(scope="module")
def block():
    """Concatenation, flattening in both orders, and a chain of two groups."""
    params = {"a": _normal(2, 3), "b": _normal(2, 4), "c": _normal(5 + 2 * 3 * 2 + 4, 2)}
    groups = {
        "first": [
            Tie(leaf="a", axis=1),
            Tie(leaf="c", axis=0, role="consumed", offset=5, outer=2, inner=2),
        ],
        "second": [Tie(leaf="b", axis=1), Tie(leaf="c", axis=0, role="consumed", offset=17)],
    }

    half = Pinned(leaf="c", axis=0, reason="five inputs that are fixed")

    def apply(params, x):
        first = jax.nn.relu(x @ params["a"])
        placed = jnp.broadcast_to(first[:, None, :, None], (x.shape[0], 2, 3, 2))
        placed = placed.reshape(x.shape[0], -1)
        second = jax.nn.relu(x @ params["b"])
        fixed = jnp.ones((x.shape[0], 5))
        return jnp.concatenate([fixed, placed, second], axis=1) @ params["c"]

    return params, hand_written(groups, params, pinned=[half], admits="scaling"), apply


def test_blocks_move_and_scale_without_a_change_of_the_function(block):
    params, spec, apply = block
    x = _normal(7, 2)
    permutations = {"first": np.array([2, 0, 1]), "second": np.array([3, 1, 0, 2])}
    scales = {"first": np.array([0.5, 2.0, 3.0]), "second": np.array([4.0, 1.0, 0.1, 1.5])}
    moved = permute_units(spec, params, permutations)
    np.testing.assert_allclose(apply(moved, x), apply(params, x), rtol=2e-5, atol=1e-5)
    assert not np.array_equal(moved["c"], params["c"])
    scaled = scale_units(spec, moved, scales)
    np.testing.assert_allclose(apply(scaled, x), apply(params, x), rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(scaled["a"], moved["a"] * scales["first"][None], rtol=1e-6)


def _attention(params, x):
    query, key, value = (jnp.einsum("bti,ihd->bthd", x, params[n]) for n in "qkv")
    weights = jax.nn.softmax(jnp.einsum("bshd,bthd->bhst", query, key))
    mixed = jnp.einsum("bhst,bthd->bshd", weights, value)
    return mixed.reshape(*mixed.shape[:2], -1) @ params["o"]


@pytest.fixture(scope="module")
def attention():
    """Heads, and an order of their dimensions inside each head; o's axis holds both."""
    params = {n: _normal(5, 3, 4) for n in "qkv"} | {"o": _normal(12, 5)}
    heads = Group(
        name="heads",
        size=3,
        ties=(
            *(Tie(leaf=n, axis=1) for n in "qkv"),
            Tie(leaf="o", axis=0, role="consumed", inner=4),
        ),
    )
    dots = Group(
        name="dots", size=4, parent="heads", ties=(Tie(leaf="q", axis=2), Tie(leaf="k", axis=2))
    )
    values = Group(
        name="values",
        size=4,
        parent="heads",
        ties=(Tie(leaf="v", axis=2), Tie(leaf="o", axis=0, role="consumed", outer=3)),
    )
    spec = AxisSpec(groups=(heads, dots, values))
    check_spec(spec, params)
    return params, spec


def test_nested_groups_move_inside_each_unit_of_their_parent(attention):
    params, spec = attention
    x = _normal(2, 6, 5)
    inside = np.stack([RNG.permutation(4) for _ in range(3)])
    permutations = {"heads": np.array([1, 2, 0]), "dots": inside, "values": inside[::-1]}
    moved = jax.jit(permute_units, static_argnames="spec")(spec, params, permutations)
    np.testing.assert_allclose(_attention(moved, x), _attention(params, x), rtol=1e-4, atol=1e-4)
    # The stated order: inside the heads first, then the heads.
    by_hand = np.stack([np.asarray(params["q"])[:, h][:, inside[h]] for h in range(3)], 1)
    np.testing.assert_array_equal(moved["q"], by_hand[:, [1, 2, 0]])


def test_rows_hold_each_units_weights(attention):
    params, spec = attention
    heads, dots, values = spec.groups
    o = np.asarray(params["o"])
    np.testing.assert_array_equal(
        unit_rows(spec, params["o"], heads, heads.ties[3]), o.reshape(3, 4 * 5)
    )
    np.testing.assert_array_equal(
        unit_rows(spec, params["o"], values, values.ties[1]), o.reshape(3, 4, 5)
    )
    np.testing.assert_array_equal(
        unit_rows(spec, params["q"], dots, dots.ties[0]),
        np.transpose(np.asarray(params["q"]), (1, 2, 0)),
    )


def test_rows_of_a_nested_axis_before_its_parents():
    params = {"w": _normal(4, 2, 3)}
    groups = (
        Group(name="outer", size=3, ties=(Tie(leaf="w", axis=2),)),
        Group(name="inner", size=4, parent="outer", ties=(Tie(leaf="w", axis=0),)),
    )
    spec = AxisSpec(groups=groups)
    rows = unit_rows(spec, params["w"], groups[1], groups[1].ties[0])
    np.testing.assert_array_equal(rows, np.transpose(np.asarray(params["w"]), (2, 0, 1)))
    inside = np.stack([RNG.permutation(4) for _ in range(3)])
    moved = permute_units(spec, params, {"inner": inside})
    for unit in range(3):
        np.testing.assert_array_equal(moved["w"][..., unit], params["w"][inside[unit], :, unit])


def test_identity_permutations_move_nothing(attention):
    params, spec = attention
    moved = permute_units(spec, params, identity_permutations(spec))
    for name, leaf in params.items():
        np.testing.assert_array_equal(moved[name], leaf)


def test_specs_are_equal_whatever_their_groups_are_called(attention):
    _, spec = attention
    renamed = AxisSpec(
        groups=tuple(
            Group(
                name=group.name.upper(),
                size=group.size,
                ties=group.ties[::-1],
                parent=group.parent and group.parent.upper(),
            )
            for group in spec.groups[::-1]
        ),
        pinned=(Pinned(leaf="q", axis=0, reason="input"),),
    )
    assert renamed != spec
    assert renamed.canonical() == spec.canonical()


def test_errors_name_leaf_and_axis(block, attention):
    params, spec, _ = block
    with pytest.raises(ValueError, match="leaf a of group first is not in the model; it has x"):
        check_spec(spec, {"x": jnp.ones(2)})
    with pytest.raises(ValueError, match="axis 1 of leaf a has size 2, too small for group first"):
        check_spec(spec, params | {"a": _normal(2, 2)})
    with pytest.raises(ValueError, match=r"leaf a has shape \(2,\) and no axis 1"):
        check_spec(spec, params | {"a": _normal(2)})
    with pytest.raises(ValueError, match="axis 1 of leaf a has size 4, of which groups first cov"):
        check_spec(spec, params | {"a": _normal(2, 4)})
    twice = (*spec.groups, Group(name="third", size=3, ties=(Tie(leaf="a", axis=1),)))
    with pytest.raises(ValueError, match="axis 1 of leaf a is given to groups first and third"):
        check_spec(AxisSpec(groups=twice), params)
    with pytest.raises(ValueError, match="group names must differ"):
        check_spec(AxisSpec(groups=(spec.groups[0],) * 2), params)
    with pytest.raises(ValueError, match="group none is not in the spec; it has first, second"):
        permute_units(spec, params, {"none": np.arange(3)})
    with pytest.raises(ValueError, match=r"map of group first has shape \(2,\), expected \(3,\)"):
        permute_units(spec, params, {"first": np.arange(2)})
    weights, heads = attention
    with pytest.raises(ValueError, match="group heads admits permutations only"):
        scale_units(heads, weights, {"heads": np.ones(3)})
    orphan = Group(name="orphan", size=2, parent="heads", ties=(Tie(leaf="x", axis=0),))
    with pytest.raises(ValueError, match="none of its parent heads"):
        check_spec(AxisSpec(groups=(*heads.groups, orphan)), weights | {"x": jnp.ones(2)})


def _scalable(admits):
    params = {"a": _normal(2, 3), "b": _normal(3, 2)}
    ties = [Tie(leaf="a", axis=1), Tie(leaf="b", axis=0, role="consumed")]
    return params, hand_written({"hidden": ties}, params, admits=admits)


def test_an_order_that_is_none_and_a_model_of_another_width_are_refused():
    params, spec = _scalable("scaling")
    for wrong in ([0] * 3, [0, 1, 3], np.array([2, 1, 1])):
        with pytest.raises(
            ValueError, match="the order of group hidden does not name each of its 3"
        ):
            permute_units(spec, params, {"hidden": wrong})
    with pytest.raises(ValueError, match="the order of group hidden has dtype float64; give int"):
        permute_units(spec, params, {"hidden": [0.0, 1.0, 2.0]})
    np.testing.assert_array_equal(
        permute_units(spec, params, {"hidden": [2, 0, 1]})["a"], params["a"][:, [2, 0, 1]]
    )
    for width, message in ((2, "has size 2, too small"), (4, "has size 4, of which")):
        other = {"a": _normal(2, width), "b": _normal(width, 2)}
        with pytest.raises(ValueError, match=f"axis 1 of leaf a {message}"):
            permute_units(spec, other, {"hidden": np.arange(3)})
        with pytest.raises(ValueError, match=f"axis 1 of leaf a {message}"):
            scale_units(spec, other, {"hidden": np.ones(3)})


@pytest.mark.parametrize("wrong", [0.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("admits", ["scaling", "linear"])
def test_scales_that_cannot_be_undone_are_refused(wrong, admits):
    params, spec = _scalable(admits)
    with pytest.raises(ValueError, match=f"scale {wrong:g} of group hidden cannot be undone"):
        scale_units(spec, params, {"hidden": np.array([1.0, wrong, 2.0])})


def test_negative_scales_pass_linear_units_only():
    params, spec = _scalable("linear")
    moved = scale_units(spec, params, {"hidden": np.array([1.0, -1.0, -2.0])})
    np.testing.assert_allclose(moved["a"] @ moved["b"], params["a"] @ params["b"], rtol=1e-5)
    params, spec = _scalable("scaling")
    with pytest.raises(ValueError, match="scale -1 of group hidden is negative, and the group adm"):
        scale_units(spec, params, {"hidden": np.array([1.0, -1.0, 2.0])})


@pytest.mark.parametrize(
    ("dtype", "wrong"),
    [("float32", 1e38), ("float32", 1e-46), ("float16", 1e5), ("bfloat16", 1e39)],
)
def test_scales_outside_a_dtypes_range_are_refused(dtype, wrong):
    params, spec = _scalable("scaling")
    params = {name: leaf.astype(dtype) for name, leaf in params.items()}
    with pytest.raises(ValueError, match=f"or its inverse is outside the range of {dtype} of leaf"):
        scale_units(spec, params, {"hidden": np.array([1.0, wrong, 2.0])})


def test_unknown_words_are_refused():
    with pytest.raises(ValueError, match="role of the tie in leaf a: 'x' is unknown; give 'produ"):
        Tie(leaf="a", axis=0, role="x")
    with pytest.raises(ValueError, match="admits of group g: 'x' is unknown; give 'linear', 'scal"):
        Group(name="g", size=2, ties=(), admits="x")
    params = {"a": _normal(2, 3)}
    with pytest.raises(ValueError, match="admits of group hidden: 'x' is unknown"):
        hand_written({"hidden": [Tie(leaf="a", axis=1)]}, params, admits="x")
    with pytest.raises(ValueError, match="admits names groups other, which are not given; there"):
        hand_written({"hidden": [Tie(leaf="a", axis=1)]}, params, admits={"other": "scaling"})
