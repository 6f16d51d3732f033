"""Local training of one client: one `lax.scan` over batches drawn without replacement."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Integer, Key, PyTree

from wsa_jax.federated.aggregate import clip_update
from wsa_jax.federated.algorithms.base import FederatedAlgorithm, LocalContext
from wsa_jax.federated.alignment import ScopeForm
from wsa_jax.federated.batches import draw_batches as draw_batches
from wsa_jax.federated.batches import epochs_needed as epochs_needed
from wsa_jax.federated.batches import own_keys, steps_of_an_epoch
from wsa_jax.federated.local_leaves import kept_leaves, without_moves
from wsa_jax.federated.local_settings import LocalSettings as LocalSettings
from wsa_jax.federated.local_settings import RoundSettings as RoundSettings
from wsa_jax.scope.layers import Rule
from wsa_jax.scope.proximal import proximal_scope
from wsa_jax.scope.regularization import regularize_scope, scope_penalty
from wsa_jax.scope.scope import WeightScope
from wsa_jax.training.task import Batch, Task
from wsa_jax.tree import clip_gradient, wide


class Broadcast(NamedTuple):
    """What the server sends to every participant of a round.

    Attributes:
      params: the global parameters.
      model_state: non-parameter collections (BatchNorm statistics).
      target: the weight scope that clients are held to.
      server: what the algorithm broadcasts of its server state.
    """

    params: PyTree
    model_state: PyTree
    target: WeightScope
    server: PyTree = ()


class ClientData(NamedTuple):
    """What one client has of its own: which examples, and what the algorithm let it remember.

    Attributes:
      inputs: of all clients, arrays ``[examples, ...]``.
      labels: of all clients, ``[examples]``.
      indices: rows that are this client's, padded, ``[capacity]``.
      size: number of its rows.
      state: the algorithm's state of this client.
      number: which client this is.
    """

    inputs: PyTree
    labels: Array
    indices: Integer[Array, " capacity"]
    size: Int[Array, ""]
    state: Any = ()
    number: Array | int = 0


class ClientResult(NamedTuple):
    """What a client sends: its update, its statistics, its message, its state and its mean loss.

    ``weight`` is the factor by which the algorithm changes this client's share of the samples,
    ``kept`` the parameters that stay with it.
    """

    update: PyTree
    model_state: PyTree
    message: PyTree
    client: PyTree
    loss: Float[Array, ""]
    weight: Array | float = 1.0
    kept: PyTree = ()


def train_client(
    key: Key[Array, ""],
    server: Broadcast,
    client: ClientData,
    settings: RoundSettings,
    *,
    task: Task,
    algorithm: FederatedAlgorithm,
    local: LocalSettings,
    scope_form: ScopeForm | None = None,
    epochs: int,
    update_clip_norm: float | int | None = None,
    keep_local: Rule | None = None,
) -> ClientResult:
    """Train the global model on one client's data for one round.

    A local step, in this order: gradient of the loss, the algorithm's correction, weight scope
    regularization, global-norm clip, weight decay, SGD, proximal scope step if that is the form.
    At the end the update as a whole is clipped to ``update_clip_norm``, and the algorithm may send
    another one in its place.

    Args:
      key: the client's own in this round.
      server: what the server sends to every participant.
      client: this client's examples and state.
      settings: plain numbers of the round.
      task: what is trained.
      algorithm: FedAvg or another.
      local: settings of local training.
      scope_form: how weight scope alignment acts; None for the plain algorithm.
      epochs: orders of its examples that the client draws, see `epochs_needed`; not looked at if
        the local settings give epochs.
      update_clip_norm: bound on the norm of the update, None for no clipping.
      keep_local: which parameters stay with the client: those of ``server`` are its own, and the
        update is 0 there.

    Edge cases: a client without examples takes steps from weight decay alone; its aggregation
    weight is 0. A NaN loss makes the client's update NaN. Keys in the model state are the client's
    own.

    Source: WSA, Algorithm 1, lines 5-9; order and hyper-parameters of FedExP's public experiments.
    """
    data_key, steps_key = jax.random.split(key)
    own_key = jax.random.fold_in(key, 3)
    steps, done = _step_counts(local, client)
    context = LocalContext(
        server.params,
        server.server,
        client.state,
        settings.learning_rate,
        done,
        own_key,
        local.momentum,
        client.number,
    )

    def at(step: Array | int) -> LocalContext:
        return context._replace(key=jax.random.fold_in(own_key, step))

    optimizer, step = _local_step(
        server,
        client,
        settings,
        steps_key,
        at,
        task=task,
        algorithm=algorithm,
        local=local,
        scope_form=scope_form,
    )
    # All batches are drawn before the scan, so its shapes are static whatever the client's size.
    positions, mask = draw_batches(
        data_key,
        client.size,
        capacity=client.indices.shape[0],
        steps=steps,
        batch_size=local.batch_size,
        epochs=epochs if local.epochs is None else local.epochs,
    )
    carry = (server.params, own_keys(key, server.model_state), optimizer.init(server.params))
    if local.differ:
        step = _until(done, step)
    (trained, model_state, _), losses = jax.lax.scan(
        step, carry, (jnp.arange(steps), positions, mask)
    )
    # The client clips its own update, so that its state and scope agree with what it sends.
    update = jax.tree.map(lambda new, old: wide(new) - wide(old), trained, server.params)
    kept = ()
    if keep_local is not None:
        kept, update = kept_leaves(trained, keep_local), without_moves(update, keep_local)
    update = algorithm.send(clip_update(update, update_clip_norm), at(steps))
    state, message = algorithm.finish(update, at(steps + 1))
    loss = jnp.sum(losses) / done if local.differ else jnp.mean(losses)
    weight = algorithm.weigh(context)
    return ClientResult(update, model_state, message, state, loss, weight, kept)


def _local_step(
    server: Broadcast,
    client: ClientData,
    settings: RoundSettings,
    key: Key[Array, ""],
    at: Callable[[Array | int], LocalContext],
    *,
    task: Task,
    algorithm: FederatedAlgorithm,
    local: LocalSettings,
    scope_form: ScopeForm | None,
) -> tuple[optax.GradientTransformationExtraArgs, Callable[[tuple, tuple], tuple[tuple, Array]]]:
    """The optimizer of a client, and one step of its scan."""
    loss_fn = _loss_with_penalty(task, settings, server.target, scope_form)
    optimizer = local_optimizer(local, settings, scope_form)
    before = _before_optimizer(local, settings, scope_form)

    def prepare(grads: PyTree, params: PyTree) -> PyTree:
        return before.update(grads, before.init(params), params, target=server.target)[0]

    def step(carry: tuple, xs: tuple) -> tuple[tuple, Array]:
        params, model_state, opt_state = carry
        index, positions, mask = xs
        # Keys by the step's number: a step draws the same whatever ran before it.
        rows, loss_key = client.indices[positions], jax.random.fold_in(key, index)
        inputs = jax.tree.map(lambda leaf: leaf[rows], client.inputs)
        batch = Batch(inputs, client.labels[rows], mask)
        loss_of = functools.partial(loss_fn, key=loss_key, model_state=model_state, batch=batch)

        def gradient(params: PyTree) -> tuple[PyTree, PyTree]:
            found, grads = jax.value_and_grad(loss_of, has_aux=True)(params)
            return found, algorithm.correct(grads, params, at(index))

        (value, (loss, model_state)), grads = gradient(params)
        # Line searches and sharpness look elsewhere; the gradient is corrected there, too.
        updates, opt_state = optimizer.update(
            grads,
            opt_state,
            params,
            target=server.target,
            value=value,
            grad=grads,
            value_fn=lambda params: loss_of(params)[0],
            grad_fn=lambda params, _: prepare(gradient(params)[1], params),
        )
        return (optax.apply_updates(params, updates), model_state, opt_state), loss

    return optimizer, step


def _step_counts(local: LocalSettings, client: ClientData) -> tuple[int, Array | int]:
    """How long the loop over local steps is, and how many of them this client takes."""
    if local.epochs is None:
        own = local.steps
        if isinstance(own, tuple):
            own = jnp.asarray(own)[client.number]
        return local.longest, own
    longest, own = (
        local.epochs * steps_of_an_epoch(examples, local.batch_size)
        for examples in (client.indices.shape[0], client.size)
    )
    return longest, own


def _until(done: Array | int, step: Callable[..., tuple[tuple, Array]]) -> Callable[..., Any]:
    """A step that leaves everything as it is, with a loss of 0, once a client's own are done."""

    def stepped(carry: tuple, xs: tuple) -> tuple[tuple, Array]:
        loss = jax.eval_shape(step, carry, xs)[1]
        stay = (carry, jnp.zeros(loss.shape, loss.dtype))
        return jax.lax.cond(xs[0] < done, lambda: step(carry, xs), lambda: stay)

    return stepped


def _loss_with_penalty(
    task: Task, settings: RoundSettings, target: WeightScope, scope_form: ScopeForm | None
) -> Callable[..., tuple[Array, tuple[Array, PyTree]]]:
    """The loss to differentiate, and the task's own, which is the one to report."""

    def loss_fn(params: PyTree, key: Array, model_state: PyTree, batch: Batch):
        loss, model_state = task.loss(key, params, model_state, batch)
        total = loss
        if scope_form is not None and scope_form.form == "penalty":
            penalty = scope_penalty(
                params,
                target,
                select=scope_form.select,
                scale=scope_form.scale,
                direction=scope_form.direction,
            )
            total = loss + settings.strength * penalty
        return total, (loss, model_state)

    return loss_fn


def local_optimizer(
    local: LocalSettings, settings: RoundSettings, scope_form: ScopeForm | None
) -> optax.GradientTransformationExtraArgs:
    """Chain the parts of a local step that come after the loss gradient."""
    parts: list[optax.GradientTransformation] = [_before_optimizer(local, settings, scope_form)]
    if local.optimizer is None:
        parts.append(optax.sgd(settings.learning_rate, momentum=local.momentum or None))
    else:
        parts.append(_given_what_it_takes(local.optimizer(settings.learning_rate)))
    if scope_form is not None and scope_form.form == "proximal":
        parts.append(
            proximal_scope(
                settings.learning_rate,
                settings.strength,
                select=scope_form.select,
                scale=scope_form.scale,
            )
        )
    return optax.with_extra_args_support(optax.chain(*parts))


def _given_what_it_takes(
    made: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """The optimiser, given the extra arguments that it names alone: SAM takes no others."""
    parameters = inspect.signature(made.update).parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    names = {parameter.name for parameter in parameters}

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        given = {name: value for name, value in extra.items() if takes_all or name in names}
        return made.update(updates, state, params, **given)

    return optax.GradientTransformationExtraArgs(made.init, update)


def _before_optimizer(
    local: LocalSettings, settings: RoundSettings, scope_form: ScopeForm | None
) -> optax.GradientTransformationExtraArgs:
    """Chain what makes of a loss gradient the gradient that the optimiser is given."""
    parts: list[optax.GradientTransformation] = []
    if scope_form is not None and scope_form.form == "gradient":
        parts.append(
            regularize_scope(
                settings.strength,
                select=scope_form.select,
                scale=scope_form.scale,
                direction=scope_form.direction,
            )
        )
    if local.clip_norm is not None:
        parts.append(clip_gradient(local.clip_norm))
    parts.append(optax.add_decayed_weights(local.weight_decay))
    return optax.with_extra_args_support(optax.chain(*parts))
