"""Names of ResNets: torchvision's, and those of the CIFAR networks that are called like them."""

from collections.abc import Sequence

from wsa_jax.door import door
from wsa_jax.files.name_map import Entry, NameMap
from wsa_jax.files.name_maps.pytorch import batch_norm, convolution, dense
from wsa_jax.models import ResNet

__all__ = ["resnet_names"]


@door
def resnet_names(
    model: ResNet, *, head: str = "fc", shortcut: Sequence[str] = ("downsample.0", "downsample.1")
) -> NameMap:
    """The map between a `ResNet` with BatchNorm and PyTorch's names of the same network.

    Theirs: ``conv1``, ``bn1``, ``layer1.0.conv1``, ``layer1.0.bn1`` and so on, and the head.

    Args:
      model: our network; with ``shortcut="pad"`` (option A) blocks have no parameters beside.
      head: what the last layer is called: ``fc`` by torchvision, ``linear`` by many CIFAR networks.
      shortcut: what the shortcut's convolution and norm are called within a block.

    Raises:
      ValueError: a norm other than ``"batch"``, or a padding that PyTorch has not, by which
        imported weights would give other outputs.

    >>> from wsa_jax.models import cifar_resnet
    >>> names = resnet_names(cifar_resnet(20, 10, norm="batch", shortcut="pad"), head="linear")
    >>> names.entries[5].theirs, names.entries[6].ours
    ('bn1.num_batches_tracked', 'params.Block_0.Conv_0.kernel')

    Source: torchvision's ``ResNet``, He et al., CVPR 2016.
    """
    if model.norm != "batch":
        raise ValueError(f"norm {model.norm!r} has no names in PyTorch's ResNets; give 'batch'")
    if model.shortcut != "pad" and model.padding != "symmetric":
        raise ValueError(
            f"padding {model.padding!r} is not PyTorch's: its weights would give other outputs; "
            "give ResNet(..., padding='symmetric')"
        )
    entries: list[Entry] = [*convolution("conv1", "Conv_0", bias=False)]
    entries += batch_norm("bn1", "BatchNorm_0")
    streams = (model.stem, *model.widths)
    for index in range(3 * model.blocks):
        stage, position = divmod(index, model.blocks)
        theirs, ours = f"layer{stage + 1}.{position}", f"Block_{index}"
        for layer in (0, 1):
            entries += convolution(f"{theirs}.conv{layer + 1}", f"{ours}.Conv_{layer}", bias=False)
            entries += batch_norm(f"{theirs}.bn{layer + 1}", f"{ours}.BatchNorm_{layer}")
        changes = not position and (stage > 0 or streams[0] != streams[1])
        if changes and model.shortcut != "pad":
            kernel, norm = shortcut
            entries += convolution(f"{theirs}.{kernel}", f"{ours}.Conv_2", bias=False)
            entries += batch_norm(f"{theirs}.{norm}", f"{ours}.BatchNorm_2")
    entries += dense(head, "Dense_0")
    return NameMap(f"of ResNet with {len(streams) - 1} stages of {model.blocks}", tuple(entries))
