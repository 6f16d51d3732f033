"""A stacked leaf as one leaf a layer, so that costs look at each layer by itself."""

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np
from jaxtyping import Array

from wsa_jax.merging.symmetry.spec import AxisSpec, Layer, Tie


def unstack_layers(
    spec: AxisSpec, *models: Mapping[str, Array | np.ndarray]
) -> tuple[AxisSpec, list[dict[str, Array | np.ndarray]]]:
    """The same symmetries and models with a leaf of its own for each layer of a stacked leaf.

    Args:
      spec: which axes move together; no tie of the result has an ``at``.
      models: leaves that move, by name.

    >>> from wsa_jax.merging.symmetry.spec import hand_written
    >>> ties = {f"g{i}": [Tie(leaf="k", axis=1, at=((0, i),))] for i in range(2)}
    >>> spec = hand_written(ties, {"k": np.ones((2, 3))})
    >>> spec, (model,) = unstack_layers(spec, {"k": np.eye(2, 3)})
    >>> [tie.leaf for group in spec.groups for tie in group.ties], model["k[1]"].tolist()
    (['k[0]', 'k[1]'], [[0.0, 1.0, 0.0]])
    """
    stacked: dict[str, set[int]] = {}
    for tie in (tie for group in spec.groups for tie in group.ties if tie.at):
        stacked.setdefault(tie.leaf, set()).update(axis for axis, _ in tie.at)
    if not stacked:
        return spec, [dict(model) for model in models]
    # Every combination of positions that a tie of the leaf tells apart.
    shapes = {name: np.shape(leaf) for name, leaf in models[0].items()}
    layers = {
        name: [
            tuple(zip(sorted(axes), places, strict=True))
            for places in itertools.product(*(range(shapes[name][axis]) for axis in sorted(axes)))
        ]
        for name, axes in stacked.items()
    }

    def named(leaf: str, at: Layer) -> str:
        return f"{leaf}[{','.join(str(position) for _, position in at)}]"

    def ties_of(tie: Tie) -> list[Tie]:
        return (
            [
                dataclasses.replace(tie, leaf=named(tie.leaf, at), at=())
                for at in layers[tie.leaf]
                if set(tie.at) <= set(at)
            ]
            if tie.leaf in layers
            else [tie]
        )

    # A tie of the whole leaf, such as the residual stream's, lies in each of its layers.
    groups = tuple(
        dataclasses.replace(group, ties=tuple(t for tie in group.ties for t in ties_of(tie)))
        for group in spec.groups
    )
    pinned = tuple(
        dataclasses.replace(pin, leaf=leaf)
        for pin in spec.pinned
        for leaf in [named(pin.leaf, at) for at in layers.get(pin.leaf, ())] or [pin.leaf]
    )
    # Axes are kept, with one position, so that they keep their numbers in the ties.
    results = []
    for model in models:
        leaves = {name: leaf for name, leaf in model.items() if name not in layers}
        for name, places in layers.items():
            for at in places:
                index = tuple(
                    slice(dict(at)[axis], dict(at)[axis] + 1) if axis in dict(at) else slice(None)
                    for axis in range(len(shapes[name]))
                )
                leaves[named(name, at)] = model[name][index]
        results.append(leaves)
    return AxisSpec(groups=groups, pinned=pinned), results
