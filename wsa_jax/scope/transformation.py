"""What the forms of weight scope regularization share: scale, target, optax transformation."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from wsa_jax.door import door
from wsa_jax.leaves import is_traced
from wsa_jax.scope.layers import Rule, constant_layers, rule_name, select_layers
from wsa_jax.scope.scope import STD_FLOOR, WeightScope

Scale = Literal["sum", "size"]
"""How divergences are combined: ``"sum"`` (the paper's) or ``"size"``, each times its layer's n."""


class RegularizeScopeState(NamedTuple):
    """Number of updates made so far, for schedules of strength."""

    count: Array


def layer_weights(sizes: tuple[int, ...], scale: str) -> Float[Array, " layers"]:
    """Return the factor of each layer's divergence: 1 (``"sum"``) or its size (``"size"``).

    >>> layer_weights((4, 9), "size").tolist()
    [4.0, 9.0]
    """
    if scale == "sum":
        return jnp.ones(len(sizes), jnp.float32)
    if scale == "size":
        return jnp.asarray(sizes, jnp.float32)
    raise ValueError(f"scale {scale!r} is unknown; give 'sum' (the paper's) or 'size'")


def held_layers(target: WeightScope, scale: str) -> Float[Array, " layers"]:
    """`layer_weights`, but 0 for layers whose target is constant: they have no scope to hold to.

    >>> std = jnp.array([0.0, 1.0])
    >>> target = WeightScope(mean=jnp.zeros(2), std=std, names=("a", "b"), sizes=(3, 4))
    >>> held_layers(target, "sum").tolist()
    [0.0, 1.0]
    """
    return jnp.where(target.std > STD_FLOOR, layer_weights(target.sizes, scale), 0.0)


def check_target(target: WeightScope, select: Rule, what: str = "the target") -> None:
    """Raise a ValueError that names the constant layers of a known scope, such as a target.

    Towards a std of 0 the pull on a weight has no bound: a bias that starts at 0 would be thrown
    off by its first gradient.

    >>> from wsa_jax import matrices
    >>> zero = jnp.zeros(1)
    >>> check_target(WeightScope(mean=zero, std=zero, names=("b",), sizes=(3,)), matrices)
    Traceback (most recent call last):
    ValueError: b of the target is constant and has no weight scope; give select=without(matri...
    """
    if is_traced(target):
        return
    constant = (np.asarray(target.std) <= STD_FLOOR).reshape(-1, len(target.names)).any(axis=0)
    names = [name for name, flag in zip(target.names, np.atleast_1d(constant), strict=True) if flag]
    _refuse(names, f"of {what} ", select)


def check_start(params: PyTree, select: Rule) -> None:
    """Raise a ValueError that names the constant layers of known parameters, where training begins.

    >>> from wsa_jax import matrices
    >>> check_start({"w": jnp.zeros((2, 2))}, matrices)
    Traceback (most recent call last):
    ValueError: w is constant and has no weight scope; give select=without(matrices, ('w',))
    """
    if not is_traced(params):
        _refuse(list(constant_layers(params, select)), "", select)


def _refuse(names: list[str], where: str, select: Rule) -> None:
    if names:
        one = len(names) == 1
        leaves = tuple(dict.fromkeys(name.split("[")[0] for name in names))
        raise ValueError(
            f"{', '.join(names)} {where}{'is' if one else 'are'} constant and "
            f"{'has' if one else 'have'} no weight scope; give "
            f"select=without({rule_name(select)}, {leaves})"
        )


def map_updates(fun: Callable[..., Array], updates: PyTree, *others: PyTree) -> PyTree:
    """`jax.tree.map` over updates, keeping those that are None, as optax does.

    >>> map_updates(jnp.add, {"a": 1.0, "b": None}, {"a": 2.0, "b": 3.0})["b"] is None
    True
    """
    return jax.tree.map(
        lambda update, *rest: None if update is None else fun(update, *rest),
        updates,
        *others,
        is_leaf=lambda leaf: leaf is None,
    )


def targeted_transformation(
    name: str,
    change: Callable[[PyTree, Array, PyTree, WeightScope], PyTree],
    select: Rule,
    target: WeightScope | None = None,
    check: Callable[[PyTree, Rule], None] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Make an optax transformation from ``change(updates, count, params, target) -> updates``.

    Raises:
      ValueError: an update lacks params, or lacks a target where none was given here; the target
        has constant layers; or, in ``init``, the rule selects none of the parameters.

    >>> from wsa_jax import kernels
    >>> transform = targeted_transformation("keep", lambda u, count, params, target: u, kernels)
    >>> int(transform.init({"kernel": jnp.eye(2)}).count)
    0
    """
    # A target given here is checked once; one that comes with an update, at each.
    given = target
    if target is not None:
        check_target(target, select)

    # A rule that selects nothing is refused before training, not at its first step.
    def init(params: PyTree) -> RegularizeScopeState:
        select_layers(params, select)
        if check is not None:
            check(params, select)
        return RegularizeScopeState(count=jnp.zeros((), jnp.int32))

    @door
    def update(
        updates: PyTree,
        state: Any,
        params: PyTree | None = None,
        *,
        target: WeightScope | None = None,
        **extra: object,
    ) -> tuple[PyTree, RegularizeScopeState]:
        del extra
        target = given if target is None else target
        if params is None or target is None:
            missing = "params" if params is None else "target"
            way = "" if params is None else f", or give target to {name}"
            raise ValueError(
                f"{name} got no {missing}: call update(updates, state, params, target=scope){way}"
            )
        if target is not given:
            check_target(target, select)
        # The count saturates: at its largest integer a schedule must not start again.
        updates = change(updates, state.count, params, target)
        return updates, RegularizeScopeState(count=jnp.asarray(optax.safe_increment(state.count)))

    return optax.GradientTransformationExtraArgs(init, update)
