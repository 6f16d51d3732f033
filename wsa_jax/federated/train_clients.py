"""The clients of a round: what one does and sends, and three ways of running them."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Integer, Key, PyTree, Shaped

from wsa_jax import checks
from wsa_jax.door import check_fields
from wsa_jax.federated import mesh as meshes
from wsa_jax.federated.aggregate import (
    Aggregation,
    BySamples,
    Sent,
    all_finite,
    term,
    to_numbers,
)
from wsa_jax.federated.algorithms.base import FederatedAlgorithm, add_update
from wsa_jax.federated.alignment import WeightScopeAlignment
from wsa_jax.federated.client import (
    Broadcast,
    ClientData,
    ClientResult,
    LocalSettings,
    RoundSettings,
    ScopeForm,
    train_client,
)
from wsa_jax.federated.diagnostics import ClientRow
from wsa_jax.federated.fusion import scope_moments
from wsa_jax.federated.krum import check_faulty
from wsa_jax.federated.local_leaves import ClientMemory, kept_leaves, with_leaves
from wsa_jax.reductions import norm
from wsa_jax.scope.layers import Rule
from wsa_jax.scope.scope import WeightScope, scope_divergence, weight_scope
from wsa_jax.scope.stability import stability
from wsa_jax.training.task import Task


class FederatedData(NamedTuple):
    """Device arrays of the examples of all clients, and which client owns which.

    Attributes:
      inputs: what a task takes, arrays ``[examples, ...]``; images are usually uint8.
      labels: ``[examples]``.
      indices: rows of each client, padded, ``[clients, capacity]``.
      sizes: number of rows of each client, ``[clients]``.
      evidence: what the server has besides, for a rule that is a function (`Aggregation`).
    """

    inputs: PyTree
    labels: Shaped[Array, " examples"]
    indices: Integer[Array, "clients capacity"]
    sizes: Integer[Array, " clients"]
    evidence: PyTree = None


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Performance settings; with JAX's default keys, none of them changes a result beyond rounding.

    Keys of ``rbg`` and ``unsafe_rbg`` draw other numbers under `jax.vmap`, so for ``"vmap"``.

    Attributes:
      clients: ``"map"`` trains one client after another (CPU, or little memory: with a mean it
        holds one update at a time, however many take part), ``"vmap"`` all at once (accelerators).
      mesh: devices to spread the participants over (`clients_mesh`); on each, ``clients`` applies.
      donate: let a round reuse the buffers of the state it is given, which cannot be used
        afterwards: keep the new one (`initial_state` copies what it is given).
      evaluation_batch: examples evaluated at once.
    """

    clients: Literal["map", "vmap"] = "map"
    mesh: Mesh | None = None
    donate: bool = True
    evaluation_batch: int = 500

    def __post_init__(self):
        checks.one_of("clients", self.clients, ("map", "vmap"))
        checks.count("evaluation_batch", self.evaluation_batch)
        check_fields(self)
        if self.mesh is not None:
            meshes.check_mesh(self.mesh)


@dataclass(frozen=True, kw_only=True)
class RoundPlan:
    """All that is static in a round, the arguments of `make_round`; ``select`` is the form's."""

    task: Task
    algorithm: FederatedAlgorithm
    participants: int
    epochs: int
    local: LocalSettings
    scope_form: ScopeForm | None
    select: Rule
    fuse_target: bool
    aggregation: Aggregation
    execution: Execution
    keep_local: Rule | None = None

    def __post_init__(self):
        if isinstance(self.scope_form, WeightScopeAlignment):
            raise ValueError(
                "scope_form is a WeightScopeAlignment, whose strength, target and start a round "
                "does not look at; give its static(select), the strength in RoundSettings and the "
                "target to initial_state"
            )
        if self.aggregation.rule in ("krum", "multi_krum"):
            check_faulty(self.aggregation.faulty, self.participants)
        if self.local.optimizer is not None and self.algorithm.needs_sgd:
            raise ValueError(
                f"{self.algorithm.name} is not defined for another local optimizer than SGD: "
                f"{self.algorithm.needs_sgd}; give LocalSettings without an optimizer"
            )


class Participants(NamedTuple):
    """Clients that take part in a round, ``[participants]``, or one of them.

    Attributes:
      client: its number.
      key: its own in this round.
      valid: False for the stand-ins that fill the last block of a mesh: they are never accepted.
    """

    client: Integer[Array, "*participants"]
    key: Key[Array, "*participants"]
    valid: Bool[Array, "*participants"]


class Report(NamedTuple):
    """What comes back from one client, or from all.

    Attributes:
      sent: what the server receives: of one client, summed for the mean, or stacked for another
        rule.
      row: diagnostics, ``[participants]`` of all.
      state: new states, ``[participants, ...]`` of all.
    """

    sent: Sent
    row: ClientRow
    state: PyTree


def train_clients(
    plan: RoundPlan,
    server: Broadcast,
    data: FederatedData,
    settings: RoundSettings,
    participants: Participants,
    states: PyTree,
) -> Report:
    """Train the participants, given the states of all clients, ``[clients, ...]``.

    Over a mesh every device trains a block of them, and what they send, with their rows, is one
    all-reduce of one flat vector; a rule that is no sum gathers instead.
    """
    mesh = plan.execution.mesh
    if mesh is None:
        work = functools.partial(_train_one, plan, server, data, settings)
        return _run(plan, work, participants, states, participants.client)
    whole, split = PartitionSpec(), PartitionSpec(meshes.AXIS)
    clients, devices = data.sizes.shape[0], mesh.shape[meshes.AXIS]

    def on_device(
        server: Broadcast,
        data: FederatedData,
        settings: RoundSettings,
        participants: Participants,
        own: PyTree,
    ) -> tuple[Sent, ClientRow, PyTree]:
        chosen = participants.client
        block = len(chosen) // devices
        first = jax.lax.axis_index(meshes.AXIS) * block
        mine = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, block), participants)
        # Where all take part, a device trains the clients whose states it holds: none travels.
        if not _at_home(plan, clients):
            sharded = meshes.states_are_sharded(clients, mesh)
            own = meshes.take_states(own, chosen, sharded, devices)
        work = functools.partial(_train_one, plan, server, data, settings)
        sent, rows, new = _run(plan, work, mine, own, jnp.arange(block))
        # Each device fills in its rows and leaves zeros elsewhere, so that a sum gathers them.
        rows = jax.tree.map(
            lambda x: jax.lax.dynamic_update_slice_in_dim(
                jnp.zeros((len(chosen), *x.shape[1:]), x.dtype), x, first, 0
            ),
            rows,
        )
        if plan.aggregation.rule == "mean":
            flat, unravel = ravel_pytree((sent, rows))
            sent, rows = unravel(jax.lax.psum(flat, meshes.AXIS))
        else:
            rows = jax.lax.psum(rows, meshes.AXIS)
            sent = jax.lax.all_gather(sent, meshes.AXIS, tiled=True)
        return sent, rows, new

    over_mesh = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(whole, whole, whole, whole, meshes.state_spec(clients, mesh)),
        out_specs=(whole, whole, split),
        check_vma=False,
    )
    return Report(*over_mesh(server, data, settings, participants, states))


def remember(
    plan: RoundPlan,
    states: PyTree,
    new: PyTree,
    participants: Participants,
    accepted: Bool[Array, " participants"],
) -> PyTree:
    """Write the new states of accepted participants to their places among those of all clients."""
    mesh = plan.execution.mesh
    if not jax.tree.leaves(states):
        return states
    if mesh is None:
        put = functools.partial(meshes.put_rows, place=participants.client, accepted=accepted)
        return jax.tree.map(put, states, new)
    clients = jax.tree.leaves(states)[0].shape[0]
    spec, split = meshes.state_spec(clients, mesh), PartitionSpec(meshes.AXIS)
    at_home = _at_home(plan, clients)

    def on_device(own: PyTree, new: PyTree, chosen: Array, accepted: Array) -> PyTree:
        if at_home:
            place = jnp.arange(len(accepted))
            put = functools.partial(meshes.put_rows, place=place, accepted=accepted)
            return jax.tree.map(put, own, new)
        sharded = meshes.states_are_sharded(clients, mesh)
        return meshes.put_states(own, new, chosen, accepted, sharded)

    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(spec, split, PartitionSpec(), split if at_home else PartitionSpec()),
        out_specs=spec,
        check_vma=False,
    )(states, new, participants.client, accepted)


def _at_home(plan: RoundPlan, clients: int) -> bool:
    """Whether every device of the mesh trains exactly the clients whose states it holds."""
    mesh = plan.execution.mesh
    assert mesh is not None
    return plan.participants == clients and meshes.states_are_sharded(clients, mesh)


def _train_one(
    plan: RoundPlan,
    server: Broadcast,
    data: FederatedData,
    settings: RoundSettings,
    participant: Participants,
    state: PyTree,
) -> Report:
    """One client's round: local training, what it sends, and its diagnostics."""
    client, size = participant.client, data.sizes[participant.client]
    began = server
    if plan.keep_local is not None:
        began = server._replace(
            params=with_leaves(server.params, state.params),
            model_state=with_leaves(server.model_state, state.model_state),
        )
        state = state.algorithm
    result = train_client(
        participant.key,
        began,
        ClientData(data.inputs, data.labels, data.indices[client], size, state, client),
        settings,
        task=plan.task,
        algorithm=plan.algorithm,
        local=plan.local,
        scope_form=plan.scope_form,
        epochs=plan.epochs,
        update_clip_norm=plan.aggregation.clip_norm,
        keep_local=plan.keep_local,
    )
    if plan.keep_local is not None:
        result = _keeping(plan.keep_local, server, result)
    # The scope of the model that the server will see: the update may have been changed on its way.
    scope = weight_scope(add_update(server.params, result.update), select=plan.select)
    sent_state = to_numbers(result.model_state, server.model_state)
    by_samples = BySamples(result.update, result.message, sent_state)
    fusion = ScopeForm.fusion if plan.scope_form is None else plan.scope_form.fusion
    by_client = scope_moments(scope, server.target, fusion)
    # The first door: one client that diverged must not end the run of all. An update too large to
    # be squared would make a server's second moments infinite, although it is finite itself; and
    # the square of its norm is finite only if all its numbers are, so they are not read again.
    finite, update_norm = jnp.array(True), norm(result.update)
    if plan.aggregation.drop_nonfinite:
        besides = (jnp.square(update_norm), by_samples._replace(update=()))
        finite = all_finite((*besides, by_client, result.client))
    accepted = participant.valid & finite & (size > 0)
    row = ClientRow(
        loss=result.loss,
        mean=jnp.asarray(scope.mean),
        std=jnp.asarray(scope.std),
        target_divergence=scope_divergence(scope, server.target),
        stability=_stability(plan, scope, server, settings),
        update_norm=update_norm,
        accepted=accepted,
        finite=finite,
    )
    one = accepted.astype(jnp.float32)
    # With 64-bit types JAX sums sizes as int64, which would make every mean float64.
    dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(server.params))
    share = (one * (size / data.sizes.sum()) * result.weight).astype(dtype)
    sent = Sent(by_samples, by_client, share, one)
    return Report(sent, jax.tree.map(lambda x: x.astype(jnp.float32), row), result.client)


def _stability(
    plan: RoundPlan, scope: WeightScope, server: Broadcast, settings: RoundSettings
) -> Float[Array, " layers"]:
    """The share of the stable range that a step uses; 0 where the bound of SGD's is not its own."""
    if plan.scope_form is None or plan.local.optimizer is not None:
        return jnp.zeros_like(scope.mean)
    return stability(
        scope,
        server.target,
        learning_rate=settings.learning_rate,
        strength=settings.strength,
        scale=plan.scope_form.scale,
        direction=plan.scope_form.direction,
    )


def _keeping(rule: Rule, server: Broadcast, result: ClientResult) -> ClientResult:
    """Put what stays with the client into its state, and the server's own in its place."""
    memory = ClientMemory(result.client, result.kept, kept_leaves(result.model_state, rule))
    sent = with_leaves(result.model_state, kept_leaves(server.model_state, rule))
    return result._replace(client=memory, model_state=sent)


def _run(
    plan: RoundPlan,
    work: Callable[[Participants, PyTree], Report],
    participants: Participants,
    states: PyTree,
    rows: Integer[Array, " participants"],
) -> Report:
    """Run clients on this device; each one's state is its row of ``states``."""

    def one(participant: Participants, row: Array) -> Report:
        return work(participant, jax.tree.map(lambda leaf: leaf[row], states))

    is_sum = plan.aggregation.rule == "mean"
    if plan.execution.clients == "map" and is_sum:
        return _running_sum(one, participants, rows)
    if plan.execution.clients == "map":
        return jax.lax.map(lambda each: one(*each), (participants, rows))
    reports = jax.vmap(one)(participants, rows)
    if is_sum:
        terms = jax.vmap(term)(reports.sent)
        reports = reports._replace(sent=jax.tree.map(lambda x: x.sum(axis=0), terms))
    return reports


def _running_sum(
    one: Callable[[Participants, Array], Report],
    participants: Participants,
    rows: Integer[Array, " participants"],
) -> Report:
    """Run one client after another, holding the sum of what they sent and no update besides."""

    def step(
        total: Sent, each: tuple[Participants, Array]
    ) -> tuple[Sent, tuple[ClientRow, PyTree]]:
        report = one(*each)
        return jax.tree.map(jnp.add, total, term(report.sent)), (report.row, report.state)

    first = jax.tree.map(lambda leaf: leaf[0], (participants, rows))
    shapes = jax.eval_shape(lambda each: term(one(*each).sent), first)
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    sent, (infos, states) = jax.lax.scan(step, zero, (participants, rows))
    return Report(sent, infos, states)
