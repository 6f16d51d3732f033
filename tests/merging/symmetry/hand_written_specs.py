"""Hand-written specs of the architectures here: what moves together, next to the code.

`wsa_jax.merging.trace_spec` infers the same from the functions; these say it in a few lines, need
no inputs, and check the inference.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from wsa_jax.merging.symmetry.spec import AxisSpec, Role, Tie, hand_written
from wsa_jax.tree import key_path

__all__ = ["cnn_spec", "mlp_spec", "resnet_spec", "vgg_spec"]


class _Names:
    """Leaves of a model, with or without its running statistics, by the names of its layers."""

    def __init__(self, params: PyTree) -> None:
        named = jax.tree_util.tree_leaves_with_path(params)
        self.shapes: dict[str, tuple[int, ...]] = {key_path(p): np.shape(leaf) for p, leaf in named}
        self.prefix = "params/" if any(name.startswith("params/") for name in self.shapes) else ""

    def shape(self, layer: str) -> tuple[int, ...]:
        name = f"{self.prefix}{layer}/kernel"
        if name not in self.shapes:
            raise ValueError(
                f"leaf {name} is not in the model, which has {', '.join(sorted(self.shapes)[:8])}; "
                "is the spec another architecture's?"
            )
        return self.shapes[name]

    def count(self, kind: str) -> int:
        """How many layers are called kind_0, kind_1 and so on."""
        start = f"{self.prefix}{kind}_"
        return len({n[len(start) :].split("/")[0] for n in self.shapes if n.startswith(start)})

    def norm(self, path: str, index: int) -> str | None:
        for kind in ("BatchNorm", "LayerNorm"):
            if f"{self.prefix}{path}{kind}_{index}/scale" in self.shapes:
                return f"{path}{kind}_{index}"
        return None

    def produced(self, layer: str, norm: str | None = None) -> list[Tie]:
        """The outputs of a layer and its norm."""
        ties = [Tie(leaf=f"{self.prefix}{layer}/kernel", axis=len(self.shape(layer)) - 1)]
        vectors: list[tuple[str, Role]] = [(f"{self.prefix}{layer}/bias", "produced")]
        if norm is not None:
            vectors.extend(
                (f"{self.prefix}{norm}/{name}", "produced") for name in ("scale", "bias")
            )
            vectors.extend((f"batch_stats/{norm}/{name}", "statistic") for name in ("mean", "var"))
        present = [(name, role) for name, role in vectors if name in self.shapes]
        return ties + [Tie(leaf=name, axis=0, role=role) for name, role in present]

    def consumed(self, layer: str, units: int) -> Tie:
        """The inputs of a layer; a flattened image repeats its channels."""
        shape = self.shape(layer)
        return Tie(
            leaf=f"{self.prefix}{layer}/kernel",
            axis=len(shape) - 2,
            role="consumed",
            outer=shape[-2] // units,
        )


def mlp_spec(params: PyTree) -> AxisSpec:
    """Write the spec of an `MLP`: the units of each hidden layer.

    Args:
      params: the model's parameters, or variables with the collection ``params``; shapes suffice.

    Raises:
      ValueError: a leaf of the architecture is missing; the message lists what there is.

    >>> import jax.numpy as jnp
    >>> from wsa_jax.models import MLP
    >>> params = jax.eval_shape(MLP(features=(16, 8, 2)).init, jax.random.key(0), jnp.ones((1, 4)))
    >>> [(group.name, group.size, group.admits) for group in mlp_spec(params).groups]
    [('Dense_0', 16, 'scaling'), ('Dense_1', 8, 'scaling')]
    """
    names = _Names(params)
    return _chain(params, names, _numbered(names, "Dense"))


def cnn_spec(params: PyTree) -> AxisSpec:
    """Write the spec of a `CNN`: its two convolutions and two hidden dense layers.

    Args and errors are those of `mlp_spec`.
    """
    return vgg_spec(params)


def vgg_spec(params: PyTree) -> AxisSpec:
    """Write the spec of a `VGG`: a chain of convolutions, each with its norm, and dense layers.

    Args and errors are those of `mlp_spec`; running statistics, if any, move with their channels.

    >>> import jax.numpy as jnp
    >>> from wsa_jax.models import vgg16
    >>> x = jnp.ones((1, 32, 32, 3))
    >>> variables = jax.eval_shape(vgg16(10, width=0.1).init, jax.random.key(0), x)
    >>> [tie.leaf for tie in vgg_spec(variables)["Conv_12"].ties][3:]
    ['params/BatchNorm_12/bias', 'batch_stats/BatchNorm_12/mean', 'batch_stats/BatchNorm_12/var',
     'params/Dense_0/kernel']
    """
    names = _Names(params)
    return _chain(params, names, [*_numbered(names, "Conv"), *_numbered(names, "Dense")])


def resnet_spec(params: PyTree) -> AxisSpec:
    """Write the spec of a `ResNet`: one stream per stage, and one group inside each block.

    The stem shares the first stage's stream unless that stage's first block has a shortcut layer.

    Args and errors are those of `mlp_spec`; running statistics, if any, move with their channels.

    >>> import jax.numpy as jnp
    >>> from wsa_jax.models import resnet20
    >>> x = jnp.ones((1, 32, 32, 3))
    >>> variables = jax.eval_shape(resnet20(10).init, jax.random.key(0), x)
    >>> spec = resnet_spec(variables)
    >>> len(spec.groups), [group.size for group in spec.groups if len(group.ties) > 10]
    (12, [16, 32, 64])
    """
    names = _Names(params)
    stream = "Conv_0"
    groups = {stream: names.produced("Conv_0", names.norm("", 0))}
    width = names.shape("Conv_0")[-1]
    for index in range(names.count("Block")):
        block = f"Block_{index}"
        hidden = f"{block}/Conv_0"
        inside = names.shape(hidden)[-1]
        groups[stream].append(names.consumed(hidden, width))
        groups[hidden] = [
            *names.produced(hidden, names.norm(f"{block}/", 0)),
            names.consumed(f"{block}/Conv_1", inside),
        ]
        if f"{names.prefix}{block}/Conv_2/kernel" in names.shapes:
            groups[stream].append(names.consumed(f"{block}/Conv_2", width))
            stream = f"{block}/Conv_2"
            groups[stream] = names.produced(stream, names.norm(f"{block}/", 2))
            width = names.shape(stream)[-1]
        groups[stream] += names.produced(f"{block}/Conv_1", names.norm(f"{block}/", 1))
    groups[stream].append(names.consumed("Dense_0", width))
    return _written(groups, params, "permutation")


def _numbered(names: _Names, kind: str) -> list[tuple[str, str | None]]:
    """Layers of one kind, each with its norm."""
    found = range(names.count(kind))
    return [(f"{kind}_{i}", names.norm("", i) if kind == "Conv" else None) for i in found]


def _chain(params: PyTree, names: _Names, layers: Sequence[tuple[str, str | None]]) -> AxisSpec:
    """Each layer's outputs are the next one's inputs, with a ReLU between."""
    groups, admits = {}, {}
    for (layer, norm), (following, _) in itertools.pairwise(layers):
        units = names.shape(layer)[-1]
        groups[layer] = [*names.produced(layer, norm), names.consumed(following, units)]
        admits[layer] = "scaling" if norm is None else "permutation"
    return _written(groups, params, admits)


def _written(groups: dict[str, list[Tie]], params: PyTree, admits: Any) -> AxisSpec:
    spec = hand_written(groups, params, admits=admits)
    # A single unit has no order: the tracer leaves it out, too.
    return AxisSpec(groups=tuple(group for group in spec.groups if group.size > 1))
