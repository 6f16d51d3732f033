"""One federated experiment: its configuration and its name.

Its id in the ledger is made of the fields that differ from their defaults, so a new field leaves
the ids of recorded rows as they are; a default must never change.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

Algorithm = Literal[
    "fed_avg", "fed_prox", "scaffold", "fed_exp", "fed_avg_m", "fed_adam", "fed_yogi"
]
ALGORITHM_NAMES: dict[str, str] = {
    "fed_avg": "FedAvg",
    "fed_prox": "FedProx",
    "scaffold": "SCAFFOLD",
    "fed_exp": "FedExP",
    "fed_avg_m": "FedAvgM",
    "fed_adam": "FedAdam",
    "fed_yogi": "FedYogi",
}
DATASET_NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "cinic10": "CINIC-10"}
# FedProx's strength in the public reference experiments; elsewhere CIFAR-10's.
REFERENCE_MU = {"cifar10": 0.1, "cifar100": 0.001, "cinic10": 1.0}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One experiment: plain values only, and nothing that does not change its row."""

    dataset: str = "cifar10"
    model: Literal["cnn", "mlp", "vgg8"] = "cnn"
    width: float = 1.0
    """Factor on the channels and units of the CNN and VGG8."""
    kernel_size: int = 5
    """Of the CNN's convolutions."""
    side: int = 0
    """Height and width of the images, made of block means; 0 leaves them as they are stored.

    Crops for augmentation move by up to an eighth of it, as the 4 pixels of 32 do.
    """
    init: Literal["reference", "he", "torchvision"] = "reference"
    partition: Literal["equal", "unequal", "iid", "shards"] = "equal"
    alpha: float = 0.5
    shards_per_client: int = 0
    clients: int = 10
    participants: int = 10
    rounds: int = 100
    algorithm: Algorithm = "fed_avg"
    mu: float = -1.0
    """FedProx's strength; -1 is the reference's for the data set."""
    form: Literal["gradient", "penalty", "proximal", "none"] = "gradient"
    scale: Literal["sum", "size", "none"] = "sum"
    strength: float = 0.0
    layers: Literal["kernels", "all"] = "kernels"
    """What WSA takes for layers: kernels, or biases too."""
    target: Literal["fused", "fixed", "he", "he_fused", "none"] = "fused"
    """fixed: one Gaussian in all layers; he: the scope of He's initialisation, for good or, with
    he_fused, in the first round alone."""
    fusion: Literal["mean_square", "pooled", "sum"] = "mean_square"
    """How a fused target's std is made of the clients': see `WeightScopeAlignment`."""
    direction: Literal["weights||target", "target||weights"] = "weights||target"
    """Which way round WSA's divergence is."""
    target_mean: float = 0.0
    target_std: float = 0.1
    window: tuple[int, int] = (0, -1)
    learning_rate: float = 0.01
    decay: float = 0.998
    momentum: float = 0.0
    weight_decay: float = 1e-4
    clip_norm: float = 10.0
    steps: int = 20
    batch_size: int = 50
    augmentation: Literal["none", "batch", "example"] = "batch"
    differ: Literal["nothing", "rates", "decays", "optimizers", "steps"] = "nothing"
    """What differs from client to client in local training, see `differing_clients`."""
    evaluate_on: Literal["test", "validation"] = "test"
    evaluate_every: int = 10
    client_scopes: str = ""
    """The layer whose scope on every client the row keeps, as in `Conv_1/kernel`."""
    seed: int = 0

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Cell":
        """The canonical cell of a row's configuration; fields added since take their defaults."""
        window = tuple(config.get("window", (0, -1)))
        return cls(**(config | {"window": window})).canonical()

    def canonical(self) -> "Cell":
        """The same cell with settings that cannot matter set to one value, so that it runs once."""
        fixed: dict[str, Any] = {
            field.name: float(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if isinstance(field.default, float)
        }
        if self.strength == 0:
            fixed |= {"form": "none", "scale": "none", "target": "none", "window": (0, -1)}
            fixed |= {"layers": "kernels", "direction": "weights||target"}
        if self.strength == 0 or self.target != "fixed":
            fixed |= {"target_mean": 0.0, "target_std": 0.0}
        if self.strength == 0 or self.target not in ("fused", "he_fused"):
            fixed["fusion"] = "mean_square"
        if self.partition in ("iid", "shards"):
            fixed["alpha"] = 0.0
        if self.partition != "shards":
            fixed["shards_per_client"] = 0
        if self.algorithm != "fed_prox":
            fixed["mu"] = -1.0
        elif self.mu < 0:
            fixed["mu"] = REFERENCE_MU.get(self.dataset, 0.1)
        if self.model == "mlp":
            fixed["width"] = 1.0
        if self.model != "cnn":
            fixed["kernel_size"] = 5
        return dataclasses.replace(self, **fixed)

    @property
    def label(self) -> str:
        """How tables and figures call the cell, without its seed."""
        name = ALGORITHM_NAMES[self.algorithm]
        parts: list[str] = []
        if self.strength:
            name += f" +WSA {self.strength:g}"
            parts += [self.form] if self.form != "gradient" else []
            parts += ["scaled by n"] if self.scale == "size" else []
            if self.target == "fixed":
                parts.append(f"target N({self.target_mean:g}, {self.target_std:g}²)")
            parts += {"he": ["He's scope"], "he_fused": ["He's scope first"]}.get(self.target, [])
            fusions = {"pooled": ["pooled target"], "sum": ["target times √clients"]}
            parts += fusions.get(self.fusion, [])
            parts += ["KL(target‖weights)"] if self.direction == "target||weights" else []
            parts += ["biases too"] if self.layers == "all" else []
            if self.window != (0, -1):
                end = "T" if self.window[1] < 0 else self.window[1]
                parts.append(f"rounds [{self.window[0]}, {end})")
        parts += {"he": ["He init"], "torchvision": ["torchvision's init"]}.get(self.init, [])
        parts += [f"lr {self.learning_rate:g}"] if self.learning_rate != 0.01 else []
        parts += self._local_training()
        return ", ".join([name, *parts, *self._context()])

    def _local_training(self) -> list[str]:
        """What differs from the first record's local steps."""
        settings = (
            ("momentum", self.momentum, 0.0),
            ("decay", self.weight_decay, 1e-4),
            ("clip", self.clip_norm, 10.0),
        )
        parts = [f"{name} {value:g}" for name, value, usual in settings if value != usual]
        crops = {"none": "no crops", "example": "crops an image"}
        # Digits have none in every preset.
        if self.dataset != "digits" and self.augmentation in crops:
            parts.append(crops[self.augmentation])
        return parts

    @property
    def network(self) -> str:
        """What figures call the network."""
        return ", ".join(self._network()) or self.model.upper()

    def _network(self) -> list[str]:
        """What differs from the first record's CNN."""
        name = "VGG8" if self.model == "vgg8" else "CNN"
        traits = [f"width {self.width:g}"] if self.width != 1 else []
        if self.kernel_size != 5:
            traits.append(f"{self.kernel_size}x{self.kernel_size} kernels")
        if traits:
            return [f"{name} of {' and '.join(traits)}"]
        return [name] if name == "VGG8" else []

    def _context(self) -> list[str]:
        """What differs from the first record's data, model and clients."""
        parts = []
        if self.dataset != "cifar10":
            parts.append(DATASET_NAMES.get(self.dataset, self.dataset))
        if self.side:
            parts.append(f"{self.side}x{self.side}")
        parts += self._network()
        if self.partition == "shards":
            parts.append(f"{self.shards_per_client} shards a client")
        elif self.partition == "iid":
            parts.append("IID")
        elif (self.alpha, self.partition) != (0.5, "equal"):
            sizes = "" if self.partition == "equal" else ", unequal sizes"
            parts.append(f"alpha {self.alpha:g}{sizes}")
        if (self.clients, self.participants) != (10, 10):
            drawn = "" if self.clients == self.participants else f", {self.participants} a round"
            parts.append(f"{self.clients} clients{drawn}")
        if self.differ != "nothing":
            parts.append(f"clients of different {self.differ}")
        return parts + (["on validation"] if self.evaluate_on == "validation" else [])


PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "dataset": "digits",
        "model": "mlp",
        "clients": 4,
        "participants": 4,
        "rounds": 3,
        "evaluate_every": 1,
        "augmentation": "none",
    },
    "short": {"rounds": 100},
    "cpu": {
        "side": 16,
        "width": 0.5,
        "kernel_size": 3,
        "rounds": 1500,
        "evaluate_every": 25,
    },
    "paper": {"rounds": 1500, "evaluate_every": 25},
}
