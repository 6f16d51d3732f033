"""Which leaves of a model are layers: rules over key paths, evaluated once, outside of jit.

A *rule* is any function ``rule(name, leaf) -> bool``, where ``name`` is the leaf's key path joined
by slashes (``Conv_0/kernel``). A rule sees shapes and dtypes only, so selection is static and the
same for traced and concrete parameters.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from wsa_jax.door import door
from wsa_jax.leaves import is_weight, key_path
from wsa_jax.reductions import wide
from wsa_jax.types import Leaf

Rule = Callable[[str, Any], bool]

_KERNEL_NAMES = frozenset({"kernel", "weight", "w", "embedding"})
# Stacked biases and (heads, dim) attention biases have two axes but are not kernels, and
# neither are class tokens: the rule looks at the last name of the path, not at the rank alone.


class Layer(NamedTuple):
    """One selected layer: its name, the index of its leaf, and where it lies inside that leaf."""

    name: str
    leaf: int
    size: int
    axis: int | None = None
    position: int | None = None


def kernels(name: str, leaf: Leaf) -> bool:
    """Select leaves named kernel, weight, w or embedding with at least two axes (the default).

    The name is what follows the last slash or dot of the key path, since flat dictionaries, as
    PyTorch's, write ``layers.0.weight``.

    Kernels of other names (``weight_ih`` of Equinox's recurrent cells, ``W1``) are not found: check
    ``weight_scope(params).names``, and give `matrices` or `matching` if some are missing.

    >>> kernels("Dense_0/kernel", jnp.ones((3, 2))), kernels("Dense_0/bias", jnp.ones(2))
    (True, False)
    """
    return re.split(r"[/.]", name)[-1] in _KERNEL_NAMES and leaf.ndim >= 2


def all_leaves(name: str, leaf: Leaf) -> bool:
    """Select every floating-point leaf, biases and norms included.

    Small leaves make explicit regularization stiff: see `wsa_jax.check_stability`.

    >>> all_leaves("Dense_0/bias", jnp.ones(2))
    True
    """
    del name, leaf
    return True


def matrices(name: str, leaf: Leaf) -> bool:
    """Select floating-point leaves with at least two axes, whatever their names.

    >>> matrices("cell/weight_ih", jnp.ones((3, 2))), matrices("cell/bias", jnp.ones(2))
    (True, False)
    """
    del name
    return leaf.ndim >= 2


@door
def matching(pattern: str) -> Rule:
    r"""Return the rule that selects leaves whose whole key path matches a regular expression.

    Raises:
      ValueError: the pattern is not a valid regular expression.

    >>> matching(r".*Conv_\d/(kernel|bias)")("Conv_0/bias", jnp.ones(2))
    True
    """
    return _Matching(_compiled(pattern))


@door
def without(rule: Rule, names: tuple[str, ...]) -> Rule:
    """Return ``rule`` without the leaves at the given key paths.

    A path that a model does not have is an error where the rule is used (`select_layers`): under
    ``optax.masked`` do not name leaves that are masked out.

    >>> without(all_leaves, ("bias",))("bias", jnp.ones(2))
    False
    """
    return _Without(rule, frozenset(names))


@door
def stacked(rule: Rule, pattern: str, *, axis: int = 0) -> Rule:
    """Declare that leaves matching ``pattern`` stack several layers along ``axis``.

    Scanned blocks (``nn.scan``, ``jax.lax.scan`` over layers) keep the kernels of all blocks in one
    leaf; each slice along ``axis`` is a layer of its own. A pattern that matches no leaf is an
    error where the rule is used (`select_layers`).

    Raises:
      ValueError: the pattern is not a valid regular expression.

    >>> rule = stacked(kernels, r"blocks/.*", axis=0)
    >>> [layer.name for layer in select_layers({"blocks": {"kernel": jnp.ones((2, 3, 3))}}, rule)]
    ['blocks/kernel[0]', 'blocks/kernel[1]']
    """
    return _Stacked(rule, _compiled(pattern), axis)


def select_layers(params: PyTree, select: Rule = kernels) -> tuple[Layer, ...]:
    """List the layers of a model that a rule selects, in the order of the tree's leaves.

    Args:
      params: any pytree of arrays; leaves that are not floating-point arrays are never layers.
      select: a rule ``(name, leaf) -> bool``.

    Returns:
      The layers, with the index of each one's leaf in ``jax.tree.leaves(params)``.

    Raises:
      ValueError: the rule selects nothing, or names a leaf that does not exist; the message lists
        the leaves that do.

    >>> select_layers({"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}})
    (Layer(name='dense/kernel', leaf=1, size=6, axis=None, position=None),)
    """
    named = [(key_path(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
    missing = _ask(select, "unmet", {name for name, _ in named})
    if missing:
        raise ValueError(
            f"{missing} of the model; its leaves are {', '.join(name for name, _ in named)}"
        )
    layers: list[Layer] = []
    for index, (name, leaf) in enumerate(named):
        if is_weight(leaf) and leaf.size and select(name, leaf):
            layers.extend(_layers_of(name, index, leaf, select))
    if not layers:
        leaves = ", ".join(f"{name}{list(getattr(leaf, 'shape', ()))}" for name, leaf in named)
        raise ValueError(
            f"the rule {rule_name(select)} selects none of the {len(named)} leaves "
            f"({leaves or 'an empty tree'}); "
            "pass select=all_leaves, matching(pattern) or a predicate"
        )
    return tuple(layers)


def map_layers(
    fun: Callable[..., Array],
    params: PyTree,
    layers: tuple[Layer, ...],
    vectors: tuple[Any, ...],
    *,
    other: Callable[[Any], Any],
) -> PyTree:
    """Apply ``fun(leaf, *values of its layer)`` to selected leaves and ``other`` to the rest.

    Args:
      fun: gets the leaf in at least float32 and, for each vector, its layer's value, ready to
        broadcast.
      params: any pytree of arrays.
      layers: result of `select_layers` on the same tree.
      vectors: each holds one number per layer, ``[layers]``.
      other: applied to array leaves that are not layers.

    Returns:
      The structure and dtypes of params.

    >>> params = {"bias": jnp.ones(1), "kernel": jnp.eye(2)}
    >>> layers = select_layers(params)
    >>> map_layers(jnp.multiply, params, layers, (jnp.array([3.0]),), other=jnp.zeros_like)
    {'bias': Array([0.], dtype=float32), 'kernel': Array([[3., 0.],
       [0., 3.]], dtype=float32)}
    """
    leaves, structure = jax.tree.flatten(params)
    mapped = [other(leaf) if hasattr(leaf, "dtype") else leaf for leaf in leaves]
    first = {}
    for position, layer in enumerate(layers):
        first.setdefault(layer.leaf, (position, layer.axis))
    for leaf, (position, axis) in first.items():
        weight = jnp.asarray(leaves[leaf])
        if axis is None:
            values = [vector[position] for vector in vectors]
        else:
            count = weight.shape[axis]
            shape = tuple(count if i == axis else 1 for i in range(weight.ndim))
            values = [vector[position : position + count].reshape(shape) for vector in vectors]
        mapped[leaf] = fun(wide(weight), *values).astype(weight.dtype)
    return jax.tree.unflatten(structure, mapped)


@door
def constant_layers(params: PyTree, select: Rule = kernels) -> tuple[str, ...]:
    """Name the selected leaves whose values are all equal (std 0): they have no Gaussian scope.

    A host function: it needs concrete values. Drop the leaves it lists with `without`.

    >>> constant_layers({"kernel": jnp.ones((3, 2)), "w": jnp.eye(2)})
    ('kernel',)
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    chosen = sorted({layer.leaf for layer in select_layers(params, select)})
    return tuple(
        key_path(leaves[i][0]) for i in chosen if np.ptp(np.asarray(leaves[i][1], np.float64)) == 0
    )


def rule_name(rule: Rule) -> str:
    """A rule as it is written in code.

    >>> rule_name(without(matching("a|b"), ("b",)))
    "without(matching('a|b'), ('b',))"
    """
    return getattr(rule, "__name__", None) or repr(rule)


class _Matching(NamedTuple):
    pattern: re.Pattern[str]

    def __repr__(self) -> str:
        return f"matching({self.pattern.pattern!r})"

    def __call__(self, name: str, leaf: Leaf) -> bool:
        del leaf
        return self.pattern.fullmatch(name) is not None


class _Without(NamedTuple):
    rule: Rule
    names: frozenset[str]

    def __repr__(self) -> str:
        return f"without({rule_name(self.rule)}, {tuple(sorted(self.names))})"

    def __call__(self, name: str, leaf: Leaf) -> bool:
        return name not in self.names and self.rule(name, leaf)

    def unmet(self, leaves: set[str]) -> str | None:
        missing = sorted(self.names - leaves)
        if missing:
            return f"without names {missing[0]}, which is not a leaf"
        return _ask(self.rule, "unmet", leaves)

    def layer_axis(self, name: str) -> int | None:
        return _ask(self.rule, "layer_axis", name)


class _Stacked(NamedTuple):
    rule: Rule
    pattern: re.Pattern[str]
    axis: int

    def __repr__(self) -> str:
        return f"stacked({rule_name(self.rule)}, {self.pattern.pattern!r}, axis={self.axis})"

    def __call__(self, name: str, leaf: Leaf) -> bool:
        return self.rule(name, leaf)

    def unmet(self, leaves: set[str]) -> str | None:
        if not any(self.pattern.fullmatch(name) for name in leaves):
            return f"stacked has pattern {self.pattern.pattern!r}, which matches no leaf"
        return _ask(self.rule, "unmet", leaves)

    def layer_axis(self, name: str) -> int | None:
        if self.pattern.fullmatch(name):
            return self.axis
        return _ask(self.rule, "layer_axis", name)


def _ask(rule: Rule, question: str, subject: Any) -> Any:
    """What a rule says of more than whether a leaf is a layer; None from a plain predicate."""
    method = getattr(rule, question, None)
    return method(subject) if method else None


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is not a regular expression: {error}") from error


def _layers_of(name: str, index: int, leaf: Leaf, select: Rule) -> list[Layer]:
    axis = _ask(select, "layer_axis", name)
    if axis is None:
        return [Layer(name, index, int(leaf.size))]
    if not -leaf.ndim <= axis < leaf.ndim:
        raise ValueError(
            f"layer axis {axis} of leaf {name} is outside its shape {tuple(leaf.shape)}"
        )
    count = leaf.shape[axis]
    return [
        Layer(f"{name}[{i}]", index, int(leaf.size) // count, axis % leaf.ndim, i)
        for i in range(count)
    ]
