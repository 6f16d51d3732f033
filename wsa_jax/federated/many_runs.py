"""The rounds of many runs in one program, one after the other, at once, or over devices."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, PyTree

from wsa_jax.door import door
from wsa_jax.federated.alignment import WeightScopeAlignment
from wsa_jax.federated.local_settings import RoundSettings
from wsa_jax.federated.mesh import place_on_mesh
from wsa_jax.federated.partition import Partition
from wsa_jax.federated.round import ServerState, jitted_round
from wsa_jax.federated.run_loop import Recorder, Schedules
from wsa_jax.federated.train_clients import FederatedData, RoundPlan
from wsa_jax.progress import Advance
from wsa_jax.runs.run_directory import RunDirectory
from wsa_jax.types import Examples, Json, Leaf

AXIS = "runs"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Stacked:
    """The leaves of one tree a run, on a leading axis.

    The tree itself says the shapes of one run, so it is made again of one run's leaves alone.
    """

    leaves: list[Leaf]
    tree: Any = field(metadata={"static": True})

    @classmethod
    def of(cls, trees: Sequence[PyTree]) -> "Stacked":
        """Stack equal trees."""
        each = [jax.tree.leaves(tree) for tree in trees]
        stacked = [jnp.stack(leaves) for leaves in zip(*each, strict=True)]
        return cls(stacked, jax.tree.structure(trees[0]))

    @classmethod
    def within(cls, tree: PyTree) -> "Stacked":
        """One run's tree, inside of `jax.vmap` and `jax.lax.map`."""
        return cls(*jax.tree.flatten(tree))

    @property
    def one(self) -> PyTree:
        """The tree, inside of `jax.vmap` and `jax.lax.map`."""
        return jax.tree.unflatten(self.tree, self.leaves)

    def run(self, number: int) -> PyTree:
        """One run's tree, on one device."""
        taken = [leaf[number] for leaf in self.leaves]
        # From the host, or from a mesh.
        if any(not isinstance(x, jax.Array) or len(x.sharding.device_set) > 1 for x in taken):
            taken = jax.device_put(taken, jax.local_devices()[0])
        return jax.tree.unflatten(self.tree, taken)


Rounds = Callable[..., tuple[Stacked, Stacked]]
"""``(keys, state, data, settings, active) -> (state, info)``; all but the examples are per run."""


class Run(NamedTuple):
    """One run before its next round."""

    key: Array
    partition: Partition
    wsa: WeightScopeAlignment | None
    schedules: Schedules
    initial: tuple[PyTree, PyTree]
    plan: RoundPlan
    state: ServerState
    left_out: tuple[str, ...]
    directory: RunDirectory | None = None
    done: int = 0
    history: Sequence[Json] = ()


class Shared(NamedTuple):
    """What all runs have in common: their data, and how they run."""

    sets: dict[str, Examples]
    evidence: PyTree
    how: str
    mesh: Mesh | None


@door
def runs_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Return a mesh with one axis, ``runs``, over the given devices, or all of this process.

    >>> runs_mesh().shape["runs"] == jax.local_device_count()
    True
    """
    return Mesh(np.asarray(jax.local_devices() if devices is None else list(devices)), (AXIS,))


@functools.lru_cache(maxsize=32)
def jitted_runs(plan: RoundPlan, how: str, mesh: Mesh | None) -> Rounds:
    """Return the jitted round of all runs, the same function for equal arguments."""
    one_round = jitted_round(plan)

    def rounds(
        keys: Array,
        state: Stacked,
        data: FederatedData,
        settings: RoundSettings,
        active: Bool[Array, " runs"],
    ) -> tuple[Stacked, Stacked]:
        def one(
            key: Array,
            state: Stacked,
            own: tuple[Array, Array],
            settings: RoundSettings,
            active: Array,
        ) -> tuple[Stacked, Stacked]:
            mine = data._replace(indices=own[0], sizes=own[1])
            new, info = one_round(key, state.one, mine, settings)
            # Runs that have ended, or wait for others to catch up, stay as they are.
            kept = jax.tree.map(lambda new, old: jnp.where(active, new, old), new, state.one)
            return Stacked.within(kept), Stacked.within(info)

        each = (keys, state, (data.indices, data.sizes), settings, active)
        return jax.vmap(one)(*each) if how == "vmap" else jax.lax.map(lambda x: one(*x), each)

    if mesh is None:
        return jax.jit(rounds, donate_argnums=(1,) if plan.execution.donate else ())
    split, whole = PartitionSpec(AXIS), PartitionSpec()
    specs: Any = (whole, whole, split, split, whole)
    over_mesh = jax.shard_map(
        rounds,
        mesh=mesh,
        in_specs=(split, split, FederatedData(*specs), split, split),
        out_specs=split,
        check_vma=False,
    )
    return jax.jit(over_mesh, donate_argnums=(1,) if plan.execution.donate else ())


def run_together(
    plan: RoundPlan,
    runs: list[Run],
    shared: Shared,
    recorders: list[Recorder],
    advance: Advance,
) -> list[ServerState]:
    """Run the rounds that any run lacks; return the last states.

    The host dispatches rounds without waiting, until the recorders want to see them.
    """
    # A mesh holds equally many runs on each device: stand-ins, never active, fill the last one.
    padding = 0 if shared.mesh is None else -len(runs) % shared.mesh.shape[AXIS]
    padded = [*runs, *runs[:1] * padding]
    keys, state, data = _stacked(padded, shared)
    step = jitted_runs(plan, shared.how, shared.mesh)
    done = np.array([run.done for run in padded])
    stopped = np.array([*(recorder.ended for recorder in recorders), *[True] * padding])
    pending: list[tuple[int, Stacked]] = []
    rounds = len(runs[0].schedules.rates)
    for index in range(int(done[~stopped].min(initial=rounds)), rounds):
        active = (index >= done) & ~stopped
        settings = RoundSettings(
            jnp.asarray([run.schedules.rates[index] for run in padded], jnp.float32),
            jnp.asarray([run.schedules.strengths[index] for run in padded], jnp.float32),
        )
        state, info = step(keys, state, data, settings, jnp.asarray(active))
        pending.append((index, info))
        if recorders[0].due(index):
            # One transfer for all runs, rather than a slice a leaf and run on the device.
            infos = jax.device_get(pending)
            for run in map(int, np.flatnonzero(active)):
                stopped[run] |= _record(run, recorders[run], infos, int(done[run]), state)
            pending.clear()
        advance()
        if stopped.all():
            break
    return [state.run(number) for number in range(len(runs))]


def _record(
    run: int,
    recorder: Recorder,
    infos: list[tuple[int, Stacked]],
    done: int,
    state: Stacked,
) -> bool:
    """Tell a run's recorder of its rounds; return whether the run ends here."""
    own, ends = state.run(run), False
    for index, info in infos:
        if index >= done:
            ends = recorder.add(index, info.run(run), own)
    return ends


def _stacked(runs: list[Run], shared: Shared) -> tuple[Array, Stacked, FederatedData]:
    """Keys, states and partitions on a leading axis, beside the examples; on the mesh."""
    capacity = max(run.partition.indices.shape[1] for run in runs)
    rows = [
        np.pad(indices, ((0, 0), (0, capacity - indices.shape[1])))
        for indices in (run.partition.indices for run in runs)
    ]
    own = (
        jnp.stack([jax.random.fold_in(run.key, 1) for run in runs]),
        Stacked.of([run.state for run in runs]),
        jnp.asarray(np.stack(rows)),
        jnp.asarray(np.stack([run.partition.sizes for run in runs])),
    )
    common = jax.tree.map(jnp.asarray, (*shared.sets["train"], shared.evidence))
    if shared.mesh is not None:
        own = place_on_mesh(own, shared.mesh, PartitionSpec(AXIS))
        common = place_on_mesh(common, shared.mesh)
    keys, state, indices, sizes = own
    inputs, labels, evidence = common
    return keys, state, FederatedData(inputs, labels, indices, sizes, evidence)
