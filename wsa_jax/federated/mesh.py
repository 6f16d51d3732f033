"""Clients over devices: the mesh, which device trains which client, how client states travel."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Integer, PyTree

from wsa_jax.door import door, shown
from wsa_jax.tree import is_key
from wsa_jax.types import Leaf

AXIS = "clients"


@door
def clients_mesh(devices: Sequence[object] | None = None) -> Mesh:
    """Return a mesh with one axis, ``clients``, over the given devices, or all of them.

    With several processes these are the devices of every process, in the same order everywhere.

    >>> clients_mesh().shape["clients"] == jax.device_count()
    True
    """
    chosen = jax.devices() if devices is None else list(devices)
    if not chosen or not all(isinstance(device, jax.Device) for device in chosen):
        raise ValueError(f"devices {shown(chosen)} are no devices; give some of jax.devices()")
    return Mesh(np.asarray(chosen), (AXIS,))


def check_mesh(mesh: Mesh) -> None:
    """Raise a ValueError unless the mesh has exactly one axis, named ``clients``."""
    if mesh.axis_names != (AXIS,):
        raise ValueError(
            f"the mesh has axes {mesh.axis_names}; federated rounds need one axis named "
            f"{AXIS!r}: wsa_jax.federated.clients_mesh()"
        )


def states_are_sharded(clients: int, mesh: Mesh) -> bool:
    """Whether client states are split over the devices: if every device gets the same number."""
    return clients % mesh.shape[AXIS] == 0


def state_spec(clients: int, mesh: Mesh) -> PartitionSpec:
    """How client states lie on the mesh: split if the devices divide them, else on every device."""
    return PartitionSpec(AXIS) if states_are_sharded(clients, mesh) else PartitionSpec()


def place_on_mesh(tree: PyTree, mesh: Mesh, spec: PartitionSpec = PartitionSpec()) -> PyTree:
    """Put host or single-device arrays on the mesh: on every device, or split by ``spec``.

    With several processes each must hold the same values.
    """
    sharding = NamedSharding(mesh, spec)

    def put(leaf: Leaf) -> Array:
        if sharding.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        if is_key(leaf):
            # Keys cannot be put on devices of other processes, but their numbers can.
            return jax.random.wrap_key_data(
                put(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf)
            )
        # device_put would compare the values across all processes, at the cost of a copy each.
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree)


def local_copy(tree: PyTree) -> PyTree:
    """Return this process's first copy of arrays on several devices; others stay as they are."""

    def first(leaf: Leaf) -> Leaf:
        return leaf if len(leaf.sharding.device_set) == 1 else leaf.addressable_data(0)

    return jax.tree.map(first, tree)


def take_states(
    own: PyTree, chosen: Integer[Array, " participants"], sharded: bool, devices: int
) -> PyTree:
    """Inside `jax.shard_map`: the states of the participants that this device trains.

    Sharded states travel by one reduce-scatter, which holds a row for every participant.
    """
    block = len(chosen) // devices
    first = jax.lax.axis_index(AXIS)

    def take(leaf: Array) -> Array:
        if not sharded:
            return leaf[jax.lax.dynamic_slice_in_dim(chosen, first * block, block)]
        # Keys and flags cannot be summed, but their numbers can.
        if is_key(leaf):
            return jax.random.wrap_key_data(
                take(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf)
            )
        if leaf.dtype == bool:
            return take(leaf.astype(jnp.uint8)).astype(bool)
        place = chosen - first * leaf.shape[0]
        mine = (place >= 0) & (place < leaf.shape[0])
        rows = leaf[jnp.where(mine, place, 0)]
        rows = jnp.where(mine.reshape((-1,) + (1,) * (leaf.ndim - 1)), rows, 0)
        return jax.lax.psum_scatter(rows, AXIS, scatter_dimension=0, tiled=True)

    return jax.tree.map(take, own)


def put_states(
    own: PyTree,
    new: PyTree,
    chosen: Integer[Array, " participants"],
    accepted: Bool[Array, " participants"],
    sharded: bool,
) -> PyTree:
    """Inside `jax.shard_map`: write back the new states of the participants that were accepted."""

    def put(leaf: Array, rows: Array) -> Array:
        everyone = jax.lax.all_gather(rows, AXIS, tiled=True)
        first = jax.lax.axis_index(AXIS) * leaf.shape[0] if sharded else 0
        return put_rows(leaf, everyone, chosen - first, accepted)

    return jax.tree.map(put, own, new)


def put_rows(leaf: Array, rows: Array, place: Array, accepted: Array) -> Array:
    """Write rows to their places; rows not accepted, and those with places outside, are skipped."""
    inside = accepted & (place >= 0) & (place < leaf.shape[0])
    return leaf.at[jnp.where(inside, place, leaf.shape[0])].set(rows, mode="drop")
