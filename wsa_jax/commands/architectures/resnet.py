"""Residual networks: for small images and for large ones, and wide ones that begin with a norm."""

import re
from collections.abc import Sequence

from wsa_jax.commands.architectures.known import (
    Architecture,
    Asked,
    images,
    lacking,
    norm_of,
    numbered,
    prefix_of,
)
from wsa_jax.files import ModelFileError, resnet_names
from wsa_jax.files.model_file import Shapes
from wsa_jax.models import ImageNetResNet, ResNet, WideResNet

_LARGE = (18, 34, 50, 101, 152)


def depths(depth: int) -> bool:
    """Whether residual networks of so many layers exist: 6n+2, 6n+4, or those of ImageNet.

    >>> depths(20), depths(18), depths(9)
    (True, True, False)
    """
    return depth in _LARGE or (depth >= 8 and (depth - 2) % 6 in (0, 2))


def read_resnet(shapes: Shapes, asked: Asked) -> Architecture:
    """Networks whose blocks end in a ReLU; a stem of 7x7 is that of large images."""
    theirs = "conv1.weight" in shapes
    prefix = prefix_of(shapes)
    stem = shapes["conv1.weight" if theirs else f"{prefix}Conv_0.kernel"].shape
    if (stem[-1] if theirs else stem[0]) == 7:
        found = _their_large(shapes) if theirs else _our_large(shapes)
        if asked.depth and found.name != f"resnet{asked.depth}":
            raise ModelFileError(f"{asked.path} is no resnet{asked.depth}: it is {found.name}")
        return found
    return _theirs(shapes, asked.depth) if theirs else _ours(shapes, asked.depth)


def read_wide_resnet(shapes: Shapes, asked: Asked) -> Architecture:
    """Networks whose blocks begin with norm and ReLU."""
    del asked
    prefix = prefix_of(shapes)
    stages = _stages(shapes, 2)
    kernel = shapes[f"{prefix}Conv_0.kernel"].shape
    module = WideResNet(
        blocks=stages[0][0],
        widths=tuple(width for _, width in stages),
        num_classes=shapes[f"{prefix}Dense_0.kernel"].shape[-1],
        stem=kernel[-1],
        norm=norm_of(shapes),
    )
    return Architecture(name="wide-resnet", module=module, inputs=images(16, 16, kernel[2]))


def _theirs(shapes: Shapes, depth: int) -> Architecture:
    stem, channels, *_ = shapes["conv1.weight"].shape
    found = numbered(shapes, r"layer1\.(\d+)\.conv1\.weight")
    blocks = (depth - 2) // 6 if depth else len(found)
    # The shortcut of the second stage: its name and its kernel, if it has any.
    beside = [re.fullmatch(r"layer2\.0\.(\w+)\.0\.weight", name) for name in shapes]
    match = next((one for one in beside if one), None)
    module = ResNet(
        blocks=blocks,
        stem=stem,
        widths=_three([shapes[f"layer{i}.0.conv1.weight"].shape[0] for i in (1, 2, 3)]),
        num_classes=shapes[f"{_head(shapes)}.weight"].shape[0],
        norm="batch",
        shortcut=shapes[match[0]].shape[2] if match else "pad",
        padding="symmetric",
    )
    word = match[1] if match else "downsample"
    names = resnet_names(module, head=_head(shapes), shortcut=(f"{word}.0", f"{word}.1"))
    inputs = images(32, 32, channels)
    return Architecture(name=_small(blocks), module=module, inputs=inputs, names=names)


def _ours(shapes: Shapes, depth: int) -> Architecture:
    prefix = prefix_of(shapes)
    kernel = shapes[f"{prefix}Conv_0.kernel"].shape
    blocks = (depth - 2) // 6 if depth else len(_our_blocks(shapes)) // 3
    beside = shapes.get(f"{prefix}Block_{blocks}.Conv_2.kernel")
    widths = [shapes[f"{prefix}Block_{i * blocks}.Conv_0.kernel"].shape[-1] for i in range(3)]
    module = ResNet(
        blocks=blocks,
        stem=kernel[-1],
        widths=_three(widths),
        num_classes=shapes[f"{prefix}Dense_0.kernel"].shape[-1],
        norm="batch" if f"{prefix}BatchNorm_0.scale" in shapes else "layer",
        shortcut="pad" if beside is None else beside.shape[0],
    )
    return Architecture(name=_small(blocks), module=module, inputs=images(32, 32, kernel[2]))


def _their_large(shapes: Shapes) -> Architecture:
    stem, channels, *_ = shapes["conv1.weight"].shape
    stages = sorted({int(m[1]) for n in shapes if (m := re.match(r"layer(\d+)\.", n))})
    counts = [len(numbered(shapes, rf"layer{i}\.(\d+)\.conv1\.weight")) for i in stages]
    module = ImageNetResNet(
        blocks=tuple(counts),
        num_classes=shapes[f"{_head(shapes)}.weight"].shape[0],
        bottleneck="layer1.0.conv3.weight" in shapes,
        widths=tuple(shapes[f"layer{i}.0.conv1.weight"].shape[0] for i in stages),
        stem=stem,
    )
    names = resnet_names(module, head=_head(shapes))
    inputs = images(64, 64, channels)
    return Architecture(name=_large(module), module=module, inputs=inputs, names=names)


def _our_large(shapes: Shapes) -> Architecture:
    prefix = prefix_of(shapes)
    kernel = shapes[f"{prefix}Conv_0.kernel"].shape
    bottleneck = _our_blocks(shapes)[0][0] == 1
    stages = _stages(shapes, 3 if bottleneck else 2)
    module = ImageNetResNet(
        blocks=tuple(count for count, _ in stages),
        num_classes=shapes[f"{prefix}Dense_0.kernel"].shape[-1],
        bottleneck=bottleneck,
        widths=tuple(width for _, width in stages),
        stem=kernel[-1],
        norm=norm_of(shapes),
    )
    return Architecture(name=_large(module), module=module, inputs=images(64, 64, kernel[2]))


def _our_blocks(shapes: Shapes) -> list[tuple[int, ...]]:
    """The first kernel of each block."""
    pattern = rf"{re.escape(prefix_of(shapes))}Block_(\d+)\.Conv_0\.kernel"
    found = list(numbered(shapes, pattern, rank=4).values())
    lacking(f"{prefix_of(shapes)}Block_0.Conv_0.kernel", found)
    return found


def _stages(shapes: Shapes, beside: int) -> list[tuple[int, int]]:
    """Blocks and width of each stage; each but the first begins with a shortcut of its own."""
    stages: list[tuple[int, int]] = []
    for index, kernel in enumerate(_our_blocks(shapes)):
        shortcut = f"{prefix_of(shapes)}Block_{index}.Conv_{beside}.kernel"
        if not stages or shortcut in shapes:
            stages.append((0, kernel[-1]))
        stages[-1] = (stages[-1][0] + 1, stages[-1][1])
    return stages


def _head(shapes: Shapes) -> str:
    return next((name for name in ("linear", "fc") if f"{name}.weight" in shapes), "fc")


def _small(blocks: int) -> str:
    return f"resnet{6 * blocks + 2}"


def _large(module: ImageNetResNet) -> str:
    return f"resnet{(3 if module.bottleneck else 2) * sum(module.blocks) + 2}"


def _three(widths: Sequence[int]) -> tuple[int, int, int]:
    first, second, third = widths
    return first, second, third
