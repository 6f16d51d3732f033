"""One step of NP Merge against one step of fine-tuning of the same model, in one alternating run.

    python -m benchmarks speed np_merge

VGG11 on CIFAR-10's shapes, the same batches and optimiser (Adam) for all sides: `np_merge`,
`fine_tune`, and a fine-tuning loop written by hand, without divergence guard or best coefficients.
Times are milliseconds a step, medians over rounds in which the sides take turns; memory is what XLA
plans for arguments, results and temporaries, in copies of the parameters. The time of a sequential
merge is fitted by a line in the number of merges.
"""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Array, PyTree

from benchmarks.record.ledger import RESULTS
from benchmarks.script import Command, Summary
from benchmarks.speed.alternating import paired, summary, take_turns, timed
from benchmarks.speed.reporting import SpeedArgs, print_sides, recorded
from wsa_jax.data import dataset_info
from wsa_jax.merging import (
    LearningSettings,
    MergeResult,
    fine_tune,
    labelled_examples,
    np_merge,
    np_merge_many,
)
from wsa_jax.models import MLP, vgg11
from wsa_jax.training import classification


@dataclass(frozen=True, kw_only=True)
class Args(SpeedArgs):
    """What to measure and how often."""

    width: float = 0.25
    """Of VGG11; the smoke preset has a small network instead."""
    batch: int = 50
    steps: int = 10
    """In one call, so that the call's own cost is spread."""
    rounds: int = 9
    models: tuple[int, ...] = (2, 3, 5)
    """Numbers of models of a sequential merge; empty leaves it out."""
    results: Path = RESULTS / "speed_np_merge.jsonl"


class Problem:
    """Two models, examples and settings that all sides share."""

    def __init__(self, args: Args):
        info = dataset_info("cifar10")
        module = MLP((4, 10)) if args.preset == "smoke" else vgg11(10, width=args.width)
        self.task = classification(module, info)
        self.models = [self.task.init(jax.random.key(i))[0] for i in range(max((*args.models, 2)))]
        image_key, label_key = jax.random.split(jax.random.key(9))
        count = 4 * args.batch
        self.examples = labelled_examples(
            jax.random.randint(image_key, (count, *info.image_shape), 0, 256).astype("uint8"),
            jax.random.randint(label_key, (count,), 0, 10),
        )
        self.settings = LearningSettings(steps=args.steps, batch_size=args.batch)
        self.bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self.models[0]))
        self.key = jax.random.key(1)

    def np_merge(self) -> MergeResult:
        return np_merge(
            self.key, self.task.loss, self.models[:2], self.examples, settings=self.settings
        )

    def fine_tune(self) -> MergeResult:
        return fine_tune(
            self.key, self.task.loss, self.models[0], self.examples, settings=self.settings
        )

    def many(self, count: int) -> MergeResult:
        return np_merge_many(
            self.key, self.task.loss, self.models[:count], self.examples, settings=self.settings
        )

    def plain_loop(self) -> tuple[Any, tuple[Any, ...]]:
        """Fine-tuning as one would write it, batches in order; jitted, with its arguments."""
        optimizer, size = optax.adam(1e-3), self.settings.batch_size

        def run(key: Array, params: PyTree, examples: PyTree) -> PyTree:
            def step(
                carry: tuple[PyTree, PyTree], index: Array
            ) -> tuple[tuple[PyTree, PyTree], Array]:
                params, state = carry
                start = index * size % examples.labels.shape[0]
                batch = jax.tree.map(
                    lambda x: jax.lax.dynamic_slice_in_dim(x, start, size), examples
                )
                (loss, _), grads = jax.value_and_grad(self.task.loss, argnums=1, has_aux=True)(
                    jax.random.fold_in(key, index), params, {}, batch
                )
                updates, state = optimizer.update(grads, state)
                return (optax.apply_updates(params, updates), state), loss

            indices = jax.numpy.arange(self.settings.steps)
            return jax.lax.scan(step, (params, optimizer.init(params)), indices)

        return jax.jit(run), (self.key, self.models[0], self.examples)


def planned_copies(executable: Any, parameter_bytes: int) -> float:
    """Memory of a compiled function in copies of the parameters; donated buffers count once."""
    plan = executable.memory_analysis()
    total = (
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        + plan.temp_size_in_bytes
        - plan.alias_size_in_bytes
    )
    return total / parameter_bytes


def memory(problem: Problem) -> dict[str, float]:
    """Copies of the parameters that each side plans, activations and examples included."""

    # Lowered through the public functions, one level of jit above: no donation at this level, so
    # results count beside arguments for both.
    def copies(function: Callable[..., PyTree], *arguments: PyTree) -> float:
        executable = jax.jit(function).lower(*arguments).compile()
        return planned_copies(executable, problem.bytes)

    loss, settings = problem.task.loss, problem.settings

    def merge(key: Array, models: list[PyTree], examples: PyTree) -> PyTree:
        result = np_merge(key, loss, models, examples, settings=settings)
        return result.params, result.info["coefficients"]

    def tune(key: Array, params: PyTree, examples: PyTree) -> PyTree:
        return fine_tune(key, loss, params, examples, settings=settings).params

    plain, arguments = problem.plain_loop()
    return {
        "np_merge": copies(merge, problem.key, problem.models[:2], problem.examples),
        "fine_tuning": copies(tune, problem.key, problem.models[0], problem.examples),
        "plain_loop": planned_copies(plain.lower(*arguments).compile(), problem.bytes),
    }


def seconds(once: Callable[[], PyTree]) -> float:
    """How long a call takes until its arrays are there."""
    return timed(lambda: jax.block_until_ready(once()))[1]


def sequential(problem: Problem, models: tuple[int, ...]) -> Summary:
    """Seconds of a sequential merge of so many models, and the line through them."""
    times = take_turns(
        {
            str(count): lambda count=count: seconds(lambda: problem.many(count).params)
            for count in models
        },
        rounds=2,
    )
    taken = np.median(np.array(list(times.values())), axis=1)
    # What each merge adds is the price of one; what is left at none was spent once.
    slope, start = np.polyfit(np.array(models) - 1, taken, 1)
    return {
        "models": list(models),
        "seconds": np.round(taken, 3).tolist(),
        "seconds_a_merge": round(float(slope), 3),
        "seconds_at_no_merge": round(float(start), 3),
    }


def measure(args: Args) -> Summary:
    """Take turns over all sides; return medians, spreads, ratios, memory and the line."""
    problem = Problem(args)
    plain, arguments = problem.plain_loop()

    def milliseconds(once: Callable[[], PyTree]) -> float:
        return 1000 * seconds(once) / args.steps

    times = take_turns(
        {
            "np_merge": lambda: milliseconds(lambda: problem.np_merge().params),
            "fine_tuning": lambda: milliseconds(lambda: problem.fine_tune().params),
            "plain_loop": lambda: milliseconds(lambda: plain(*arguments)),
        },
        args.rounds,
    )
    figures: Summary = {
        "benchmark": "np_merge",
        "ratios": {n: paired(times, "np_merge", n) for n in ("fine_tuning", "plain_loop")},
        **summary("milliseconds", times, 2),
        "parameter_mib": round(problem.bytes / 2**20, 2),
    }
    # What is planned at the smoke preset's sizes says nothing of a network's.
    if args.preset != "smoke":
        copies = memory(problem)
        figures["memory_copies"] = {name: round(value, 2) for name, value in copies.items()} | {
            "beyond_fine_tuning": round(copies["np_merge"] - copies["fine_tuning"], 2),
            "beyond_plain_loop": round(copies["np_merge"] - copies["plain_loop"], 2),
        }
    if args.models:
        figures["sequential"] = sequential(problem, args.models)
    return figures | {
        "settings": {
            "width": args.width,
            "batch": args.batch,
            "steps": args.steps,
            "rounds": args.rounds,
        },
        "jax": jax.__version__,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def run(args: Args) -> Summary:
    if args.preset == "smoke":
        args = dataclasses.replace(args, batch=2, steps=1, rounds=1, models=())
    figures = measure(args)
    print_sides(
        f"One step, ms, and memory, jax {figures['jax']}",
        "milliseconds",
        figures,
        over="np_merge over it",
        digits=1,
        columns={"copies of parameters": figures.get("memory_copies", {})},
    )
    if "sequential" in figures:
        print("sequential merge:", figures["sequential"])
    return recorded(args, figures)


SCRIPT = Command(name="np_merge", description=__doc__, arguments=Args, function=run)
