"""One federated round as a pure function: broadcast, local training, one reduction, server step."""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Integer, Key, PyTree, Shaped

from wsa_jax.federated import mesh as meshes
from wsa_jax.federated.aggregate import (
    Aggregation,
    Sent,
    aggregate,
    all_finite,
    from_numbers,
    term,
    to_numbers,
)
from wsa_jax.federated.algorithms.base import FederatedAlgorithm, ServerContext, add_update
from wsa_jax.federated.client import (
    LocalSettings,
    RoundSettings,
    ScopeForm,
    train_client,
)
from wsa_jax.federated.diagnostics import ClientRow, RoundInfo, round_info
from wsa_jax.scope.layers import Rule, kernels
from wsa_jax.scope.scope import WeightScope, scope_divergence, weight_scope
from wsa_jax.scope.stability import stability
from wsa_jax.training.task import Task


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ServerState:
    """What the next round needs.

    Attributes:
      params: global parameters.
      model_state: non-parameter collections (BatchNorm statistics), averaged by sample count.
      target: the weight scope clients are held to in the next round.
      server: the algorithm's server state.
      clients: the algorithm's client states, stacked ``[clients, ...]``.
      round: number of rounds done.
    """

    params: PyTree
    model_state: PyTree
    target: WeightScope
    server: Any
    clients: Any
    round: Integer[Array, ""]


def initial_state(
    algorithm: FederatedAlgorithm,
    params: PyTree,
    *,
    clients: int,
    target: WeightScope,
    model_state: PyTree | None = None,
) -> ServerState:
    """Make the state that the first round of `make_round` begins with.

    Args:
      algorithm: FedAvg or another.
      params: global parameters.
      clients: number of clients in all, whether they take part in a round or not.
      target: the weight scope that the first round's clients are held to; its layers are those that
        rounds diagnose.
      model_state: non-parameter collections, none by default.

    Guarantees: no leaf shares a buffer with the caller's arrays or with another leaf, so a round
    may donate the state's buffers.

    >>> from wsa_jax.federated import scaffold
    >>> params = {"kernel": jnp.eye(2)}
    >>> state = initial_state(scaffold(), params, clients=5, target=weight_scope(params))
    >>> state.clients["kernel"].shape
    (5, 2, 2)
    """
    state = ServerState(
        params=params,
        model_state={} if model_state is None else model_state,
        target=target,
        server=algorithm.init_server(params),
        clients=(),
        round=jnp.zeros((), jnp.int32),
    )
    # Client states are fresh, and the only part too large to copy.
    states = jax.vmap(lambda _: algorithm.init_client(params))(jnp.arange(clients))
    return dataclasses.replace(jax.tree.map(jnp.array, state), clients=states)


class FederatedData(NamedTuple):
    """Device arrays of the examples of all clients, and which client owns which.

    Attributes:
      images: ``[examples, ...]``, usually uint8.
      labels: ``[examples]``.
      indices: rows of each client, padded, ``[clients, capacity]``.
      sizes: number of rows of each client, ``[clients]``.
    """

    images: Array
    labels: Shaped[Array, " examples"]
    indices: Integer[Array, "clients capacity"]
    sizes: Integer[Array, " clients"]


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Performance settings; none of them changes a result beyond rounding.

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
        if self.clients not in ("map", "vmap"):
            raise ValueError(f"clients {self.clients!r} is unknown; give 'map' or 'vmap'")
        if self.mesh is not None:
            meshes.check_mesh(self.mesh)


def check_participants(participants: int, clients: int) -> None:
    """Raise a ValueError unless that many participants can be drawn without replacement."""
    if not 1 <= participants <= clients:
        raise ValueError(
            f"participants {participants} of {clients} clients; give 1 <= participants <= {clients}"
        )


RoundFn = Callable[
    [Array, ServerState, FederatedData, RoundSettings], tuple[ServerState, RoundInfo]
]


@functools.lru_cache(maxsize=32)
def make_round(
    task: Task,
    algorithm: FederatedAlgorithm,
    *,
    participants: int,
    epochs: int,
    local: LocalSettings,
    scope_form: ScopeForm | None = None,
    select: Rule = kernels,
    fuse_target: bool = True,
    aggregation: Aggregation = Aggregation(),
    execution: Execution = Execution(),
) -> RoundFn:
    """Make the jitted function of one round, ``(key, state, data, settings) -> (state, info)``.

    Use it in loops of your own; `simulate` is one, with evaluation and checkpoints. The first state
    comes from `initial_state`, the data are a `FederatedData`, the settings `RoundSettings`. The
    key is that of the run: round and client are folded into it.

    Args:
      task: what is trained.
      algorithm: FedAvg or another.
      participants: number of clients drawn per round, uniformly and without replacement.
      epochs: number of orders of its examples that a client draws in a round: `epochs_needed` of
        the smallest client that has any; with fewer, the last order would be repeated.
      local: settings of local training.
      scope_form: how weight scope alignment acts; None for the plain algorithm.
      select: layers to diagnose if scope_form is None.
      fuse_target: replace the target by the fused scope after each round (Eq. 4), or keep it.
      aggregation: mean or a robust rule, clipping, and how NaN is handled.
      execution: performance settings.

    Guarantees: equal arguments return the same function, so settings that are plain numbers share
    one compilation; equal keys and states give bitwise equal results. With the mean, a round over a
    mesh is one all-reduce of the sums; client states (SCAFFOLD) and robust rules need more.

    Edge case: a round in which no client is accepted changes nothing except the round number.

    Raises:
      ValueError: at the first call, participants is not in [1, clients].

    Source: WSA, Algorithm 1.
    """
    select = scope_form.select if scope_form is not None else select
    mesh = execution.mesh

    def one_client(
        state: ServerState, data: FederatedData, settings: RoundSettings, xs: tuple
    ) -> tuple[Sent, ClientRow, Any]:
        client, key, valid, client_state = xs
        share = data.sizes[client] / data.sizes.sum()
        result = train_client(
            key,
            state.params,
            state.model_state,
            state.target,
            algorithm.broadcast(state.server),
            client_state,
            data.images,
            data.labels,
            data.indices[client],
            data.sizes[client],
            settings,
            task=task,
            algorithm=algorithm,
            local=local,
            scope_form=scope_form,
            epochs=epochs,
            update_clip_norm=aggregation.clip_norm,
        )
        scope = weight_scope(add_update(state.params, result.update), select=select)
        sent_state = to_numbers(result.model_state, state.model_state)
        by_samples = (result.update, result.message, sent_state)
        by_client = (scope.mean, jnp.square(scope.std))
        finite = jnp.array(True)
        if aggregation.drop_nonfinite:
            finite = all_finite((by_samples, by_client, result.client))
        accepted = valid & finite & (data.sizes[client] > 0)
        used = jnp.zeros_like(scope.mean)
        if scope_form is not None:
            used = stability(
                scope, state.target, learning_rate=settings.learning_rate,
                strength=settings.strength, scale=scope_form.scale,
            )  # fmt: skip
        row = ClientRow(
            loss=result.loss,
            mean=jnp.asarray(scope.mean),
            std=jnp.asarray(scope.std),
            target_divergence=scope_divergence(scope, state.target),
            stability=used,
            update_norm=optax.tree.norm(result.update),
            accepted=accepted,
            finite=finite,
        )
        one = accepted.astype(jnp.float32)
        sent = Sent(by_samples, by_client, one * share, one)
        return sent, jax.tree.map(lambda x: x.astype(jnp.float32), row), result.client

    def train(
        state: ServerState, data: FederatedData, settings: RoundSettings, each: tuple, table: Any
    ) -> tuple[Sent, ClientRow, Any]:
        """Train a block of clients; what they sent is summed, or stacked for a robust rule.

        ``table`` holds client states, and the last entry of ``each`` is each client's row in it;
        the states of accepted clients are replaced.
        """
        work = functools.partial(one_client, state, data, settings)
        *who, rows = each
        if execution.clients == "map" and aggregation.rule == "mean":

            def step(carry: tuple[Sent, Any], xs: tuple) -> tuple[tuple[Sent, Any], ClientRow]:
                total, table = carry
                *who, row = xs
                sent, info, new = work((*who, jax.tree.map(lambda leaf: leaf[row], table)))
                table = jax.tree.map(
                    lambda leaf, one: leaf.at[row].set(
                        jnp.where(info.accepted > 0, one, leaf[row])
                    ),
                    table, new,
                )  # fmt: skip
                return (jax.tree.map(jnp.add, total, term(sent)), table), info

            first = jax.tree.map(lambda leaf: leaf[0], tuple(who))
            state_of_first = jax.tree.map(lambda leaf: leaf[rows[0]], table)
            shapes = jax.eval_shape(lambda xs: term(work(xs)[0]), (*first, state_of_first))
            zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            (sent, table), infos = jax.lax.scan(step, (zero, table), each)
            return sent, infos, table

        states = jax.tree.map(lambda leaf: leaf[rows], table)
        together = execution.clients == "vmap"
        every = jax.vmap(work) if together else functools.partial(jax.lax.map, work)
        sent, infos, new = every((*who, states))
        if aggregation.rule == "mean":
            sent = jax.tree.map(lambda x: x.sum(axis=0), jax.vmap(term)(sent))
        put = functools.partial(meshes.put_rows, place=rows, accepted=infos.accepted > 0)
        return sent, infos, jax.tree.map(put, table, new)

    def train_here(
        state: ServerState, data: FederatedData, settings: RoundSettings, each: tuple
    ) -> tuple[Sent, ClientRow, Any]:
        sent, rows, table = train(state, data, settings, (*each, each[0]), state.clients)
        return aggregate(sent, aggregation), rows, table

    def train_on_mesh(
        state: ServerState, data: FederatedData, settings: RoundSettings, each: tuple
    ) -> tuple[Sent, ClientRow, Any]:
        assert mesh is not None
        devices = mesh.shape[meshes.AXIS]
        num_clients = data.sizes.shape[0]
        sharded = meshes.states_are_sharded(num_clients, mesh)
        at_home = sharded and participants == num_clients
        whole = PartitionSpec()
        split = meshes.state_spec(num_clients, mesh)

        def on_device(
            state: ServerState, own: Any, data: FederatedData, settings: RoundSettings, each: tuple
        ) -> tuple[Sent, ClientRow, Any]:
            chosen = each[0]
            block = len(chosen) // devices
            first = jax.lax.axis_index(meshes.AXIS) * block
            mine = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, block), each)
            # Where all take part, a device trains the clients whose states it holds.
            table = own if at_home else meshes.take_states(own, chosen, sharded, devices)
            sent, rows, table = train(state, data, settings, (*mine, jnp.arange(block)), table)
            rows = jax.tree.map(
                lambda x: jax.lax.dynamic_update_slice_in_dim(
                    jnp.zeros((len(chosen), *x.shape[1:]), x.dtype), x, first, 0
                ),
                rows,
            )
            if aggregation.rule == "mean":
                flat, unravel = ravel_pytree((sent, rows))
                sent, rows = unravel(jax.lax.psum(flat, meshes.AXIS))
            else:
                rows = jax.lax.psum(rows, meshes.AXIS)
                sent = jax.lax.all_gather(sent, meshes.AXIS, tiled=True)
            if not at_home:
                table = meshes.put_states(own, table, chosen, rows.accepted > 0, sharded)
            return aggregate(sent, aggregation), rows, table

        sharded_train = jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(whole, split, whole, whole, whole),
            out_specs=(whole, whole, split),
            check_vma=False,
        )
        without_clients = dataclasses.replace(state, clients=())
        return sharded_train(without_clients, state.clients, data, settings, each)

    def run(
        key: Key[Array, ""], state: ServerState, data: FederatedData, settings: RoundSettings
    ) -> tuple[ServerState, RoundInfo]:
        num_clients = data.sizes.shape[0]
        check_participants(participants, num_clients)
        draw_key, train_key = jax.random.split(jax.random.fold_in(key, state.round))
        chosen = jnp.arange(num_clients)
        if participants < num_clients:
            chosen = jax.random.choice(draw_key, num_clients, (participants,), replace=False)
        # A mesh trains equal blocks: the last may hold stand-ins, which are never accepted.
        padding = 0 if mesh is None else -participants % mesh.shape[meshes.AXIS]
        each = jnp.concatenate([chosen, jnp.broadcast_to(chosen[:1], (padding,))])
        # A client's key depends on the client and the round alone, not on who else takes part.
        keys = jax.vmap(lambda client: jax.random.fold_in(train_key, client))(each)
        valid = jnp.arange(len(each)) < participants

        train_all = train_here if mesh is None else train_on_mesh
        mean, rows, clients = train_all(state, data, settings, (each, keys, valid))
        rows = jax.tree.map(lambda x: x[:participants], rows)
        update, message, model_state = mean.by_samples
        context = ServerContext(
            params=state.params,
            update=update,
            message=message,
            learning_rate=settings.learning_rate,
            round=state.round,
            participants=mean.count,
            share=mean.weight,
        )
        params, server = algorithm.apply(state.server, context)
        scope_mean, scope_variance = mean.by_client
        trains = mean.count > 0
        keep_old = functools.partial(jax.tree.map, lambda new, old: jnp.where(trains, new, old))
        fused = dataclasses.replace(state.target, mean=scope_mean, std=jnp.sqrt(scope_variance))
        fused = keep_old(fused, state.target)
        params = keep_old(params, state.params)
        new_state = ServerState(
            params=params,
            model_state=keep_old(from_numbers(model_state, state.model_state), state.model_state),
            target=fused if fuse_target else state.target,
            server=keep_old(server, state.server),
            clients=clients,
            round=state.round + 1,
        )
        info = round_info(
            rows, chosen, fused, weight_scope(params, select=select), optax.tree.norm(update)
        )
        return new_state, info

    return jax.jit(run, donate_argnums=(1,) if execution.donate else ())
