"""Our own side: `wsa_jax.federated.simulate`, held between rounds by its callback."""

from collections.abc import Callable

import jax
import numpy as np

from benchmarks.speed.peers.jax_clock import compile_clock
from benchmarks.speed.peers.turns import EVALUATED, Scenario, Turns, load
from wsa_jax.data import DatasetInfo
from wsa_jax.federated import Execution, LocalSettings, WeightScopeAlignment, simulate
from wsa_jax.federated.algorithms import FederatedAlgorithm, fed_avg, scaffold
from wsa_jax.federated.partition import Partition
from wsa_jax.models import CNN, MLP
from wsa_jax.training import Task, classification, evaluate

ALGORITHMS: dict[str, Callable[[], FederatedAlgorithm]] = {"fed_avg": fed_avg, "scaffold": scaffold}


def make_task(scenario: Scenario, image_shape: tuple[int, int, int]) -> Task:
    info = DatasetInfo(
        name="benchmark",
        num_classes=10,
        image_shape=image_shape,
        splits=("train",),
        mean=tuple(scenario.mean),
        std=tuple(scenario.std),
        scale=scenario.scale,
        source="folder",
    )
    # Images too small for the CNN are those of the smoke test.
    module = CNN(num_classes=10) if image_shape[0] >= 16 else MLP(features=(16, 10))
    return classification(module, info)


def main() -> None:
    scenario = Scenario.from_argv()
    turns = Turns(scenario)
    compile_seconds = compile_clock()
    images, labels, indices = load(scenario.data)
    height, width, channels = images.shape[1:]
    task = make_task(scenario, (height, width, channels))
    result = simulate(
        jax.random.key(0),
        task,
        (images, labels),
        Partition(indices, np.full(len(indices), indices.shape[1], np.int32)),
        rounds=scenario.rounds,
        algorithm=ALGORITHMS[scenario.algorithm](),
        wsa=WeightScopeAlignment(strength=0.1) if scenario.variant == "wsa" else None,
        participants=scenario.participants,
        learning_rate=scenario.learning_rate,
        local=LocalSettings(
            steps=scenario.steps,
            batch_size=scenario.batch,
            clip_norm=scenario.clip_norm,
            weight_decay=scenario.weight_decay,
        ),
        execution=Execution(clients="vmap" if scenario.variant == "vmap" else "map"),
        evaluate_every=1,
        on_round=lambda row: turns.done(),
    )
    compiled = compile_seconds()
    state = result.state
    sums = evaluate(task, state.params, state.model_state, images[:EVALUATED], labels[:EVALUATED])
    turns.finish(float(sums.loss / sums.count), compile_seconds=compiled)


if __name__ == "__main__":
    main()
