"""Rounds over a mesh: equal to rounds on one device, and as few collectives as promised."""

import dataclasses

import jax
import jaxtyping
import numpy as np
import pytest
from jax.sharding import Mesh

from wsa_jax.federated import (
    Aggregation,
    Execution,
    clients_mesh,
    fed_avg,
    fed_exp,
    scaffold,
)
from wsa_jax.federated.mesh import place_on_mesh, state_spec
from wsa_jax.runs.processes import on_host

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


@pytest.fixture(scope="module")
def later(federation):
    """A state of two rounds, in which the clients' states differ."""
    run, state = federation.round(scaffold()), federation.start(scaffold())
    for _ in range(2):
        state, _ = run(federation.key, state, federation.data, federation.settings())
    return state


# Three devices do not divide four clients, nor two devices three participants.
@pytest.mark.parametrize(("devices", "clients", "participants"), [(3, "map", 4), (2, "vmap", 3)])
def test_padding_and_replicated_states_equal_one_device(
    federation, later, devices, clients, participants, assert_close
):
    """Of SCAFFOLD, which has all that travels: updates, messages and states of clients."""
    arguments = (federation.key, later, federation.data, federation.settings())
    sharded = federation.round(
        scaffold(), devices=devices, clients=clients, participants=participants
    )
    one = federation.round(scaffold(), participants=participants)
    assert_close(sharded(*arguments), one(*arguments), atol=1e-5)


def collectives(federation, algorithm, **options):
    """How many of each a compiled round holds, and the round."""
    run = federation.round(algorithm, devices=4, **options)
    arguments = (federation.key, federation.start(algorithm), federation.data)
    # Lowering fills the state with stand-ins, which the tests' type checker would refuse.
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        compiled = run.trace(*arguments, federation.settings()).lower().compile()
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    text = compiled.as_text()
    found = {name: text.count(f"{name}(") + text.count(f"{name}-start(") for name in COLLECTIVES}
    return found, compiled


def test_a_linear_algorithm_needs_one_all_reduce_and_no_gather(federation):
    """Of FedExP, which sends what FedAvg does, and a message; if all take part, see SCAFFOLD."""
    found, _ = collectives(federation, fed_exp(), participants=3, clients="vmap")
    assert found == dict.fromkeys(COLLECTIVES, 0) | {"all-reduce": 1}


def test_control_variates_travel_by_participant_or_not_at_all(federation):
    # All take part: none travels.
    everyone, _ = collectives(federation, scaffold())
    assert everyone == dict.fromkeys(COLLECTIVES, 0) | {"all-reduce": 1}
    found, _ = collectives(federation, scaffold(), participants=3)
    leaves = 2
    assert found["all-reduce"] == 1
    assert found["reduce-scatter"] == found["all-gather"] == leaves


def test_rounds_of_a_simulation_compile_once_on_a_mesh_and_equal_one_device(
    federation, later, assert_close
):
    """In blocks of two clients, as `simulate` places them."""
    run = federation.round(scaffold(), devices=2, clients="vmap")
    mesh = clients_mesh(jax.devices()[:2])
    start = federation.start(scaffold())
    state = dataclasses.replace(
        place_on_mesh(dataclasses.replace(start, clients=()), mesh),
        clients=place_on_mesh(start.clients, mesh, state_spec(4, mesh)),
    )
    key, data, settings = place_on_mesh(
        (federation.key, federation.data, federation.settings()), mesh
    )
    before = run._cache_size()
    for done in range(3):
        state, _ = run(key, state, data, settings)
        if done == 1:
            assert_close(on_host(state), later, atol=1e-5)
    assert run._cache_size() == before + 1


def test_a_median_gathers(federation, assert_close):
    aggregation = Aggregation(rule="median")
    found, many = collectives(federation, fed_avg(), aggregation=aggregation)
    assert found["all-gather"] > 0
    arguments = (federation.key, federation.start(fed_avg()), federation.data)
    one = federation.round(fed_avg(), aggregation=aggregation)
    settings = federation.settings()
    assert_close(many(*arguments, settings), one(*arguments, settings), atol=1e-5)


def test_client_states_are_split_where_they_can_be():
    mesh = Mesh(np.asarray(jax.devices()), ("clients",))
    states = {"w": np.arange(16.0).reshape(8, 2)}
    split = place_on_mesh(states, mesh, state_spec(8, mesh))
    assert split["w"].addressable_data(0).shape == (2, 2)
    assert state_spec(6, mesh) == jax.sharding.PartitionSpec()
    np.testing.assert_array_equal(on_host(split)["w"], states["w"])


def test_a_mesh_of_other_axes_is_refused():
    with pytest.raises(ValueError, match=r"axes \('data',\); federated rounds need one axis"):
        Execution(mesh=Mesh(np.asarray(jax.devices()), ("data",)))
