"""Graphs of the experiments: Cora from a file, and one that is drawn."""

import functools
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.refused import RefusedError
from wsa_jax.models import Graph, graph
from wsa_jax.runs.identity import digest


class LabelledGraph(NamedTuple):
    """A graph, the class of each node, and the nodes of each part."""

    graph: Graph
    labels: np.ndarray
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    def digests(self) -> dict[str, str]:
        """Of what is trained on and of what is tested on, as rows hold them."""
        edges = np.stack([self.graph.senders, self.graph.receivers])
        whole = digest(self.graph.nodes, edges, self.labels)
        return {"graph": whole, "train": digest(self.train), "test": digest(self.test)}


@functools.lru_cache(maxsize=2)
def labelled_graph(name: str, data_dir: str | None) -> LabelledGraph:
    """Cora or the planted one; exits where Cora's file is missing."""
    return planted() if name == "planted" else cora(data_dir)


def cora(data_dir: str | None) -> LabelledGraph:
    """The citation graph with the public split and its binary features, which are not rescaled."""
    folder = Path(data_dir or os.environ.get("TFDS_DATA_DIR", "."))
    path = folder / "cora.npz"
    if not path.is_file():
        raise RefusedError(
            f"{path} is no file; give --data-dir, the folder of cora.npz (feature_rows, "
            "feature_columns, features_shape, edges, labels, train, validation, test), made from "
            "github.com/kimiyoung/planetoid"
        )
    with np.load(path, allow_pickle=False) as held:
        features = np.zeros(held["features_shape"], np.float32)
        features[held["feature_rows"], held["feature_columns"]] = 1
        edges = held["edges"]
        edges = edges[edges[:, 0] != edges[:, 1]]
        parts = (held[part].astype(np.int32) for part in ("train", "validation", "test"))
        return LabelledGraph(
            graph(features, edges[:, 0], edges[:, 1]), held["labels"].astype(np.int32), *parts
        )


def planted() -> LabelledGraph:
    """Three communities of 40 nodes: most edges stay inside one, features lean towards its own."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3, dtype=np.int32), 40)
    same = labels[:, None] == labels[None]
    upper = np.triu(rng.random((120, 120)) < np.where(same, 0.15, 0.01), 1)
    first, second = np.nonzero(upper)
    features = (rng.random((120, 12)) < 0.2 + 0.2 * np.eye(3)[labels].repeat(4, 1)).astype(float)
    order = rng.permutation(120).astype(np.int32)
    return LabelledGraph(
        graph(features, np.r_[first, second], np.r_[second, first]),
        labels,
        order[:30],
        order[30:60],
        order[60:],
    )
