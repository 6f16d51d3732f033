"""Settings of federated cells, checked before the first of them runs."""

import dataclasses
import functools
from collections.abc import Callable, Iterable

import jax
import numpy as np
from jaxtyping import PyTree

from benchmarks.federated.cell import Cell
from benchmarks.federated.cell_parts import (
    cell_algorithm,
    cell_local,
    cell_partition,
    cell_task,
    cell_wsa,
    federation_data,
)
from benchmarks.record.data import missing_data
from benchmarks.refused import RefusedError
from wsa_jax import checks
from wsa_jax.data import dataset_info
from wsa_jax.federated.alignment import initial_target
from wsa_jax.federated.checks import diagnosed_layers
from wsa_jax.federated.round import check_participants
from wsa_jax.schedules import check_non_negative
from wsa_jax.scope.scope import weight_scope
from wsa_jax.scope.stability import check_bound

# What a network and its initial weights depend on.
_NETWORK = ("dataset", "model", "width", "kernel_size", "side", "init", "augmentation")
# What the sizes of a partition depend on, but for the seed.
_CLIENTS = ("dataset", "evaluate_on", "partition", "alpha", "shards_per_client", "clients")


def check_cells(cells: Iterable[Cell], data_dir: str | None) -> None:
    """Exit with one line for every complaint that the library would have of one of the cells.

    Cells whose data is not here are checked as far as that goes without it.
    """
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        if complaint := complaint_of(cell, data_dir):
            found.setdefault(complaint, []).append(cell)
    if found:
        raise RefusedError(*(_line(complaint, of) for complaint, of in found.items()))


def _line(complaint: str, cells: list[Cell]) -> str:
    more = f" and {len(cells) - 1} more" if len(cells) > 1 else ""
    return f"{cells[0].label}, seed {cells[0].seed}{more}: {complaint}"


def complaint_of(cell: Cell, data_dir: str | None) -> str | None:
    """Why a cell cannot run, in one line; None where nothing speaks against it."""
    for check in (_check_numbers, _check_network, _check_strength):
        if complaint := _complaint(check, cell):
            return complaint
    if missing_data(cell.dataset, data_dir):
        return None
    return _clients_complaint(_only(cell, _CLIENTS), data_dir)


def _complaint(check: Callable[[Cell], None], cell: Cell) -> str | None:
    try:
        check(cell)
    except ValueError as error:
        return str(error).splitlines()[0]
    return None


def _check_numbers(cell: Cell) -> None:
    """Ranges, and what the library's own settings refuse."""
    dataset_info(cell.dataset)
    for name in ("clients", "rounds", "evaluate_every"):
        checks.count(name, getattr(cell, name))
    check_participants(cell.participants, cell.clients)
    check_non_negative(cell.strength)
    check_non_negative(cell.learning_rate, "learning_rate")
    for name in ("width", "decay"):
        checks.positive(name, getattr(cell, name))
    if cell.seed < 0:
        raise ValueError(f"seed {cell.seed} is below 0; give a whole number from 0 on")
    first, last = cell.window
    if first < 0 or (0 <= last <= first):
        raise ValueError(f"window {first} {last} holds no round; give FIRST LAST, -1 for the end")
    checks.count("steps", cell.steps)
    cell_local(cell)
    cell_algorithm(cell)
    cell_wsa(cell)


def _only(cell: Cell, names: tuple[str, ...]) -> Cell:
    """The cell with defaults in all other fields: alike for all that share these."""
    return Cell(**{name: getattr(cell, name) for name in names})


def _check_network(cell: Cell) -> None:
    if complaint := _network_complaint(_only(cell, _NETWORK)):
        raise ValueError(complaint)


@functools.cache
def _network_complaint(network: Cell) -> str | None:
    """Whether the network takes images of that size; nothing is computed."""
    info = dataset_info(network.dataset)
    side = network.side or info.image_shape[0]
    try:
        jax.eval_shape(cell_task(network).init, jax.random.key(0))
    except (ValueError, TypeError, ArithmeticError) as error:
        why = str(error).strip().splitlines()[0]
        return f"model {network.model} takes no images of {side}x{side}: {why}"
    return None


@functools.lru_cache(maxsize=8)
def _initial_params(network: Cell, seed: int) -> PyTree:
    """As `simulate` draws them."""
    return cell_task(network).init(jax.random.fold_in(jax.random.key(seed), 0))[0]


def _check_strength(cell: Cell) -> None:
    """Whether WSA's explicit step is stable in its first round and at its target."""
    wsa = cell_wsa(cell)
    if wsa is None or wsa.form == "proximal":
        return
    params = _initial_params(_only(cell, _NETWORK), cell.seed)
    select, _ = diagnosed_layers(params, wsa)
    scope = weight_scope(params, select=select)
    rounds = np.arange(cell.rounds)
    rates = cell.learning_rate * cell.decay ** (rounds + 1.0)
    first, last = cell.window
    on = (rounds >= first) & ((last < 0) | (rounds < last))
    check_bound(
        scope,
        initial_target(scope, wsa),
        rates,
        cell.strength * on,
        scale=wsa.scale,
        direction=wsa.direction,
    )


@functools.cache
def _clients_complaint(clients: Cell, data_dir: str | None) -> str | None:
    """Whether the examples can be dealt out to the clients as asked."""
    (_, labels), _ = federation_data(clients, data_dir)
    return _complaint(lambda cell: _deal(cell, labels), clients)


def _deal(cell: Cell, labels: np.ndarray) -> None:
    cell_partition(dataclasses.replace(cell, seed=0), labels)
