"""Bytes counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from wsa_jax import all_leaves
from wsa_jax.federated import (
    WeightScopeAlignment,
    bytes_per_round,
    fed_adam,
    fed_avg,
    fed_exp,
    fed_prox,
    scaffold,
)
from wsa_jax.models import CNN

PARAMS = {"kernel": jnp.ones((5, 4)), "bias": jnp.ones(4), "half": jnp.ones(8, jnp.bfloat16)}
SIZE = 4 * (20 + 4) + 2 * 8
UPDATE = 4 * (20 + 4 + 8)  # in float32, as it is subtracted and averaged


@pytest.mark.parametrize(
    ("algorithm", "down", "up"),
    [
        (fed_avg(), SIZE, UPDATE),
        (fed_prox(), SIZE, UPDATE),
        (
            fed_exp(),
            SIZE,
            UPDATE + 4,
        ),  # a squared norm; iterates stay there
        (fed_adam(), SIZE, UPDATE),  # as do the moments
        (scaffold(), 2 * SIZE, SIZE + UPDATE),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_each_direction(algorithm, down, up):
    found = bytes_per_round(algorithm, PARAMS)
    assert found == (down, up)
    assert found.total == down + up
    with_wsa = bytes_per_round(algorithm, PARAMS, wsa=WeightScopeAlignment())
    assert with_wsa == (down + 8, up + 8)  # one kernel: two float32 numbers


def test_layers_and_statistics_count():
    plain = bytes_per_round(fed_avg(), PARAMS)
    wsa = WeightScopeAlignment(select=all_leaves)
    selected = bytes_per_round(fed_avg(), PARAMS, wsa=wsa)
    assert selected.up - plain.up == 3 * 8
    statistics = {"mean": jnp.ones(7)}
    assert bytes_per_round(fed_avg(), PARAMS, model_state=statistics).down - plain.down == 28


def test_what_is_sent_in_place_of_the_update_counts():
    halved = fed_avg()._replace(
        send=lambda update, context: jax.tree.map(lambda d: d.astype(jnp.bfloat16), update)
    )
    plain, half = (bytes_per_round(algorithm, PARAMS) for algorithm in (fed_avg(), halved))
    assert (half.down, half.up) == (plain.down, plain.up // 2)


def test_wsa_adds_next_to_nothing_to_the_cnn():
    shapes = jax.eval_shape(CNN(num_classes=10).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))[
        "params"
    ]
    plain, wsa = (
        bytes_per_round(fed_avg(), shapes, wsa=on).total for on in (None, WeightScopeAlignment())
    )
    assert plain == 2 * 4 * 744_330
    assert wsa - plain == 2 * 8 * 5
