"""Runs in a directory: resumed where they stopped, and refused where they are another's."""

import json
import shutil

import jax
import pytest

from tests.federated.small_runs import simulate_small, untimed
from tests.trees import assert_bitwise
from wsa_jax.federated import (
    Aggregation,
    LocalSettings,
    WeightScopeAlignment,
    fed_prox,
    simulate,
)
from wsa_jax.models import MLP
from wsa_jax.runs.checkpoint import CheckpointError
from wsa_jax.scope.scope import constant_target, weight_scope
from wsa_jax.training import classification

pytestmark = pytest.mark.usefixtures("frozen")


def run(directory, rounds=12):
    return simulate_small(
        clients=3, rounds=rounds, participants=2, evaluate_every=2, directory=directory
    )


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
        with pytest.raises(CheckpointError, match="has 0 rows, but the checkpoint is of round 12"):
            run(copy)

    def test_rows_past_the_checkpoint_are_done_again(self, whole, copy):
        shutil.rmtree(copy / "checkpoints" / "12")
        with (copy / "metrics.jsonl").open("a") as file:
            file.write('{"round": 13, "tr')  # a row that a kill left half-written
        history = run(copy).history
        rows = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
        assert untimed(rows) == untimed(history) == untimed(whole[0].history)

    def test_checkpoints_have_a_pace_of_their_own(self, federate, tmp_path):
        federate(directory=tmp_path, evaluate_every=5, checkpoint_every=2)
        kept = {path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()}
        assert kept == {"4", "5"}

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

    def test_directory_of_another_start(self, federate, tiny_task, tmp_path):
        scope = weight_scope(tiny_task.init(jax.random.key(0))[0])
        starts = (None, scope, constant_target(scope, std=0.5))
        first, *others = (WeightScopeAlignment(form="proximal", start=start) for start in starts)
        federate(directory=tmp_path / "none", rounds=1, wsa=first)
        federate(directory=tmp_path / "own", rounds=1, wsa=others[0])
        for wsa in others:
            with pytest.raises(ValueError, match="holds a run with target = fused"):
                federate(directory=tmp_path / "none", rounds=1, wsa=wsa)
        with pytest.raises(ValueError, match=r"holds a run with target = \['fused from', "):
            federate(directory=tmp_path / "own", rounds=1, wsa=others[1])
        pooled = WeightScopeAlignment(form="proximal", fusion="pooled")
        with pytest.raises(ValueError, match=r"holds a run with form = \['proximal', 'sum'\]"):
            federate(directory=tmp_path / "none", rounds=1, wsa=pooled)
        other = WeightScopeAlignment(strength=0.1, direction="target||weights")
        with pytest.raises(ValueError, match=r"has \['gradient', 'sum', 'target\|\|weights'\]"):
            federate(directory=tmp_path / "none", rounds=1, wsa=other)

    def test_directory_of_other_data_model_or_key(
        self, federate, tmp_path, tiny_info, tiny_task, tiny_data, tiny_partition
    ):
        federate(directory=tmp_path, rounds=1)
        images, labels = tiny_data
        same = {"key": jax.random.key(0), "task": tiny_task, "train": tiny_data}
        other = classification(MLP(features=(3,), initialization="he"), tiny_info)
        with pytest.raises(ValueError, match=r"initialization='reference'.*initialization='he'"):
            self.reopen(tmp_path, tiny_partition, **same | {"task": other})
        with pytest.raises(ValueError, match="holds a run with data ="):
            self.reopen(tmp_path, tiny_partition, **same | {"train": (images + 1, labels)})
        with pytest.raises(ValueError, match="holds a run with test = None"):
            self.reopen(tmp_path, tiny_partition, **same, test=tiny_data)
        with pytest.raises(ValueError, match="holds a run with key ="):
            self.reopen(tmp_path, tiny_partition, **same | {"key": jax.random.key(1)})

    @staticmethod
    def reopen(directory, partition, *, key, task, train, **settings):
        local = LocalSettings(steps=2, batch_size=8)
        simulate(
            key, task, train, partition, rounds=1, learning_rate=0.1, local=local,
            directory=directory, **settings,
        )  # fmt: skip
