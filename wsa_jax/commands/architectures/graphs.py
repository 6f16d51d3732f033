"""Graph networks, under our names."""

import re

import numpy as np

from wsa_jax.commands.architectures.known import (
    Architecture,
    Asked,
    lacking,
    numbered,
    prefix_of,
)
from wsa_jax.files.model_file import Shapes
from wsa_jax.models import GCN, GraphSAGE, graph
from wsa_jax.models.graph import Graph


def read_gcn(shapes: Shapes, asked: Asked) -> Architecture:
    """A kernel and a bias a layer."""
    del asked
    inputs, features = _layers(shapes, "kernel")
    return Architecture(name="gcn", module=GCN(features=features), inputs=inputs)


def read_graph_sage(shapes: Shapes, asked: Asked) -> Architecture:
    """Two kernels a layer, for a node itself and for its neighbours."""
    del asked
    inputs, features = _layers(shapes, "own.kernel")
    return Architecture(name="graph-sage", module=GraphSAGE(features=features), inputs=inputs)


def _layers(shapes: Shapes, kernel: str) -> tuple[Graph, tuple[int, ...]]:
    """Two nodes and the edges between them, and the widths of the layers."""
    prefix = prefix_of(shapes)
    pattern = rf"{re.escape(prefix)}Layer_(\d+)\.{re.escape(kernel)}"
    kernels = list(numbered(shapes, pattern, rank=2).values())
    lacking(f"{prefix}Layer_0.{kernel}", kernels)
    nodes = np.zeros((2, kernels[0][0]), np.float32)
    return graph(nodes, senders=[0, 1], receivers=[1, 0]), tuple(one[1] for one in kernels)
