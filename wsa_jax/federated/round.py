"""One federated round as a pure function: broadcast, local training, one reduction, server step."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Integer, Key, PyTree

from wsa_jax.federated.algorithms.base import FederatedAlgorithm, ServerContext
from wsa_jax.federated.client import (
    ClientResult,
    LocalSettings,
    RoundSettings,
    ScopeForm,
    train_client,
)
from wsa_jax.scope import WeightScope, fuse_scopes, scope_divergence, weight_scope
from wsa_jax.stability import stability
from wsa_jax.training import Task
from wsa_jax.tree import weighted_mean


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


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class RoundInfo:
    """What one wants to look at after a round; divergences are in nats, one number a layer.

    Attributes:
      loss: mean training loss of each participant over its local steps, ``[participants]``.
      participants: which clients took part, ``[participants]``.
      clients: their weight scopes after local training, ``[participants, layers]``.
      client_divergence: mean KL between two different participants, ``[layers]``; 0 for one client.
      target_divergence: mean KL of a participant from the target it was held to, ``[layers]``.
      average: weight scope of the averaged model, ``[layers]``.
      fused: scope fused from the participants (Eq. 4), ``[layers]``.
      update_norm: norm of each participant's update, ``[participants]``.
      mean_update_norm: norm of the weighted mean update.
      stability: share of the explicit step's stable range in use, ``[layers]``; 0 without WSA.
    """

    loss: Float[Array, " participants"]
    participants: Integer[Array, " participants"]
    clients: WeightScope
    client_divergence: Float[Array, " layers"]
    target_divergence: Float[Array, " layers"]
    average: WeightScope
    fused: WeightScope
    update_norm: Float[Array, " participants"]
    mean_update_norm: Float[Array, ""]
    stability: Float[Array, " layers"]


class FederatedData(NamedTuple):
    """Examples shared by all clients, and who owns which: device arrays.

    Attributes:
      images: ``[examples, ...]``, uint8 as a rule.
      labels: ``[examples]``.
      indices: rows of each client, padded, ``[clients, capacity]``.
      sizes: number of rows of each client, ``[clients]``.
    """

    images: Array
    labels: Integer[Array, " examples"]
    indices: Integer[Array, "clients capacity"]
    sizes: Integer[Array, " clients"]


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Performance settings: none changes a result beyond rounding.

    Attributes:
      clients: ``"map"`` trains one client after another (CPU, or little memory), ``"vmap"`` all at
        once (accelerators).
      donate: let a round reuse the buffers of the state it is given.
      evaluation_batch: examples evaluated at once.
    """

    clients: Literal["map", "vmap"] = "map"
    donate: bool = True
    evaluation_batch: int = 500

    def __post_init__(self):
        if self.clients not in ("map", "vmap"):
            raise ValueError(f"clients {self.clients!r} is unknown; give 'map' or 'vmap'")


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
    diagnose: ScopeForm | None = None,
    fuse_target: bool = True,
    execution: Execution = Execution(),
) -> RoundFn:
    """Make the jitted function of one round, ``(key, state, data, settings) -> (state, info)``.

    Args:
      task: what is trained.
      algorithm: FedAvg, ...
      participants: clients drawn a round, uniformly and without replacement; all if it is their
        number.
      epochs: see `wsa_jax.federated.client.epochs_needed`.
      local: settings of local training.
      scope_form: how weight scope alignment acts; None for the plain algorithm.
      diagnose: layers to diagnose where scope_form is None.
      fuse_target: replace the target by the fused scope after each round (Eq. 4), or keep it.
      execution: performance settings.

    Guarantees: equal arguments return the same function, so settings that are plain numbers share
    one compilation; equal keys and states give bitwise equal results. With a linear algorithm the
    server needs sums over clients only.

    Source: WSA, Algorithm 1.
    """
    select = (scope_form or diagnose or ScopeForm()).select

    def one_client(
        state: ServerState, data: FederatedData, settings: RoundSettings, xs: tuple
    ) -> ClientResult:
        client, key, client_state = xs
        return train_client(
            key,
            state.params,
            state.model_state,
            state.target,
            state.server,
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
        )

    def run(
        key: Key[Array, ""], state: ServerState, data: FederatedData, settings: RoundSettings
    ) -> tuple[ServerState, RoundInfo]:
        num_clients = data.sizes.shape[0]
        draw_key, train_key = jax.random.split(jax.random.fold_in(key, state.round))
        chosen = jnp.arange(num_clients)
        if participants < num_clients:
            chosen = jax.random.choice(draw_key, num_clients, (participants,), replace=False)
        # A client's key depends on the client and the round alone, not on who else takes part.
        keys = jax.vmap(lambda client: jax.random.fold_in(train_key, client))(chosen)
        local_states = jax.tree.map(lambda leaf: leaf[chosen], state.clients)

        train = functools.partial(one_client, state, data, settings)
        each = (chosen, keys, local_states)
        results = jax.vmap(train)(each) if execution.clients == "vmap" else jax.lax.map(train, each)

        weights = data.sizes[chosen].astype(jnp.float32)
        update = weighted_mean(results.update, weights)
        context = ServerContext(
            params=state.params,
            update=update,
            message=weighted_mean(results.message, weights),
            learning_rate=settings.learning_rate,
            participants=participants,
            clients=num_clients,
        )
        params, server = algorithm.apply(state.server, context)
        trained = jax.tree.map(lambda w, d: w[None] + d, state.params, results.update)
        scopes = jax.vmap(functools.partial(weight_scope, select=select))(trained)
        fused = fuse_scopes(scopes, weights=(weights > 0).astype(jnp.float32))
        clients = jax.tree.map(
            lambda all_, new: all_.at[chosen].set(new), state.clients, results.client
        )
        # A round whose participants all are without examples changes neither of these.
        trains = weights.sum() > 0
        keep_old = functools.partial(jax.tree.map, lambda new, old: jnp.where(trains, new, old))
        new_state = ServerState(
            params=params,
            model_state=keep_old(weighted_mean(results.model_state, weights), state.model_state),
            target=keep_old(fused, state.target) if fuse_target else state.target,
            server=server,
            clients=clients,
            round=state.round + 1,
        )
        info = _diagnose(
            results, chosen, scopes, fused, state, new_state, update, settings, select, scope_form
        )
        return new_state, info

    return jax.jit(run, donate_argnums=(1,) if execution.donate else ())


def _diagnose(
    results: ClientResult,
    chosen: Array,
    scopes: WeightScope,
    fused: WeightScope,
    old: ServerState,
    new: ServerState,
    update: PyTree,
    settings: RoundSettings,
    select: Any,
    scope_form: ScopeForm | None,
) -> RoundInfo:
    count = scopes.mean.shape[0]
    pairs = jax.vmap(lambda scope: scope_divergence(scopes, scope))(scopes)
    used = jnp.zeros_like(fused.mean)
    if scope_form is not None:
        used = stability(
            scopes, old.target, learning_rate=settings.learning_rate,
            strength=settings.strength, scale=scope_form.scale,
        ).max(axis=0)  # fmt: skip
    return RoundInfo(
        loss=results.loss,
        participants=chosen,
        clients=scopes,
        client_divergence=pairs.sum(axis=(0, 1)) / max(count * (count - 1), 1),
        target_divergence=scope_divergence(scopes, old.target).mean(axis=0),
        average=weight_scope(new.params, select=select),
        fused=fused,
        update_norm=jax.vmap(optax.tree.norm)(results.update),
        mean_update_norm=optax.tree.norm(update),
        stability=used,
    )
