"""One trained model of the merging experiments: its configuration, its training, its ledger row.

Models are trained once and kept in the runs folder; every script that merges them reads them from
there. Settings are chosen on a tenth of the training data that no model is trained on; each row
records that validation part beside the test set.
"""

import dataclasses
import functools
import math
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, PyTree

from benchmarks.merging.adam import fit_by_adam
from benchmarks.record.data import data_digests, load_split
from benchmarks.record.ledger import Ledger, cell_id, is_finished, provenance
from benchmarks.record.statistics import Row
from benchmarks.refused import RefusedError
from wsa_jax import models, training
from wsa_jax.data import DatasetInfo, dataset_info, train_validation_split
from wsa_jax.federated import dirichlet_unequal
from wsa_jax.merging import Model
from wsa_jax.runs.identity import digest
from wsa_jax.scope.scope import WeightScope, constant_target, weight_scope
from wsa_jax.scope.stability import check_bound
from wsa_jax.training import FitResult, FitSettings, Task, classification, evaluate

ModelName = Literal["mlp", "vgg8", "vgg11", "vgg16", "resnet"]
Split = Literal["all", "80-20", "dirichlet", "classes"]


@dataclass(frozen=True, kw_only=True)
class ModelCell:
    """One model: plain values only; defaults must never change, ids are made of the others."""

    dataset: str = "cifar10"
    examples: int = 0
    """Training examples, drawn once for all models; 0 is all but the validation part."""
    model: ModelName = "resnet"
    depth: int = 20
    width: float = 1.0
    norm: Literal["none", "batch", "layer"] = "none"
    epochs: int = 10
    batch_size: int = 100
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    augmentation: Literal["none", "batch", "example"] = "example"
    strength: float = 0.0
    target: Literal["none", "initial", "fixed"] = "none"
    """Whose weight scope: that of the initial weights of seed 0, or N(0, target_std²)."""
    target_std: float = 0.0
    split: Split = "all"
    part: int = 0
    parts: int = 2
    seed: int = 0
    side: int = 0
    """Height and width of smaller images, means of blocks; 0 is the images' own."""
    initialization: Literal["normal", "uniform"] = "normal"
    """He's weights: N(0, 2/fan_in), or uniform with the same variance."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """SGD has momentum 0.9."""
    imbalance: float = 1.0
    """Share of its training examples that the last class keeps; those before it keep more."""
    label_noise: float = 0.0
    """Share of the training labels that are drawn anew, of all classes alike."""
    feature_noise: float = 0.0
    """Std of normal noise on the training images, as a share of the range of pixels."""
    whole: bool = False
    """Whether the validation part is trained on, too, where no setting is chosen by it."""

    @property
    def label(self) -> str:
        """How tables call the setting, without seed and part."""
        names = {"resnet": f"ResNet{self.depth}"}
        norm = {"none": "", "batch": " BN", "layer": " LN"}[self.norm]
        text = f"{names.get(self.model, self.model.upper())}{norm} x{self.width:g}"
        text += f", {self.side}x{self.side}" if self.side else ""
        text += f", {self.epochs} epochs"
        if self.strength:
            goal = "initial" if self.target == "initial" else f"N(0, {self.target_std:g}²)"
            text += f", WSA {self.strength:g} to {goal}"
        return text + ("" if self.split == "all" else f", {self.split} data")


class Trained(NamedTuple):
    """A trained model and its row of the ledger."""

    params: PyTree
    model_state: PyTree
    row: Row
    digest: str
    """Of the parameters and statistics at hand, which the row may not be of."""

    @property
    def finite(self) -> bool:
        """Whether there is a model to merge: training may diverge."""

        return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(self.params))

    @property
    def variables(self) -> dict[str, PyTree]:
        """Parameters and statistics as one tree, which specs name and aligns move."""
        return Model(self.params, self.model_state).variables


class Data(NamedTuple):
    """What a cell is trained and evaluated on."""

    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def model_data(cell: ModelCell, data_dir: str | None) -> Data:
    """Images and labels of a cell; the validation part is the same for all cells of a data set."""
    info = dataset_info(cell.dataset)
    train = load_split(cell.dataset, info.splits[0], data_dir, cell.side)
    test = load_split(cell.dataset, "test", data_dir, cell.side)
    kept, held_out = train_validation_split(train.labels, fraction=0.1, seed=0)
    if cell.whole:
        kept = np.arange(len(train.labels))
    if cell.examples:
        kept = np.random.default_rng(0).permutation(kept)[: cell.examples]
    kept = kept[part_indices(cell, train.labels[kept], info.num_classes)]
    return Data(
        worsened(cell, train.images[kept], train.labels[kept], info),
        (train.images[held_out], train.labels[held_out]),
        (test.images, test.labels),
    )


def worsened(
    cell: ModelCell, images: np.ndarray, labels: np.ndarray, info: DatasetInfo
) -> tuple[np.ndarray, np.ndarray]:
    """Training data with a cell's imbalance and noise, the same for all seeds.

    Class c of C keeps the share imbalance^(c / (C - 1)) of its examples.
    """
    rng, num_classes = np.random.default_rng(0), info.num_classes
    if cell.imbalance < 1:
        shares = cell.imbalance ** (np.arange(num_classes) / (num_classes - 1))
        kept = rng.random(len(labels)) < shares[labels]
        images, labels = images[kept], labels[kept]
    if cell.label_noise:
        drawn = rng.integers(num_classes, size=len(labels)).astype(labels.dtype)
        labels = np.where(rng.random(len(labels)) < cell.label_noise, drawn, labels)
    if cell.feature_noise:
        noise = rng.standard_normal(images.shape, np.float32) * (info.scale * cell.feature_noise)
        images = np.clip(np.rint(images + noise), 0, info.scale).astype(images.dtype)
    return images, labels


def part_indices(cell: ModelCell, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Which examples one of several models is trained on; the parts are disjoint.

    80-20: a model has 80 % of its share of the classes and the rest is spread over the others;
    dirichlet: each class is divided by Dirichlet(0.5); classes: disjoint random sets of classes.
    """
    if cell.split == "all":
        return np.arange(len(labels))
    seed = cell.seed // cell.parts
    if cell.split == "dirichlet":
        divided = dirichlet_unequal(labels, clients=cell.parts, alpha=0.5, seed=seed)
        return np.sort(divided.client_indices(cell.part))
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    owner = rng.permutation(num_classes) * cell.parts // num_classes
    if cell.split == "classes":
        return np.sort(order[owner[labels[order]] == cell.part])
    shares = np.full((num_classes, cell.parts), 0.2 / (cell.parts - 1))
    shares[np.arange(num_classes), owner] = 0.8
    mine = []
    for label in range(num_classes):
        members = order[labels[order] == label]
        ends = np.round(np.cumsum(shares[label]) * len(members)).astype(int)
        begin = ends[cell.part - 1] if cell.part else 0
        mine.append(members[begin : ends[cell.part]])
    return np.sort(np.concatenate(mine))


def cell_module(cell: ModelCell, num_classes: int) -> nn.Module:
    """The Linen module of a cell, with He's initial weights."""
    if cell.model == "mlp":
        hidden = round(64 * cell.width)
        return models.MLP(features=(hidden, hidden, num_classes), initialization="he")
    if cell.model == "resnet":
        return models.cifar_resnet(cell.depth, num_classes, width=cell.width, norm=cell.norm)
    if cell.model == "vgg16":
        return models.vgg16(num_classes, width=cell.width, norm=cell.norm, initialization="he")
    if cell.model == "vgg11":
        return models.vgg11(num_classes, width=cell.width, dense=(), initialization="he")
    return models.vgg8(num_classes, width=cell.width, initialization="he")


def cell_info(cell: ModelCell) -> DatasetInfo:
    """The data set of a cell, with images of its size."""
    info = dataset_info(cell.dataset)
    shape = (cell.side, cell.side, info.image_shape[2])
    return dataclasses.replace(info, image_shape=shape) if cell.side else info


def cell_task(cell: ModelCell) -> Task:
    """What a cell is trained for."""
    info = cell_info(cell)
    module = cell_module(cell, info.num_classes)
    if not cell.side:
        return classification(module, info, augmentation=cell.augmentation)
    # Crops move by 2 pixels of 16, as by 4 of 32.
    padding = cell.side // 8
    return classification(module, info, augmentation=cell.augmentation, padding=padding)


def initial_params(cell: ModelCell) -> PyTree:
    """The weights that a cell is trained from: those `fit` draws from its seed."""
    params = cell_task(cell).init(jax.random.split(jax.random.key(cell.seed), 3)[0])[0]
    if cell.initialization == "normal":
        return params

    def uniform(weights: Array) -> Array:
        # The std of a normal draw times √3, the half width of a uniform one, at its own quantile.
        std = math.sqrt(2 / math.prod(weights.shape[:-1]))
        share = jax.scipy.special.erf(weights / (std * math.sqrt(2)))
        return math.sqrt(3) * std * share

    return jax.tree.map(lambda leaf: uniform(leaf) if leaf.ndim > 1 else leaf, params)


@functools.cache
def _initial_scope(network: ModelCell) -> WeightScope:
    """The weight scope of a network's initial weights of seed 0."""
    return weight_scope(cell_task(network).init(jax.random.key(0))[0])


def _scopes(cell: ModelCell) -> tuple[WeightScope, WeightScope]:
    """The initial weight scope of a cell's network, and the one that WSA holds it to."""
    names = ("dataset", "model", "depth", "width", "norm", "augmentation", "side")
    initial = _initial_scope(ModelCell(**{name: getattr(cell, name) for name in names}))
    fixed = cell.target == "fixed"
    return initial, constant_target(initial, std=cell.target_std) if fixed else initial


def check_cells(cells: Iterable[ModelCell]) -> None:
    """Exit where WSA's step would be unstable in a cell, before any of them is trained.

    The bound is that of SGD. Adam divides a gradient by its size, so no strength lengthens a step.
    """
    for cell in cells:
        if cell.optimizer == "adam":
            continue
        rate, strength = (np.full(1, value) for value in (cell.learning_rate, cell.strength))
        try:
            check_bound(*_scopes(cell), rate, strength)
        except ValueError as error:
            raise RefusedError(f"{cell.label}: {error}") from error


def train_model(
    cell: ModelCell, ledger: Ledger, runs: Path, data_dir: str | None = None
) -> Trained:
    """Train a cell, or read it where it is trained; resumes what was interrupted.

    A ledger that came without its checkpoints has it trained again. Another machine may end in
    other parameters than those its row is of: a line on stderr says so.
    """
    task, data = cell_task(cell), model_data(cell, data_dir)
    images, labels = data.train
    steps = max(1, cell.epochs * (len(labels) // cell.batch_size))
    begin = time.perf_counter()
    settings = FitSettings(
        steps=steps, batch_size=cell.batch_size, weight_decay=cell.weight_decay, clip_norm=5.0
    )
    learning_rate = optax.warmup_cosine_decay_schedule(
        0.0, cell.learning_rate, max(1, steps // 10), steps
    )
    given = jax.random.key(cell.seed), task, images, labels
    shared: dict[str, Any] = {
        "settings": settings,
        "learning_rate": learning_rate,
        "target": _scopes(cell)[1] if cell.strength else None,
        "strength": cell.strength,
        "params": None if cell.initialization == "normal" else initial_params(cell),
        "directory": runs / "models" / cell_id(cell),
    }
    if cell.optimizer == "adam":
        result = fit_by_adam(*given, **shared)
    else:
        # A run of a second is begun again sooner than its checkpoints are written.
        every = steps if steps <= 200 else steps // 8
        result = training.fit(*given, **shared, checkpoint_every=every)
    trained = digest(*jax.tree.leaves((result.params, result.model_state)))
    row = ledger.find(cell_id(cell))
    if row is None or not is_finished(row):
        row = _row(cell, task, result, data, time.perf_counter() - begin)
        row = ledger.write(
            row | {"data": data_digests(cell.dataset, data_dir, cell.side), "digest": trained}
        )
    elif row.get("digest", trained) != trained:
        print(
            f"model {row['id']} ({cell.label}, seed {cell.seed}) has digest {trained} here and "
            f"{row['digest']} in {ledger.path}: that row is not of these parameters",
            file=sys.stderr,
        )
    return Trained(result.params, result.model_state, row, trained)


def accuracy_and_loss(
    task: Task, params: PyTree, model_state: PyTree, part: tuple[np.ndarray, np.ndarray]
) -> dict[str, float]:
    """Accuracy in [0, 1] and mean loss."""
    sums = evaluate(task, params, model_state, *part)
    return {
        "accuracy": float(sums.means()["accuracy"]),
        "loss": float(sums.loss / sums.count),
    }


def _row(cell: ModelCell, task: Task, result: FitResult, data: Data, seconds: float) -> Row:
    scope = jax.jit(weight_scope)(result.params)
    losses = np.asarray(result.loss)
    tail = max(1, len(losses) // cell.epochs) if cell.epochs else 1
    row: Row = {
        "id": cell_id(cell),
        "label": cell.label,
        "config": dataclasses.asdict(cell),
        "status": "done",
        "steps": len(losses),
        "examples": len(data.train[1]),
        "train_loss": float(losses[-tail:].mean()),
        "seconds": round(seconds, 1),
        "scope": {
            "names": list(scope.names),
            "mean": np.asarray(scope.mean).tolist(),
            "std": np.asarray(scope.std).tolist(),
        },
    }
    for name in ("validation", "test"):
        row[name] = accuracy_and_loss(task, result.params, result.model_state, getattr(data, name))
    return row | provenance()
