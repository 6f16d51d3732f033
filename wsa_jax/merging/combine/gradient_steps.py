"""Gradient steps on a few examples, in one `lax.scan`: the loop of all learned merges."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Integer, Key, PyTree

from wsa_jax.door import taken_by
from wsa_jax.merging.combine.best_so_far import BestSoFar
from wsa_jax.merging.combine.learning import (
    Learning,
    LearningSettings,
    LearningState,
    LossFn,
    Objective,
)
from wsa_jax.merging.result import MergeResult
from wsa_jax.progress import pieces, progress_bar
from wsa_jax.schedules import value_at
from wsa_jax.tree import is_traced, is_weight
from wsa_jax.types import Json, Leaf


class _Method(NamedTuple):
    """The static part of a run: a different value compiles again."""

    loss_fn: LossFn
    objective: Objective
    settings: LearningSettings
    schedule: Callable[[Any], Any] | None


class _Keys(NamedTuple):
    """What each draw folds its own numbers into."""

    order: Key[Array, ""]
    loss: Key[Array, ""]
    held_out: Key[Array, ""]


class _Inputs(NamedTuple):
    """The traced part of a run that no step changes."""

    models: tuple[PyTree, ...]
    examples: PyTree
    held_out: PyTree | None
    rate: Float[Array, ""]
    penalty_inputs: PyTree
    keys: _Keys


def learn(
    key: Key[Array, ""],
    learning: Learning,
    objective: Objective,
    variables: dict[str, Leaf],
    models: tuple[PyTree, ...],
    *,
    penalty_inputs: PyTree = None,
    state: LearningState | None = None,
) -> MergeResult:
    """Learn variables by gradient steps and return the model they make.

    Args:
      key: draws the order of examples and the loss's own randomness.
      learning: what is learnt from, and how.
      objective: what is learnt.
      variables: their start, by key path of the leaf.
      models: what ``objective.combine`` gets beside the variables; they are not changed.
      penalty_inputs: what ``objective.penalty`` gets; arrays, traced.
      state: ``info["state"]`` of an earlier call, which is donated.

    Returns:
      The model; ``info`` is described in `np_merge`.

    >>> def loss_fn(key, params, model_state, batch):
    ...     return jnp.mean((params["w"] - batch) ** 2), model_state
    >>> learning = Learning(
    ...     loss_fn=loss_fn, examples=jnp.ones(4), learning_rate=0.1, model_state={},
    ...     settings=LearningSettings(steps=50, batch_size=2), held_out=None, repair=None,
    ... )
    >>> objective = Objective(combine=lambda variables, models: variables)
    >>> result = learn(jax.random.key(0), learning, objective, {"w": jnp.zeros(())}, ())
    >>> round(float(result.params["w"]), 1)
    1.0
    """
    settings, rate = learning.settings, learning.learning_rate
    # A number is traced, so a sweep over rates shares a compilation; a schedule is static.
    schedule = rate if callable(rate) else None
    rate = jnp.float32(0.0 if callable(rate) else rate)
    if state is None:
        first = rate if schedule is None else value_at(schedule, jnp.int32(0))
        model_state = {} if learning.model_state is None else learning.model_state
        state = _first_state(variables, model_state, first, settings)
    examples, held_out = jax.tree.map(jnp.asarray, (learning.examples, learning.held_out))
    shows = settings.progress and not is_traced((key, models))
    sizes = pieces(settings.steps) if shows else [settings.steps]
    taken = list[Any]()
    with progress_bar(shows, settings.steps, what="learning") as advance:
        for size in sizes:
            piece = dataclasses.replace(settings, steps=size, progress=False)
            given = key, state, models, examples, held_out, rate, penalty_inputs
            run = _jitted_run(
                _Method(learning.loss_fn, objective, piece, schedule), not is_traced(given)
            )
            with taken_by("loss_fn", "these models and examples"):
                state, *made = run(*given)
            taken.append(made)
            if shows:
                advance(size, f"learning, loss {float(made[-1]['loss'][-1]):.3g}")
    params, model_state, _ = taken[-1]
    info = _joined([info for _, _, info in taken])
    if learning.repair is not None:
        model_state = learning.repair(params, model_state)
    return MergeResult(params, model_state, info | {"state": state})


def _joined(infos: list[Json]) -> Json:
    """Diagnostics of pieces of a run, as if it had been run whole."""
    joined = infos[-1]
    if len(infos) == 1:
        return joined
    joined = joined | {"loss": jnp.concatenate([info["loss"] for info in infos])}
    if "held_out_loss" in joined:
        # What a piece ends with is no step of the whole, except at its end.
        scores = [info["held_out_loss"][:-1] for info in infos]
        scores.append(infos[-1]["held_out_loss"][-1:])
        joined["held_out_loss"] = jnp.concatenate(scores)
    return joined


@functools.partial(jax.jit, static_argnames="settings")
def _first_state(
    variables: dict[str, Array], model_state: PyTree, rate: Any, settings: LearningSettings
) -> LearningState:
    # Copies, since the state's buffers are donated: no array of the caller may be among them,
    # and none may occur twice.
    def copy(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)

    return LearningState(
        step=jnp.full((), 0, jnp.int32),
        variables=copy(variables),
        opt_state=copy(_optimizer(settings, rate).init(variables)),
        model_state=copy(model_state),
        best=BestSoFar.start(copy(variables), copy(model_state)),
    )


@functools.lru_cache(maxsize=32)
def _jitted_run(method: _Method, donate: bool) -> Callable[..., Any]:
    # Donated, so that the states of a run and of the one that continues it are one; not under a
    # trace, where a state that is not batched cannot become one that is, of which JAX warns.
    return jax.jit(functools.partial(_run, method), donate_argnums=1 if donate else ())


def _run(
    method: _Method, key: Key[Array, ""], state: LearningState, *arrays: Any
) -> tuple[LearningState, PyTree, PyTree, Json]:
    """Take all steps; return the state, the best model until then, and diagnostics."""
    inputs = _Inputs(*arrays, keys=_Keys(*jax.random.split(key, 3)))
    combine, shares = method.objective.combine, method.objective.shares
    count = _count(inputs.examples)
    (state, _), (losses, scores) = jax.lax.scan(
        functools.partial(_step, method, inputs),
        (state, jnp.arange(count)),
        jnp.arange(method.settings.steps),
    )
    info: Json = {"loss": losses}
    # What the last step led to is the last candidate, and wins where nothing is held out.
    finite = _all_finite((combine(state.variables, inputs.models), state.model_state))
    score = jnp.float32(-jnp.inf)
    if inputs.held_out is not None:
        score = _held_out_loss(method, inputs, state.variables, state.model_state)
        finite &= jnp.isfinite(score)
        info["held_out_loss"] = jnp.append(scores, score)
    best = state.best.seen(state.step, score, state.variables, state.model_state, finite=finite)
    info |= {
        "best_step": best.step,
        "diverged": best.diverged,
        "diverged_step": best.diverged_step,
    }
    if shares is not None:
        info["coefficients"] = shares(best.variables)
    return state, combine(best.variables, inputs.models), best.model_state, info


def _step(
    method: _Method, inputs: _Inputs, carry: tuple[LearningState, Array], since: Array
) -> tuple[tuple[LearningState, Array], tuple[Array, Array]]:
    """One gradient step; its loss, and the score of the variables before it."""
    state, order = carry
    order, batch = _next_batch(method, inputs, order, state.step, since)
    value_of = functools.partial(
        _loss,
        method,
        inputs,
        key=jax.random.fold_in(inputs.keys.loss, state.step),
        model_state=state.model_state,
        batch=batch,
    )
    (total, (loss, model_state)), grads = jax.value_and_grad(value_of, has_aux=True)(
        state.variables
    )

    # Before the step moves them: the start is a candidate, too.
    score, finite = total, jnp.isfinite(total)
    if inputs.held_out is not None:
        looks = state.step % method.settings.eval_every == 0
        score = jax.lax.cond(
            looks,
            lambda: _held_out_loss(method, inputs, state.variables, model_state),
            lambda: jnp.float32(jnp.nan),
        )
        # Except the NaN that stands for no evaluation.
        finite &= ~looks | jnp.isfinite(score)
    best = state.best.seen(state.step, score, state.variables, model_state, finite=finite)

    schedule = method.schedule
    rate = inputs.rate if schedule is None else value_at(schedule, state.step)
    updates, opt_state = _optimizer(method.settings, rate).update(
        grads,
        state.opt_state,
        state.variables,
        value=total,
        grad=grads,
        value_fn=lambda variables: value_of(variables)[0],
    )
    moved: Any = optax.apply_updates(state.variables, updates)
    # Infinite logits are shares of 0 and 1, which stay; weight decay would make them NaN.
    variables = jax.tree.map(
        lambda new, old: jnp.where(jnp.isinf(old), old, new), moved, state.variables
    )
    # Never used after a divergence; keeping the old ones would slow every step.
    new = LearningState(
        step=state.step + 1,
        variables=variables,
        opt_state=opt_state,
        model_state=model_state,
        best=best,
    )
    return (new, order), (jnp.where(best.diverged, jnp.nan, loss), score)


def _next_batch(
    method: _Method, inputs: _Inputs, order: Integer[Array, " examples"], step: Array, since: Array
) -> tuple[Integer[Array, " examples"], PyTree]:
    """The epoch's order of examples, and the step's batch."""
    count, batch_size = _count(inputs.examples), method.settings.batch_size
    per_epoch = count // batch_size
    position = step % per_epoch

    def shuffled(step: Array) -> Array:
        key = jax.random.fold_in(inputs.keys.order, step // per_epoch)
        return jax.random.permutation(key, count)

    # A resumed run may begin anywhere in an epoch, so its first step draws the order again.
    fresh = (position == 0) | (since == 0)
    order = jax.lax.cond(fresh, shuffled, lambda _: order, step)
    indices = jax.lax.dynamic_slice_in_dim(order, position * batch_size, batch_size)
    return order, _rows(method, inputs.examples, indices)


def _loss(
    method: _Method,
    inputs: _Inputs,
    variables: dict[str, Array],
    *,
    key: Key[Array, ""],
    model_state: PyTree,
    batch: PyTree,
) -> tuple[Array, tuple[Array, PyTree]]:
    """A batch's loss with the penalty, then without it, and the state it leaves."""
    params = method.objective.combine(variables, inputs.models)
    loss, new_state = method.loss_fn(key, _computed(method, params), model_state, batch)
    loss = loss.astype(jnp.float32)
    total = loss
    if method.objective.penalty is not None:
        total = loss + method.objective.penalty(variables, params, inputs.penalty_inputs)
    return total, (loss, _like(new_state, model_state))


def _held_out_loss(
    method: _Method, inputs: _Inputs, variables: dict[str, Array], model_state: PyTree
) -> Float[Array, ""]:
    """The mean loss over all held-out examples, in batches of bounded memory."""
    params = _computed(method, method.objective.combine(variables, inputs.models))
    held = _count(inputs.held_out)
    # Sizes differ by at most one: a small last batch would have unusual batch statistics.
    batches = -(-held // method.settings.batch_size)
    size, larger = divmod(held, batches)

    def add(size: int, total: Array, start: Array) -> tuple[Array, None]:
        batch = _rows(method, inputs.held_out, start + jnp.arange(size))
        key = jax.random.fold_in(inputs.keys.held_out, start)
        loss, _ = method.loss_fn(key, params, model_state, batch)
        return total + loss.astype(jnp.float32) * (size / held), None

    boundary, total = (batches - larger) * size, jnp.float32(0.0)
    for first, stop, step in ((0, boundary, size), (boundary, held, size + 1)):
        if first < stop:
            starts = jnp.arange(first, stop, step)
            total, _ = jax.lax.scan(functools.partial(add, step), total, starts)
    return total


def _rows(method: _Method, data: PyTree, indices: Array) -> PyTree:
    batch = jax.tree.map(lambda leaf: leaf[indices], data)
    sharding = method.settings.batch_sharding
    return batch if sharding is None else jax.lax.with_sharding_constraint(batch, sharding)


def _computed(method: _Method, params: PyTree) -> PyTree:
    """The parameters in the dtype that the loss computes in."""
    dtype = method.settings.compute_dtype
    if dtype is None:
        return params
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if is_weight(leaf) else leaf, params)


def _optimizer(settings: LearningSettings, rate: Any) -> optax.GradientTransformationExtraArgs:
    made: Any = settings.optimizer
    return optax.with_extra_args_support(made(rate) if callable(made) else made)


def _count(examples: PyTree) -> int:
    return jax.tree.leaves(examples)[0].shape[0]


def _like(new: PyTree, old: PyTree) -> PyTree:
    """Cast to the old dtypes: a loss in half precision may return others, which a scan refuses."""
    return jax.tree.map(lambda a, b: jnp.asarray(a, jnp.asarray(b).dtype), new, old)


def _all_finite(tree: PyTree) -> Bool[Array, ""]:
    checks = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree) if is_weight(leaf)]
    return jnp.all(jnp.stack(checks)) if checks else jnp.bool_(True)
