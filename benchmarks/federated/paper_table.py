"""The paper's Tables 2 and 3: four algorithms with and without WSA, other numbers of clients."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.federated.comparison import Comparison
from benchmarks.federated.experiment import Args, Experiment, algorithm_grid
from benchmarks.federated.figures import gain_dots
from benchmarks.federated.paired_claims import (
    FULL,
    STANDARD,
    Size,
    Table,
    gain_range,
    size_claims,
)
from benchmarks.federated.paper_numbers import TABLE2
from benchmarks.record.claims import Claim

ALGORITHMS = ("fed_avg", "fed_prox", "scaffold", "fed_exp")
SETTINGS = {
    "smoke": (("digits", 0.5),),
    "short": (("cifar10", 0.5), ("cifar10", 1.0)),
    "cpu": (("cifar10", 0.5), ("cifar100", 0.5), ("cifar10", 1.0), ("cifar100", 1.0)),
    "paper": tuple(TABLE2),
}
PAGE = "federated.md#"


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """One of the two tables."""

    number: int
    numbers: Table
    """The paper's."""
    clients: str
    """How many, and how many take part, as the title says it."""
    full: str
    """Heading of the page that tells of its full-size rows."""
    short: tuple[int, str]
    """Rounds of the full-size rows that were cut short, and their heading."""
    cells: Mapping[str, Any] = field(default_factory=dict)
    """What its cells have besides the preset's."""
    smoke_cells: Mapping[str, Any] = field(default_factory=dict)
    """The same of the smoke preset."""

    def comparisons(self, args: Args) -> list[Comparison]:
        """The lines; CIFAR-10 at alpha 0.5 first, where the paper's other figures are."""
        smoke = args.preset == "smoke"
        return algorithm_grid(
            args,
            self.numbers,
            SETTINGS[args.preset],
            ALGORITHMS[:1] if smoke else ALGORITHMS,
            **(self.smoke_cells if smoke else self.cells),
        )

    def claims(self) -> list[Claim]:
        """At every size on record."""
        rounds, cut = self.short
        return size_claims(
            self.comparisons,
            {
                FULL: PAGE + self.full,
                STANDARD: PAGE + "the-standard-problem-half-size-images-at-full-length",
                Size("full size", "short", rounds): PAGE + cut,
            },
            source=f"WSA, Table {self.number}",
            claim=f"WSA adds {gain_range(self.numbers)} points, {self.clients.split(',')[0]}",
            setting="all algorithms +WSA",
            apart=lambda line: True,
        )

    def script(self, name: str, description: str) -> Experiment:
        """What runs and reports it."""
        return Experiment(
            claims=self.claims,
            name=name,
            title=f"Table {self.number}: {self.clients}",
            description=description,
            comparisons=self.comparisons,
            seeds={"smoke": (0,), "short": (0,), "cpu": (0, 1, 2), "paper": (0, 1, 2)},
            figure=gain_dots,
        )
