"""Names of VGGs: torchvision's sequence of features, and its classifier."""

from wsa_jax.door import door
from wsa_jax.files.layouts import DENSE, flattened
from wsa_jax.files.name_map import Entry, NameMap
from wsa_jax.files.name_maps.pytorch import batch_norm, convolution, dense
from wsa_jax.models import VGG

__all__ = ["vgg_names"]


@door
def vgg_names(model: VGG, *, side: int = 32) -> NameMap:
    """The map between a `VGG` and torchvision's names: ``features.0``, ``classifier.0`` and so on.

    Theirs counts norms, ReLUs and max-pools among the features. Dense layers have two steps, ReLU
    and dropout, in between; a single one is called ``classifier`` without a number, as in the VGGs
    for CIFAR.

    Args:
      model: our network, with ``norm="batch"`` or ``"none"``.
      side: of its images, which says how many pixels are flattened.

    Raises:
      ValueError: another norm.

    >>> from wsa_jax.models import vgg16
    >>> [entry.theirs for entry in vgg_names(vgg16(10)).entries][:2]
    ['features.0.weight', 'features.0.bias']

    Source: torchvision's ``VGG``, Simonyan and Zisserman, ICLR 2015.
    """
    if model.norm == "layer":
        raise ValueError("norm 'layer' has no names in PyTorch's VGGs; give 'batch' or 'none'")
    entries: list[Entry] = []
    step = convolutions = channels = 0
    for feature in model.features:
        if feature == "M":
            step, side = step + 1, side // 2
            continue
        channels = int(feature)
        entries += convolution(f"features.{step}", f"Conv_{convolutions}", bias=True)
        if model.norm == "batch":
            step += 1
            entries += batch_norm(f"features.{step}", f"BatchNorm_{convolutions}")
        step, convolutions = step + 2, convolutions + 1
    for index in range(len(model.dense) + 1):
        theirs = f"classifier.{3 * index}" if model.dense else "classifier"
        layout = DENSE if index else flattened(channels, side, side)
        entries += dense(theirs, f"Dense_{index}", layout)
    return NameMap(f"of VGG with {convolutions} convolutions", tuple(entries))
