"""A simulation against its own rounds, run one after another with the numbers it was given."""

import jax
import jax.numpy as jnp
import numpy as np

from wsa_jax import scope_window
from wsa_jax.federated import Aggregation, Execution, WeightScopeAlignment, fed_exp, simulate
from wsa_jax.federated.client import RoundSettings, ScopeForm
from wsa_jax.federated.round import make_round
from wsa_jax.training import evaluate


def test_a_simulation_is_its_rounds_one_after_another(
    federation, tiny_task, tiny_data, tiny_partition, assert_close
):
    key, algorithm = jax.random.key(0), fed_exp()
    strength = scope_window(3.0, start=1, stop=3)
    rule = Aggregation(rule="trimmed_mean", trim=0.1, clip_norm=0.3)

    def rate(i):
        return 0.3 / (i + 1)

    found = simulate(
        key, tiny_task, tiny_data, tiny_partition,
        rounds=4, algorithm=algorithm, participants=3, learning_rate=rate, local=federation.local,
        wsa=WeightScopeAlignment(strength=strength, form="proximal", scale="size"),
        aggregation=rule, test=tiny_data, evaluate_every=4, client_scopes=True,
    )  # fmt: skip
    run = make_round(
        tiny_task, algorithm, participants=3, epochs=federation.epochs, local=federation.local,
        scope_form=ScopeForm(form="proximal", scale="size"), aggregation=rule,
        execution=Execution(donate=False),
    )  # fmt: skip
    states = [federation.start(algorithm, tiny_task.init(jax.random.fold_in(key, 0))[0])]
    for i, row in enumerate(found.history):
        numbers = RoundSettings(jnp.float32(rate(i)), jnp.float32(strength(i)))
        state, info = run(jax.random.fold_in(key, 1), states[-1], federation.data, numbers)
        states.append(state)
        np.testing.assert_allclose(row["average_std"], info.average.std, rtol=1e-4)
        np.testing.assert_allclose(row["fused_std"], info.fused.std, rtol=1e-4)
        np.testing.assert_allclose(row["client_scopes"]["std"], info.clients.std, rtol=1e-4)
    assert_close(found.state, states[-1])

    # FedExP evaluates and returns the middle of its last two iterates.
    middle = jax.tree.map(lambda a, b: (a + b) / 2, states[-1].params, states[-2].params)
    assert_close(found.params, middle)

    def loss(params):
        return float(evaluate(tiny_task, params, {}, *tiny_data).loss / 60)

    np.testing.assert_allclose(found.history[-1]["test_loss"], loss(middle), rtol=1e-4)
    assert abs(loss(middle) - loss(states[-1].params)) > 1e-3
