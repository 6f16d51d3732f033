"""Real pretrained weights, fine-tuned twice on disjoint classes, merged by every method.

    python -m benchmarks pretrained --weights resnet20.safetensors [--preset smoke|cpu|paper]

ResNet20 as published for CIFAR-10 (option A, BatchNorm) gets a new head for CIFAR-100's classes;
two copies are fine-tuned, each on its own half of the classes, without and with WSA towards the
pretrained weights' scope. Every method merges them: those of task vectors know the pretrained
model, learned ones get samples of all classes. Accuracies are over all classes.

paper: all training data, 20 epochs, 5,000 samples, 1,000 steps of merging. cpu: 2,000 examples a
half, 4 epochs, 1,000 test images, 500 samples, 30 steps. smoke: an MLP on digits, with no weights.
"""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import linen as nn

from benchmarks.merging.bench import (
    Bench,
    MergingArgs,
    MergingExperiment,
    Preset,
    on_record,
    seeds_of,
)
from benchmarks.merging.fine_tuned import (
    Examples,
    Found,
    Training,
    answers,
    by_training,
    draw,
    drawn,
    gains,
    merged,
    summary_of,
    table,
    trainings,
    wsa_gains,
)
from benchmarks.record.claims import Claim
from benchmarks.record.data import data_digests, load_split
from benchmarks.record.statistics import Row, Settings
from benchmarks.refused import RefusedError
from benchmarks.script import Findings, figure_name
from wsa_jax.data import DatasetInfo, dataset_info
from wsa_jax.files import load_model, resnet_names
from wsa_jax.merging import METHODS, Budget, Model
from wsa_jax.models import MLP, cifar_resnet
from wsa_jax.training import FitSettings, Task, classification, fit

# Their running statistics are of images normalised by these.
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True, kw_only=True)
class PretrainedCell:
    """Two models fine-tuned from one, and the table of their merges."""

    # Without defaults: ids hold them, and differ from those of other kinds of rows.
    dataset: str
    base: str
    examples: int = 2_000
    """Of each half of the classes."""
    epochs: int = 4
    batch_size: int = 100
    learning_rate: float = 0.05
    strength: float = 0.0
    """Of WSA towards the scope of the pretrained weights."""
    test_examples: int = 1_000
    samples: int = 500
    steps: int = 30
    methods: tuple[str, ...] = ()
    seed: int = 0


RESNET20: Settings = {"dataset": "cifar100", "base": "resnet20"}
SIZES: dict[Preset, PretrainedCell] = {
    "smoke": PretrainedCell(
        dataset="digits",
        base="mlp",
        examples=300,
        batch_size=50,
        test_examples=200,
        samples=100,
        steps=5,
        methods=("average", "task arithmetic"),
    ),
    "cpu": PretrainedCell(**RESNET20),
    "paper": PretrainedCell(
        **RESNET20, examples=0, epochs=20, test_examples=0, samples=5_000, steps=1_000
    ),
}
# Aligns move units apart that a common start has brought together: they are rivals, not helpers.
CHOSEN = (
    "average",
    "weight matching",
    "weight matching, REPAIR",
    "OT Fusion",
    "CCA Merge",
    "ZipIt!",
    "Fisher",
    "fine-tuning",
    "NP Merge",
    "NP Merge, joint",
    "greedy soup",
    "task arithmetic",
    "TIES",
    "DARE",
    "Model Stock",
)
DATA: dict[Preset, str] = {"smoke": "digits", "cpu": "CIFAR-100", "paper": "CIFAR-100"}
SEEDS: dict[Preset, Sequence[int]] = {"smoke": (0,), "cpu": (0, 1, 2), "paper": (0, 1, 2)}


@dataclass(frozen=True, kw_only=True)
class Args(MergingArgs):
    """Arguments."""

    weights: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """ResNet20's PyTorch weights for CIFAR-10, from github.com/akamaster/pytorch_resnet_cifar10."""


def info_of(cell: PretrainedCell) -> DatasetInfo:
    """The data set, normalised as the pretrained weights want it."""
    info = dataset_info(cell.dataset)
    return info if cell.base == "mlp" else dataclasses.replace(info, **IMAGENET)


def halves(cell: PretrainedCell, data_dir: str | None) -> tuple[Examples, Examples]:
    """The training data of each half of the classes, which the seed draws."""
    train = load_split(cell.dataset, dataset_info(cell.dataset).splits[0], data_dir)
    rng = np.random.default_rng(cell.seed)
    classes = rng.permutation(dataset_info(cell.dataset).num_classes)
    parts = []
    for half in np.array_split(classes, 2):
        rows = rng.permutation(np.nonzero(np.isin(train.labels, half))[0])
        rows = rows[: cell.examples or None]
        parts.append(Examples(train.images[rows], train.labels[rows]))
    return parts[0], parts[1]


def base_of(cell: PretrainedCell, data_dir: str | None, weights: Path | None) -> tuple[Task, Model]:
    """The pretrained model with a new head, and its task."""
    info = info_of(cell)
    head_key = jax.random.key(1_000 + cell.seed)
    if cell.base == "mlp":
        module: nn.Module = MLP(features=(32, 32, info.num_classes))
        task = classification(module, info)
        train = load_split(cell.dataset, info.splits[0], data_dir)
        settings = FitSettings(steps=40, batch_size=50)
        made = fit(head_key, task, train.images, train.labels, settings=settings)
        return task, Model(made.params, made.model_state)
    if weights is None or not weights.is_file():
        raise RefusedError(f"--weights {weights} is no file; give ResNet20's weights for CIFAR-10")
    module = cifar_resnet(20, info.num_classes, norm="batch", shortcut="pad")
    task = classification(module, info, augmentation="example")
    params, _ = task.init(head_key)
    published = module.clone(num_classes=10)
    held = load_model(weights, names=resnet_names(published, head="linear"))
    held = jax.tree.map(jnp.asarray, held)
    # The new classes have a head of their own; everything else is as published.
    params = held["params"] | {"Dense_0": params["Dense_0"]}
    return task, Model(params, {"batch_stats": held["batch_stats"]})


def table_row(bench: Bench, cell: PretrainedCell, weights: Path | None) -> Row | None:
    """Fine-tune both, merge them by every method: one row."""

    def make() -> Row:
        task, base = base_of(cell, bench.data_dir, weights)
        test = load_split(cell.dataset, "test", bench.data_dir)
        shown = np.random.default_rng(0).permutation(len(test.labels))[: cell.test_examples or None]
        parts = halves(cell, bench.data_dir)
        together = Examples(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
        row = merged(
            cell,
            task,
            base,
            parts,
            Examples(test.images[shown], test.labels[shown]),
            methods={name: METHODS[name] for name in cell.methods or CHOSEN},
            budget=Budget(steps=cell.steps, restarts=1),
            samples=drawn(together, cell.samples, cell.seed),
            training=Training(),
            runs=bench.runs,
        )
        return row | {"data": data_digests(cell.dataset, bench.data_dir)}

    return bench.row(cell, make)


def collect(bench: Bench, args: Args) -> Found:
    """The rows there are."""
    size = SIZES[args.preset]

    def row_of(strength: float, seed: int) -> Row | None:
        cell = dataclasses.replace(size, strength=strength, seed=seed)
        return table_row(bench, cell, args.weights)

    return by_training(trainings(args.preset), seeds_of(args, SEEDS), row_of)


def report(bench: Bench, args: Args, found: Found) -> Findings:
    """The table and the figure."""
    data = DATA[args.preset]
    return Findings(
        title="Fine-tuned from real weights on disjoint classes: every method",
        text=f"Test accuracy over all classes of {data}, % (± std)\n\n{table(found)}",
        figures={figure_name("pretrained", args.preset): functools.partial(draw, {"": found})},
        summary=summary_of(found),
    )


def claims() -> list[Claim]:
    """What the methods promise of models with one start, and whether WSA helps them."""
    return [
        claim
        for size, found in on_record(collect, Args).items()
        for claim in answers(
            f"ResNet20 from CIFAR-10, two halves of CIFAR-100, {size}",
            "np_merge.md#models-fine-tuned-from-real-weights",
            [
                ("task arithmetic beats the average", gains(found, "task arithmetic", "average")),
                ("TIES beats the average", gains(found, "TIES", "average")),
                ("NP Merge beats fine-tuning the average", gains(found, "NP Merge", "fine-tuning")),
                ("WSA makes fine-tuned models average better", wsa_gains(found, "average")),
            ],
        )
    ]


SCRIPT = MergingExperiment(
    name="pretrained",
    description=__doc__,
    arguments=Args,
    collect=collect,
    report=report,
    claims=claims,
    data=DATA,
)
