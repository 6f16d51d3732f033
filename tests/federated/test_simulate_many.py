"""Many runs as one program: each is the separate run, recorded and resumed as it would be."""

import shutil

import jax
import numpy as np
import pytest

from tests.federated.small_runs import untimed
from wsa_jax import kernels
from wsa_jax.federated import (
    STOP,
    Execution,
    LocalSettings,
    WeightScopeAlignment,
    clients_mesh,
    iid,
    runs_mesh,
    scaffold,
    simulate,
    simulate_many,
)
from wsa_jax.federated.simulate_many import _check_rates

ROUNDS = 4
RATES = (0.1, lambda index: 0.2 / (index + 1), 0.05)
STRENGTHS = (0.0, 2.0, 5.0)


def wsa(strength, **settings):
    return WeightScopeAlignment(strength=strength, form="proximal", **settings)


@pytest.fixture(scope="module")
def runs(tiny_task, tiny_data, tiny_partition):
    """Three runs that differ in all that may differ: keys, partitions, rates and strengths."""
    partitions = [tiny_partition, *(iid(tiny_data[1], clients=4, seed=seed) for seed in (1, 2))]
    return {
        "keys": jax.random.split(jax.random.key(3), 3),
        "task": tiny_task,
        "train": tiny_data,
        "partitions": partitions,
        "wsa": [wsa(strength) for strength in STRENGTHS],
        "learning_rate": list(RATES),
    }


SHARED = {
    "rounds": ROUNDS,
    "algorithm": scaffold(),
    "local": LocalSettings(steps=3, batch_size=8),
    "participants": 3,
    "evaluate_every": 2,
}


@pytest.fixture(scope="module")
def separate(runs, tiny_data):
    return [
        simulate(
            key,
            runs["task"],
            runs["train"],
            partition,
            wsa=form,
            learning_rate=rate,
            test=tiny_data,
            **SHARED,
        )
        for key, partition, form, rate in zip(
            runs["keys"], runs["partitions"], runs["wsa"], runs["learning_rate"], strict=True
        )
    ]


def assert_equal_runs(many, separate):
    for found, alone in zip(many, separate, strict=True):
        for ours, theirs in zip(
            jax.tree.leaves(found.state), jax.tree.leaves(alone.state), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)
        for row, other in zip(untimed(found.history), untimed(alone.history), strict=True):
            assert row.keys() == other.keys()
            for name, value in row.items():
                if name == "layers":
                    assert value == other[name]
                else:
                    np.testing.assert_allclose(value, other[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("how", ["map", "vmap"])
def test_each_run_is_the_separate_one(how, runs, separate, tiny_data):
    # Two devices for three runs: a stand-in fills the second one.
    mesh = runs_mesh(jax.devices()[:2]) if how == "vmap" else None
    found = simulate_many(**runs, runs=how, mesh=mesh, test=tiny_data, **SHARED)
    assert_equal_runs(found, separate)


def test_runs_are_recorded_apart_and_wait_for_one_another(runs, separate, tiny_data, tmp_path):
    def kill(run, row):
        # The first run has saved its second round by then, the others have not.
        if run == 1 and row["round"] == 2:
            raise KeyboardInterrupt

    options = SHARED | {"test": tiny_data, "directory": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        simulate_many(**runs, on_round=kill, **options)
    saved = {path.parent.parent.name for path in tmp_path.glob("run_*/checkpoints/[0-9]*")}
    assert saved == {"run_0"}
    seen = []
    resumed = simulate_many(**runs, on_round=lambda run, row: seen.append((run, row)), **options)
    assert_equal_runs(resumed, separate)
    assert [row["round"] for run, row in seen if run == 0] == [3, 4]
    assert [row["round"] for run, row in seen if run == 2] == [1, 2, 3, 4]
    # A finished run is read, by `simulate` as well.
    read = simulate(
        runs["keys"][1],
        runs["task"],
        runs["train"],
        runs["partitions"][1],
        wsa=runs["wsa"][1],
        learning_rate=RATES[1],
        test=tiny_data,
        **(SHARED | {"directory": tmp_path / "run_1"}),
    )
    assert read.history == resumed[1].history


def test_a_run_that_is_stopped_leaves_the_others_going(runs, separate, tiny_data, tmp_path):
    def stop(run, row):
        seen.append((run, row["round"]))
        return STOP if run == 0 and row["round"] == 2 else None

    options = SHARED | {"test": tiny_data, "directory": tmp_path, "on_round": stop}
    for expected in ([(0, 1), (0, 2)], []):
        seen = []
        found = simulate_many(**runs, **options)
        assert [one for one in seen if one[0] == 0] == expected
        assert [len(result.history) for result in found] == [2, 4, 4]
        assert [int(result.state.round) for result in found] == [2, 4, 4]
        assert_equal_runs(found[1:], separate[1:])
        # Another run begins anew beside the one that has ended.
        shutil.rmtree(tmp_path / "run_1")
    assert seen == [(1, number) for number in range(1, 5)]


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"wsa": [wsa(1.0)] * 2}, "wsa are 2, but there are 3 keys"),
        ({"runs": "both"}, "runs"),
        (
            {"wsa": [wsa(1.0), wsa(1.0), wsa(1.0, fusion="pooled")]},
            "run 2 differs from run 0 in scope_form, which is part of the compiled program",
        ),
        ({"execution": Execution(mesh=clients_mesh())}, "spreads the clients of one run"),
        ({"mesh": clients_mesh()}, r"the mesh has axes \('clients',\); give mesh=runs_mesh"),
        ({"learning_rate": [0.1, 0.1, -0.1]}, "learning_rate"),
        ({"learning_rate": [0.1, "0.1", 0.1]}, "learning_rate of run 1 is '0.1'; give a number"),
        ({"learning_rate": [0.1, np.ones(2), 0.1]}, r"learning_rate of run 1 is an array of shape"),
        (
            {"wsa": [wsa(1.0), wsa(1.0, target=(0.0, 0.1)), wsa(1.0)]},
            "run 1 differs from run 0 in target, fused or fixed, which is part of the compiled",
        ),
        (
            {"on_round": lambda row: None},
            r"on_round takes \(row\); give a function of \(i, row\), the number of the run and",
        ),
        ({"on_round": lambda i, row, state: None}, r"on_round takes \(i, row, state\); give a f"),
    ],
)
def test_what_is_not_one_program_is_refused(changed, complaint, runs):
    with pytest.raises(ValueError, match=complaint):
        simulate_many(**(runs | SHARED | changed))


def test_an_array_of_rates_is_no_list():
    # The tests' type checker would stop it before.
    rates = np.full(3, 0.1)
    message = r"learning_rate is an array of shape \(3,\); give a list of numbers, one a run"
    with pytest.raises(ValueError, match=message):
        _check_rates(rates, [rates] * 3)


def test_no_run_at_all_is_refused(runs):
    with pytest.raises(ValueError, match="keys are empty"):
        simulate_many(**(runs | SHARED | {"keys": runs["keys"][:0]}))


def test_selection_rules_are_shared(runs):
    # One that is made anew for each run is another program.
    forms = [wsa(1.0, select=lambda name, leaf: kernels(name, leaf)) for _ in range(3)]
    with pytest.raises(ValueError, match="run 1 differs from run 0 in scope_form"):
        simulate_many(**(runs | SHARED | {"wsa": forms}))
