"""Simulations: their rows, their inputs and their errors."""

import functools
import json
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.trees import assert_bitwise
from wsa_jax import constant_target, matching, scope_window, weight_scope
from wsa_jax.data import load_dataset
from wsa_jax.federated import (
    STOP,
    Aggregation,
    Execution,
    LocalSettings,
    Partition,
    WeightScopeAlignment,
    as_partition,
    fed_prox,
    scaffold,
    simulate,
    split_clients,
)
from wsa_jax.federated.client import ScopeForm
from wsa_jax.federated.named import AlgorithmName, algorithm_of
from wsa_jax.models import MLP
from wsa_jax.training import Task, classification, evaluate


class Normed(nn.Module):
    """BatchNorm of a dense layer."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(3)(x.reshape(x.shape[0], -1))
        return nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)


@pytest.fixture(scope="module")
def evaluated(federate, deep_task, tiny_data):
    seen = []
    result = federate(
        deep_task, test=tiny_data, wsa=WeightScopeAlignment(form="proximal"), on_round=seen.append
    )
    return result, seen


class TestHistory:
    def test_one_row_a_round_in_order(self, evaluated):
        result, seen = evaluated
        assert [row["round"] for row in result.history] == [1, 2, 3, 4, 5]
        assert seen == result.history
        assert result.state.round == 5

    def test_evaluates_every_second_round_and_the_last(self, evaluated):
        rows = evaluated[0].history
        assert [row["round"] for row in rows if "test_accuracy" in row] == [2, 4, 5]

    def test_the_last_evaluation_is_that_of_the_state(self, evaluated, deep_task, tiny_data):
        result = evaluated[0]
        sums = evaluate(deep_task, result.state.params, {}, *tiny_data)
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

    def test_constant_layers_are_left_out_and_named(self, federate, deep_task):
        params, _ = deep_task.init(jax.random.key(0))
        params["Dense_1"]["kernel"] = jnp.zeros((8, 3))
        result = federate(deep_task, params=params, rounds=1)
        assert result.left_out == ("Dense_1/kernel",)
        assert result.history[0]["layers"] == ["Dense_0/kernel"]


class TestOnRound:
    def test_stops_after_the_rounds_that_were_run(self, federate):
        seen = []

        def second(row):
            seen.append(row["round"])
            return STOP if row["round"] == 1 else None

        result = federate(on_round=second)
        # Rounds are shown at evaluations, every second one here.
        assert seen == [row["round"] for row in result.history] == [1, 2]
        assert result.state.round == 2

    def test_sees_the_state_of_every_round_and_stops_there(self, federate, tmp_path):
        norms = []

        def watch(row, state):
            norms.append(float(jnp.linalg.norm(state.params["Dense_0"]["kernel"])))
            row["norm"] = jnp.float32(norms[-1])
            return STOP if state.round == 3 else None

        stopped = federate(on_round=watch, directory=tmp_path)
        assert stopped.state.round == 3
        whole = federate()
        resumed = federate(directory=tmp_path)
        assert_bitwise(resumed.state, whole.state)
        # The caller's numbers are on disk with the row.
        assert [row.get("norm") for row in resumed.history] == pytest.approx([*norms, None, None])
        final = float(jnp.linalg.norm(federate(rounds=3).params["Dense_0"]["kernel"]))
        assert norms[-1] == pytest.approx(final, rel=1e-6)

    def test_a_stopped_run_is_returned_when_it_is_started_again(self, federate, tmp_path):
        def once_more():
            seen = []

            def at_once(row):
                seen.append(row["round"])
                return STOP

            return federate(on_round=at_once, directory=tmp_path), seen

        (first, seen), (again, unseen) = once_more(), once_more()
        assert (seen, unseen) == ([1, 2], [])
        assert_bitwise(again.state, first.state)
        assert again.history == first.history
        assert [row.get("ended_by") for row in first.history] == [None, "on_round"]
        # Without a callback it goes on, and ends as if it had never been stopped.
        assert_bitwise(federate(directory=tmp_path).state, federate().state)

    def test_what_json_lacks_is_refused(self, federate):
        def bad(row):
            row["weights"] = object()

        with pytest.raises(ValueError, match=r"on_round put weights = .* of round 1, which JSON"):
            federate(on_round=bad, rounds=2)


class TestInputs:
    def test_the_callers_arrays_survive(self, federate, tiny_task):
        params, _ = tiny_task.init(jax.random.key(0))
        target = constant_target(weight_scope(params), std=0.5)
        wsa = WeightScopeAlignment(target=target, form="proximal")
        first, second = (federate(params=params, wsa=wsa, rounds=2) for _ in range(2))
        assert_bitwise(first.state, second.state)
        np.testing.assert_array_equal(first.state.target.std, 0.5)
        assert_bitwise(params, tiny_task.init(jax.random.key(0))[0])

    def test_a_start_is_the_first_of_fused_targets(self, federate, tiny_task):
        params, _ = tiny_task.init(jax.random.key(0))
        own = weight_scope(params)
        start = constant_target(own, mean=0.1, std=0.5)
        with_start, fixed, plain = (
            federate(params=params, rounds=1, wsa=WeightScopeAlignment(form="proximal", **settings))
            for settings in ({"start": start}, {"target": start}, {"start": own})
        )
        # One round towards the same target, and another one for the next.
        assert_bitwise(with_start.state.params, fixed.state.params)
        fused = with_start.history[0]["fused_std"]
        np.testing.assert_allclose(with_start.state.target.std, fused, rtol=1e-6)
        assert fixed.state.target.std.tolist() == [0.5]
        assert_bitwise(
            plain.state,
            federate(params=params, rounds=1, wsa=WeightScopeAlignment(form="proximal")).state,
        )

    def test_fusions_are_what_they_say_of_the_clients_scopes(self, federate, tiny_partition):
        targets = {}
        for fusion in ("mean_square", "pooled", "sum"):
            wsa = WeightScopeAlignment(strength=0.5, form="proximal", fusion=fusion)
            result = federate(rounds=1, wsa=wsa, client_scopes=True)
            row = result.history[0]
            # A client without examples is not accepted.
            mean, std = (
                np.array(row["client_scopes"][name])[tiny_partition.sizes > 0]
                for name in ("mean", "std")
            )
            targets[fusion] = np.asarray(result.state.target.std)
            np.testing.assert_allclose(result.state.target.mean, mean.mean(axis=0), rtol=1e-5)
            np.testing.assert_array_equal(np.float32(row["fused_std"]), targets[fusion])
        square = np.square(std)
        expected = {
            "mean_square": square.mean(axis=0),
            # Of all clients' weights together: within and between.
            "pooled": square.mean(axis=0) + mean.var(axis=0),
            "sum": square.sum(axis=0),
        }
        for fusion, variance in expected.items():
            np.testing.assert_allclose(targets[fusion], np.sqrt(variance), rtol=1e-5)

    def test_a_start_that_does_not_fit_is_refused(self, federate, tiny_task):
        scope = weight_scope(tiny_task.init(jax.random.key(0))[0])
        with pytest.raises(ValueError, match="a start is the first of fused targets"):
            WeightScopeAlignment(target=(0.0, 0.1), start=scope)
        other = weight_scope({"kernel": jnp.eye(3)})
        with pytest.raises(ValueError, match="kernel"):
            federate(wsa=WeightScopeAlignment(start=other))

    def test_fixed_gaussian_as_a_pair(self, federate):
        result = federate(wsa=WeightScopeAlignment(target=(0, 0.5), form="proximal"), rounds=2)
        assert result.state.target.std.tolist() == [0.5]

    @pytest.mark.parametrize(
        ("change", "layers"),
        [
            (lambda p: {"in": p["Dense_0"]["kernel"], "out": p["Dense_0"]["kernel"][:3]}, "in out"),
            (lambda p: {"w": 0 * p["Dense_0"]["kernel"], "b": jnp.zeros(3)}, "w"),
        ],
        ids=["other names", "zeros"],
    )
    def test_plain_algorithms_take_any_model(
        self, tiny_task, tiny_data, tiny_partition, change, layers
    ):
        def loss(key, params, model_state, batch):
            pixels = batch.inputs.reshape(len(batch.inputs), -1) / 16
            if "in" in params:
                logits = pixels @ params["in"] @ params["out"]
            else:
                logits = pixels @ params["w"] + params["b"][None]
            chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), batch.labels[:, None], 1)[:, 0]
            return -jnp.sum(chosen * batch.mask) / jnp.maximum(batch.mask.sum(), 1), model_state

        task = Task(lambda key: (change(tiny_task.init(key)[0]), {}), loss, tiny_task.metrics)
        result = simulate(jax.random.key(0), task, tiny_data, tiny_partition, rounds=3)
        assert result.history[0]["layers"] == layers.split()
        assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]

    def test_pretrained_statistics(self, tiny_data, tiny_partition, tiny_info):
        task = classification(Normed(), tiny_info)
        params, model_state = jax.jit(task.init)(jax.random.key(3))
        start = jax.tree.map(lambda leaf: leaf + 1, model_state)
        common = {"rounds": 1, "local": LocalSettings(steps=1), "params": params}
        run = functools.partial(
            simulate, jax.random.key(0), task, tiny_data, tiny_partition, **common
        )
        # One step of momentum 0.5 leaves half of where the statistics began.
        near, far = (run(model_state=s).state.model_state for s in (model_state, start))
        apart = jax.tree.map(lambda a, b: float(jnp.abs(a - b).min()), near, far)
        assert min(jax.tree.leaves(apart)) == pytest.approx(0.5, abs=1e-5)
        with pytest.raises(ValueError, match="params are given and model_state is not"):
            run()

    def test_a_dataset_stands_for_its_inputs_and_labels(self):
        digits = load_dataset("digits", split="test")
        task = classification(MLP(features=(10,)), digits.info)
        rows = [[0, 1, 2], [3, 4]]
        pair = (digits.images, digits.labels)
        first, second = (
            simulate(jax.random.key(0), task, given, rows, rounds=1, test=given)
            for given in (digits, pair)
        )
        assert_bitwise(second.state, first.state)
        assert first.history[0]["test_loss"] == second.history[0]["test_loss"]

    def test_a_list_of_rows_is_a_partition(self, federate, tiny_task, tiny_data, tiny_partition):
        rows = [tiny_partition.client_indices(client) for client in range(4)]
        same = {"rounds": 1, "learning_rate": 0.1, "local": LocalSettings(steps=2, batch_size=8)}
        found = simulate(jax.random.key(0), tiny_task, tiny_data, rows, **same)
        assert_bitwise(found.state, federate(rounds=1).state)
        # Client 1 has an example of client 0.
        rows[1] = np.append(rows[1][:-1], rows[0][0])
        with pytest.warns(UserWarning, match="1 examples of the partition belong to several"):
            simulate(jax.random.key(0), tiny_task, tiny_data, rows, **same)

    def test_nobody_accepted_is_told(self, federate, tiny_task):
        params, _ = tiny_task.init(jax.random.key(0))
        huge = jax.tree.map(lambda leaf: leaf * 1e30, params)
        with pytest.warns(UserWarning, match=r"no client's update was accepted in rounds 1 to 2"):
            result = federate(params=huge, rounds=2)
        assert_bitwise(result.params, huge)
        assert result.history[-1]["fused_std"] == result.history[-1]["average_std"]


@pytest.fixture(scope="module")
def scaffolded(federate):
    """SCAFFOLD with WSA, for the tests that run it in pieces or by names."""
    return functools.partial(
        federate, algorithm=scaffold(), wsa=WeightScopeAlignment(form="proximal")
    )


@pytest.fixture(scope="module")
def whole(scaffolded):
    return scaffolded(rounds=4)


class TestNames:
    """A word stands for the object with its defaults."""

    def test_algorithm_rule_and_execution(self, scaffolded, whole):
        named = scaffolded(rounds=4, algorithm="scaffold", aggregation="mean", execution="map")
        assert_bitwise(named.state, whole.state)

    def test_every_algorithm_goes_by_the_name_it_records(self):
        for name in typing.get_args(AlgorithmName):
            assert algorithm_of(name).name == name
        with pytest.raises(ValueError, match=r"algorithm 'fedavg' is unknown; give one of fed"):
            algorithm_of("fedavg")


class TestState:
    """A run is continued from the state of its result, without a directory."""

    def test_two_halves_are_bitwise_the_whole(self, scaffolded, whole):
        half = scaffolded(rounds=2)
        # Twice: the caller's state is copied.
        for _ in range(2):
            rest = scaffolded(rounds=4, state=half.state)
            assert_bitwise(rest.state, whole.state)
        assert [row["round"] for row in rest.history] == [3, 4]

    def test_a_finished_state_is_returned(self, scaffolded, whole):
        again = scaffolded(rounds=4, state=whole.state)
        assert again.history == []
        assert_bitwise(again.params, whole.params)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"rounds": 3}, "the state has done 4 rounds, more than rounds 3; give rounds >= 4"),
            ({"directory": "somewhere"}, "state and directory are both given"),
            ({"algorithm": fed_prox()}, r"the state is of another run \(leaf "),
            (
                {"wsa": WeightScopeAlignment(form="proximal", select=matching("Dense_0/.*"))},
                "the state tracks the",
            ),
        ],
    )
    def test_what_does_not_fit_is_refused(self, scaffolded, whole, change, message):
        with pytest.raises(ValueError, match=message) as error:
            scaffolded(**{"rounds": 5, "state": whole.state} | change)
        assert "\n" not in str(error.value)


class TestErrors:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"participants": 5}, "participants 5 of 4 clients"),
            ({"participants": 0}, "participants 0 of 4 clients"),
            ({"rounds": 0}, "rounds 0 is below 1"),
            ({"evaluate_every": 0}, "evaluate_every must be a positive integer, got 0"),
            ({"checkpoint_every": 0}, "checkpoint_every must be a positive integer, got 0"),
            ({"learning_rate": -0.1, "rounds": 200}, "learning_rate -0.1 is not"),
            ({"learning_rate": lambda i: float("nan")}, "learning_rate nan is not"),
            ({"evalute_every": 2}, "simulate has no option 'evalute_every'; give one of part"),
            ({"execution": "pmap"}, "execution of simulate is 'pmap'; give an Execution"),
            ({"algorithm": "scafold"}, "algorithm of simulate is 'scafold'; give an algorithm"),
            ({"aggregation": "mode"}, "aggregation of simulate is 'mode'; give an Aggregation"),
            ({"learning_rate": lambda i: [0.1, 0.2]}, r"learning_rate of round 0 is an array of s"),
        ],
    )
    def test_settings(self, federate, settings, message):
        with pytest.raises(ValueError, match=message) as error:
            federate(**settings)
        assert "\n" not in str(error.value)

    def test_a_traced_key_is_refused(self, tiny_task, tiny_data, tiny_partition):
        def run(key):
            return simulate(key, tiny_task, tiny_data, tiny_partition, rounds=1).params

        with pytest.raises(ValueError, match="key is traced, but simulate runs its rounds from"):
            jax.vmap(run)(jax.random.split(jax.random.key(0), 2))

    @pytest.mark.parametrize(
        ("settings", "change", "message"),
        [
            (ScopeForm(), {"select": "kernel"}, "select 'kernel' is no rule; give kernels, matr"),
            (WeightScopeAlignment(), {"strength": "1"}, "strength of WeightScopeAlignment is '1'"),
            (WeightScopeAlignment(), {"strength": [1, 2]}, "strength of WeightScopeAlignment is"),
            (Aggregation(), {"clip_norm": "3"}, "clip_norm '3' is not positive"),
            (Aggregation(), {"trim": "0.1"}, r"trim '0.1' is not in \[0, 0.5\)"),
            (Execution(), {"donate": "no"}, "donate of Execution is 'no'; give True or False"),
            (Execution(), {"evaluation_batch": 0}, "evaluation_batch must be a positive integer"),
        ],
    )
    def test_fields_of_other_types(self, rejected, settings, change, message):
        with pytest.raises(ValueError, match=message):
            rejected(settings, **change)

    def test_nan_in_the_parameters_names_the_leaf(self, federate, tiny_task):
        params, _ = tiny_task.init(jax.random.key(0))
        params["Dense_0"]["bias"] = params["Dense_0"]["bias"].at[0].set(jnp.nan)
        with pytest.raises(ValueError, match="leaf Dense_0/bias of params holds 1 NaN"):
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

    def test_the_bound_looks_at_a_fixed_target(self, federate):
        # 0.9 of the range where the run begins, 1.8 where the target leads it.
        size, std, learning_rate = 27, 0.01, 0.1
        wsa = WeightScopeAlignment(strength=1.8 * size * std**2 / learning_rate, target=(0.0, std))
        with pytest.raises(ValueError, match="unstable in layer Dense_0/kernel.* uses 1.8"):
            federate(wsa=wsa, learning_rate=learning_rate)

    @pytest.mark.parametrize("name", ["target", "start"])
    def test_target_of_several_models(self, federate, tiny_task, name):
        scope = weight_scope(tiny_task.init(jax.random.key(0))[0])
        several = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), scope)
        with pytest.raises(ValueError, match=r"the target has mean of shape \(2, 1\)"):
            federate(wsa=WeightScopeAlignment(**{name: several, "strength": 0.1}))

    def test_target_of_other_layers(self, federate):
        wsa = WeightScopeAlignment(target=weight_scope({"w": jnp.eye(3)}))
        with pytest.raises(
            ValueError, match=r"layer Dense_0/kernel has 27 .* layer w of the target"
        ):
            federate(wsa=wsa)

    @pytest.mark.parametrize(
        ("settings", "change", "message"),
        [
            (ScopeForm(), {"form": "hard"}, "form 'hard' is unknown"),
            (ScopeForm(), {"scale": "mean"}, "scale 'mean' is unknown"),
            (ScopeForm(), {"fusion": "mean"}, "fusion 'mean' is unknown"),
            (ScopeForm(), {"direction": "reverse"}, "direction 'reverse' is unknown"),
            (
                ScopeForm(direction="target||weights"),
                {"form": "proximal"},
                r"direction 'target\|\|weights' has no proximal form, .* give form='gradient' or",
            ),
            (WeightScopeAlignment(), {"target": "median"}, "target 'median' is unknown"),
            (WeightScopeAlignment(), {"target": [0, 0.5]}, r"target \[0, 0.5\] is not a tuple"),
        ],
    )
    def test_unknown_words(self, rejected, settings, change, message):
        with pytest.raises(ValueError, match=message):
            rejected(settings, **change)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda x, y: ((x[:20], y), None), "train has 20 images and 60 labels"),
            (lambda x, y: ((x, y + 1), None), r"label 3 of train is out of range.* 0 .. 2"),
            (lambda x, y: ((x, y), (x[:5], y)), "test has 5 images and 60 labels"),
            (lambda x, y: ((x, y), (x, y - 1)), "label -1 of test is out of range"),
        ],
        ids=["images", "labels", "test images", "test labels"],
    )
    def test_arrays_that_do_not_fit(self, tiny_task, tiny_data, tiny_partition, change, message):
        train, test = change(*tiny_data)
        with pytest.raises(ValueError, match=message):
            simulate(jax.random.key(0), tiny_task, train, tiny_partition, rounds=1, test=test)

    @pytest.mark.parametrize(
        ("indices", "sizes", "message"),
        [
            (-1, 0, "points at example -1; rows count from 0"),
            (0, 30, "sizes of the partition are 0 to 55, but its indices have room for 25"),
        ],
    )
    def test_partition_out_of_range(
        self, tiny_task, tiny_data, tiny_partition, indices, sizes, message
    ):
        first = np.array([sizes, 0, 0, 0], np.int32)
        wrong = Partition(tiny_partition.indices + indices, tiny_partition.sizes + first)
        with pytest.raises(ValueError, match=message):
            simulate(jax.random.key(0), tiny_task, tiny_data, wrong, rounds=1)

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([[0, 1], [2.5, 3]], r"client 1 of the partition has rows of shape \(2,\) and type f"),
            ([[0, 1], [2, -3]], "client 1 of the partition has rows .*give integers of 0 or more"),
            ([], "the partition has no client"),
            ([[0, 1], [2, 3, 2]], "client 1 of the partition holds example 2 2 times"),
            ([[], []], "no client of the partition holds an example; make it from the 60 labels"),
        ],
    )
    def test_partitions_that_are_none(self, tiny_task, tiny_data, rows, message):
        with pytest.raises(ValueError, match=message):
            simulate(jax.random.key(0), tiny_task, tiny_data, rows, rounds=1)

    def test_a_test_partition_of_no_example(self, tiny_task, tiny_data):
        train, test = split_clients(as_partition([[0], [1]]), seed=0)
        message = "no client of test_partition holds an example; make it from the 60 labels"
        with pytest.raises(ValueError, match=message):
            simulate(
                jax.random.key(0), tiny_task, tiny_data, train, rounds=1, test=tiny_data,
                test_partition=test,
            )  # fmt: skip

    def test_sizes_of_other_clients(self, tiny_task, tiny_data):
        wrong = Partition(np.array([[0, 1], [2, 3]], np.int32), np.array([2, 2], np.int32))
        # The tests' type checker would stop it in the constructor.
        object.__setattr__(wrong, "sizes", np.array([2, 2, 2], np.int32))
        with pytest.raises(ValueError, match="indices of 2 clients and sizes of 3; give one size"):
            simulate(jax.random.key(0), tiny_task, tiny_data, wrong, rounds=1)

    @pytest.mark.parametrize(
        ("leaf", "message"),
        [
            (jnp.arange(3), "leaf extra of params is of type int32; give floating-point arrays"),
            (jax.nn.relu, "leaf extra of params is of type "),
        ],
    )
    def test_parameters_that_no_step_can_move(self, federate, tiny_task, leaf, message):
        params, _ = tiny_task.init(jax.random.key(0))
        with pytest.raises(ValueError, match=message):
            federate(params={**params, "extra": leaf})

    def test_partition_of_other_labels(self, tiny_task, tiny_data, tiny_partition):
        train = tuple(part[:20] for part in tiny_data)
        with pytest.raises(ValueError, match=r"points at example .* but there are 20"):
            simulate(jax.random.key(0), tiny_task, train, tiny_partition, rounds=1)
