"""Pretrained vision transformers of Figure 8, and what they are fine-tuned on."""

import dataclasses
import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from benchmarks.merging.adam import fit_by_adam
from benchmarks.merging.fine_tuned import Examples
from benchmarks.record.data import load_split
from benchmarks.refused import RefusedError
from wsa_jax.data import DatasetInfo, dataset_info, train_validation_split
from wsa_jax.files import load_model, vit_names
from wsa_jax.models import ViT, vit
from wsa_jax.runs.identity import digest
from wsa_jax.training import FitSettings, Task, classification, evaluate


@dataclass(frozen=True, kw_only=True)
class ViTBase:
    """A pretrained transformer: published, or trained here on half of a data set's classes."""

    # Without defaults: ids hold them, and differ from those of other kinds of rows.
    dataset: str
    model: str
    """small: trained here; anything else has published weights."""
    side: int = 0
    """Height and width of smaller images; 0 is the images' own."""
    patch: int = 4
    width: int = 64
    depth: int = 4
    heads: int = 4
    pretraining_epochs: int = 8
    pretraining_rate: float = 1e-3


class Base(NamedTuple):
    """A pretrained model with a head that no fine-tuned one has, and the task of new classes."""

    task: Task
    params: PyTree
    accuracy: float | None
    """On its own classes' test images; None for published weights."""


class Parts(NamedTuple):
    """What is fine-tuned on, chosen by and judged by."""

    train: Examples
    validation: Examples
    test: Examples

    def digests(self) -> dict[str, str]:
        """As rows hold them."""
        return {"train": digest(*self.train), "test": digest(*self.test)}


def vit_info(cell: ViTBase, data_dir: str | None) -> DatasetInfo:
    """The data set; ImageNet-100 normalised as google/vit-* wants it."""
    if cell.dataset != "imagenet100":
        info = dataset_info(cell.dataset)
        shape = (cell.side, cell.side, info.image_shape[2])
        return dataclasses.replace(info, image_shape=shape) if cell.side else info
    half = (0.5, 0.5, 0.5)
    info = dataclasses.replace(
        dataset_info("imagenet"), name="imagenet100", num_classes=100, mean=half, std=half
    )
    folder = Path(data_dir or os.environ.get("TFDS_DATA_DIR", ".")) / info.name
    if any(folder.glob("*/dataset_info.json")):
        return dataclasses.replace(info, source="tfds", splits=("train", "validation"))
    return info


def halves(classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes to pretrain on and to fine-tune on, the same for all seeds."""
    first, second = np.array_split(np.random.default_rng(0).permutation(classes), 2)
    return np.sort(first), np.sort(second)


def split_of(cell: ViTBase, split: int, data_dir: str | None, half: int) -> Examples:
    """One split: all of it for published weights, else one half of the classes, from 0 on."""
    info = vit_info(cell, data_dir)
    known = info if cell.dataset == "imagenet100" else info.name
    found = load_split(known, info.splits[split], data_dir, cell.side)
    if cell.model != "small":
        return Examples(found.images, found.labels)
    classes = halves(info.num_classes)[half]
    kept = np.isin(found.labels, classes)
    labels = np.searchsorted(classes, found.labels[kept]).astype(np.int32)
    return Examples(found.images[kept], labels)


@functools.lru_cache(maxsize=2)
def _parts(base: ViTBase, data_dir: str | None) -> Parts:
    train, test = (split_of(base, split, data_dir, half=1) for split in (0, 1))
    kept, held_out = train_validation_split(train.labels, fraction=0.1, seed=0)
    order = np.random.default_rng(0).permutation(len(test.labels))
    return Parts(
        Examples(train.inputs[kept], train.labels[kept]),
        Examples(train.inputs[held_out], train.labels[held_out]),
        Examples(test.inputs[order], test.labels[order]),
    )


def vit_parts(cell: ViTBase, data_dir: str | None) -> Parts:
    """What a cell is fine-tuned on; the validation part is a tenth of the training data."""
    return _parts(base_of(cell), data_dir)


def base_of(cell: ViTBase) -> ViTBase:
    """A cell's base alone, the same for all cells that have it."""
    fields = [field.name for field in dataclasses.fields(ViTBase)]
    return ViTBase(**{name: getattr(cell, name) for name in fields})


def vit_task(base: ViTBase, data_dir: str | None) -> tuple[ViT, Task]:
    """The network for one half of the classes, or for all with published weights, and its task."""
    info = vit_info(base, data_dir)
    if base.model != "small":
        network = vit("B", info.num_classes, patch=base.patch, epsilon=1e-12)
        return network, classification(network, info)
    info = dataclasses.replace(info, num_classes=len(halves(info.num_classes)[1]))
    network = ViT(base.patch, base.width, base.depth, base.heads, 2 * base.width, info.num_classes)
    # Crops move by 2 pixels of 16; digits are not to be mirrored.
    mode = "none" if base.dataset == "digits" else "example"
    return network, classification(network, info, augmentation=mode, padding=base.side // 8)


def vit_base(cell: ViTBase, runs: Path, data_dir: str | None, weights: Path | None) -> Base:
    """The pretrained model; trained where it is not kept in the runs folder."""
    return _base(base_of(cell), runs, data_dir, weights)


@functools.lru_cache(maxsize=1)
def _base(base: ViTBase, runs: Path, data_dir: str | None, weights: Path | None) -> Base:
    network, task = vit_task(base, data_dir)
    if base.model != "small":
        if weights is None or not weights.is_file():
            raise RefusedError(
                f"--weights {weights} is no file; give model.safetensors of "
                "google/vit-base-patch16-224-in21k"
            )
        held = load_model(weights, names=vit_names(network, prefix="", head=None))["params"]
        head = task.init(jax.random.key(0))[0]["Dense_0"]
        return Base(task, jax.tree.map(jnp.asarray, held) | {"Dense_0": head}, None)
    train, test = (split_of(base, split, data_dir, half=0) for split in (0, 1))
    steps = max(1, base.pretraining_epochs * (len(train.labels) // 100))
    sizes = [base.patch, base.width, base.depth, base.heads, steps]
    name = digest(*train, np.asarray([base.pretraining_rate, *sizes]))
    rate = optax.warmup_cosine_decay_schedule(0.0, base.pretraining_rate, steps // 10, steps)
    found = fit_by_adam(
        jax.random.key(0),
        task,
        train.inputs,
        train.labels,
        settings=FitSettings(steps=steps, batch_size=100, clip_norm=1.0),
        learning_rate=rate,
        directory=runs / "bases" / name,
    )
    accuracy = evaluate(task, found.params, {}, *test).means()["accuracy"]
    return Base(task, jax.tree.map(jnp.asarray, found.params), float(accuracy))
