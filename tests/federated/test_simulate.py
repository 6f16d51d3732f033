"""Simulations: their rows, their errors, and runs that are killed and resumed."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsa_jax import constant_target, scope_window, weight_scope
from wsa_jax.checkpoint import CheckpointError
from wsa_jax.federated import (
    Aggregation,
    LocalSettings,
    WeightScopeAlignment,
    fed_prox,
    simulate,
)
from wsa_jax.federated.client import ScopeForm
from wsa_jax.training import evaluate

ROOT = Path(__file__).resolve().parents[2]

# The same small run in this process and in one that is killed: digits, WSA, all on three clients.
RUN = """
import time
import jax
from wsa_jax.data import load_dataset
from wsa_jax.federated import LocalSettings, WeightScopeAlignment, iid, simulate
from wsa_jax.models import MLP
from wsa_jax.training import classification

def run(directory, pause=0.0, rounds=12):
    digits = load_dataset("digits")
    images, labels = digits.images[:150], digits.labels[:150]
    return simulate(
        jax.random.key(5),
        classification(MLP(features=(8, 10)), digits.info),
        (images, labels),
        iid(labels, clients=3, seed=0),
        rounds=rounds,
        participants=2,
        wsa=WeightScopeAlignment(strength=0.5, form="proximal"),
        learning_rate=lambda i: 0.1 * 0.9**i,
        local=LocalSettings(steps=3, batch_size=10),
        evaluate_every=2,
        directory=directory,
        on_round=lambda row: time.sleep(pause),
    )
"""
namespace = {}
exec(RUN, namespace)
run = namespace["run"]


@pytest.fixture(scope="module")
def federate(tiny_task, tiny_data, tiny_partition):
    """Simulate the tiny federation; arguments replace the defaults."""

    def start(**settings):
        defaults = {
            "rounds": 5,
            "learning_rate": 0.1,
            "local": LocalSettings(steps=2, batch_size=8),
            "evaluate_every": 2,
        }
        return simulate(
            jax.random.key(0), tiny_task, tiny_data, tiny_partition, **(defaults | settings)
        )

    return start


@pytest.fixture(scope="module")
def evaluated(federate, tiny_data):
    seen = []
    result = federate(
        test=tiny_data, wsa=WeightScopeAlignment(form="proximal"), on_round=seen.append
    )
    return result, seen


def assert_bitwise(state, other):
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


class TestHistory:
    def test_one_row_a_round_in_order(self, evaluated):
        result, seen = evaluated
        assert [row["round"] for row in result.history] == [1, 2, 3, 4, 5]
        assert seen == result.history
        assert result.state.round == 5

    def test_evaluates_every_second_round_and_the_last(self, evaluated):
        rows = evaluated[0].history
        assert [row["round"] for row in rows if "test_accuracy" in row] == [2, 4, 5]

    def test_the_last_evaluation_is_that_of_the_state(self, evaluated, tiny_task, tiny_data):
        result = evaluated[0]
        sums = evaluate(tiny_task, result.state.params, {}, *tiny_data)
        np.testing.assert_allclose(result.history[-1]["test_accuracy"], sums.correct / 60)
        np.testing.assert_allclose(result.history[-1]["test_loss"], sums.loss / 60, rtol=1e-5)

    def test_rows_are_json_with_one_number_a_layer(self, evaluated):
        for row in evaluated[0].history:
            assert json.loads(json.dumps(row)) == row
            assert row["layers"] == ["Dense_0/kernel", "Dense_1/kernel"]
            for name in ("client_divergence", "target_divergence", "average_std", "fused_std"):
                assert len(row[name]) == 2

    def test_schedules_are_of_the_round(self, federate):
        result = federate(
            wsa=WeightScopeAlignment(strength=scope_window(2, start=1, stop=3), form="proximal"),
            learning_rate=lambda i: 0.1 / (i + 1),
        )
        assert [row["strength"] for row in result.history] == [0, 2, 2, 0, 0]
        rates = [row["learning_rate"] for row in result.history]
        np.testing.assert_allclose(rates, 0.1 / np.arange(1, 6))

    def test_constant_layers_are_left_out_and_named(self, federate, tiny_task):
        params, _ = tiny_task.init(jax.random.key(0))
        params["Dense_1"]["kernel"] = jnp.zeros((72, 3))
        result = federate(params=params, rounds=1)
        assert result.left_out == ("Dense_1/kernel",)
        assert result.history[0]["layers"] == ["Dense_0/kernel"]


class TestInputs:
    def test_the_callers_arrays_survive(self, federate, tiny_task):
        params, _ = tiny_task.init(jax.random.key(0))
        target = constant_target(weight_scope(params), std=0.5)
        wsa = WeightScopeAlignment(target=target, form="proximal")
        first, second = (federate(params=params, wsa=wsa, rounds=2) for _ in range(2))
        assert_bitwise(first.state, second.state)
        np.testing.assert_array_equal(first.state.target.std, 0.5)
        assert_bitwise(params, tiny_task.init(jax.random.key(0))[0])

    def test_fixed_gaussian_as_a_pair(self, federate):
        result = federate(wsa=WeightScopeAlignment(target=(0, 0.5), form="proximal"), rounds=2)
        assert result.state.target.std.tolist() == [0.5, 0.5]


class TestErrors:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"participants": 5}, "participants 5 of 4 clients"),
            ({"participants": 0}, "participants 0 of 4 clients"),
            ({"rounds": 0}, "rounds 0 is below 1"),
            ({"evaluate_every": 0}, "evaluate_every 0"),
            ({"checkpoint_every": 0}, "checkpoint_every 0"),
            ({"learning_rate": -0.1, "rounds": 200}, "learning_rate -0.1 is not"),
            ({"learning_rate": lambda i: float("nan")}, "learning_rate nan is not"),
        ],
    )
    def test_settings(self, federate, settings, message):
        with pytest.raises(ValueError, match=message) as error:
            federate(**settings)
        assert "\n" not in str(error.value)

    def test_nan_in_the_parameters_names_the_leaf(self, federate, tiny_task):
        params, _ = tiny_task.init(jax.random.key(0))
        params["Dense_1"]["bias"] = params["Dense_1"]["bias"].at[0].set(jnp.nan)
        with pytest.raises(ValueError, match="leaf Dense_1/bias of params holds 1 NaN"):
            federate(params=params)

    def test_negative_strength(self, federate):
        with pytest.raises(ValueError, match=r"strength -1.0 is not"):
            WeightScopeAlignment(strength=-1.0)
        with pytest.raises(ValueError, match=r"strength -2.0 is not"):
            federate(wsa=WeightScopeAlignment(strength=lambda i: -2.0))

    @pytest.mark.parametrize("form", ["gradient", "penalty"])
    def test_explicit_form_outside_its_bound_is_refused(self, federate, form):
        wsa = WeightScopeAlignment(strength=1e4, form=form)
        with pytest.raises(ValueError, match=r"unstable in layer Dense_.*use the proximal form"):
            federate(wsa=wsa)

    def test_the_bound_looks_at_the_strongest_round(self, federate):
        wsa = WeightScopeAlignment(strength=scope_window(1e4, start=4))
        with pytest.raises(ValueError, match="strength 10000 "):
            federate(wsa=wsa)

    def test_target_of_other_layers(self, federate):
        wsa = WeightScopeAlignment(target=weight_scope({"w": jnp.eye(3)}))
        with pytest.raises(
            ValueError, match=r"layer Dense_0/kernel has 648 .* layer w of the target"
        ):
            federate(wsa=wsa)

    @pytest.mark.parametrize(
        ("settings", "change", "message"),
        [
            (ScopeForm(), {"form": "hard"}, "form 'hard' is unknown"),
            (ScopeForm(), {"scale": "mean"}, "scale 'mean' is unknown"),
            (WeightScopeAlignment(), {"target": "median"}, "target 'median' is unknown"),
        ],
    )
    def test_unknown_words(self, rejected, settings, change, message):
        with pytest.raises(ValueError, match=message):
            rejected(settings, **change)

    def test_partition_of_other_labels(self, tiny_task, tiny_data, tiny_partition):
        train = tuple(part[:20] for part in tiny_data)
        with pytest.raises(ValueError, match=r"points at example .* but there are 20"):
            simulate(jax.random.key(0), tiny_task, train, tiny_partition, rounds=1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of 12 rounds, and its directory."""
    directory = tmp_path_factory.mktemp("whole")
    return run(directory), directory


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole[1], tmp_path / "copy")


class TestResume:
    def test_a_finished_run_does_nothing(self, whole, copy):
        before = (copy / "metrics.jsonl").read_text()
        assert_bitwise(run(copy).state, whole[0].state)
        assert (copy / "metrics.jsonl").read_text() == before

    def test_torn_newest_checkpoint_names_the_folder_to_delete(self, whole, copy):
        newest = copy / "checkpoints" / "12"
        for path in newest.rglob("*"):
            if path.is_file() and path.stat().st_size > 200:
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(CheckpointError, match=r"torn or unreadable .* delete that") as error:
            run(copy)
        assert str(newest) in str(error.value)
        assert "\n" not in str(error.value)
        shutil.rmtree(newest)
        assert_bitwise(run(copy).state, whole[0].state)

    def test_missing_rows_are_an_error(self, copy):
        (copy / "metrics.jsonl").write_text("")
        with pytest.raises(CheckpointError, match="has 0 rows, the checkpoint is of round 12"):
            run(copy)

    def test_fewer_rounds_than_done(self, copy):
        with pytest.raises(ValueError, match="holds a run of 12 rounds, more than rounds 4"):
            run(copy, rounds=4)

    @pytest.mark.parametrize(
        ("settings", "name"),
        [
            ({"participants": 2}, "participants = 4"),
            ({"local": LocalSettings(steps=2, batch_size=7)}, "local = "),
            ({"wsa": WeightScopeAlignment()}, "form = "),
            ({"learning_rate": 0.2}, "learning_rate 0.1"),
            ({"algorithm": fed_prox()}, r"algorithm = \['fed_avg', {}\]"),
            ({"aggregation": Aggregation(rule="median")}, "aggregation = "),
        ],
    )
    def test_directory_of_another_run(self, federate, tmp_path, settings, name):
        federate(directory=tmp_path, rounds=2)
        with pytest.raises(ValueError, match=f"holds a run with {name}"):
            federate(directory=tmp_path, rounds=2, **settings)
