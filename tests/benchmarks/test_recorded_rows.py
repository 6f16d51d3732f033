"""Every committed row is found again: its configuration, of its kind, has the id it is under."""

import dataclasses
import json

import pytest

from benchmarks.federated.cell import Cell
from benchmarks.federated.np_merge_federated import FederatedMerge
from benchmarks.merging.coefficients import CoefficientCell
from benchmarks.merging.fig3_gaussianity import LayerShapes
from benchmarks.merging.fig4_scaling import ScaledPath
from benchmarks.merging.fig7_landscape import PlaneCell
from benchmarks.merging.fig8_vit import ViTPair
from benchmarks.merging.graphs import GraphPair
from benchmarks.merging.merge_rows import TableCell
from benchmarks.merging.minilm import MiniLMCell
from benchmarks.merging.model_cell import ModelCell
from benchmarks.merging.pairs import PathCell
from benchmarks.merging.pretrained import PretrainedCell
from benchmarks.merging.sanity_matching import PlantedCell
from benchmarks.record.ledger import RESULTS, Ledger, cell_id

LEDGERS = {path.name: Ledger(path).rows() for path in sorted(RESULTS.glob("*.jsonl"))}
KINDS = {
    kind.__name__: kind
    for kind in (
        LayerShapes,
        PathCell,
        PlantedCell,
        ScaledPath,
        PlaneCell,
        TableCell,
        CoefficientCell,
        FederatedMerge,
    )
}
# These train what they merge themselves.
WITHOUT_MODELS = {FederatedMerge, GraphPair, MiniLMCell, PretrainedCell, ViTPair}
KINDS |= {kind.__name__: kind for kind in WITHOUT_MODELS}


def as_values(config):
    """The values of a configuration that lists hold in JSON and tuples here."""
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in config.items()
    }


# Fields that were given up, and the default that they had: other values would be other cells.
GIVEN_UP = {ModelCell: {"init_seed": -1}, TableCell: {"examples": 0}}


def recorded_config(kind, row):
    """The configuration without what was given up since."""
    config, given_up = row["config"], GIVEN_UP.get(kind, {})
    assert all(config.get(name, default) == default for name, default in given_up.items())
    return {name: value for name, value in config.items() if name not in given_up}


def kind_of(ledger, row):
    kinds = {"federated.jsonl": Cell, "models.jsonl": ModelCell}
    return kinds.get(ledger) or KINDS[row["kind"]]


@pytest.mark.parametrize("ledger", ["federated.jsonl", "merging.jsonl", "models.jsonl"])
def test_every_row_is_under_the_id_of_its_cell(ledger):
    assert LEDGERS[ledger]
    for row in LEDGERS[ledger]:
        kind = kind_of(ledger, row)
        config = recorded_config(kind, row)
        cell = kind(**as_values(config))
        assert cell_id(cell) == row["id"]
        # Nothing of the record is lost in the cell; what was added since has its default.
        values = json.loads(json.dumps(dataclasses.asdict(cell)))
        assert values | config == values
        assert getattr(cell, "label", None) == row.get("label")


def test_every_kind_of_merging_row_is_known():
    kinds = {row["kind"] for row in LEDGERS["merging.jsonl"]}
    assert kinds == KINDS.keys()


def test_rows_of_merged_models_name_models_on_record():
    models = {row["id"]: row for row in LEDGERS["models.jsonl"]}
    for row in LEDGERS["merging.jsonl"]:
        config = row["config"]
        ends = [config[end] for end in ("first", "second") if end in config]
        named = config.get("models") or ends
        assert bool(named) == (KINDS[row["kind"]] not in WITHOUT_MODELS)
        for model in named:
            assert models[model]["label"] == config["model"]
        # Rows of old did not say which parameters they are of.
        digests = row.get("model_digests", {})
        assert set(digests) in (set(), set(named))


def test_timings_are_under_their_time_and_version():
    timings = {name: rows for name, rows in LEDGERS.items() if name.startswith("speed_")}
    assert len(timings) == len(LEDGERS) - 3
    for name, rows in timings.items():
        benchmarks = {name.removeprefix("speed_").removesuffix(".jsonl"), "federated_scaling"}
        for row in rows:
            assert row["benchmark"] in benchmarks
            # The first rows were named by their benchmark.
            ends = (f"jax{row['versions']['jax']}", row["benchmark"])
            assert row["id"] in [f"{row['time']}-{end}" for end in ends]
            assert row.get("ratios") or row["benchmark"] == "federated_scaling"


def test_ids_are_of_one_row_each():
    for rows in LEDGERS.values():
        assert len({row["id"] for row in rows}) == len(rows)
