"""The tracer reads what was written by hand, on every architecture of the library."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.merging.symmetry.hand_written_specs import cnn_spec, mlp_spec, resnet_spec, vgg_spec
from wsa_jax.merging.symmetry.equivalence import check_equivalence
from wsa_jax.merging.symmetry.tracing import trace_spec
from wsa_jax.merging.symmetry.units import permute_units, scale_units
from wsa_jax.models import CNN, MLP, VGG, ResNet, resnet20, vgg8, vgg11, vgg16

_SMALL = {"features": (4, "M", 6, 6, "M"), "dense": (5,), "num_classes": 3}
_BLOCKS = {"blocks": 2, "stem": 4, "widths": (4, 6, 8), "num_classes": 3}
_CASES = {
    "mlp": (MLP(features=(7, 5, 3)), mlp_spec, (3, 2)),
    "linear": (MLP(features=(3,)), mlp_spec, (4,)),
    "one unit": (MLP(features=(4, 1, 3)), mlp_spec, (4,)),
    "cnn": (CNN(num_classes=3), cnn_spec, (16, 16, 3)),
    "vgg": (VGG(**_SMALL), vgg_spec, (8, 8, 3)),
    "vgg batch": (VGG(**_SMALL, norm="batch"), vgg_spec, (8, 8, 3)),
    "vgg layer": (VGG(**_SMALL, norm="layer"), vgg_spec, (8, 8, 3)),
    "vgg8": (vgg8(10, width=0.1), vgg_spec, (32, 32, 3)),
    "vgg11": (vgg11(10, width=0.1), vgg_spec, (32, 32, 3)),
    "vgg16": (vgg16(10), vgg_spec, (32, 32, 3)),
    "resnet layer": (ResNet(**_BLOCKS), resnet_spec, (8, 8, 3)),
    "resnet batch": (ResNet(**_BLOCKS, norm="batch"), resnet_spec, (8, 8, 3)),
    "wide resnet": (ResNet(**_BLOCKS | {"stem": 3}, shortcut=1), resnet_spec, (8, 8, 3)),
    "resnet20": (resnet20(10, width=4), resnet_spec, (32, 32, 3)),
}

_ALONE = ("mlp", "one unit", "cnn", "vgg layer", "resnet layer")


@pytest.mark.parametrize("name", _CASES)
def test_traced_equals_hand_written(name):
    model, write, shape = _CASES[name]
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    traced = trace_spec(model.apply, variables, x)
    assert traced.canonical() == write(variables).canonical()
    assert all(pin.reason == "a single unit" for pin in traced.pinned)

    # The same for parameters alone, whose names have no collection: one of each family's.
    if name in _ALONE:
        traced = trace_spec(lambda p, x: model.apply({"params": p}, x), variables["params"], x)
        assert traced.canonical() == write(variables["params"]).canonical()


@pytest.mark.parametrize("name", ["mlp", "vgg", "vgg batch", "vgg layer", "resnet layer",
                                  "resnet batch", "wide resnet"])  # fmt: skip
def test_planted_orders_and_scales_keep_the_function(name):
    model, write, shape = _CASES[name]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, *shape)), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    variables = jax.tree.map(
        lambda leaf: (
            jnp.asarray(np.exp(0.3 * rng.normal(size=leaf.shape)), leaf.dtype)
            if leaf.ndim == 1
            else jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype)
        ),
        shapes,
    )
    spec = write(variables)
    orders = {group.name: rng.permutation(group.size) for group in spec.groups}
    scales = {
        group.name: np.exp(rng.normal(size=group.size)).astype(np.float32)
        for group in spec.groups
        if group.admits != "permutation"
    }
    assert any(not np.array_equal(order, np.sort(order)) for order in orders.values())

    @jax.jit
    def moved(variables):
        return permute_units(spec, scale_units(spec, variables, scales), orders)

    apply = jax.jit(model.apply)
    check_equivalence(apply, variables, moved(variables), x)
    # The last group alone, and only where it is produced: another function.
    group = spec.groups[-1]
    wrong = group.ties[0]
    other = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            leaf[..., np.roll(np.arange(group.size), 1)]
            if wrong.leaf.split("/") == [entry.key for entry in path]
            else leaf
        ),
        variables,
    )
    with pytest.raises(ValueError, match="the models differ"):
        check_equivalence(apply, variables, other, x)


def test_another_architectures_spec_says_what_is_missing():
    params = {"Conv_0": {"kernel": np.ones((3, 3, 2, 4))}}
    with pytest.raises(ValueError, match="leaf Dense_0/kernel is not in the model, which has Conv"):
        resnet_spec(params)
