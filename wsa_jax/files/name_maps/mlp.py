"""Names of MLPs: a sequence of linear layers with one step in between."""

from wsa_jax.door import door
from wsa_jax.files.name_map import Entry, NameMap
from wsa_jax.files.name_maps.pytorch import dense
from wsa_jax.models import MLP

__all__ = ["mlp_names"]


@door
def mlp_names(model: MLP, *, prefix: str = "", every: int = 2) -> NameMap:
    """The map between an `MLP` and PyTorch's ``nn.Sequential(Linear, ReLU, Linear, ...)``.

    Images are flattened by height, width, channel in ours and by channel, height, width in
    PyTorch's, so weights of several channels need `flattened` in the first entry of a map.

    Args:
      model: our network.
      prefix: what stands before the numbers, such as ``"layers."``.
      every: how far apart linear layers are in the sequence: 2 with a ReLU between, 1 in a list of
        linear layers alone.

    >>> [entry.theirs for entry in mlp_names(MLP(features=(8, 3))).entries]
    ['0.weight', '0.bias', '2.weight', '2.bias']
    """
    entries: list[Entry] = []
    for index in range(len(model.features)):
        entries += dense(f"{prefix}{every * index}", f"Dense_{index}")
    return NameMap(f"of MLP with {len(model.features)} layers", tuple(entries))
