"""Small models with hand-written specs, as shapes: weights are drawn, permutations planted."""

import jax.numpy as jnp
import numpy as np

from wsa_jax.merging.symmetry.spec import AxisSpec, Group, Tie, check_spec, hand_written
from wsa_jax.merging.symmetry.units import identity_permutations, permute_units


def draw(seed, shapes):
    rng = np.random.default_rng(seed)
    return {n: jnp.asarray(rng.normal(size=s), jnp.float32) for n, s in shapes.items()}


def plant(seed, spec, params):
    """A permuted copy of a model."""
    rng = np.random.default_rng([seed, 1])
    identity = identity_permutations(spec)
    planted = {name: rng.permuted(given, axis=-1) for name, given in identity.items()}
    return permute_units(spec, params, planted)


def _chain(*names):
    """Ties of a group produced by the first leaves and consumed by the last: (leaf, axis)."""
    return [Tie(leaf=leaf, axis=axis) for leaf, axis in names]


def mlp():
    shapes = {"a": (4, 7), "a/bias": (7,), "b": (7, 6), "b/bias": (6,), "c": (6, 3)}
    groups = {
        "first": _chain(("a", 1), ("a/bias", 0), ("b", 0)),
        "second": _chain(("b", 1), ("b/bias", 0), ("c", 0)),
    }
    return shapes, hand_written(groups, draw(0, shapes))


def conv():
    shapes = {"c0": (3, 3, 3, 6), "c1": (3, 3, 6, 5), "d0": (4 * 5, 7), "d1": (7, 3)}
    groups = {
        "c0": _chain(("c0", 3), ("c1", 2)),
        "c1": [*_chain(("c1", 3)), Tie(leaf="d0", axis=0, role="consumed", outer=4)],
        "d0": _chain(("d0", 1), ("d1", 0)),
    }
    return shapes, hand_written(groups, draw(0, shapes))


def residual(stream=6, inner=8, norms=True):
    """Two residual blocks on one stream, with LayerNorms; without them git-re-basin's issue 8."""
    shapes, ties = {}, {"stream": [], "inner0": [], "inner1": []}
    for block in range(2):
        up, down, group = f"up{block}", f"down{block}", f"inner{block}"
        shapes |= {up: (stream, inner), f"{up}/bias": (inner,)}
        shapes |= {down: (inner, stream), f"{down}/bias": (stream,)}
        ties["stream"] += _chain((up, 0), (down, 1), (f"{down}/bias", 0))
        ties[group] += _chain((up, 1), (f"{up}/bias", 0), (down, 0))
        if norms:
            shapes |= {f"norm{block}/scale": (stream,), f"norm{block}/bias": (stream,)}
            ties["stream"] += _chain((f"norm{block}/scale", 0), (f"norm{block}/bias", 0))
    return shapes, hand_written(ties, draw(0, shapes))


def depthwise():
    shapes = {"expand": (1, 1, 3, 8), "depth": (3, 3, 1, 8), "bias": (8,), "project": (1, 1, 8, 4)}
    ties = _chain(("expand", 3), ("depth", 3), ("bias", 0), ("project", 2))
    return shapes, hand_written({"hidden": ties}, draw(0, shapes))


def attention():
    """Heads, and an order of the dimensions inside each; a gate a head that nothing nested holds.

    The queries' bias lies outside both nested groups' kernels, ``o`` holds both groups on one axis.
    """
    shapes = dict.fromkeys("qkv", (5, 3, 4)) | {"q/bias": (3, 4), "gate": (3,), "o": (12, 5)}
    heads = (*_chain(("q", 1), ("k", 1), ("v", 1), ("q/bias", 0), ("gate", 0)),
             Tie(leaf="o", axis=0, role="consumed", inner=4))  # fmt: skip
    dots = tuple(_chain(("q", 2), ("k", 2), ("q/bias", 1)))
    values = (Tie(leaf="v", axis=2), Tie(leaf="o", axis=0, role="consumed", outer=3))
    groups = (
        Group(name="heads", size=3, ties=heads),
        Group(name="dots", size=4, parent="heads", ties=dots),
        Group(name="values", size=4, parent="heads", ties=values),
    )
    spec = AxisSpec(groups=groups)
    check_spec(spec, draw(0, shapes))
    return shapes, spec


def recurrent():
    """A kernel with one group on both axes: its own order enters its scores."""
    shapes = {"in": (3, 8), "h": (8, 8), "out": (8, 2)}
    return shapes, hand_written({"h": _chain(("in", 1), ("h", 0), ("h", 1), ("out", 0))},
                                draw(0, shapes))  # fmt: skip


ARCHITECTURES = {f.__name__: f for f in (mlp, conv, residual, depthwise, attention, recurrent)}
