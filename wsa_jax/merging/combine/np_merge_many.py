"""NP Merge of any number of models: pair by pair, or all at once by softmax coefficients."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Unpack, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Key, PyTree, Real

from wsa_jax import checks
from wsa_jax.door import door
from wsa_jax.merging.combine.coefficients import (
    Coefficients,
    coefficient_shapes,
    mixture,
)
from wsa_jax.merging.combine.examples import check_learnable
from wsa_jax.merging.combine.gradient_steps import learn
from wsa_jax.merging.combine.learning import (
    Learning,
    LearningSettings,
    LearningState,
    LossFn,
    Objective,
    Repair,
)
from wsa_jax.merging.combine.np_merge import merge_pair
from wsa_jax.merging.combine.penalties import (
    NO_PENALTY,
    EarlierKeywords,
    Strengths,
    learning_from,
    penalise,
)
from wsa_jax.merging.result import MergeResult
from wsa_jax.tree import at_least_one, shares
from wsa_jax.types import Json, LearningRate

Order = Literal["given", "accuracy", "tree"]


class _Node(NamedTuple):
    """A model or a merge of models: how many went into it, and the position of the first."""

    params: PyTree
    model_state: PyTree
    count: int
    position: int


@door
def np_merge_many(
    key: Key[Array, ""],
    loss_fn: LossFn,
    models: PyTree,
    examples: PyTree,
    *,
    settings: LearningSettings,
    order: str = "given",
    scores: Sequence[float] | Real[ArrayLike, " models"] | None = None,
    learning_rate: LearningRate = 0.1,
    strengths: Strengths = NO_PENALTY,
    model_state: PyTree = None,
    held_out: PyTree | None = None,
    repair: Repair | None = None,
    **earlier: Unpack[EarlierKeywords],
) -> MergeResult:
    r"""Merge n models by `np_merge` of two at a time, n - 1 times.

    .. math:: M_1 = W_1, \qquad M_{i+1} = \mathrm{NP}(M_i, W_{i+1}) \text{ from } a_0 =
              \operatorname{logit} \tfrac{i}{i + 1}

    Each merge begins at the plain average of all models that went into it, draws from a key of its
    own and passes its model state on; ``repair`` is applied to the last one only. Beside the
    arguments of `np_merge` it takes

      order: ``"given"``; ``"accuracy"``, the highest score first; or ``"tree"``, neighbours in
        pairs, then their merges in pairs, and so on.
      scores: scores of the models, for ``order="accuracy"``: accuracies on non-test examples.

    Returns:
      The merged model; ``info`` holds ``order``, the positions of models in the order used;
      ``merges``, for each merge the positions of the first model on either side; and lists, with
      one entry per merge, of `np_merge`'s ``loss``, ``coefficients``, ``best_step``, ``diverged``,
      ``diverged_step`` and, where examples are held out, ``held_out_loss``.

    Guarantees: time is linear in the number of models, and one compilation serves all merges.
    Besides the models, memory holds one merge (``"tree"``: half as many as there are models) and
    the coefficients of each. A stack of models is split first, and so copied.

    Edge cases: one model is returned as it is, and ``info`` has only ``order`` and ``merges``. A
    merge that diverges gives its best so far.

    Raises:
      ValueError: no models, an unknown order, scores that are missing or of the wrong number, or
        as for `np_merge`.

    >>> def loss_fn(key, params, model_state, batch):
    ...     return jnp.mean((params["w"][None] - batch) ** 2), model_state
    >>> models = [{"w": jnp.array([value, 0.0])} for value in (0.0, 3.0, 6.0)]
    >>> settings = LearningSettings(steps=1, batch_size=2)
    >>> result = np_merge_many(
    ...     jax.random.key(0), loss_fn, models, jnp.array([[3.0, 0.0]] * 2), settings=settings,
    ...     order="accuracy", scores=[0.1, 0.3, 0.2], learning_rate=0.0,
    ... )
    >>> result.params["w"].tolist(), result.info["merges"]
    ([3.0, 0.0], [(1, 2), (1, 0)])

    Source: NP Merge (see `np_merge`) merges many models by successive pairwise merges; the orders
    are ours.
    """
    models = _checked(models)
    positions = merge_order(order, scores, len(models))
    learning, strengths = learning_from(
        settings,
        strengths,
        earlier,
        loss_fn=loss_fn,
        examples=examples,
        learning_rate=learning_rate,
        model_state=model_state,
        held_out=held_out,
        repair=None,
    )
    return merge_pairs(key, learning, models, positions, order == "tree", strengths, repair)


def merge_pairs(
    key: Key[Array, ""],
    learning: Learning,
    models: Sequence[PyTree],
    positions: list[int],
    tree: bool,
    strengths: Strengths,
    repair: Repair | None,
) -> MergeResult:
    """Merge models that are known to be learnable, as `np_merge_many` does.

    Args:
      key: each merge folds its number into it.
      learning: of each merge, without its repair.
      models: the models.
      positions: the order in which they are merged.
      tree: whether neighbours are merged in pairs, or each with all before it.
      strengths: strengths of the penalties.
      repair: applied to the last merge.
    """
    histories: list[Json] = []
    merges: list[tuple[int, int]] = []

    def merge(first: _Node, second: _Node) -> _Node:
        count = first.count + second.count
        result = merge_pair(
            jax.random.fold_in(key, len(merges)),
            dataclasses.replace(learning, model_state=first.model_state),
            first.params,
            second.params,
            np.float32(first.count / count),
            strengths,
        )
        # Without the state, which would keep every merge's optimiser state in memory.
        histories.append({k: v for k, v in result.info.items() if k != "state"})
        merges.append((first.position, second.position))
        return _Node(result.params, result.model_state, count, first.position)

    nodes = [_Node(models[p], learning.model_state, 1, p) for p in positions]
    while len(nodes) > 1:
        if tree:
            pairs = zip(nodes[::2], nodes[1::2], strict=False)
            odd = nodes[-1:] if len(nodes) % 2 else []
            nodes = [merge(*pair) for pair in pairs] + odd
        else:
            nodes = [merge(nodes[0], nodes[1]), *nodes[2:]]

    # What is true of the last merge only: the statistics; and one list for each diagnostic.
    (node,) = nodes
    state = {} if node.model_state is None else node.model_state
    if repair is not None:
        state = repair(node.params, state)
    names = histories[0] if histories else ()
    info: Json = {name: [history[name] for history in histories] for name in names}
    return MergeResult(node.params, state, info | {"order": positions, "merges": merges})


@door
def np_merge_joint(
    key: Key[Array, ""],
    loss_fn: LossFn,
    models: PyTree,
    examples: PyTree,
    *,
    settings: LearningSettings,
    learning_rate: LearningRate = 0.1,
    init: Sequence[float] | Real[ArrayLike, " models"] | None = None,
    strengths: Strengths = NO_PENALTY,
    model_state: PyTree = None,
    held_out: PyTree | None = None,
    repair: Repair | None = None,
    state: LearningState | None = None,
    **earlier: Unpack[EarlierKeywords],
) -> MergeResult:
    r"""Merge all models at once with learned shares that sum to 1 at each parameter.

    .. math:: W = \sum_m p_m \odot W_m, \qquad p = \operatorname{softmax}_m(a)

    Beside the arguments of `np_merge` it takes

      init: share of each model at the start, normalised here; equal shares if None.

    Penalties measure the scope from that fused of all models. A stack of models is split first, and
    so copied.

    Returns:
      The merged model; ``info`` as in `np_merge`, but ``coefficients`` are the shares
      ``[models, ...]`` of each leaf.

    Guarantees: bitwise a model whose share is 1; the gradient is 0 where all models agree. With
    two models, it learns what `np_merge` does, at a different pace: shares depend on a difference
    of logits. Memory holds the models, as many logits, the best logits and the optimiser state, but
    no stack of the models.

    Edge cases and errors: as in `np_merge`; a model whose initial share is 0 stays out.

    >>> def loss_fn(key, params, model_state, batch):
    ...     return jnp.mean((params["w"][None] - batch) ** 2), model_state
    >>> models = [{"w": jnp.array([value, 0.0])} for value in (0.0, 3.0, 6.0)]
    >>> result = np_merge_joint(
    ...     jax.random.key(0), loss_fn, models, jnp.array([[0.0, 0.0]] * 2),
    ...     settings=LearningSettings(steps=100, batch_size=2), learning_rate=0.3,
    ... )
    >>> result.info["coefficients"]["w"][:, 0].round(2).tolist()
    [1.0, 0.0, 0.0]

    Source: ours, after `np_merge`.
    """
    models = _checked(models)
    init = np.ones(len(models)) if init is None else init
    if np.shape(init) != (len(models),):
        raise ValueError(
            f"init of shape {np.shape(init)} for {len(models)} models; give one share per model"
        )
    checks.shares(init, "init")
    learning, strengths = learning_from(
        settings,
        strengths,
        earlier,
        loss_fn=loss_fn,
        examples=examples,
        learning_rate=learning_rate,
        model_state=model_state,
        held_out=held_out,
        repair=repair,
    )

    return merge_jointly(key, learning, models, init, strengths, state)


def merge_jointly(
    key: Key[Array, ""],
    learning: Learning,
    models: Sequence[PyTree],
    init: Any,
    strengths: Strengths,
    state: LearningState | None = None,
) -> MergeResult:
    """Merge models that are known to be learnable, as `np_merge_joint` does."""
    initial = jnp.asarray(shares(init), jnp.float32)
    variables: Coefficients = {}
    center: dict[str, Array] = {}
    for name, shape in coefficient_shapes(models[0], learning.settings.granularity).items():
        center[name] = initial.reshape(-1, *(1,) * len(shape))
        variables[name] = jnp.broadcast_to(jnp.log(center[name]), (len(models), *shape))
    penalty, penalty_inputs = penalise(strengths, models, center, joint=True)
    return learn(
        key,
        learning,
        Objective(mixture, penalty, _shares),
        variables,
        tuple(models),
        penalty_inputs=penalty_inputs,
        state=state,
    )


def _shares(logits: Coefficients) -> Coefficients:
    return {name: jax.nn.softmax(logit, axis=0) for name, logit in logits.items()}


def _checked(models: PyTree) -> list[PyTree]:
    models = at_least_one(models)
    check_learnable(models)
    return models


def merge_order(order: str, scores: Any, count: int) -> list[int]:
    """Return the positions of models in the order in which they are merged.

    Raises:
      ValueError: the order is unknown, or scores are missing or of the wrong number.

    >>> merge_order("accuracy", [0.1, 0.3, 0.2], 3)
    [1, 2, 0]
    """
    if order not in get_args(Order):
        known = ", ".join(repr(name) for name in get_args(Order))
        raise ValueError(f"order {order!r} is unknown; give one of {known}")
    if order != "accuracy":
        return list(range(count))
    if scores is None or np.shape(scores) != (count,):
        given = "none" if scores is None else f"of shape {np.shape(scores)}"
        raise ValueError(f"order 'accuracy' needs a score for each of {count} models, got {given}")
    # Stable, so that equal scores keep the order given.
    return np.argsort(-np.asarray(scores, np.float64), kind="stable").tolist()
