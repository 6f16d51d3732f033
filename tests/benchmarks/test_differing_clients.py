"""Clients that differ: each has the local step that its number gives it, under WSA as without."""

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.federated.cell import Cell
from benchmarks.federated.cell_parts import cell_algorithm, cell_local
from benchmarks.federated.differing_clients import DECAYS, NORMALISED, RATES
from wsa_jax.federated import LocalContext

GRADIENT = {"w": jnp.array([3.0, 4.0])}
PARAMS = {"w": jnp.array([1.0, -1.0])}


def corrected(what, number, **settings):
    algorithm = cell_algorithm(Cell(differ=what, clients=3, **settings).canonical())
    context = LocalContext(PARAMS, (), (), jnp.float32(0.1), 2, None, number=number)
    return np.asarray(algorithm.correct(GRADIENT, PARAMS, context)["w"])


@pytest.mark.parametrize(
    ("what", "number", "expected"),
    [
        ("rates", 0, np.array([3.0, 4.0]) * RATES[0]),
        ("rates", 1, np.array([3.0, 4.0]) * np.sqrt(RATES[0] * RATES[1])),
        ("decays", 2, np.array([3.0, 4.0]) + DECAYS[1] * np.array([1.0, -1.0])),
        ("optimizers", 0, np.array([3.0, 4.0])),
        ("optimizers", 1, np.array([0.6, 0.8]) * NORMALISED),
    ],
)
def test_a_client_has_its_own_step(what, number, expected):
    np.testing.assert_allclose(corrected(what, number), expected, rtol=1e-6)


def test_the_algorithms_own_correction_stays():
    # At the global parameters FedProx adds nothing; away from them mu times the distance.
    algorithm = cell_algorithm(Cell(differ="rates", clients=2, algorithm="fed_prox", mu=2.0))
    context = LocalContext({"w": jnp.zeros(2)}, (), (), jnp.float32(0.1), 2, None, number=0)
    found = algorithm.correct(GRADIENT, PARAMS, context)["w"]
    np.testing.assert_allclose(found, RATES[0] * np.array([5.0, 2.0]), rtol=1e-6)
    assert ("differ", "rates") in algorithm.settings


def test_clients_take_steps_of_their_own():
    cell = Cell(differ="steps")
    steps = cell_local(cell).steps
    assert (len(steps), steps[0], steps[-1]) == (10, 2, 66)
    # As much work in all as where all take 20.
    assert 190 <= sum(steps) <= 210
    assert cell_local(Cell()).steps == 20
    assert cell_algorithm(cell) is cell_algorithm(Cell())


def test_cells_that_do_not_differ_run_the_library_s_own_algorithm():
    assert cell_algorithm(Cell()).correct is cell_algorithm(Cell(clients=5)).correct
    assert Cell(differ="rates").label == "FedAvg, clients of different rates"
