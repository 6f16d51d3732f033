"""The pfl-research side: `FederatedAveraging` over a `SimulatedBackend`, held by a callback."""

import functools
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.speed.peers.torch_network import draw_rows, make_model, trained_loss
from benchmarks.speed.peers.turns import Scenario, Turns, load


class Network(nn.Module):
    def __init__(self, scenario: Scenario):
        super().__init__()
        self.layers = make_model(scenario, torch.channels_last)

    def loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        # pfl makes every array a float tensor.
        return cross_entropy(self.layers(images), labels.long())

    def metrics(self, *_: Any) -> dict[str, Any]:
        return {}


class HoldRounds(TrainingProcessCallback):
    def __init__(self, turns: Turns):
        self._turns = turns

    def after_central_iteration(self, *_: Any, **__: Any) -> tuple[bool, Metrics]:
        self._turns.done()
        return False, Metrics()


def main() -> None:
    scenario = Scenario.from_argv()
    turns = Turns(scenario)
    torch.set_num_threads(scenario.threads)
    torch.manual_seed(0)
    # pfl draws its cohorts from NumPy's global state.
    np.random.seed(0)  # noqa: NPY002
    rng = np.random.default_rng(0)
    data = load(scenario.data)

    def client_data(client: int) -> Dataset:
        # pfl goes through a user's examples in the order given.
        rows = draw_rows(data.indices[client], scenario, rng).reshape(-1)
        return Dataset(raw_data=(data.images[rows], data.labels[rows]), user_id=str(client))

    users = list(range(scenario.clients))
    dataset = FederatedDataset(client_data, get_user_sampler("minimize_reuse", users))
    network = Network(scenario)
    optimizer = functools.partial(torch.optim.SGD, weight_decay=scenario.weight_decay)
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=scenario.rounds,
            # The first round is evaluated whatever this is; it is the one that warms up.
            evaluation_frequency=scenario.rounds + 1,
            train_cohort_size=scenario.participants,
            val_cohort_size=0,
        ),
        SimulatedBackend(training_data=dataset, val_data=dataset),
        PyTorchModel(network, optimizer, torch.optim.SGD(network.parameters(), lr=1.0)),
        NNTrainHyperParams(
            local_batch_size=scenario.batch,
            local_num_epochs=None,
            local_num_steps=scenario.steps,
            local_learning_rate=scenario.learning_rate,
            local_max_grad_norm=scenario.clip_norm,
        ),
        callbacks=[HoldRounds(turns)],
        send_metrics_to_platform=False,
    )
    turns.finish(trained_loss(network.layers, data))


if __name__ == "__main__":
    main()
