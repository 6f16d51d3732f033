"""Entries of PyTorch's layers against Flax Linen's, for maps of variables ``{"params": ...}``."""

from wsa_jax.files.layouts import CONV, DENSE, Layout
from wsa_jax.files.name_map import Entry


def dense(theirs: str, ours: str, layout: Layout = DENSE) -> tuple[Entry, ...]:
    """``nn.Linear`` and ``nn.Dense``.

    >>> [entry.ours for entry in dense("fc", "Dense_0")]
    ['params.Dense_0.kernel', 'params.Dense_0.bias']
    """
    return (
        Entry(f"{theirs}.weight", f"params.{ours}.kernel", layout),
        Entry(f"{theirs}.bias", f"params.{ours}.bias"),
    )


def convolution(theirs: str, ours: str, *, bias: bool) -> tuple[Entry, ...]:
    """``nn.Conv2d`` and ``nn.Conv``.

    >>> [entry.theirs for entry in convolution("conv1", "Conv_0", bias=False)]
    ['conv1.weight']
    """
    kernel = Entry(f"{theirs}.weight", f"params.{ours}.kernel", CONV)
    return (kernel, Entry(f"{theirs}.bias", f"params.{ours}.bias")) if bias else (kernel,)


def layer_norm(theirs: str, ours: str) -> tuple[Entry, ...]:
    """``nn.LayerNorm`` of both.

    >>> [entry.ours for entry in layer_norm("norm", "LayerNorm_0")]
    ['params.LayerNorm_0.scale', 'params.LayerNorm_0.bias']
    """
    return (
        Entry(f"{theirs}.weight", f"params.{ours}.scale"),
        Entry(f"{theirs}.bias", f"params.{ours}.bias"),
    )


def batch_norm(theirs: str, ours: str) -> tuple[Entry, ...]:
    """``nn.BatchNorm2d`` and ``nn.BatchNorm``; PyTorch's count of batches is left out.

    >>> [entry.ours for entry in batch_norm("bn1", "BatchNorm_0")][2:]
    ['batch_stats.BatchNorm_0.mean', 'batch_stats.BatchNorm_0.var', None]
    """
    return (
        *layer_norm(theirs, ours),
        Entry(f"{theirs}.running_mean", f"batch_stats.{ours}.mean"),
        Entry(f"{theirs}.running_var", f"batch_stats.{ours}.var"),
        Entry(f"{theirs}.num_batches_tracked", None),
    )
