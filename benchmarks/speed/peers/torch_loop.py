"""The PyTorch side: a hand-written loop over rounds, participants and local steps."""

import numpy as np
import torch

from benchmarks.speed.peers.torch_network import (
    LAYOUTS,
    draw_rows,
    make_model,
    train,
    trained_loss,
)
from benchmarks.speed.peers.turns import Scenario, Turns, load


def main() -> None:
    scenario = Scenario.from_argv()
    turns = Turns(scenario)
    torch.set_num_threads(scenario.threads)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    data = load(scenario.data)
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels).long()
    layout = LAYOUTS[scenario.variant]
    server = make_model(scenario, layout)
    local = make_model(scenario, layout)
    for _ in range(scenario.rounds):
        total = [torch.zeros_like(weights) for weights in server.parameters()]
        chosen = rng.permutation(scenario.clients)[: scenario.participants]
        for client in chosen:
            local.load_state_dict(server.state_dict())
            train(local, scenario, images, labels, draw_rows(data.indices[client], scenario, rng))
            torch._foreach_add_(total, [weights.detach() for weights in local.parameters()])
        # All clients have equally many examples.
        with torch.no_grad():
            for weights, summed in zip(server.parameters(), total, strict=True):
                weights.copy_(summed / len(chosen))
        turns.done()
    turns.finish(trained_loss(server, data))


if __name__ == "__main__":
    main()
