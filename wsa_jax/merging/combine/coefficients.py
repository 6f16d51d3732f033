"""Coefficients that mix models leaf by leaf: their shapes, the mixtures, and penalties on them.

Coefficients are dictionaries keyed by the leaf's key path, ``{"Conv_0/kernel": Array, ...}``, so
leaves that are not learnt have none. Their arrays broadcast against the leaf.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree, Real

from wsa_jax.merging.result import check_real
from wsa_jax.tree import is_weight, key_path
from wsa_jax.types import Leaf

CoefficientGranularity = Literal["parameter", "channel", "layer", "scalar"]
"""One coefficient per weight (the paper's), per index of a leaf's last axis, per leaf, or one for
the whole model."""

Coefficients = dict[str, Array]

_EVERY_LEAF = "all"
# exp(-30) is far below the resolution of a float32 probability.
_LOG_FLOOR = -30.0


def weights_by_name(params: PyTree) -> dict[str, Leaf]:
    """Return the floating-point leaves of a model by key path.

    Raises:
      NotAdmittedError: a leaf is complex.
      ValueError: the model has none, or two leaves have the same key path.

    >>> list(weights_by_name({"dense": {"kernel": jnp.ones(2), "steps": jnp.arange(2)}}))
    ['dense/kernel']
    """
    check_real(params, "what is learnt")
    named: dict[str, Leaf] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = key_path(path)
        if name in named:
            raise ValueError(f"the model has two leaves named {name}; rename one of them")
        if is_weight(leaf):
            named[name] = leaf
    if not named:
        raise ValueError("the model has no floating-point leaf; give its parameters as arrays")
    return named


def replace_weights(params: PyTree, weights: dict[str, Array]) -> PyTree:
    """Return the model with its floating-point leaves taken from a dictionary by key path.

    >>> replace_weights({"w": jnp.zeros(()), "steps": 3}, {"w": jnp.ones(())})
    {'steps': 3, 'w': Array(1., dtype=float32)}
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: weights[key_path(path)] if is_weight(leaf) else leaf, params
    )


def check_granularity(granularity: str) -> None:
    """Raise a ValueError unless the granularity is known.

    >>> check_granularity("row")
    Traceback (most recent call last):
    ValueError: granularity 'row' is unknown; give one of 'parameter', 'channel', 'layer', 'scalar'
    """
    if granularity not in get_args(CoefficientGranularity):
        known = ", ".join(repr(name) for name in get_args(CoefficientGranularity))
        raise ValueError(f"granularity {granularity!r} is unknown; give one of {known}")


def coefficient_shapes(params: PyTree, granularity: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of each leaf's coefficients; ``"scalar"`` has one for all leaves.

    Raises:
      ValueError: the granularity is unknown, or the model has no floating-point leaf.

    >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
    >>> coefficient_shapes(params, "channel")
    {'bias': (2,), 'kernel': (1, 2)}
    >>> coefficient_shapes(params, "layer"), coefficient_shapes(params, "scalar")
    ({'bias': (), 'kernel': ()}, {'all': ()})
    """
    check_granularity(granularity)
    weights = weights_by_name(params)
    if granularity == "scalar":
        return {_EVERY_LEAF: ()}
    if granularity == "layer":
        return dict.fromkeys(weights, ())
    if granularity == "parameter":
        return {name: leaf.shape for name, leaf in weights.items()}
    return {
        name: (1,) * (leaf.ndim - 1) + leaf.shape[-1:] if leaf.ndim else ()
        for name, leaf in weights.items()
    }


def interpolate(logits: Coefficients, models: Sequence[PyTree]) -> PyTree:
    r"""Mix two models by ``s = sigmoid(a)``, elementwise, ``B + s (A - B)``.

    .. math:: W = \begin{cases} A - (1 - s) (A - B) & s > \tfrac12 \\
                                B + s (A - B) & \text{otherwise} \end{cases}

    Guarantees: bitwise A at a = +inf and B at -inf (finite weights), and A where A = B; there the
    gradient is exactly 0. Computed in at least float32 and returned in the dtypes of A, whose
    leaves that are not floating-point arrays are kept.

    >>> models = {"w": jnp.array([1.0, 1.0])}, {"w": jnp.array([3.0, 3.0])}
    >>> interpolate({"w": jnp.array([jnp.inf, 0.0])}, models)["w"].tolist()
    [1.0, 2.0]
    """
    first, second = models

    def mix(path: tuple, a: Leaf, b: Leaf) -> Leaf:
        if not is_weight(a):
            return a
        return _interpolate_leaf(of_leaf(logits, key_path(path)), a, b)

    return jax.tree_util.tree_map_with_path(mix, first, second)


def mixture(logits: Coefficients, models: Sequence[PyTree]) -> PyTree:
    r"""Mix any number of models by ``p = softmax(a)`` over the leading axis, elementwise.

    .. math:: W = R + \sum_m p_m (W_m - R), \qquad R = W_{\arg\max_m p_m}

    Guarantees: bitwise a model where its share is 1, and the common value where all agree; there
    the gradient is exactly 0. No stack of the models is made. Dtypes and other leaves are as in
    `interpolate`.

    >>> models = {"w": jnp.array(0.0)}, {"w": jnp.array(3.0)}, {"w": jnp.array(6.0)}
    >>> mixture({"w": jnp.zeros(3)}, models)["w"].item()
    3.0
    """

    def mix(path: tuple, *leaves: Leaf) -> Leaf:
        if not is_weight(leaves[0]):
            return leaves[0]
        return _mix_leaves(of_leaf(logits, key_path(path)), *leaves)

    return jax.tree_util.tree_map_with_path(mix, *models)


def log_shares(logits: Coefficients, *, joint: bool) -> Coefficients:
    """Return log-shares of the models, ``[models, ...]``, at least -30 so that all are finite.

    >>> log_shares({"w": jnp.array(-jnp.inf)}, joint=False)["w"].round().tolist()
    [-30.0, -0.0]
    """

    def of(logit: Array) -> Array:
        # Clipped before and not after: the gradient of log(0) would be 0 times infinity.
        if joint:
            logit = logit - jax.lax.stop_gradient(jnp.max(logit, axis=0, keepdims=True))
            return jax.nn.log_softmax(jnp.maximum(logit, _LOG_FLOOR), axis=0)
        logit = jnp.clip(logit, _LOG_FLOOR, -_LOG_FLOOR)
        return jnp.stack([jax.nn.log_sigmoid(logit), jax.nn.log_sigmoid(-logit)])

    return {name: of(logit) for name, logit in logits.items()}


def distance_penalty(logs: Coefficients, center: Coefficients) -> Float[Array, ""]:
    r"""Mean squared distance of the shares from their start; 1 from the average to a single model.

    .. math:: \frac{n}{n - 1} \operatorname{mean}_i \sum_m (p_{mi} - c_{mi})^2

    Args:
      logs: log-shares, as `log_shares` returns them.
      center: the shares at the start, ``[models, ...]``, in shapes that broadcast.

    >>> logs = {"w": jnp.log(jnp.array([0.75, 0.25]))}
    >>> round(float(distance_penalty(logs, {"w": jnp.array([0.5, 0.5])})), 4)
    0.25
    """
    models = next(iter(logs.values())).shape[0]
    squares = {name: jnp.square(jnp.exp(log) - center[name]) for name, log in logs.items()}
    return _sum_over_mean(squares) * (models / max(models - 1, 1))


def entropy_penalty(logs: Coefficients) -> Float[Array, ""]:
    """Mean entropy of the shares, in nats: small where each is close to 0 or 1.

    >>> round(float(entropy_penalty({"w": jnp.log(jnp.array([0.5, 0.5]))})), 4)
    0.6931
    """
    return _sum_over_mean({name: -jnp.exp(log) * log for name, log in logs.items()})


def check_share(init: Real[ArrayLike, "..."], what: str = "init") -> None:
    """Raise a ValueError where a concrete share is outside [0, 1].

    >>> check_share(1.5)
    Traceback (most recent call last):
    ValueError: init 1.5 is not a share in [0, 1]; ...
    """
    if isinstance(init, jax.core.Tracer):
        return
    values = np.asarray(init, np.float64).ravel()
    bad = values[~((values >= 0) & (values <= 1))]
    if bad.size:
        raise ValueError(f"{what} {bad[0]} is not a share in [0, 1]; 0.5 is the average")


# Recomputed in the backward pass: elementwise work is cheap, and its intermediate results would
# take twice the model's memory.
@jax.checkpoint
def _interpolate_leaf(logit: Array, a: Array, b: Array) -> Array:
    wide_a, wide_b = _wide(a), _wide(b)
    toward_first = logit > 0
    # The share of the farther model. Not sigmoid(-|a|): that has no gradient at a = 0.
    share = jax.nn.sigmoid(jnp.where(toward_first, -logit, logit))
    # Selected before subtracting: a - b and b - a do not change over the steps, so the compiler
    # would compute both once and keep them, two more copies of the model.
    near = jnp.where(toward_first, wide_a, wide_b)
    far = jnp.where(toward_first, wide_b, wide_a)
    return (near + share * (far - near)).astype(a.dtype)


@jax.checkpoint
def _mix_leaves(logits: Array, *leaves: Array) -> Array:
    shares = jax.nn.softmax(logits, axis=0)
    wide = [_wide(leaf) for leaf in leaves]
    reference, largest = wide[0], shares[0]
    for share, leaf in zip(shares[1:], wide[1:], strict=True):
        reference = jnp.where(share > largest, leaf, reference)
        largest = jnp.maximum(share, largest)
    terms = (share * (leaf - reference) for share, leaf in zip(shares, wide, strict=True))
    return (reference + sum(terms)).astype(leaves[0].dtype)


def _sum_over_mean(values: Coefficients) -> Array:
    """Sum over the leading axis, mean over all coefficients of all leaves."""
    count = sum(value[0].size for value in values.values())
    return sum((jnp.sum(value) for value in values.values()), jnp.float32(0.0)) / count


def of_leaf(coefficients: Coefficients, name: str) -> Array:
    """The coefficients of a leaf: its own, or those of the whole model.

    >>> of_leaf({"all": jnp.float32(0.5)}, "kernel").item()
    0.5
    """
    return coefficients[name] if name in coefficients else coefficients[_EVERY_LEAF]


def _wide(leaf: Leaf) -> Array:
    return jnp.asarray(leaf, jnp.promote_types(leaf.dtype, jnp.float32))
