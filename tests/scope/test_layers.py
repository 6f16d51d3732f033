"""Which leaves are layers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from wsa_jax import all_leaves, constant_layers, kernels, matching, matrices, stacked, without
from wsa_jax.scope.layers import select_layers

PARAMS = {
    "conv": {"kernel": jnp.ones((3, 3, 1, 2)), "bias": jnp.ones(2)},
    "embed": {"embedding": jnp.ones((5, 2))},
    "norm": {"scale": jnp.ones(2)},
    "step": jnp.int32(3),
}


def names(params, rule=kernels):
    return [layer.name for layer in select_layers(params, rule)]


def test_default_takes_kernels_and_embeddings():
    assert names(PARAMS) == ["conv/kernel", "embed/embedding"]


@pytest.mark.parametrize("name", ["kernel", "weight", "w", "embedding"])
def test_default_takes_each_common_name(name):
    assert names({name: jnp.ones((2, 2)), "other": jnp.ones((2, 2))}) == [name]


def test_a_one_dimensional_weight_is_a_norm_scale():
    with pytest.raises(ValueError, match="selects none"):
        names({"weight": jnp.ones(4)})


def test_all_leaves_takes_floating_point_leaves_only():
    chosen = names(PARAMS | {"key": jax.random.key(0)}, all_leaves)
    assert chosen == ["conv/bias", "conv/kernel", "embed/embedding", "norm/scale"]


def test_regex_matches_the_whole_path():
    assert names(PARAMS, matching(r"conv/.*")) == ["conv/bias", "conv/kernel"]
    with pytest.raises(ValueError, match="selects none"):
        names(PARAMS, matching("conv"))


def test_bad_regex_is_refused_when_made():
    with pytest.raises(ValueError, match=r"pattern '\(' is not a regular expression"):
        matching("(")


def test_predicate_sees_name_and_leaf():
    assert names(PARAMS, lambda name, leaf: leaf.ndim == 4 or "scale" in name) == [
        "conv/kernel",
        "norm/scale",
    ]


def test_without_drops_the_named_leaves():
    assert names(PARAMS, without(kernels, ("conv/kernel",))) == ["embed/embedding"]


def test_layers_know_their_leaf_and_size():
    leaves = jax.tree.leaves(PARAMS)
    for layer in select_layers(PARAMS, all_leaves):
        assert leaves[layer.leaf].size == layer.size


@pytest.mark.parametrize("axis", [0, -3])
def test_stacked_leaf_is_one_layer_per_slice(axis):
    params = {"blocks": {"kernel": jnp.ones((3, 4, 2))}, "head": {"kernel": jnp.ones((2, 2))}}
    layers = select_layers(params, stacked(kernels, "blocks/.*", axis=axis))
    assert [layer.name for layer in layers] == [
        "blocks/kernel[0]",
        "blocks/kernel[1]",
        "blocks/kernel[2]",
        "head/kernel",
    ]
    assert [layer.size for layer in layers] == [8, 8, 8, 4]


def test_without_keeps_the_declared_axis():
    rule = without(stacked(kernels, "blocks/kernel"), ("head/kernel",))
    params = {"blocks": {"kernel": jnp.ones((2, 4, 2))}, "head": {"kernel": jnp.ones((2, 2))}}
    assert names(params, rule) == ["blocks/kernel[0]", "blocks/kernel[1]"]


def test_stacked_axis_outside_the_shape_names_leaf_and_shape():
    with pytest.raises(ValueError, match=r"axis 3 of leaf kernel is outside its shape \(2, 4\)"):
        names({"kernel": jnp.ones((2, 4))}, stacked(kernels, "kernel", axis=3))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (without(kernels, ("conv/kernel", "cnov/bias")), "without names cnov/bias, which is not a"),
        (stacked(kernels, "block/.*"), "stacked has pattern 'block/.*', which matches no leaf"),
        (without(stacked(kernels, "block/.*"), ("conv/bias",)), "stacked has pattern"),
    ],
)
def test_a_rule_that_names_what_there_is_not(rule, message):
    with pytest.raises(ValueError, match=message) as error:
        names(PARAMS, rule)
    assert "\n" not in str(error.value)


def test_a_pattern_that_is_none():
    for make in (matching, lambda pattern: stacked(kernels, pattern)):
        with pytest.raises(ValueError, match=r"pattern '\(' is not a regular expression"):
            make("(")


def test_matrices_finds_kernels_of_any_name():
    cell = eqx.nn.GRUCell(3, 2, key=jax.random.key(0))
    assert names(cell, matrices) == ["weight_ih", "weight_hh"]
    with pytest.raises(ValueError, match="selects none"):
        names(cell)


def test_error_lists_the_leaves_there_are():
    with pytest.raises(ValueError, match=r"conv/bias\[2\].*norm/scale\[2\]") as error:
        names(PARAMS, matching("nothing"))
    assert "\n" not in str(error.value)


def test_attention_biases_and_class_tokens_are_no_layers():
    attention = nn.MultiHeadDotProductAttention(num_heads=2)
    params = attention.init(jax.random.key(0), jnp.ones((1, 3, 4)))["params"]
    assert params["query"]["bias"].ndim == 2
    params = params | {"cls": jnp.ones((1, 1, 4))}
    assert names(params) == ["key/kernel", "out/kernel", "query/kernel", "value/kernel"]


def test_same_layers_traced_and_concrete_and_abstract():
    traced = []
    jax.jit(lambda params: traced.append(select_layers(params)))(PARAMS)
    abstract = jax.eval_shape(lambda: PARAMS)
    assert traced[0] == select_layers(PARAMS) == select_layers(abstract)


def test_functions_in_a_module_are_no_layers():
    module = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
    assert names(module) == ["layers/0/weight", "layers/1/weight"]


def test_constant_layers_are_those_with_equal_values():
    params = {
        "a": {"kernel": jnp.full((2, 2), 0.1)},
        "b": {"kernel": jnp.eye(2, dtype=jnp.bfloat16)},
        "c": {"kernel": np.zeros((2, 2))},
    }
    assert constant_layers(params) == ("a/kernel", "c/kernel")
