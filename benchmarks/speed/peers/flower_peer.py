"""The Flower side: its simulation engine on Ray, held by the strategy after aggregation.

As many clients train at once as there are threads, each of them with one, as Flower's resources
per client are meant. Each gets a new model, as in Flower's own examples.
"""

import os
import random
from typing import Any

# Read when Flower and Ray are imported.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.speed.peers.torch_network import draw_rows, make_model, train, trained_loss
from benchmarks.speed.peers.turns import Scenario, Turns, load


def make_client(scenario: Scenario) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train_client(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        data = load(scenario.data)
        model = make_model(scenario, torch.channels_last)
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        rows = data.indices[int(context.node_config["partition-id"])]
        drawn = draw_rows(rows, scenario, np.random.default_rng())
        images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels).long()
        train(model, scenario, images, labels, drawn)
        content = RecordDict(
            {
                "arrays": ArrayRecord(model.state_dict()),
                "metrics": MetricRecord({"num-examples": drawn.size}),
            }
        )
        return Message(content=content, reply_to=message)

    return app


class HeldFedAvg(FedAvg):
    def __init__(self, turns: Turns, scenario: Scenario):
        super().__init__(
            fraction_train=scenario.participants / scenario.clients,
            fraction_evaluate=0.0,
            min_train_nodes=scenario.participants,
            min_available_nodes=scenario.clients,
        )
        self._turns = turns

    def aggregate_train(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        arrays, metrics = super().aggregate_train(*args, **kwargs)
        if arrays is None:
            raise RuntimeError("all of Flower's clients failed: see its messages")
        self._turns.done()
        return arrays, metrics


def make_server(scenario: Scenario, turns: Turns, model: torch.nn.Module) -> ServerApp:
    app = ServerApp()

    @app.main()
    def run_rounds(grid: Grid, context: Context) -> None:
        result = HeldFedAvg(turns, scenario).start(
            grid, ArrayRecord(model.state_dict()), num_rounds=scenario.rounds
        )
        model.load_state_dict(result.arrays.to_torch_state_dict())

    return app


def main() -> None:
    scenario = Scenario.from_argv()
    turns = Turns(scenario)
    torch.manual_seed(0)
    random.seed(0)
    model = make_model(scenario, torch.channels_last)
    run_simulation(
        make_server(scenario, turns, model),
        make_client(scenario),
        num_supernodes=scenario.clients,
        backend_config={
            "init_args": {"num_cpus": scenario.threads, "include_dashboard": False},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
    turns.finish(trained_loss(model, load(scenario.data)))


if __name__ == "__main__":
    main()
