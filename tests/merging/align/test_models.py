"""A planted permutation of the library's own networks is found again, statistics included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsa_jax.merging import align, permute_units, trace_spec, weight_matching
from wsa_jax.models import cifar_resnet, vgg8, vgg16

NETWORKS = {
    "vgg8": vgg8(10, width=0.05),
    "vgg16-batch": vgg16(10, width=0.05, norm="batch"),
    "resnet8-layer": cifar_resnet(8, 10, width=0.5, norm="layer"),
    "resnet8-batch": cifar_resnet(8, 10, width=0.5, norm="batch"),
}

# Every network and every norm; the fourth has the blocks of the third and the norm of the second.
NAMES = [*list(NETWORKS)[:3], pytest.param("resnet8-batch", marks=pytest.mark.long)]


@pytest.mark.parametrize("name", NAMES)
def test_a_planted_permutation_is_undone(name):
    network, rng = NETWORKS[name], np.random.default_rng(0)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    # Weights drawn on the host: nothing needs to be compiled.
    model = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
        jax.eval_shape(network.init, jax.random.key(0), images),
    )
    spec = trace_spec(network.apply, model, images)
    planted = {group.name: rng.permutation(group.size) for group in spec.groups}
    assert all(group.parent is None for group in spec.groups)
    moved = permute_units(spec, model, planted)
    matching = weight_matching(jax.random.key(1), spec, model, moved, restarts=2)
    back = align(spec, moved, matching)
    for ours, theirs in zip(jax.tree.leaves(model), jax.tree.leaves(back), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for group in spec.groups:
        recovered = planted[group.name][matching.permutations[group.name]]
        np.testing.assert_array_equal(recovered, np.arange(group.size))
