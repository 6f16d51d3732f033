"""Known architectures, read off the names and shapes of a file, whoever wrote it."""

import math
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import PyTree

from wsa_jax.files import (
    ModelFile,
    ModelFileError,
    NameMap,
    flatten,
    load_model,
    mlp_names,
    resnet_names,
    vgg_names,
)
from wsa_jax.files.model_file import Shapes
from wsa_jax.merging import AxisSpec, trace_spec
from wsa_jax.models import MLP, VGG, ResNet

KNOWN = "mlp, vgg, resnet8, resnet14, resnet20 and so on (6n + 2)"
"""The names of architectures, as messages list them."""


class Architecture(NamedTuple):
    """A network that a file fits.

    Attributes:
      module: the network; a file says its widths, its classes and its norm.
      image: the shape of one input.
      names: the map of the file's names, None where they are ours.
    """

    module: nn.Module
    image: tuple[int, ...]
    names: NameMap | None

    def shapes(self) -> PyTree:
        """Shapes of the network's variables."""
        inputs = jnp.zeros((1, *self.image))
        return jax.eval_shape(self.module.init, jax.random.key(0), inputs)

    def spec(self) -> AxisSpec:
        """Which axes of the variables move together."""
        return trace_spec(self.module.apply, self.shapes(), jnp.zeros((2, *self.image)))

    def load(self, file: ModelFile) -> PyTree:
        """A file's variables under our names, checked against the network's."""
        shapes = self.shapes()
        if self.names is None and not _prefix(file.shapes):
            return {"params": load_model(file.path, like=shapes["params"])}
        return load_model(file.path, names=self.names, like=shapes)

    def stored(self, variables: PyTree, file: ModelFile) -> dict[str, np.ndarray]:
        """Variables under the names of a file; what we have no place for is as in the file."""
        if self.names is None:
            prefix = _prefix(file.shapes)
            named = flatten(variables if prefix else variables["params"])
            return {name: np.asarray(leaf) for name, leaf in named.items()}
        beside = self.names.left_out(list(file))
        return {**self.names.to_theirs(variables), **{name: file[name] for name in beside}}


def architecture(name: str, file: ModelFile) -> Architecture:
    """Return the network of this name that fits a file.

    Raises:
      ModelFileError: the name is unknown, or the file is of another architecture.

    >>> import tempfile
    >>> from wsa_jax.files import open_model, save_model
    >>> path = tempfile.mkdtemp() + "/m.npz"
    >>> save_model(path, {"0.weight": np.ones((4, 3)), "0.bias": np.ones(4)})
    >>> architecture("mlp", open_model(path)).module.features
    (4,)
    >>> architecture("bert", open_model(path))
    Traceback (most recent call last):
    wsa_jax.files.model_file.ModelFileError: architecture 'bert' is unknown; known are mlp, vgg, ...
    """
    kind = re.fullmatch(r"(mlp|vgg|resnet)(\d*)", name)
    blocks, rest = divmod(int(kind[2] or 2) - 2, 6) if kind else (0, 1)
    if kind is None or rest or (kind[1] == "resnet") != (blocks > 0):
        raise ModelFileError(f"architecture {name!r} is unknown; known are {KNOWN}")
    try:
        found = _READERS[kind[1]](file.shapes, blocks)
    except LookupError as error:
        raise ModelFileError(f"{file.path} is no {name}: it lacks {error}") from error
    if found.names is not None:
        found.names.left_out(list(file))  # refuses names that do not fit
    return found


def _resnet(shapes: Shapes, blocks: int) -> Architecture:
    if "conv1.weight" not in shapes:
        return _our_resnet(shapes, blocks)
    stem, channels, *_ = shapes["conv1.weight"].shape
    # The shortcut of the second stage: its name and its kernel, if it has any.
    beside = [re.fullmatch(r"layer2\.0\.(\w+)\.0\.weight", name) for name in shapes]
    found = next((match for match in beside if match), None)
    head = next((n for n in ("linear", "fc") if f"{n}.weight" in shapes), "fc")
    module = ResNet(
        blocks=blocks,
        stem=stem,
        widths=_three(shapes[f"layer{i}.0.conv1.weight"].shape[0] for i in (1, 2, 3)),
        num_classes=shapes[f"{head}.weight"].shape[0],
        norm="batch",
        shortcut=shapes[found[0]].shape[2] if found else "pad",
        padding="symmetric",
    )
    word = found[1] if found else "downsample"
    names = resnet_names(module, head=head, shortcut=(f"{word}.0", f"{word}.1"))
    return Architecture(module, (32, 32, channels), names)


def _our_resnet(shapes: Shapes, blocks: int) -> Architecture:
    prefix = _prefix(shapes)
    kernel = shapes[f"{prefix}Conv_0.kernel"].shape
    beside = shapes.get(f"{prefix}Block_{blocks}.Conv_2.kernel")
    widths = (shapes[f"{prefix}Block_{i * blocks}.Conv_0.kernel"].shape[-1] for i in range(3))
    module = ResNet(
        blocks=blocks,
        stem=kernel[-1],
        widths=_three(widths),
        num_classes=shapes[f"{prefix}Dense_0.kernel"].shape[-1],
        norm="batch" if f"{prefix}BatchNorm_0.scale" in shapes else "layer",
        shortcut="pad" if beside is None else beside.shape[0],
    )
    return Architecture(module, (32, 32, kernel[2]), None)


def _vgg(shapes: Shapes, _: int) -> Architecture:
    theirs = _numbered(shapes, r"features\.(\d+)\.weight", rank=4)
    if not theirs:
        return _our_vgg(shapes)
    places = list(theirs)
    norm = "batch" if f"features.{places[0] + 1}.running_mean" in shapes else "none"
    plain = 3 if norm == "batch" else 2
    features: list[int | str] = []
    for place, following in zip(places, [*places[1:], places[-1] + plain], strict=True):
        features += [theirs[place][0], *["M"] * (following - place - plain)]
    dense = _numbered(shapes, r"classifier\.(\d+)\.weight", rank=2)
    heads = list(dense.values()) or [shapes["classifier.weight"].shape]
    # Max-pools behind the last convolution leave no name: the pixels that are left tell enough.
    side = math.isqrt(heads[0][1] // theirs[places[-1]][0]) * 2 ** features.count("M")
    module = VGG(
        features=tuple(features),
        dense=tuple(head[0] for head in heads[:-1]),
        num_classes=heads[-1][0],
        norm=norm,
    )
    channels = theirs[places[0]][1]
    return Architecture(module, (side, side, channels), vgg_names(module, side=side))


def _our_vgg(shapes: Shapes) -> Architecture:
    prefix = re.escape(_prefix(shapes))
    kernels = list(_numbered(shapes, rf"{prefix}Conv_(\d+)\.kernel", rank=4).values())
    dense = list(_numbered(shapes, rf"{prefix}Dense_(\d+)\.kernel", rank=2).values())
    if not kernels or not dense:
        raise KeyError(f"{_prefix(shapes)}Conv_0.kernel")
    norms = {"batch": "BatchNorm_0.scale", "layer": "LayerNorm_0.scale"}
    norm = next((n for n, leaf in norms.items() if f"{_prefix(shapes)}{leaf}" in shapes), "none")
    # Without max-pools, on an image of as many pixels as are flattened: the same units are tied.
    side = math.isqrt(dense[0][0] // kernels[-1][-1])
    module = VGG(
        features=tuple(kernel[-1] for kernel in kernels),
        dense=tuple(kernel[-1] for kernel in dense[:-1]),
        num_classes=dense[-1][-1],
        norm=norm,
    )
    return Architecture(module, (side, side, kernels[0][2]), None)


def _mlp(shapes: Shapes, _: int) -> Architecture:
    prefix = _prefix(shapes)
    ours = _numbered(shapes, rf"{re.escape(prefix)}Dense_(\d+)\.kernel", rank=2)
    if ours:
        kernels = list(ours.values())
        module = MLP(features=tuple(kernel[1] for kernel in kernels))
        return Architecture(module, (kernels[0][0],), None)
    before = next((m[1] for n in shapes if (m := re.fullmatch(r"(.*?)\d+\.weight", n))), "")
    theirs = _numbered(shapes, rf"{re.escape(before)}(\d+)\.weight", rank=2)
    if not theirs:
        raise KeyError("Dense_0.kernel, or 0.weight of PyTorch")
    places, kernels = list(theirs), list(theirs.values())
    module = MLP(features=tuple(kernel[0] for kernel in kernels))
    every = places[1] - places[0] if len(places) > 1 else 1
    names = mlp_names(module, prefix=before, every=every)
    return Architecture(module, (kernels[0][1],), names)


_READERS: Mapping[str, Callable[[Shapes, int], Architecture]] = {
    "mlp": _mlp,
    "vgg": _vgg,
    "resnet": _resnet,
}


def _prefix(shapes: Shapes) -> str:
    """What stands before our names: variables have collections, parameters alone have none."""
    return "params." if any(name.startswith("params.") for name in shapes) else ""


def _numbered(shapes: Shapes, pattern: str, *, rank: int) -> dict[int, tuple[int, ...]]:
    """Shapes of the leaves that a pattern numbers, in the order of their numbers."""
    found = {
        int(match[1]): tuple(shape.shape)
        for name, shape in shapes.items()
        if (match := re.fullmatch(pattern, name)) and len(shape.shape) == rank
    }
    return dict(sorted(found.items()))


def _three(widths) -> tuple[int, int, int]:
    first, second, third = widths
    return first, second, third
