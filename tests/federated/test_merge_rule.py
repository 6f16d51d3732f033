"""Servers that merge by a function: what it is given, and what becomes of its model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.trees import assert_bitwise, flat
from wsa_jax.federated import Aggregation, fed_avg, scaffold
from wsa_jax.merging import LearningSettings, labelled_examples, np_merge_joint
from wsa_jax.tree import weighted_mean


def mean_rule(key, models, weights, evidence):
    return weighted_mean(models, weights)


def step(federation, algorithm, data=None, **options):
    run = federation.round(algorithm, **options)
    data = federation.data if data is None else data
    return run(federation.key, federation.start(algorithm), data, federation.settings())


@pytest.mark.parametrize(
    "options", [{}, {"devices": 3, "clients": "vmap"}], ids=["map", "padded vmap"]
)
def test_a_weighted_mean_is_the_mean(federation, options, assert_close):
    """Scopes, messages and statistics are averaged as well, under map, vmap and a padded mesh.

    Of SCAFFOLD, whose server takes all of them; and that its mean is one, however the round runs,
    is the contract's.
    """
    expected = step(federation, scaffold())
    found = step(federation, scaffold(), aggregation=Aggregation(rule=mean_rule), **options)
    assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_what_a_rule_is_given(federation, assert_close):
    """The models of the participants, shares of the accepted, and the evidence."""
    seen = []

    def rule(key, models, weights, evidence):
        jax.debug.callback(lambda *given: seen.append(given), models, weights, evidence)
        return jax.tree.map(lambda leaf: leaf[1], models)

    data = federation.data._replace(evidence={"proxy": jnp.arange(3.0)})
    state, _ = step(federation, fed_avg(), data, aggregation=Aggregation(rule=rule))
    jax.effects_barrier()
    [(models, weights, evidence)] = seen
    np.testing.assert_allclose(weights, np.array([25, 10, 0, 7]) / 42, rtol=1e-6)
    np.testing.assert_array_equal(evidence["proxy"], [0, 1, 2])
    # FedAvg takes what the rule returns: here, client 1's model as if it were alone.
    alone = federation.data._replace(sizes=federation.data.sizes * (np.arange(4) == 1))
    # SCAFFOLD's first round is FedAvg's.
    expected, _ = step(federation, scaffold(), alone)
    np.testing.assert_allclose(flat(state.params), flat(expected.params), rtol=1e-5, atol=1e-6)
    # In the place of a client without examples stands the global model.
    start = federation.start(fed_avg()).params
    np.testing.assert_array_equal(flat(jax.tree.map(lambda leaf: leaf[2], models)), flat(start))


def test_a_rule_that_fails_is_refused(federation):
    """It changes nothing but the round number."""

    def rule(key, models, weights, evidence):
        return jax.tree.map(lambda leaf: leaf[0] * jnp.nan, models)

    state, info = step(federation, scaffold(), aggregation=Aggregation(rule=rule))
    assert info.refused
    expected = dataclasses.replace(federation.start(scaffold()), round=jnp.int32(1))
    assert_bitwise(state, expected)


def test_np_merge_is_a_server_with_checkpoints(federate, tiny_task, tiny_data, tmp_path):
    settings = LearningSettings(steps=3, batch_size=8)

    def server(rate):
        def rule(key, models, weights, evidence):
            return np_merge_joint(
                key, tiny_task.loss, models, evidence, settings=settings, init=weights,
                learning_rate=rate, model_state={},
            ).params  # fmt: skip

        return Aggregation(rule=rule)

    common = {"evidence": labelled_examples(*tiny_data), "evaluate_every": 1}
    first = server(0.3)
    whole = federate(aggregation=first, rounds=3, **common)
    federate(aggregation=first, rounds=2, directory=tmp_path, **common)
    # Another function of the same code and numbers goes on.
    resumed = federate(aggregation=server(0.3), rounds=3, directory=tmp_path, **common)
    assert_bitwise(resumed.state, whole.state)
    with pytest.raises(ValueError, match="holds a run with aggregation = "):
        federate(aggregation=server(0.4), rounds=3, directory=tmp_path, **common)
    other = common | {"evidence": labelled_examples(tiny_data[0][:20], tiny_data[1][:20])}
    with pytest.raises(ValueError, match="holds a run with evidence = "):
        federate(aggregation=server(0.3), rounds=3, directory=tmp_path, **other)


def test_other_leaves_and_useless_evidence_are_refused(federation, federate):
    def rule(key, models, weights, evidence):
        return models

    with pytest.raises(ValueError, match=r"leaf Dense_0/bias has shape \(3,\) .* and \(4, 3\)"):
        step(federation, fed_avg(), aggregation=Aggregation(rule=rule))
    with pytest.raises(ValueError, match="evidence is given, but rule 'median' of the aggreg"):
        federate(evidence=jnp.ones(2), aggregation=Aggregation(rule="median"))
