"""The speed benchmarks run, and end in one JSON object; how fast they are is no test."""

import importlib.util
import json
import os

import pytest

from benchmarks.record.ledger import Ledger
from benchmarks.speed import (
    assignment,
    client_step,
    federated_round,
    files,
    import_time,
    scale_model,
)
from benchmarks.speed.alternating import PeerError, paired, ratios, take_turns
from wsa_jax.models import MLP


def last_line(capsys) -> dict:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_client_step_reports_ratios_and_records_nothing_in_smoke(tmp_path, capsys, monkeypatch):
    # A dense network: the convolutions of two programs take long to compile.
    monkeypatch.setattr(client_step, "CNN", lambda **_: MLP(features=(8, 10)))
    client_step.SCRIPT(["--preset", "smoke", "--results", str(tmp_path / "rows.jsonl")])
    figures = last_line(capsys)
    assert figures["ratios"]["wsa_over_plain"] > 0
    assert figures["torch"] == (importlib.util.find_spec("torch") is not None)
    assert ("torch_default" in figures["ratios"]) == figures["torch"]
    assert figures["peak_mib"]["ours"] > 0
    assert not (tmp_path / "rows.jsonl").exists()


class TestThreads:
    @pytest.fixture
    def cores(self):
        before = os.sched_getaffinity(0)
        yield before
        os.sched_setaffinity(0, before)

    @pytest.mark.parametrize(
        ("script", "measuring"), [(client_step, "measure"), (federated_round, "run_scenarios")]
    )
    def test_whole_run_is_kept_to_as_many_cores(self, script, measuring, cores, monkeypatch):
        def look(*_):
            raise RuntimeError(f"{len(os.sched_getaffinity(0))} of the cores")

        monkeypatch.setattr(script, measuring, look)
        with pytest.raises(RuntimeError, match="1 of the cores"):
            script.SCRIPT(["--preset", "smoke", "--threads", "1"])

    def test_default_is_the_cores_this_process_may_use(self, cores):
        os.sched_setaffinity(0, {min(cores)})
        assert client_step.Args().threads == federated_round.Args().threads == 1

    @pytest.mark.parametrize("script", [client_step, federated_round])
    @pytest.mark.parametrize("threads", ["0", "4096"])
    def test_more_than_the_cores_is_refused(self, script, threads):
        message = f"--threads {threads}: give 1 to [0-9]+, the cores this process may use"
        with pytest.raises(SystemExit, match=message):
            script.SCRIPT(["--preset", "smoke", "--threads", threads])


class TestTurns:
    def test_side_that_goes_first_changes(self):
        order = []
        sides = {name: lambda name=name: order.append(name) or float(len(order)) for name in "abc"}
        times = take_turns(sides, 2)
        assert "".join(order) == "abcbcacab"
        assert times == {"a": [6, 8], "b": [4, 9], "c": [5, 7]}

    def test_slow_side_has_fewer_turns_and_its_pairs_are_the_first(self):
        counts = {"ours": iter(range(1, 9)), "slow": iter([1, 2, 4, 8])}
        sides = {name: lambda count=count: next(count) for name, count in counts.items()}
        times = take_turns(sides, 5, at_most={"slow": 2})
        assert times == {"ours": [2, 3, 4, 5, 6], "slow": [2, 4]}
        assert paired(times, "ours", "slow") == 0.875

    def test_peer_that_dies_loses_its_turns_and_ours_raises(self, capsys):
        def die():
            raise PeerError("out of memory")

        left_out = {}
        sides = {"ours": lambda: 1.0, "peer": die, "ours_wsa": lambda: 2.0}
        times = take_turns(sides, 2, left_out=left_out)
        assert ratios(times) == {"wsa_over_plain": 2}
        assert left_out == {"peer": "out of memory"}
        assert capsys.readouterr().out == "peer is left out: out of memory\n"
        with pytest.raises(RuntimeError, match="ours failed: out of memory"):
            take_turns({"ours": die}, 1)


def test_import_time_ends_in_a_ratio(capsys):
    import_time.SCRIPT(["--runs", "1"])
    assert last_line(capsys)["ratios"]["jax_flax_optax"] > 0


class TestScaleModel:
    @pytest.fixture
    def curve(self):
        """Rounds of 0.05 s and 3 ms a step, processes of 500 MiB and 2 MiB a client."""
        shapes = [(10, 10), (100, 10), (1000, 10), (30, 30), (100, 100)]
        return [
            {
                "clients": clients,
                "participants": participants,
                "seconds": 0.05 + participants * 5 * 0.003,
                "peak_mib": 500 + 2 * clients,
            }
            for clients, participants in shapes
        ]

    def test_finds_planted_costs(self, curve, tmp_path, capsys):
        path = tmp_path / "rows.jsonl"
        row = {"id": "a", "benchmark": "federated_scaling", "algorithm": "fed_avg", "steps": 5}
        Ledger(path).write(row | {"points": curve})
        Ledger(path).write(row | {"id": "b", "points": curve[:1], "unfinished": True})
        scale_model.SCRIPT(["--results", str(path)])
        figures = last_line(capsys)
        assert figures["ratios"] == {}
        fitted = figures["fitted"]["fed_avg"]
        assert fitted["fixed_seconds"] == pytest.approx(0.05, abs=1e-3)
        assert fitted["step_seconds"] == pytest.approx(0.003, abs=1e-5)
        assert fitted["base_mib"] == pytest.approx(500, abs=1)
        assert fitted["mib_a_client"] == pytest.approx(2, abs=0.01)
        assert fitted["largest_error"] < 0.01

    def test_predictions_add_up(self):
        machine = scale_model.Machine(
            step_seconds=1e-3, fixed_seconds=0.0, memory=1e12, link=1e9, latency=0.0, host=1e9
        )
        shape = {"clients": 1000, "steps": 20, "examples": 50}
        one = scale_model.predict(machine, 100, 1, **shape)
        assert one.seconds == pytest.approx(
            {"local compute": 2.0, "all-reduce": 0, "client states": 0, "host input": 0}
        )
        four = scale_model.predict(machine, 100, 4, state_bytes=4000, **shape)
        assert four.seconds["local compute"] == pytest.approx(0.5)
        assert four.seconds["client states"] == pytest.approx(1.5 * 100 * 4000 / 1e9)
        assert four.memory["client states"] == 1000 * 4000 / 4 + 2 * 100 * 4000

    def test_without_a_curve(self, tmp_path):
        with pytest.raises(SystemExit, match="holds no finished curve; make one with"):
            scale_model.SCRIPT(["--results", str(tmp_path / "none.jsonl")])


def test_files_merge_within_their_memory_and_record_nothing_in_smoke(tmp_path, capsys):
    files.SCRIPT(["--preset", "smoke", "--results", str(tmp_path / "rows.jsonl")])
    figures = last_line(capsys)
    assert figures["ratios"]["read_and_write"] > 0
    # Beyond what the imports take: no copy of a model, whose size is nothing here.
    assert figures["peak_memory"] - figures["memory_before"] < 150_000_000
    assert not (tmp_path / "rows.jsonl").exists()
    (tmp_path / "kept").write_text("all of it")
    files.forget([tmp_path / "kept"])
    assert (tmp_path / "kept").read_text() == "all of it"


def test_assignment_compares_solvers_that_agree(tmp_path, capsys):
    pytest.importorskip("lap")
    assignment.SCRIPT(["--preset", "smoke", "--results", str(tmp_path / "rows.jsonl")])
    figures = last_line(capsys)
    assert set(figures["sizes"]["16"]["equal"]) == {"scipy", "lapjv", "lapjvc", "lapjvs"}
    assert max(figures["sizes"]["16"]["worse"].values()) < 1e-9
    assert not (tmp_path / "rows.jsonl").exists()
