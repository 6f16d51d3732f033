"""Every architecture goes through everything, with no special case: one table, one test a room.

MLP, CNN, VGG and ResNet go through it in the tests of each room; here are those that came later.
"""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wsa_jax import weight_scope
from wsa_jax.data import DatasetInfo
from wsa_jax.federated import LocalSettings, WeightScopeAlignment, simulate
from wsa_jax.merging import (
    LearningSettings,
    Model,
    check_equivalence,
    labelled_examples,
    np_merge,
    trace_spec,
    weight_matching,
)
from wsa_jax.merging.align.assignment import permuted
from wsa_jax.merging.symmetry.units import identity_permutations
from wsa_jax.models import (
    GCN,
    GraphSAGE,
    ImageNetResNet,
    MobileNetV2,
    ResNet,
    TextEncoder,
    ViT,
    WideResNet,
    graph,
)
from wsa_jax.scope.layers import select_layers
from wsa_jax.training import (
    FitSettings,
    Task,
    classification,
    equinox_task,
    fit,
    linen_task,
    nnx_task,
    node_task,
)
from wsa_jax.tree import key_path

SIDE, COUNT = 8, 12
INFO = DatasetInfo(
    name="tiny", num_classes=3, image_shape=(SIDE, SIDE, 1), mean=(0.5,), std=(0.25,), scale=16.0
)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 17, (COUNT, SIDE, SIDE, 1)).astype(np.uint8)
TOKENS = RNG.integers(0, 9, (COUNT, 5)).astype(np.int32)
NODES = np.arange(COUNT, dtype=np.int32)
RING = graph(
    RNG.normal(size=(COUNT, 6)), [*NODES, *np.roll(NODES, 1)], [*np.roll(NODES, 1), *NODES]
)
LABELS = (np.arange(COUNT) % 3).astype(np.int32)


class ConvNet(nnx.Module):
    """A convolution, BatchNorm, a dense layer."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 5, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(5, rngs=rngs)
        self.dense = nnx.Linear(5 * 16, 3, rngs=rngs)

    def __call__(self, x):
        return self.dense(nnx.relu(self.norm(self.conv(x))).reshape(len(x), -1))


def equinox_mlp(key):
    return eqx.nn.Sequential([eqx.nn.Lambda(jnp.ravel), eqx.nn.MLP(SIDE**2, 3, 6, 2, key=key)])


class Case(NamedTuple):
    """A task of an architecture, and inputs for it."""

    task: Task
    inputs: Any


def images(module):
    return Case(classification(module, INFO), IMAGES)


TEXTS = TextEncoder(9, 8, 1, 2, 6, 3, max_tokens=6)
CASES = {
    "ResNet, option A": images(
        ResNet(blocks=1, stem=2, widths=(2, 4, 6), num_classes=3, norm="batch", shortcut="pad")
    ),
    "ImageNet ResNet": images(ImageNetResNet((2,), 3, bottleneck=True, widths=(2,), stem=3)),
    "Wide ResNet": images(WideResNet(blocks=1, widths=(4, 5), num_classes=3, stem=4)),
    "MobileNet-v2": images(MobileNetV2(((1, 3, 1, 1), (2, 4, 2, 2)), 3, 6, 3)),
    "ViT": images(ViT(patch=4, width=8, depth=1, heads=2, hidden=6, num_classes=3)),
    "text encoder": Case(
        linen_task(TextEncoder(9, 8, 1, 2, 6, 3, max_tokens=6), TOKENS[:1]), TOKENS
    ),
    "GCN": Case(node_task(GCN((5, 3)), RING), NODES),
    "GraphSAGE": Case(node_task(GraphSAGE((5, 3)), RING), NODES),
    "NNX": Case(nnx_task(ConvNet, info=INFO), IMAGES),
    "Equinox": Case(equinox_task(equinox_mlp, info=INFO), IMAGES),
}
# Where the function itself is computed, before and after the move.
EQUIVALENT = ["text encoder", "GCN"]
KERNELS = ("kernel", "embedding", "weight")


@functools.cache
def model(name, seed=0):
    """Weights drawn on the host: nothing needs to be compiled."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(CASES[name].task.init, jax.random.key(0))

    def draw(leaf):
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return np.asarray(rng.uniform(0.2, 1.2, leaf.shape) if floating else leaf, leaf.dtype)

    return Model(*jax.tree.map(draw, shapes))


def logits(name):
    task = CASES[name].task
    return lambda tree, inputs: task.logits(*Model.of(tree), inputs)


@functools.cache
def spec_of(name):
    return trace_spec(logits(name), model(name).variables, CASES[name].inputs[:2])


@pytest.mark.parametrize("name", CASES)
def test_every_kernel_is_a_layer(name):
    leaves = jax.tree_util.tree_leaves_with_path(model(name).params)
    names = [key_path(path) for path, _ in leaves]
    kernels = {name for name in names if name.rsplit("/", 1)[-1] in KERNELS}
    layers = {layer.name for layer in select_layers(model(name).params)}
    assert len(layers) >= 2
    # Scales of norms are called weight by Equinox, and are vectors.
    assert layers == {name for name in kernels if "norm" not in name.lower()}


@pytest.mark.parametrize("name", CASES)
def test_planted_orders_are_undone_by_weights(name):
    task, inputs = CASES[name]
    tree, rng = model(name).variables, np.random.default_rng(1)
    assert sum(leaf.size for leaf in jax.tree.leaves(tree)) < 2_000

    def logits(tree, inputs):
        return task.logits(*Model.of(tree), inputs)

    spec = trace_spec(logits, tree, inputs[:2])
    assert spec.groups
    identity = identity_permutations(spec)
    planted = {group: rng.permuted(order, axis=-1) for group, order in identity.items()}
    moved = permuted(spec, tree, planted)
    if name in EQUIVALENT:
        check_equivalence(jax.jit(logits), tree, moved, inputs)
    found = weight_matching(jax.random.key(1), spec, tree, moved)
    assert found.info["distance"] == 0.0
    back = permuted(spec, moved, found.permutations)
    jax.tree.map(np.testing.assert_array_equal, back, tree)


# It stands for the rest where a program is compiled, with its running statistics.
@pytest.mark.parametrize("name", ["NNX"])
def test_fit_with_weight_scope_regularization(name):
    task, inputs = CASES[name]
    start = model(name)
    before = weight_scope(start.params)
    fitted = fit(
        jax.random.key(0),
        task,
        inputs,
        LABELS,
        settings=FitSettings(steps=2, batch_size=6),
        learning_rate=1e-3,
        target=before,
        strength=1e-3,
        params=start.params,
        model_state=start.model_state,
    )
    assert np.isfinite(fitted.loss).all()
    after = weight_scope(fitted.params)
    assert after.names == before.names
    assert (np.asarray(after.mean) != np.asarray(before.mean)).any()


@pytest.mark.parametrize("name", ["Equinox"])
def test_a_federated_round_with_weight_scope_alignment(name):
    task, inputs = CASES[name]
    result = simulate(
        jax.random.key(0),
        task,
        (inputs, LABELS),
        [np.arange(6), np.arange(6, COUNT)],
        rounds=1,
        local=LocalSettings(steps=1, batch_size=6),
        learning_rate=1e-3,
        wsa=WeightScopeAlignment(strength=1e-3),
        params=model(name).params,
    )
    found, start = jax.device_get((result.params, model(name).params))
    moved = zip(jax.tree.leaves(found), jax.tree.leaves(start), strict=True)
    assert any((new != old).any() for new, old in moved)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("name", ["NNX"])
def test_np_merge_learns_between_two(name):
    task, inputs = CASES[name]
    first, second = model(name), model(name, seed=1)
    merged = np_merge(
        jax.random.key(0),
        task.loss,
        (first.params, second.params),
        labelled_examples(inputs, LABELS),
        settings=LearningSettings(steps=2, batch_size=6),
        model_state=first.model_state,
    )
    assert np.isfinite(merged.info["loss"]).all()
    for found, one, other in zip(
        *map(jax.tree.leaves, jax.device_get((merged.params, first.params, second.params))),
        strict=True,
    ):
        assert (found >= np.minimum(one, other) - 1e-6).all()
        assert (found <= np.maximum(one, other) + 1e-6).all()
