"""What a federated cell is made of: its data, clients, task, algorithm and scope alignment."""

import dataclasses
from typing import Literal, cast

import jax
import numpy as np
from flax import linen as nn

from benchmarks.federated.cell import Cell
from benchmarks.federated.differing_clients import clients_that_differ, steps_that_differ
from benchmarks.record.data import load_split
from wsa_jax import federated
from wsa_jax.data import dataset_info, train_validation_split
from wsa_jax.federated import (
    FederatedAlgorithm,
    LocalSettings,
    Partition,
    WeightScopeAlignment,
    dirichlet_equal,
    dirichlet_unequal,
    iid,
    shards,
)
from wsa_jax.federated.alignment import Form
from wsa_jax.models import CNN, MLP, vgg8
from wsa_jax.scope.layers import all_leaves, kernels
from wsa_jax.scope.regularization import Scale, scope_window
from wsa_jax.scope.scope import WeightScope, weight_scope
from wsa_jax.training import Task, classification

Labelled = tuple[np.ndarray, np.ndarray]
"""Images and their labels."""


def federation_data(cell: Cell, data_dir: str | None) -> tuple[Labelled, Labelled]:
    """Images and labels to train on and to evaluate on."""
    train = load_split(cell.dataset, dataset_info(cell.dataset).splits[0], data_dir, cell.side)
    if cell.evaluate_on == "test":
        held_out = load_split(cell.dataset, "test", data_dir, cell.side)
        return (train.images, train.labels), (held_out.images, held_out.labels)
    kept, validation = train_validation_split(train.labels, fraction=0.1, seed=0)
    train_part, validation_part = (
        (train.images[rows], train.labels[rows]) for rows in (kept, validation)
    )
    return train_part, validation_part


def cell_partition(cell: Cell, labels: np.ndarray) -> Partition:
    """Which client owns which of the training labels."""
    common = {"clients": cell.clients, "seed": cell.seed}
    if cell.partition == "iid":
        return iid(labels, **common)
    if cell.partition == "shards":
        return shards(labels, shards_per_client=cell.shards_per_client, **common)
    make = dirichlet_equal if cell.partition == "equal" else dirichlet_unequal
    return make(labels, alpha=cell.alpha, **common)


def cell_task(cell: Cell) -> Task:
    """The task of a cell: its model on images of its size."""
    info = dataset_info(cell.dataset)
    module = cell_model(cell, info.num_classes)
    if not cell.side:
        return classification(module, info, augmentation=cell.augmentation)
    shape = (cell.side, cell.side, info.image_shape[2])
    return classification(
        module,
        dataclasses.replace(info, image_shape=shape),
        augmentation=cell.augmentation,
        padding=cell.side // 8,
    )


def cell_model(cell: Cell, num_classes: int) -> nn.Module:
    """The Linen module of a cell."""
    if cell.model == "cnn":
        first, second, *units = (round(cell.width * n) for n in (*CNN.channels, *CNN.units))
        return CNN(num_classes, cell.init, (first, second), (units[0], units[1]), cell.kernel_size)
    if cell.model == "vgg8":
        return vgg8(num_classes, width=cell.width, initialization=cell.init)
    return MLP(features=(64, num_classes), initialization=cell.init)


def cell_algorithm(cell: Cell) -> FederatedAlgorithm:
    """The federated algorithm of a cell, with the library's own settings but FedProx's."""
    make = getattr(federated, cell.algorithm)
    algorithm = make(mu=cell.mu) if cell.algorithm == "fed_prox" else make()
    if cell.differ in ("nothing", "steps"):
        return algorithm
    return clients_that_differ(algorithm, cell.differ, cell.clients)


def cell_local(cell: Cell) -> LocalSettings:
    """Local training of a cell's clients."""
    own = cell.differ == "steps"
    return LocalSettings(
        steps=steps_that_differ(cell.steps, cell.clients) if own else cell.steps,
        batch_size=cell.batch_size,
        clip_norm=cell.clip_norm,
        weight_decay=cell.weight_decay,
        momentum=cell.momentum,
    )


def cell_wsa(cell: Cell) -> WeightScopeAlignment | None:
    """Weight scope alignment of a cell, None for the plain algorithm."""
    if not cell.strength:
        return None
    first, last = cell.window
    schedule = scope_window(cell.strength, start=first, stop=None if last < 0 else last)
    return WeightScopeAlignment(
        strength=schedule if cell.window != (0, -1) else cell.strength,
        form=cast(Form, cell.form),
        scale=cast(Scale, cell.scale),
        select=all_leaves if cell.layers == "all" else kernels,
        target=cell_target(cell),
        start=he_scope(cell) if cell.target == "he_fused" else None,
        fusion=cell.fusion,
        direction=cell.direction,
    )


def cell_target(cell: Cell) -> WeightScope | tuple[float, float] | Literal["fused"]:
    """What clients are held to, as the library says it."""
    if cell.target == "fixed":
        return cell.target_mean, cell.target_std
    return he_scope(cell) if cell.target == "he" else "fused"


def he_scope(cell: Cell) -> WeightScope:
    """The scope of the cell's model as He's initialisation would draw it from the same key."""
    task = cell_task(dataclasses.replace(cell, init="he"))
    params, _ = task.init(jax.random.fold_in(jax.random.key(cell.seed), 0))
    return weight_scope(params, select=all_leaves if cell.layers == "all" else kernels)
