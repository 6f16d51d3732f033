"""The loop shared by NP Merge, joint NP Merge and fine-tuning: gradient steps on a few examples."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Integer, Key, PyTree, Real

from wsa_jax.merging.combine.examples import check_examples
from wsa_jax.merging.result import MergeResult
from wsa_jax.scope.regularization import check_strength, value_at
from wsa_jax.tree import is_weight

LossFn = Callable[[Array, PyTree, PyTree, PyTree], tuple[Array, PyTree]]
"""``(key, params, model_state, batch) -> (mean loss, model_state)``, as `training.Task.loss`."""

Repair = Callable[[PyTree, PyTree], PyTree]
"""``(params, model_state) -> model_state``: re-estimates statistics of the merged model."""

Optimizer = optax.GradientTransformation | Callable[..., optax.GradientTransformation]

LearningRate = Real[ArrayLike, ""] | Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True)
class LearningSettings:
    """Static settings of learning on a few examples; a different value compiles again.

    Attributes:
      steps: number of gradient steps.
      batch_size: examples per step, drawn without replacement in each epoch.
      optimizer: a function of the learning rate such as ``optax.adam``, so that a sweep over rates
        shares one compilation; or an optax transformation as it is, which leaves the rate unused.
        It may take ``value``, ``grad`` and ``value_fn`` of the batch (Polyak steps, line searches).
      eval_every: steps between two evaluations on the held-out examples.
      compute_dtype: dtype in which the loss gets the parameters (and ``classification`` the
        images); what is learnt keeps its own.
      batch_sharding: sharding of each batch's leading axis over devices, or None.
    """

    steps: int
    batch_size: int = 50
    optimizer: Optimizer = optax.adam
    eval_every: int = 10
    compute_dtype: Any = None
    batch_sharding: jax.sharding.Sharding | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LearningState:
    """What the next step needs: pass it back to continue, bitwise as if there had been no break.

    Attributes:
      step: steps taken so far.
      variables: what is learnt, by key path of the leaf: logits of coefficients, or weights.
      opt_state: state of the optimiser.
      model_state: non-parameter collections, as updated in training mode.
      best_variables: those of the lowest held-out loss, or batch loss if nothing is held out.
      best_model_state: the collections that belong to ``best_variables``.
      best_loss: the loss of ``best_variables``.
      best_step: the step at which ``best_variables`` were found.
      diverged_step: the first step whose loss was not finite, or -1 if there is none.
    """

    step: Integer[Array, "*merges"]
    variables: dict[str, Array]
    opt_state: PyTree
    model_state: PyTree
    best_variables: dict[str, Array]
    best_model_state: PyTree
    best_loss: Float[Array, "*merges"]
    best_step: Integer[Array, "*merges"]
    diverged_step: Integer[Array, "*merges"]


class Form(NamedTuple):
    """What is learnt: how variables and frozen models give parameters, and a penalty on them.

    Attributes:
      combine: ``(variables, models) -> params``.
      penalty: ``(variables, params, reference, strengths) -> scalar``, or None.
      shares: ``variables -> coefficients`` for ``info["coefficients"]``, or None.
    """

    combine: Callable[[dict[str, Array], tuple[PyTree, ...]], PyTree]
    penalty: Callable[[dict[str, Array], PyTree, PyTree, Any], Array] | None = None
    shares: Callable[[dict[str, Array]], dict[str, Array]] | None = None


def learn(
    key: Key[Array, ""],
    loss_fn: LossFn,
    form: Form,
    variables: dict[str, Array],
    models: tuple[PyTree, ...],
    examples: PyTree,
    *,
    settings: LearningSettings,
    learning_rate: LearningRate,
    model_state: PyTree,
    held_out: PyTree | None,
    reference: PyTree,
    strengths: Any,
    repair: Repair | None,
    state: LearningState | None,
) -> MergeResult:
    """Learn variables by gradient steps in one `lax.scan` and return the model they make.

    The public functions of this folder document the arguments; ``info`` is described in `np_merge`.

    >>> def loss_fn(key, params, model_state, batch):
    ...     return jnp.mean((params["w"] - batch) ** 2), model_state
    >>> form = Form(combine=lambda variables, models: variables)
    >>> result = learn(
    ...     jax.random.key(0), loss_fn, form, {"w": jnp.zeros(())}, (), jnp.ones(4),
    ...     settings=LearningSettings(steps=50, batch_size=2), learning_rate=0.1, model_state={},
    ...     held_out=None, reference=None, strengths=None, repair=None, state=None,
    ... )
    >>> round(float(result.params["w"]), 1)
    1.0
    """
    _check_settings(settings)
    check_examples(examples, settings.batch_size)
    if held_out is not None:
        check_examples(held_out, 1, "held_out")
    check_strength(learning_rate, "learning_rate")
    schedule = learning_rate if callable(learning_rate) else None
    rate = jnp.float32(0.0 if callable(learning_rate) else learning_rate)
    if state is None:
        first = rate if schedule is None else value_at(schedule, jnp.int32(0))
        collections = {} if model_state is None else model_state
        state = _first_state(variables, collections, first, settings)
    run = _jitted_run(loss_fn, form, settings, schedule)
    examples, held_out = jax.tree.map(jnp.asarray, (examples, held_out))
    state, params, model_state, info = run(
        key, state, models, examples, held_out, rate, reference, strengths
    )
    if repair is not None:
        model_state = repair(params, model_state)
    return MergeResult(params, model_state, info | {"state": state})


def _check_settings(settings: LearningSettings) -> None:
    for name in ("steps", "eval_every"):
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} {getattr(settings, name)} is below 1; give at least 1")


@functools.partial(jax.jit, static_argnames="settings")
def _first_state(
    variables: dict[str, Array], model_state: PyTree, rate: Any, settings: LearningSettings
) -> LearningState:
    # Copies, since the state's buffers are donated: no array of the caller may be among them,
    # and none may occur twice.
    def copy(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)

    def integer(value: int) -> Array:
        return jnp.full((), value, jnp.int32)

    return LearningState(
        step=integer(0),
        variables=copy(variables),
        opt_state=copy(_optimizer(settings, rate).init(variables)),
        model_state=copy(model_state),
        best_variables=copy(variables),
        best_model_state=copy(model_state),
        best_loss=jnp.full((), jnp.inf, jnp.float32),
        best_step=integer(0),
        diverged_step=integer(-1),
    )


def _optimizer(settings: LearningSettings, rate: Any) -> optax.GradientTransformationExtraArgs:
    made: Any = settings.optimizer
    return optax.with_extra_args_support(made(rate) if callable(made) else made)


@functools.lru_cache(maxsize=32)
def _jitted_run(
    loss_fn: LossFn, form: Form, settings: LearningSettings, schedule: Callable | None
) -> Callable[..., tuple[LearningState, PyTree, PyTree, dict[str, Any]]]:
    def compute(params: PyTree) -> PyTree:
        if settings.compute_dtype is None:
            return params
        return jax.tree.map(
            lambda x: x.astype(settings.compute_dtype) if is_weight(x) else x, params
        )

    @functools.partial(jax.jit, donate_argnums=1)
    def run(
        key: Array,
        state: LearningState,
        models: tuple[PyTree, ...],
        examples: PyTree,
        held_out: PyTree | None,
        rate: Array,
        reference: PyTree,
        strengths: Any,
    ) -> tuple[LearningState, PyTree, PyTree, dict[str, Any]]:
        order_key, loss_key, held_out_key = jax.random.split(key, 3)
        count, batch_size = jax.tree.leaves(examples)[0].shape[0], settings.batch_size
        per_epoch = count // batch_size

        def shuffled(step: Array) -> Array:
            return jax.random.permutation(jax.random.fold_in(order_key, step // per_epoch), count)

        def rows(data: PyTree, indices: Array) -> PyTree:
            batch = jax.tree.map(lambda leaf: leaf[indices], data)
            if settings.batch_sharding is None:
                return batch
            return jax.lax.with_sharding_constraint(batch, settings.batch_sharding)

        def objective(
            variables: dict[str, Array], key: Array, model_state: PyTree, batch: PyTree
        ) -> tuple[Array, tuple[Array, PyTree]]:
            params = form.combine(variables, models)
            loss, new_state = loss_fn(key, compute(params), model_state, batch)
            loss = loss.astype(jnp.float32)
            total = loss
            if form.penalty is not None:
                total = loss + form.penalty(variables, params, reference, strengths)
            return total, (loss, _like(new_state, model_state))

        def held_out_loss(variables: dict[str, Array], model_state: PyTree) -> Array:
            params = compute(form.combine(variables, models))
            held = jax.tree.leaves(held_out)[0].shape[0]
            # Sizes differ by at most one: a small last batch would have unusual batch statistics.
            batches = -(-held // batch_size)
            size, larger = divmod(held, batches)

            def add(size: int, total: Array, start: Array) -> tuple[Array, None]:
                batch = rows(held_out, start + jnp.arange(size))
                key = jax.random.fold_in(held_out_key, start)
                loss, _ = loss_fn(key, params, model_state, batch)
                return total + loss.astype(jnp.float32) * (size / held), None

            boundary, total = (batches - larger) * size, jnp.float32(0.0)
            for first, stop, step in ((0, boundary, size), (boundary, held, size + 1)):
                if first < stop:
                    starts = jnp.arange(first, stop, step)
                    total, _ = jax.lax.scan(functools.partial(add, step), total, starts)
            return total

        def step(carry: tuple, since: Array) -> tuple[tuple, tuple[Array, Array]]:
            state, order = carry
            index = state.step
            position = index % per_epoch
            # A resumed run may begin anywhere in an epoch, so its first step draws the order again.
            fresh = (position == 0) | (since == 0)
            order = jax.lax.cond(fresh, shuffled, lambda _: order, index)
            batch = rows(
                examples, jax.lax.dynamic_slice_in_dim(order, position * batch_size, batch_size)
            )
            value_of = functools.partial(
                objective,
                key=jax.random.fold_in(loss_key, index),
                model_state=state.model_state,
                batch=batch,
            )
            (total, (loss, model_state)), grads = jax.value_and_grad(value_of, has_aux=True)(
                state.variables
            )
            score, finite = total, jnp.isfinite(total)
            if held_out is not None:
                looks = index % settings.eval_every == 0
                score = jax.lax.cond(
                    looks,
                    lambda: held_out_loss(state.variables, model_state),
                    lambda: jnp.float32(jnp.nan),
                )
                # Except the NaN that stands for no evaluation.
                finite &= ~looks | jnp.isfinite(score)
            failed = (state.diverged_step < 0) & ~finite
            diverged_step = jnp.where(failed, index, state.diverged_step)
            diverged = diverged_step >= 0
            better = ~diverged & (score < state.best_loss)
            now = rate if schedule is None else value_at(schedule, index)
            updates, opt_state = _optimizer(settings, now).update(
                grads, state.opt_state, state.variables,
                value=total, grad=grads, value_fn=lambda variables: value_of(variables)[0],
            )  # fmt: skip
            moved: Any = optax.apply_updates(state.variables, updates)
            # Infinite logits are shares of 0 and 1, which stay; weight decay would make them NaN.
            variables = jax.tree.map(
                lambda new, old: jnp.where(jnp.isinf(old), old, new), moved, state.variables
            )
            new = LearningState(
                step=index + 1,
                # Never used after a divergence; keeping the old ones would slow every step.
                variables=variables,
                opt_state=opt_state,
                model_state=model_state,
                best_variables=_select(better, state.variables, state.best_variables),
                best_model_state=_select(better, model_state, state.best_model_state),
                best_loss=jnp.where(better, score, state.best_loss),
                best_step=jnp.where(better, index, state.best_step),
                diverged_step=diverged_step,
            )
            return (new, order), (jnp.where(diverged, jnp.nan, loss), score)

        carry = (state, jnp.arange(count))
        (state, _), (losses, scores) = jax.lax.scan(step, carry, jnp.arange(settings.steps))

        params = form.combine(state.variables, models)
        failed = (state.diverged_step < 0) & ~_all_finite((params, state.model_state))
        diverged_step = jnp.where(failed, state.step, state.diverged_step)
        diverged: Bool[Array, ""] = diverged_step >= 0
        last = ~diverged
        info: dict[str, Any] = {"loss": losses}
        if held_out is not None:
            score = held_out_loss(state.variables, state.model_state)
            last &= score < state.best_loss
            info["held_out_loss"] = jnp.append(scores, score)
        chosen = _select(last, state.variables, state.best_variables)
        params = form.combine(chosen, models)
        model_state = _select(last, state.model_state, state.best_model_state)
        info |= {
            "best_step": jnp.where(last, state.step, state.best_step),
            "diverged": diverged,
            "diverged_step": diverged_step,
        }
        if form.shares is not None:
            info["coefficients"] = form.shares(chosen)
        return state, params, model_state, info

    return run


def _select(condition: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _like(new: PyTree, old: PyTree) -> PyTree:
    """Cast to the old dtypes: a loss in half precision may return others, which a scan refuses."""
    return jax.tree.map(lambda a, b: jnp.asarray(a, jnp.asarray(b).dtype), new, old)


def _all_finite(tree: PyTree) -> Array:
    checks = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree) if is_weight(leaf)]
    return jnp.all(jnp.stack(checks)) if checks else jnp.bool_(True)
