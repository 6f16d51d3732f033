"""Clients whose scopes really differ: does WSA help where theory says that it should?

    python -m benchmarks heterogeneous [--preset smoke|cpu|paper]

Clients differ in their local rates (a factor of thirty), weight decays, optimisers (every other one
normalises its gradient), numbers of steps a round (2 to 66, a factor of thirty, as many in all as
elsewhere) or numbers of examples (Dirichlet 0.5 without equal sizes). Each is run
with and without WSA, in the gradient and in the proximal form, and the divergence between clients
stands beside the gain. cpu: the standard problem, three seeds. paper: in full. smoke: rates alone,
the MLP on digits.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.federated.comparison import Comparison, RowsOf, comparison_table, sides
from benchmarks.federated.experiment import Args, Experiment
from benchmarks.federated.figures import gain_dots
from benchmarks.federated.paired_claims import FULL, STANDARD, size_claims
from benchmarks.record.claims import Claim
from benchmarks.record.statistics import Row, markdown_table

KINDS: dict[str, dict[str, Any]] = {
    "different rates": {"differ": "rates"},
    "different optimisers": {"differ": "optimizers"},
    "different weight decays": {"differ": "decays"},
    "different numbers of steps": {"differ": "steps"},
    "different numbers of examples": {"partition": "unequal"},
}
FORMS: dict[str, dict[str, Any]] = {
    "FedAvg +WSA": {},
    "FedAvg +WSA, proximal": {"form": "proximal"},
}


def comparisons(args: Args) -> list[Comparison]:
    """The kinds in the order in which scopes differ by them; both forms of each."""
    kinds = list(KINDS.items())[: 1 if args.preset == "smoke" else None]
    forms = list(FORMS.items())[: 1 if args.preset == "smoke" else None]
    return [
        Comparison(
            section=section,
            label=label,
            baseline=args.cell(**kind),
            treated=args.cell(strength=args.strength, **kind, **form),
        )
        for section, kind in kinds
        for label, form in forms
    ]


def divergence(rows: Sequence[Row]) -> str:
    """Between two clients, in nats summed over layers, mean over evaluated rounds and seeds."""
    found = [
        sum(value for value in each["client_divergence"] if value is not None)
        for row in rows
        for each in row["diagnostics"]
    ]
    return f"{np.mean(found):.2g}" if found else ""


def table(lines: Sequence[Comparison], rows_of: RowsOf) -> str:
    """The comparisons, and how far clients are apart on both sides."""
    head = ["data", "setting", "clients apart without WSA, nats", "with WSA, nats"]
    pairs = [sides(line, rows_of) for line in lines]
    body = [
        [line.section, line.label, *(divergence(rows) for rows in pair)]
        for line, pair in zip(lines, pairs, strict=True)
    ]
    return f"{comparison_table(lines, rows_of)}\n\n{markdown_table(head, body)}"


def claims() -> list[Claim]:
    """At every size on record."""
    page = "federated.md#clients-whose-scopes-really-differ"
    return size_claims(
        comparisons,
        {FULL: page, STANDARD: page},
        source="our question",
        claim="WSA helps where clients' scopes differ",
        setting="FedAvg, clients that differ",
    )


SCRIPT = Experiment(
    claims=claims,
    name="heterogeneous_clients",
    title="Clients whose scopes really differ",
    description=__doc__,
    comparisons=comparisons,
    seeds={"smoke": (0,), "short": (0,), "cpu": (0, 1, 2), "paper": (0, 1, 2)},
    table=table,
    figure=gain_dots,
)
