"""MobileNet-v2, under our names."""

import re

from wsa_jax.commands.architectures.known import (
    Architecture,
    Asked,
    images,
    lacking,
    norm_of,
    numbered,
    prefix_of,
)
from wsa_jax.files.model_file import Shapes
from wsa_jax.models import MobileNetV2


def read_mobilenet(shapes: Shapes, asked: Asked) -> Architecture:
    """Every block is a stage of one; strides tie no units, so all are 1."""
    del asked
    prefix = prefix_of(shapes)
    block = rf"{re.escape(prefix)}Block_(\d+)\."
    wide = numbered(shapes, rf"{block}Conv_1\.kernel", rank=4)
    narrow = numbered(shapes, rf"{block}Conv_2\.kernel", rank=4)
    lacking(f"{prefix}Block_0.Conv_1.kernel", wide)
    stem, head = (shapes[f"{prefix}Conv_{index}.kernel"].shape for index in (0, 1))
    stages, channels = [], stem[-1]
    for index, kernel in wide.items():
        stages.append((max(1, kernel[-1] // channels), narrow[index][-1], 1, 1))
        channels = narrow[index][-1]
    module = MobileNetV2(
        stages=tuple(stages),
        stem=stem[-1],
        last=head[-1],
        num_classes=shapes[f"{prefix}Dense_0.kernel"].shape[-1],
        norm=norm_of(shapes),
    )
    return Architecture(name="mobilenet", module=module, inputs=images(8, 8, stem[2]))
