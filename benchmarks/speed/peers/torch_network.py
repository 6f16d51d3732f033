"""What the PyTorch sides share: the federated CNN and the loop of its local training."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.speed.peers.turns import EVALUATED, Data, Scenario

LAYOUTS = {"channels_last": torch.channels_last, "default": torch.contiguous_format}


class Prepare(nn.Module):
    """uint8 images as they are stored to normalised ones, channels first, in a given layout."""

    def __init__(self, scenario: Scenario, layout: torch.memory_format):
        super().__init__()
        self._layout = layout
        self._mean = torch.tensor(scenario.mean).reshape(1, -1, 1, 1)
        self._std = torch.tensor(scenario.std).reshape(1, -1, 1, 1)
        self._scale = scenario.scale

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # A view of channels-last images is in that layout already.
        pixels = images.permute(0, 3, 1, 2).float().contiguous(memory_format=self._layout)
        return (pixels / self._scale - self._mean) / self._std


def federated_cnn() -> nn.Sequential:
    """In the order our own has: a pool before its ReLU is the cheaper one."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(32, 64, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1600, 384),
        nn.ReLU(),
        nn.Linear(384, 192),
        nn.ReLU(),
        nn.Linear(192, 10),
    )


def make_model(scenario: Scenario, layout: torch.memory_format) -> nn.Sequential:
    """The federated CNN on images as they are stored."""
    return nn.Sequential(Prepare(scenario, layout), *federated_cnn()).to(memory_format=layout)


def draw_rows(rows: np.ndarray, scenario: Scenario, rng: np.random.Generator) -> np.ndarray:
    """The examples of one client's local steps, `[steps, batch]`, fresh at every participation."""
    count = scenario.steps * scenario.batch
    return rng.permutation(rows)[:count].reshape(scenario.steps, scenario.batch)


def fit(
    model: nn.Module, scenario: Scenario, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> None:
    """One local step a batch of images and labels, in place."""
    optimizer = torch.optim.SGD(
        model.parameters(), lr=scenario.learning_rate, weight_decay=scenario.weight_decay
    )
    for images, labels in batches:
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), scenario.clip_norm)
        optimizer.step()


def train(
    model: nn.Module,
    scenario: Scenario,
    images: torch.Tensor,
    labels: torch.Tensor,
    rows: np.ndarray,
) -> None:
    """Local training of one client on its rows, in place."""
    fit(model, scenario, ((images[batch], labels[batch]) for batch in torch.from_numpy(rows)))


def trained_loss(model: nn.Module, data: Data) -> float:
    images = torch.from_numpy(data.images[:EVALUATED])
    labels = torch.from_numpy(data.labels[:EVALUATED]).long()
    with torch.no_grad():
        return cross_entropy(model(images), labels).item()
