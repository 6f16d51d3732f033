"""WSA's Figure 8: vision transformers fine-tuned from one, and the line between them.

    python -m benchmarks fig8 [--preset smoke|cpu|paper] [--weights FILE] [--data-dir FOLDER]

A pretrained ViT gets a new head and is fine-tuned twice, from two seeds: of the head and of the
order of the data. The barrier (Eq. 7, test set) is that of the line between the two models as they
are, as in the paper, and after weight matching. WSA holds every layer but the new head to the
pretrained weights' scope. Three baselines compete on seed 0 by the validation loss of the average
of the models as they are, then three strengths on top of the best of them; the winners meet on the
other seeds, paired.

paper: ViT-B/16 of google/vit-base-patch16-224-in21k (--weights, model.safetensors) and ImageNet-100
(imagenet100 below the data folder: train and val as folders of classes, or prepared by tfds).
cpu: a ViT of 0.14 million weights, pretrained by Adam on half of CIFAR-100's classes at 16x16 for 8
epochs and fine-tuned on 8,000 images of the others for 3. smoke: one of a block, on digits.
"""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro

from benchmarks.merging import competition
from benchmarks.merging.bench import (
    Bench,
    MergingArgs,
    MergingExperiment,
    Preset,
    on_record,
    seeds_of,
)
from benchmarks.merging.competition import Outcome, compete
from benchmarks.merging.fine_tuned import Examples, Training, divergences, tuned
from benchmarks.merging.pairs import measured_line
from benchmarks.merging.vit_bases import Base, Parts, ViTBase, vit_base, vit_parts
from benchmarks.record.claims import Claim, verdict_of, with_interval
from benchmarks.record.statistics import Row, Settings
from benchmarks.script import Findings, figure_name
from wsa_jax import kernels, weight_scope, without
from wsa_jax.merging import Model, align, trace_spec, weight_matching
from wsa_jax.runs.identity import digest

HELD = without(kernels, ("Dense_0/kernel",))
"""The layers that have a pretrained scope: all but the new head."""


@dataclass(frozen=True, kw_only=True)
class ViTPair(ViTBase):
    """Two transformers of one setting, fine-tuned from one, and the line between them."""

    examples: int = 0
    """Of the fine-tuning classes; 0 is all."""
    epochs: int = 3
    batch_size: int = 100
    learning_rate: float = 0.1
    weight_decay: float = 0.0
    strength: float = 0.0
    """Of WSA towards the scope of the pretrained weights."""
    test_examples: int = 1_000
    """At most, of the test set and of the validation part; 0 is all."""
    seed: int = 0


SIZES: dict[Preset, ViTPair] = {
    "smoke": ViTPair(
        dataset="digits",
        model="small",
        patch=4,
        width=8,
        depth=1,
        heads=2,
        pretraining_epochs=2,
        examples=200,
        epochs=1,
        batch_size=50,
    ),
    "cpu": ViTPair(dataset="cifar100", model="small", side=16, examples=8_000),
    "paper": ViTPair(
        dataset="imagenet100",
        model="ViT-B/16 in21k",
        patch=16,
        batch_size=128,
        learning_rate=0.01,
        test_examples=0,
    ),
}
BASELINES: dict[Preset, list[Settings]] = {
    "smoke": [{}],
    "cpu": [{}, {"learning_rate": 0.3}, {"weight_decay": 2e-3}],
    "paper": [{}, {"learning_rate": 0.03}, {"weight_decay": 2e-3}],
}
# The smallest layer bounds them: at rate 0.1 to 22 in the small network, at 0.3 to 7.
STRENGTHS: dict[Preset, Sequence[float]] = {
    "smoke": (0.03,),
    "cpu": (0.3, 1.0, 3.0),
    "paper": (1.0, 10.0, 100.0),
}
SEEDS: dict[Preset, Sequence[int]] = {"smoke": (0, 1), "cpu": (0, 1, 2, 3), "paper": (0, 1, 2)}
DATA: dict[Preset, str] = {
    "smoke": "digits",
    "cpu": "half of CIFAR-100's classes, 16x16",
    "paper": "ImageNet-100",
}
PAGE = "barriers.md#figure-8-vision-transformers-fine-tuned-from-one"


@dataclass(frozen=True, kw_only=True)
class Args(MergingArgs):
    """Arguments."""

    weights: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Preset paper: model.safetensors of google/vit-base-patch16-224-in21k."""


def name_of(extra: Settings) -> str:
    """How tables call a competitor."""
    said = {"learning_rate": "rate", "weight_decay": "weight decay", "strength": "WSA"}
    return ", ".join(f"{said[key]} {value:g}" for key, value in extra.items()) or "baseline"


def started(cell: ViTPair, base: Base, part: int) -> Model:
    """The pretrained model with the new head of one seed."""
    head = base.task.init(jax.random.key(1_000 + 2 * cell.seed + part))[0]["Dense_0"]
    return Model(base.params | {"Dense_0": head}, {})


def both(cell: ViTPair, base: Base, parts: Parts, runs: Path) -> tuple[Model, Model]:
    """Two models fine-tuned from the base, on the same images."""
    rows = np.random.default_rng(0).permutation(len(parts.train.labels))[: cell.examples or None]
    data = Examples(parts.train.inputs[rows], parts.train.labels[rows])
    training = Training(weight_decay=cell.weight_decay, clip_norm=1.0, select=HELD)
    target = weight_scope(base.params, select=HELD)

    def one(part: int) -> Model:
        start = started(cell, base, part)
        return tuned(
            cell, base.task, start, data, part, target=target, training=training, runs=runs
        )

    return one(0), one(1)


def matched(cell: ViTPair, base: Base, images: np.ndarray, models: tuple[Model, Model]) -> Model:
    """The second model with its units in the first one's order."""
    first, second = (model.params for model in models)
    logits = base.task.logits
    assert logits is not None
    spec = trace_spec(lambda params, inputs: logits(params, {}, inputs), first, images)
    # One start, the published one, as in the other figures.
    found = weight_matching(jax.random.key(cell.seed), spec, first, second, restarts=1)
    return Model(align(spec, second, found), {})


def differ(first: Model, second: Model) -> bool:
    """Whether a parameter of one model is not the other's."""
    pairs = zip(jax.tree.leaves(first.params), jax.tree.leaves(second.params), strict=True)
    return not all(np.array_equal(one, other) for one, other in pairs)


def pair_row(bench: Bench, cell: ViTPair, weights: Path | None) -> Row | None:
    """Fine-tune both, match, and measure the line before and after."""

    def make() -> Row:
        base = vit_base(cell, bench.runs, bench.data_dir, weights)
        parts = vit_parts(cell, bench.data_dir)
        first, second = both(cell, base, parts, bench.runs)
        moved = matched(cell, base, parts.train.inputs[:2], (first, second))
        most = cell.test_examples or None

        def line(end: Model) -> Row:
            return {
                name: measured_line(base.task, (first, end), part.inputs[:most], part.labels[:most])
                for name, part in (("validation", parts.validation), ("test", parts.test))
            }

        lines = {"none": line(second)}
        # Copies of one start mostly correspond as they are, and then there is one line.
        lines["weight"] = line(moved) if differ(second, moved) else lines["none"]
        target = weight_scope(base.params, select=HELD)
        return lines | {
            "layers": list(target.names),
            "divergence": divergences((first, second), target, HELD),
            "base": {"digest": digest(*jax.tree.leaves(base.params)), "accuracy": base.accuracy},
            "data": parts.digests(),
        }

    return bench.row(cell, make)


def collect(bench: Bench, args: Args) -> Outcome | None:
    """Let the settings compete on the first seed, and the winners on all."""

    def row_of(extra: Settings, seed: int) -> Row | None:
        cell = dataclasses.replace(SIZES[args.preset], **extra, seed=seed)
        return pair_row(bench, cell, args.weights)

    return compete(
        bench,
        (BASELINES[args.preset], [{"strength": value} for value in STRENGTHS[args.preset]]),
        row_of,
        seeds_of(args, SEEDS),
        name_of=name_of,
        chosen_by="none",
        called="strengths",
        on_winner=True,
    )


def report(bench: Bench, args: Args, outcome: Outcome) -> Findings:
    """A table, and the lines in loss and accuracy."""
    data = DATA[args.preset]
    moved = {
        name: float(np.mean([np.mean(row["divergence"]) for row in rows if row is not None]))
        for name, rows in outcome.rows.items()
        if name in (outcome.baseline, outcome.wsa)
    }
    told = ", ".join(f"{name} {value:.2g}" for name, value in moved.items())
    text = [f"ViT on {data}: test loss barriers (Eq. 7; ± std)", competition.table(outcome)]
    text += [f"KL from the pretrained scope, mean over layers, nats: {told}."] if told else []
    return Findings(
        title="Figure 8: vision transformers fine-tuned from one, with and without WSA",
        text="\n\n".join(text),
        figures={
            figure_name("fig8_vit", args.preset): functools.partial(
                competition.draw, {"": outcome}, ("loss", "accuracy")
            )
        },
        summary=competition.summary_of(outcome),
    )


def claims() -> list[Claim]:
    """That WSA improves the models between, as the paper says: their accuracy, and the barrier."""
    found: dict[str, Outcome | None] = on_record(collect, Args) or {"small networks": None}
    lines = []
    for size, outcome in found.items():
        source, run = "WSA, Figure 8", f"ViT, best of 3 a side, {size}"
        gains = competition.better(outcome, "none") if outcome else []
        claim = "WSA improves the average of two fine-tuned ViTs"
        ours = with_interval(gains)
        lines.append(Claim(source, claim, run, ours, "", verdict_of(gains), PAGE))
        if outcome:
            asked = {"none": "WSA lowers the barrier between fine-tuned ViTs"}
            lines += competition.lower_claims(outcome, source, asked, run, PAGE)
    return lines


SCRIPT = MergingExperiment(
    name="fig8_vit",
    description=__doc__,
    arguments=Args,
    collect=collect,
    report=report,
    claims=claims,
    data=DATA,
)
