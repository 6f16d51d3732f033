"""Train one model, or many at once, for a task of `wsa_jax.training.task`."""

import contextlib
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Integer, Key, PyTree, Real, Shaped

from wsa_jax import checks
from wsa_jax.door import check_fields, door
from wsa_jax.progress import progress_bar
from wsa_jax.reductions import clip_gradient
from wsa_jax.runs.described import task_settings
from wsa_jax.runs.identity import digest
from wsa_jax.runs.run_directory import RunDirectory
from wsa_jax.schedules import check_non_negative
from wsa_jax.scope.layers import Rule, kernels
from wsa_jax.scope.regularization import regularize_scope
from wsa_jax.scope.scope import (
    Direction,
    WeightScope,
    check_one_model,
    is_paper_direction,
    weight_scope,
)
from wsa_jax.scope.stability import check_bound
from wsa_jax.scope.transformation import check_target
from wsa_jax.training.checks import check_data, check_statistics
from wsa_jax.training.fit_directory import fit_identity
from wsa_jax.training.task import Batch, Task, take
from wsa_jax.types import Inputs

_NOT_TRACED = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """Static settings of `fit`: steps, examples per step, clipping, decay and WSA's own.

    ``select`` and ``direction`` are those of `wsa_jax.scope_penalty`: its layers, and which way
    round its divergence is.
    """

    steps: int
    batch_size: int = 50
    momentum: float | int = 0.9
    weight_decay: float | int = 0.0
    clip_norm: float | int | None = None
    select: Rule = kernels
    direction: Direction = "weights||target"

    def __post_init__(self):
        checks.sgd_settings(self)
        check_fields(self)
        is_paper_direction(self.direction)


class Running(TypedDict, total=False):
    """How `fit` runs and what it keeps; nothing here changes a result beyond rounding.

    That is so with JAX's default keys: those of ``rbg`` and ``unsafe_rbg`` draw other numbers under
    `jax.vmap`, so for models that are trained at once.

    Attributes:
      directory: where checkpoints go; a run found there is resumed, or returned if finished.
      checkpoint_every: steps between checkpoints, by default a tenth of the run; the last step
        always has one. Ignored without a directory.
      map_models: train a stack one model after another (True, the default on the CPU) or at once
        (False, elsewhere).
      progress: show a progress bar of the steps.
    """

    directory: str | os.PathLike[str] | None
    checkpoint_every: int | None
    map_models: bool | None
    progress: bool


class FitResult(NamedTuple):
    """A trained model, or a stack of them, and the loss of each step, ``[..., steps]``."""

    params: PyTree
    model_state: PyTree
    loss: Float[Array, "*models steps"]


@door
def fit(
    key: Key[Array, "*models"],
    task: Task,
    inputs: Inputs,
    labels: Shaped[Array | np.ndarray, "examples ..."],
    *,
    settings: FitSettings,
    learning_rate: Real[ArrayLike, ""] | optax.Schedule = 0.1,
    target: WeightScope | None = None,
    strength: Real[ArrayLike, ""] | optax.Schedule = 0.0,
    params: PyTree | None = None,
    model_state: PyTree | None = None,
    **running: Unpack[Running],
) -> FitResult:
    """Train one model, or a stack of models from a stack of keys, by SGD with momentum.

    Each epoch goes through whole batches of the data in a fresh order: a final incomplete batch is
    skipped, and the next epoch reshuffles all examples. With a target, weight scope
    regularization of the given strength acts on the gradient, before clipping and decay.

    Args:
      key: one key, or keys ``[models]``: each draws its own initial weights and data order.
      task: what is trained, for example `classification`.
      inputs: ``[examples, ...]``, or a pytree of such arrays; shared by all models.
      labels: ``[examples]``, or ``[examples, ...]`` where each example has several.
      settings: static settings; changing one compiles again.
      learning_rate: a number or an optax schedule of the step, warm-up and decay included.
      target: weight scope that all models are held to, ``[layers]``.
      strength: strength of the regularization, a number or a schedule of the step
        (`scope_window`); ignored without a target.
      params: start from these instead of initial weights; ``[models, ...]`` with a stack of keys.
      model_state: start from this instead of the initial one; stacked like params.
      running: how it runs and what it keeps: ``directory``, ``checkpoint_every``, ``map_models``,
        ``progress``; see `Running`.

    Guarantees: equal keys give bitwise equal results; so does a run that is saved, or killed at any
    moment and started again. One compilation serves all segments of a run.

    Raises:
      ValueError: no examples, fewer examples than a batch, images and labels of unequal number, a
        label outside the model's classes, a strength or learning rate that is negative or is no
        single number at a step, a target of several models, regularization outside its stability
        bound, parameters of another architecture, with NaN, of integers or without their
        statistics, legacy keys (`jax.random.PRNGKey`) or keys of more axes, or a directory that
        holds another run.
      CheckpointError: a file of the directory is torn or cannot be written, or another process uses
        the directory.
    """
    # Whatever can be wrong is refused before anything is compiled.
    checks.key(key)
    if key.ndim > 1:
        raise ValueError(f"key has shape {key.shape}; give one key, or keys [models]")
    directory, save_every, map_models = _checked_running(running)
    count, steps = len(labels), settings.steps
    if not 0 < settings.batch_size <= count:
        raise ValueError(
            f"batch_size {settings.batch_size} does not fit {count} examples; "
            "give 1 <= batch_size <= the number of examples"
        )
    rates = _values(learning_rate, steps, "learning_rate")
    strengths = _values(strength, steps, "strength")
    if target is not None:
        check_one_model(target)
    shapes = jax.eval_shape(jax.vmap(task.init) if key.ndim else task.init, key)
    _check_initial(params, model_state, shapes)
    one_params, one_state = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[key.ndim :], leaf.dtype), shapes
    )
    check_data(task, one_params, one_state, {"the training data": (inputs, labels)})

    # Only the initial weights say whether explicit regularization is stable.
    start, advance = _jitted_fit(task, settings, key.ndim > 0, map_models)
    state = start(key, params, model_state, target, count)
    if target is not None:
        scope = _scopes(state.params, select=settings.select, many=key.ndim > 0)
        if strengths.any():
            check_target(target, settings.select)
            check_target(scope, settings.select, "the initial model")
        check_bound(scope, target, rates, strengths, direction=settings.direction)

    # A run is cut into segments only where it is kept or shown: one executable serves them all.
    kept: contextlib.AbstractContextManager[RunDirectory | None] = contextlib.nullcontext()
    if directory is not None:
        # A number reads better in a refusal than the digest of a schedule.
        recorded = digest(strengths) if callable(strength) else strength
        initial, data = (state.params, state.model_state), (inputs, labels)
        identity = fit_identity(
            key, task_settings(task), settings, rates, target, recorded, initial, data
        )
        kept = RunDirectory(directory, identity, total=steps, unit="step", keeps_rows=False)
    shows, segment = running.get("progress", False), steps
    if directory is not None or shows:
        segment = (save_every if directory is not None else None) or -(-steps // 10)
    arrays = jax.tree.map(jnp.asarray, inputs), jnp.asarray(labels)
    with contextlib.ExitStack() as opened:
        run = opened.enter_context(kept)
        done, state, _ = (0, state, ()) if run is None else run.resume(state)
        tell = opened.enter_context(progress_bar(shows, steps, done=done, what="steps"))
        while done < steps:
            stop = min((done // segment + 1) * segment, steps)
            state = advance(key, state, *arrays, rates, done, stop, target, strengths)
            if run is not None:
                run.save(stop, state)
            if shows:
                jax.block_until_ready(state.loss)
            tell(stop - done)
            done = stop
    return FitResult(state.params, state.model_state, state.loss)


def _checked_running(running: Running) -> tuple[Any, int | None, bool]:
    """The directory, the steps between checkpoints, and whether models run one by one."""
    save_every = running.get("checkpoint_every")
    if save_every is not None and save_every < 1:
        raise ValueError(f"checkpoint_every {save_every} is not positive; give at least 1")
    map_models = running.get("map_models")
    if map_models is None:
        map_models = jax.default_backend() == "cpu"
    return running.get("directory"), save_every, map_models


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class _FitState:
    """Everything the next step needs; keys are derived from the run's key and the step."""

    params: PyTree
    model_state: PyTree
    optimizer: PyTree
    order: Integer[Array, "*models examples"]
    loss: Float[Array, "*models steps"]


class _Compiled(NamedTuple):
    start: Callable[..., _FitState]
    advance: Callable[..., _FitState]


@functools.lru_cache(maxsize=16)
def _jitted_fit(task: Task, settings: FitSettings, many: bool, map_models: bool) -> _Compiled:
    start = functools.partial(_start, task, settings)
    advance = functools.partial(_advance, task, settings)
    if not many:
        return _Compiled(jax.jit(start, static_argnums=4), jax.jit(advance))

    def start_all(
        key: Array, params: PyTree, model_state: PyTree, target: WeightScope | None, count: int
    ) -> _FitState:
        one = functools.partial(start, target=target, count=count)
        return jax.vmap(one)(key, params, model_state)

    def advance_all(key: Array, state: _FitState, *shared: Any) -> _FitState:
        def one(model: tuple[Array, _FitState]) -> _FitState:
            return advance(*model, *shared)

        return jax.lax.map(one, (key, state)) if map_models else jax.vmap(one)((key, state))

    return _Compiled(jax.jit(start_all, static_argnums=4), jax.jit(advance_all))


def _start(
    task: Task,
    settings: FitSettings,
    key: Array,
    params: PyTree | None,
    model_state: PyTree | None,
    target: WeightScope | None,
    count: int,
) -> _FitState:
    drawn = task.init(jax.random.split(key, 3)[0])
    params = drawn[0] if params is None else jax.tree.map(jnp.asarray, params)
    return _FitState(
        params=params,
        model_state=drawn[1] if model_state is None else jax.tree.map(jnp.asarray, model_state),
        optimizer=_optimizer(settings, 0.0, 0.0, target).init(params),
        order=jnp.arange(count),
        loss=jnp.zeros(settings.steps),
    )


def _advance(
    task: Task,
    settings: FitSettings,
    key: Array,
    state: _FitState,
    inputs: Inputs,
    labels: Array,
    rates: Array,
    start: Array,
    stop: Array,
    target: WeightScope | None,
    strengths: Array,
) -> _FitState:
    """Run steps start to stop - 1; both are traced, so one executable serves every range."""
    _, order_key, loss_key = jax.random.split(key, 3)
    count, batch_size = labels.shape[0], settings.batch_size
    per_epoch = count // batch_size
    mask = jnp.ones(batch_size)

    def step(index: Array, state: _FitState) -> _FitState:
        position = index % per_epoch
        order = jax.lax.cond(
            position == 0,
            lambda: jax.random.permutation(jax.random.fold_in(order_key, index), count),
            lambda: state.order,
        )
        rows = jax.lax.dynamic_slice_in_dim(order, position * batch_size, batch_size)
        batch = Batch(take(inputs, rows), labels[rows], mask)
        grad_fn = jax.value_and_grad(task.loss, argnums=1, has_aux=True)
        (loss, model_state), grads = grad_fn(
            jax.random.fold_in(loss_key, index), state.params, state.model_state, batch
        )
        chain = _optimizer(settings, rates[index], strengths[index], target)
        updates, optimizer = chain.update(grads, state.optimizer, state.params, target=target)
        return _FitState(
            params=optax.apply_updates(state.params, updates),
            model_state=model_state,
            optimizer=optimizer,
            order=order,
            loss=state.loss.at[index].set(loss),
        )

    return jax.lax.fori_loop(start, stop, step, state)


@functools.partial(jax.jit, static_argnames=("select", "many"))
def _scopes(params: PyTree, *, select: Rule, many: bool) -> WeightScope:
    """Of one model, or of each; compiled whole, since each operation alone is a program as well."""
    of_one = functools.partial(weight_scope, select=select)
    return (jax.vmap(of_one) if many else of_one)(params)


def _optimizer(
    settings: FitSettings, rate: Array | float, strength: Array | float, target: Any
) -> optax.GradientTransformationExtraArgs:
    parts: list[Any] = (
        []
        if target is None
        else [regularize_scope(strength, select=settings.select, direction=settings.direction)]
    )
    if settings.clip_norm is not None:
        parts.append(clip_gradient(settings.clip_norm))
    parts += [
        optax.add_decayed_weights(settings.weight_decay),
        optax.sgd(rate, momentum=settings.momentum),
    ]
    return optax.with_extra_args_support(optax.chain(*parts))


def _values(value: Any, steps: int, name: str) -> np.ndarray:
    """A non-negative number or schedule at every step."""
    if not callable(value):
        values = np.full((steps, *np.shape(value)), value, np.float32)
    else:
        try:
            values = np.asarray(jax.jit(jax.vmap(value))(jnp.arange(steps)))
        except _NOT_TRACED:
            # A schedule with an `if`, a list or NumPy takes one plain number at a time.
            values = [value(index) for index in range(steps)]
    for index, one in enumerate(values):
        if np.ndim(one):
            raise ValueError(
                f"{name} of step {index} is an array of shape {np.shape(one)}; give one number"
            )
    array = np.asarray(values, np.float32)
    check_non_negative(array, name)
    return array


def _check_initial(params: PyTree, model_state: PyTree, shapes: tuple[PyTree, PyTree]) -> None:
    checks.floating(shapes[0] if params is None else params)
    check_statistics(params, model_state, shapes[1])
    for given, like, name in zip(
        (params, model_state), shapes, ("params", "model_state"), strict=True
    ):
        if given is not None:
            checks.same_structure(given, like)
            checks.finite(given, name)
