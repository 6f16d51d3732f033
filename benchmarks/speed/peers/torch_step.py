"""The PyTorch side of `speed client_step`: the same local steps, as a plain loop.

The model and its data are made outside the clock, as ours are arguments that lie ready.
"""

import time

import torch

from benchmarks.speed.peers.torch_network import LAYOUTS, federated_cnn, fit
from benchmarks.speed.peers.turns import Scenario, Turns


def main() -> None:
    scenario = Scenario.from_argv()
    turns = Turns(scenario)
    torch.set_num_threads(scenario.threads)
    torch.manual_seed(0)
    layout = LAYOUTS[scenario.variant]
    steps = scenario.participants * scenario.steps
    shape = (scenario.batch, 3, 32, 32)
    batches = [torch.randn(shape).contiguous(memory_format=layout) for _ in range(steps)]
    labels = torch.randint(0, 10, (steps, scenario.batch))
    while True:
        model = federated_cnn().to(memory_format=layout)
        begin = time.perf_counter()
        fit(model, scenario, zip(batches, labels, strict=True))
        # Ends the process at the end of its input.
        turns.done(time.perf_counter() - begin)


if __name__ == "__main__":
    main()
