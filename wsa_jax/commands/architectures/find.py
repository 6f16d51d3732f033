"""Which architecture a file holds: by its name, or the first that fits."""

import re
from collections.abc import Callable, Mapping

from wsa_jax.commands.architectures.graphs import read_gcn, read_graph_sage
from wsa_jax.commands.architectures.known import Architecture, Asked
from wsa_jax.commands.architectures.mlp import read_cnn, read_mlp
from wsa_jax.commands.architectures.mobilenet import read_mobilenet
from wsa_jax.commands.architectures.resnet import depths, read_resnet, read_wide_resnet
from wsa_jax.commands.architectures.transformers import (
    HeadsUnknownError,
    read_text_encoder,
    read_vit,
)
from wsa_jax.commands.architectures.vgg import read_vgg
from wsa_jax.files import ModelFile, ModelFileError
from wsa_jax.files.model_file import Shapes

KNOWN = (
    "mlp, cnn, vgg, resnet (resnet20, resnet50 and so on), wide-resnet, mobilenet, vit, "
    "text-encoder, gcn, graph-sage"
)
"""The names of architectures, as messages list them."""

Reader = Callable[[Shapes, Asked], Architecture]

# Where several fit, the first counts: of a CNN of 3x3 kernels, the units of a VGG are the same.
_READERS: Mapping[str, Reader] = {
    "mlp": read_mlp,
    "vgg": read_vgg,
    "cnn": read_cnn,
    "resnet": read_resnet,
    "wide-resnet": read_wide_resnet,
    "mobilenet": read_mobilenet,
    "vit": read_vit,
    "text-encoder": read_text_encoder,
    "gcn": read_gcn,
    "graph-sage": read_graph_sage,
}


def architecture(name: str | None, file: ModelFile, *, heads: int | None = None) -> Architecture:
    """Return the network of this name, or of any known one, that fits a file.

    Args:
      name: one of `KNOWN`; None to find out.
      file: an open file.
      heads: of attention, which PyTorch's shapes do not tell.

    Raises:
      ModelFileError: the name is unknown, or the file is of another architecture, or of none.

    >>> import tempfile
    >>> import numpy as np
    >>> from wsa_jax.files import open_model, save_model
    >>> path = tempfile.mkdtemp() + "/m.npz"
    >>> save_model(path, {"0.weight": np.ones((4, 3)), "0.bias": np.ones(4)})
    >>> architecture(None, open_model(path)).module.features
    (4,)
    >>> architecture("bert", open_model(path))
    Traceback (most recent call last):
    wsa_jax.files.model_file.ModelFileError: architecture 'bert' is unknown; known are mlp, cnn, ...
    """
    if name is None:
        found = found_architecture(file, heads=heads)
        if found is None:
            raise ModelFileError(
                f"{file.path} fits no known architecture ({KNOWN}); bring its units into order in "
                "Python, by wsa_jax.merging.trace_spec of your function"
            )
        return found
    kind = re.fullmatch(r"([a-z-]+?)(\d*)", name)
    depth = int(kind[2] or 0) if kind else 0
    known = kind is not None and kind[1] in _READERS
    if kind is None or not known or (depth and (kind[1] != "resnet" or not depths(depth))):
        raise ModelFileError(f"architecture {name!r} is unknown; known are {KNOWN}")
    try:
        found = _READERS[kind[1]](file.shapes, Asked(path=file.path, depth=depth, heads=heads))
    except LookupError as error:
        raise ModelFileError(f"{file.path} is no {name}: it lacks {error}") from error
    found.check(file)
    return found


def found_architecture(file: ModelFile, *, heads: int | None = None) -> Architecture | None:
    """The first network that has all names and shapes of a file, or None.

    Raises:
      HeadsUnknownError: it is a transformer, and nothing tells how many heads it has.
    """
    for reader in _READERS.values():
        try:
            found = reader(file.shapes, Asked(path=file.path, heads=heads))
            found.check(file)
        except HeadsUnknownError:
            raise
        except (LookupError, ValueError):
            continue
        return found
    return None
