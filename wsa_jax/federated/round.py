"""One federated round as a pure function: draw, broadcast, train, aggregate, server step."""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Integer, Key, PyTree

from wsa_jax import checks
from wsa_jax.door import door
from wsa_jax.federated import mesh as meshes
from wsa_jax.federated.aggregate import (
    Aggregation,
    Sent,
    aggregate,
    all_finite,
    from_numbers,
    merge_by_rule,
    stays_finite,
)
from wsa_jax.federated.algorithms.base import FederatedAlgorithm, ServerContext
from wsa_jax.federated.client import Broadcast, LocalSettings, RoundSettings, ScopeForm
from wsa_jax.federated.diagnostics import RoundInfo, round_info
from wsa_jax.federated.fusion import fused_moments
from wsa_jax.federated.local_leaves import first_memory
from wsa_jax.federated.train_clients import (
    Execution,
    FederatedData,
    Participants,
    RoundPlan,
    remember,
    train_clients,
)
from wsa_jax.leaves import is_weight
from wsa_jax.reductions import norm
from wsa_jax.scope.layers import Rule, kernels
from wsa_jax.scope.scope import WeightScope, weight_scope
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
    server: PyTree
    clients: PyTree
    round: Integer[Array, ""]


@door
def initial_state(
    algorithm: FederatedAlgorithm,
    params: PyTree,
    *,
    clients: int,
    target: WeightScope,
    model_state: PyTree | None = None,
    keep_local: Rule | None = None,
) -> ServerState:
    """Make the state that the first round of `make_round` begins with.

    Args:
      algorithm: FedAvg or another.
      params: global parameters.
      clients: number of clients in all, whether they take part in a round or not.
      target: the weight scope that the first round's clients are held to; its layers are those that
        rounds diagnose.
      model_state: non-parameter collections, none by default.
      keep_local: that of `make_round`: each client begins with these leaves as they are here.

    Guarantees: no leaf shares a buffer with the caller's arrays or with another leaf, so a round
    may donate the state's buffers.

    >>> from wsa_jax.federated import scaffold
    >>> params = {"kernel": jnp.eye(2)}
    >>> state = initial_state(scaffold(), params, clients=5, target=weight_scope(params))
    >>> state.clients["kernel"].shape
    (5, 2, 2)
    """
    checks.floating(params)
    state = ServerState(
        params=params,
        model_state={} if model_state is None else model_state,
        target=target,
        server=algorithm.init_server(params),
        clients=(),
        round=jnp.zeros((), jnp.int32),
    )
    # Client states are fresh, and the only part too large to copy.
    memory = first_memory(algorithm, params, state.model_state, keep_local)
    states = jax.vmap(lambda _: memory)(jnp.arange(clients))
    return dataclasses.replace(jax.tree.map(jnp.array, state), clients=states)


def continued_state(
    given: ServerState, fresh: ServerState, rounds: int, directory: object
) -> ServerState:
    """Copy the state that an earlier run ended with, once it is known to fit this one.

    Args:
      given: the earlier run's state.
      fresh: the state that this run would begin with.
      rounds: rounds of this run in all.
      directory: where this run is kept, if it is.

    Raises:
      ValueError: the state is of another model, algorithm or number of clients, has more rounds, or
        there is a directory, which has a state of its own.
    """
    if directory is not None:
        raise ValueError(
            "state and directory are both given, and a directory holds the state of its run; give "
            "one of them"
        )
    if given.target.names != fresh.target.names:
        raise ValueError(
            f"the state tracks the layers {list(given.target.names)}, but this run tracks "
            f"{list(fresh.target.names)}; give the arguments of the run that made it"
        )
    try:
        checks.same_structure(given, fresh)
        checks.same_dtypes(given, fresh)
    except ValueError as error:
        raise ValueError(
            f"the state is of another run ({error}); give the arguments of the run that made it"
        ) from None
    if int(given.round) > rounds:
        raise ValueError(
            f"the state has done {int(given.round)} rounds, more than rounds {rounds}; give "
            f"rounds >= {int(given.round)}"
        )
    return jax.tree.map(jnp.array, given)


def check_participants(participants: int, clients: int) -> None:
    """Raise a ValueError unless that many participants can be drawn without replacement."""
    if not 1 <= participants <= clients:
        raise ValueError(
            f"participants {participants} of {clients} clients; give 1 <= participants <= {clients}"
        )


RoundFn = Callable[
    [Array, ServerState, FederatedData, RoundSettings], tuple[ServerState, RoundInfo]
]


@door
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
    keep_local: Rule | None = None,
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
      scope_form: how weight scope alignment acts; None for the plain algorithm. Of a
        `WeightScopeAlignment`, its ``static(select)``: the strength is a round's, the target the
        state's.
      select: layers to diagnose if scope_form is None.
      fuse_target: replace the target by the fused scope after each round (Eq. 4), or keep it.
      aggregation: mean or a robust rule, clipping, and how NaN is handled.
      execution: performance settings.
      keep_local: which leaves of parameters and model state stay at the clients, which the layers
        of scope_form or select must leave out; give it to `initial_state`, too. None for none.

    Guarantees: equal arguments return the same function, so settings that are plain numbers share
    one compilation; equal keys and states give bitwise equal results. With the mean, a round over a
    mesh is one all-reduce of the sums; client states (SCAFFOLD) and robust rules need more.

    Edge case: a round in which no client is accepted changes nothing except the round number; nor
    does one whose sums, parameters or server state would no longer be finite (`Aggregation`).

    Raises:
      ValueError: scope_form is a `WeightScopeAlignment`; or, at the first call, participants is not
        in [1, clients], or local settings give steps of another number of clients.

    Source: WSA, Algorithm 1.
    """
    plan = RoundPlan(
        task=task,
        algorithm=algorithm,
        participants=participants,
        epochs=epochs,
        local=local,
        scope_form=scope_form,
        select=select if scope_form is None else scope_form.select,
        fuse_target=fuse_target,
        aggregation=aggregation,
        execution=execution,
        keep_local=keep_local,
    )
    return jitted_round(plan)


@functools.lru_cache(maxsize=32)
def jitted_round(plan: RoundPlan) -> RoundFn:
    """Return the jitted round of a plan, the same function for equal plans; see `make_round`."""

    def run(
        key: Key[Array, ""], state: ServerState, data: FederatedData, settings: RoundSettings
    ) -> tuple[ServerState, RoundInfo]:
        return _round(plan, key, state, data, settings)

    return jax.jit(run, donate_argnums=(1,) if plan.execution.donate else ())


def _round(
    plan: RoundPlan,
    key: Key[Array, ""],
    state: ServerState,
    data: FederatedData,
    settings: RoundSettings,
) -> tuple[ServerState, RoundInfo]:
    """One round: draw, broadcast, train, aggregate, step; see the drawing in docs/design.md."""
    participants = _draw(plan, jax.random.fold_in(key, state.round), data.sizes.shape[0])
    server = Broadcast(
        state.params, state.model_state, state.target, plan.algorithm.broadcast(state.server)
    )
    # The first door is each client's own.
    report = train_clients(plan, server, data, settings, participants, state.clients)
    mean = _aggregate(plan, key, state, report.sent, data.evidence)
    update_norm = norm(mean.by_samples.update)
    stepped = _server_step(plan, state, mean, settings)
    new, refused = _doors(plan, state, stepped, mean, update_norm)

    rows = jax.tree.map(lambda x: x[: plan.participants], report.row)
    info = round_info(
        rows,
        participants.client[: plan.participants],
        new.target,
        weight_scope(new.params, select=plan.select),
        update_norm,
        refused=refused,
    )
    # Clients remember nothing of a round that was refused, as the server does not.
    accepted = ~refused & (report.row.accepted > 0)
    clients = remember(plan, state.clients, report.state, participants, accepted)
    target = new.target if plan.fuse_target else state.target
    return dataclasses.replace(new, target=target, clients=clients), info


def _draw(plan: RoundPlan, key: Key[Array, ""], clients: int) -> Participants:
    """Draw the participants of a round, and their keys."""
    check_participants(plan.participants, clients)
    plan.local.check_clients(clients)
    draw_key, train_key = jax.random.split(key)
    chosen = jnp.arange(clients)
    if plan.participants < clients:
        chosen = jax.random.choice(draw_key, clients, (plan.participants,), replace=False)
    # A mesh trains equal blocks: the last may hold stand-ins, which are never accepted.
    mesh = plan.execution.mesh
    padding = 0 if mesh is None else -plan.participants % mesh.shape[meshes.AXIS]
    each = jnp.concatenate([chosen, jnp.broadcast_to(chosen[:1], (padding,))])
    # A client's key depends on the client and the round alone, not on who else takes part.
    keys = jax.vmap(lambda client: jax.random.fold_in(train_key, client))(each)
    return Participants(each, keys, jnp.arange(len(each)) < plan.participants)


def _aggregate(
    plan: RoundPlan, key: Key[Array, ""], state: ServerState, sent: Sent, evidence: PyTree
) -> Sent:
    """What the server sums, or what its rule makes of all models."""
    rule = plan.aggregation.rule
    if not callable(rule):
        return aggregate(sent, plan.aggregation)
    # However the round runs, a rule sees the participants alone, without a mesh's stand-ins.
    sent = jax.tree.map(lambda x: x[: plan.participants], sent)
    rule_key = jax.random.fold_in(jax.random.fold_in(key, state.round), 2)
    return merge_by_rule(rule, rule_key, state.params, sent, evidence)


def _server_step(
    plan: RoundPlan, state: ServerState, mean: Sent, settings: RoundSettings
) -> ServerState:
    """The state that the algorithm and Eq. 4 make of the aggregate, without those of clients."""
    context = ServerContext(
        params=state.params,
        update=mean.by_samples.update,
        message=mean.by_samples.message,
        learning_rate=settings.learning_rate,
        round=state.round,
        participants=mean.count,
        share=mean.weight,
    )
    params, server = plan.algorithm.apply(state.server, context)
    fusion = ScopeForm.fusion if plan.scope_form is None else plan.scope_form.fusion
    scope_mean, scope_std = fused_moments(mean.by_client, mean.count, state.target, fusion)
    return ServerState(
        params=params,
        model_state=from_numbers(mean.by_samples.model_state, state.model_state),
        target=dataclasses.replace(state.target, mean=scope_mean, std=scope_std),
        server=server,
        clients=(),
        round=state.round + 1,
    )


def _doors(
    plan: RoundPlan, state: ServerState, new: ServerState, mean: Sent, update_norm: Array
) -> tuple[ServerState, Bool[Array, ""]]:
    """The new state, or the old one with the next number; and whether the new one was refused."""
    old = dataclasses.replace(state, clients=(), round=new.round)
    sound = jnp.array(True)
    if plan.aggregation.drop_nonfinite:
        # Sums and steps of finite updates may still overflow. A norm is finite only if all numbers
        # are, so the update, which is as large as the model, is not read again.
        sums = (update_norm, mean.by_samples._replace(update=()), mean.by_client)
        sound = all_finite(sums) & stays_finite(new, old)
    # Without an accepted client the means are zeros, which would be taken for a model.
    stands = sound & (mean.count > 0)

    def stay(new: Any, old: Array) -> Array:
        # A state keeps its dtypes: another one would compile again, and no directory resumes it.
        if is_weight(new) and is_weight(old):
            new = new.astype(old.dtype)
        return jnp.where(stands, new, old)

    return jax.tree.map(stay, new, old), ~sound
