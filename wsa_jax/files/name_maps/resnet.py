"""Names of ResNets: torchvision's, and those of the CIFAR networks that are called like them."""

from collections.abc import Iterator, Sequence

from wsa_jax.door import door
from wsa_jax.files.name_map import Entry, NameMap
from wsa_jax.files.name_maps.pytorch import batch_norm, convolution, dense
from wsa_jax.models import ImageNetResNet, ResNet

__all__ = ["resnet_names"]


@door
def resnet_names(
    model: ResNet | ImageNetResNet,
    *,
    head: str = "fc",
    shortcut: Sequence[str] = ("downsample.0", "downsample.1"),
) -> NameMap:
    """The map between a ResNet with BatchNorm and PyTorch's names of the same network.

    Theirs, torchvision's: ``conv1``, ``bn1``, ``layer1.0.conv1``, ``layer1.0.bn1`` and so on, and
    the head.

    Args:
      model: our network, an `ImageNetResNet` or a `ResNet`; with ``shortcut="pad"`` (option A)
        blocks have no parameters beside.
      head: what the last layer is called: ``fc`` by torchvision, ``linear`` by many CIFAR networks.
      shortcut: what the shortcut's convolution and norm are called within a block.

    Raises:
      ValueError: a norm other than ``"batch"``, or a padding that PyTorch has not, by which
        imported weights would give other outputs.

    >>> from wsa_jax.models import cifar_resnet
    >>> names = resnet_names(cifar_resnet(20, 10, norm="batch", shortcut="pad"), head="linear")
    >>> names.entries[5].theirs, names.entries[6].ours
    ('bn1.num_batches_tracked', 'params.Block_0.Conv_0.kernel')
    >>> from wsa_jax.models import imagenet_resnet
    >>> resnet_names(imagenet_resnet(50, 1000)).entries[-2].theirs
    'fc.weight'

    Source: torchvision's ``ResNet``, He et al., CVPR 2016.
    """
    if model.norm != "batch":
        raise ValueError(f"norm {model.norm!r} has no names in PyTorch's ResNets; give 'batch'")
    if isinstance(model, ResNet) and model.shortcut != "pad" and model.padding != "symmetric":
        raise ValueError(
            f"padding {model.padding!r} is not PyTorch's: its weights would give other outputs; "
            "give ResNet(..., padding='symmetric')"
        )
    entries: list[Entry] = [*convolution("conv1", "Conv_0", bias=False)]
    entries += batch_norm("bn1", "BatchNorm_0")
    for index, (theirs, beside) in enumerate(_blocks(model)):
        ours = f"Block_{index}"
        layers = 3 if isinstance(model, ImageNetResNet) and model.bottleneck else 2
        for layer in range(layers):
            entries += convolution(f"{theirs}.conv{layer + 1}", f"{ours}.Conv_{layer}", bias=False)
            entries += batch_norm(f"{theirs}.bn{layer + 1}", f"{ours}.BatchNorm_{layer}")
        if beside:
            kernel, norm = shortcut
            entries += convolution(f"{theirs}.{kernel}", f"{ours}.Conv_{layers}", bias=False)
            entries += batch_norm(f"{theirs}.{norm}", f"{ours}.BatchNorm_{layers}")
    entries += dense(head, "Dense_0")
    return NameMap(f"of ResNet with {len(model.widths)} stages of {model.blocks}", tuple(entries))


def _blocks(model: ResNet | ImageNetResNet) -> Iterator[tuple[str, bool]]:
    """What each block is called there, and whether its shortcut has parameters."""
    counts = model.blocks
    width = model.stem
    for stage, channels in enumerate(model.widths):
        blocks = counts if isinstance(counts, int) else counts[stage]
        wide = 4 * channels if isinstance(model, ImageNetResNet) and model.bottleneck else channels
        for position in range(blocks):
            changes = not position and (stage > 0 or width != wide)
            padded = isinstance(model, ResNet) and model.shortcut == "pad"
            yield f"layer{stage + 1}.{position}", changes and not padded
        width = wide
